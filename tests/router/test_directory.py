"""The directory: what is remembered, who is behind, how a node gets its ownership."""

import asyncio
from pathlib import Path

import pytest

from chroma_router.v1 import shard_pb2, types_pb2
from chroma_router.wire.errors import (
    InternalFailure,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Reason,
    Stale,
    Unavailable,
)
from chroma_router.wire.slots import slots_from_bitmap
from router import fences
from router.directory import definition_of
from tests.router.catalog.helpers import new
from tests.router.scripted import Reads, away, rig, wait_for

pytestmark = pytest.mark.timeout(15)


async def test_by_id_from_memory_by_name_from_the_catalog(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        by_id, by_name = (
            types_pb2.CollectionRef(id=entry.id),
            types_pb2.CollectionRef(name="papers"),
        )
        changed = await router.catalog.update_collection(entry, metadata={"a": 1})
        assert await router.directory.resolve(by_id) == entry
        assert await router.directory.resolve(by_name) == changed
        assert await router.directory.resolve(by_id) == changed, "what is newer is remembered"
        assert router.directory.remember(entry) == changed, "what is older is not"
        with pytest.raises(InvalidRequest, match="neither id nor name"):
            await router.directory.resolve(types_pb2.CollectionRef())


async def test_a_collection_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        doomed = await router.catalog.begin_delete(entry.id)
        await router.catalog.finish_delete(doomed.id)
        with pytest.raises(NotFound):
            await router.directory.refresh(entry.id)
        with pytest.raises(NotFound):
            await router.directory.resolve(types_pb2.CollectionRef(id=entry.id))


async def test_whoever_meets_a_collection_first_has_it_described(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        raw, _ = await router.catalog.create_collection(new(shards=tuple(router.shards)), False)
        router.shards["shard-1"].then("Hello", away())
        entry = await router.directory.refresh(raw.id)
        assert "described" in entry.configuration_json
        assert entry.version == raw.version + 1
        assert await router.catalog.collection(raw.id) == entry
        sent = len(router.shards["shard-2"].requests("SetOwnership"))
        await router.directory.refresh(raw.id)
        assert len(router.shards["shard-2"].requests("SetOwnership")) == sent


async def test_a_slot_map_that_changes_meanwhile_keeps_nothing_undescribed(tmp_path: Path) -> None:
    """Such as when a dead shard is given up while a collection is being made on it."""
    async with rig(tmp_path) as router:
        raw, _ = await router.catalog.create_collection(new(shards=tuple(router.shards)), False)

        async def given_up(_request: object) -> None:
            await router.catalog.remove_lost_shard("shard-2")

        router.shards["shard-1"].then("SetOwnership", given_up)
        entry = await router.directory.refresh(raw.id)
        assert "described" in entry.configuration_json
        assert entry.slot_map.shards == ("shard-1",)
        assert await router.catalog.collection(raw.id) == entry


async def test_a_collection_that_no_shard_describes(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        raw, _ = await router.catalog.create_collection(new(shards=tuple(router.shards)), False)
        for shard in router.shards.values():
            shard.then("Hello", away())
        with pytest.raises(Unavailable) as failed:
            await router.directory.refresh(raw.id)
        assert failed.value.retry_after
        router.shards["shard-2"].then("SetOwnership", InvalidRequest("no such space"))
        with pytest.raises(InvalidRequest, match="no such space"):
            await router.directory.refresh(raw.id)


async def test_a_collection_that_its_shards_dropped_meanwhile(tmp_path: Path) -> None:
    """Not "no shard answers", at which a client would wait and ask again."""
    async with rig(tmp_path) as router:
        raw, _ = await router.catalog.create_collection(new(shards=tuple(router.shards)), False)
        for shard in router.shards.values():
            shard.then("SetOwnership", NotFound("scripted: dropped"))
        with pytest.raises(NotFound, match="dropped") as gone:
            await router.directory.refresh(raw.id)
        assert gone.value.reason is Reason.COLLECTION_NOT_FOUND, "get_or_create begins anew"


async def test_a_node_that_is_behind_is_given_what_the_catalog_holds(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        node = router.shards["shard-1"]
        node.restart()
        again = await router.directory.reconcile(entry, _stale_of("shard-1", 0))
        assert again == entry
        request = node.requests("SetOwnership")[-1]
        assert request.boot_id == node.boot_id
        assert request.definition == definition_of(entry)
        assert slots_from_bitmap(request.owned_slots) == entry.slot_map.slots_of("shard-1")


async def test_the_boot_id_is_learnt_before_the_catalog_is_read(tmp_path: Path) -> None:
    """What another router changes after the Hello is in the ownership that follows it."""
    async with rig(tmp_path) as router:
        entry = await router.collection()
        node = router.shards["shard-1"]
        node.restart()

        async def map_changes(_: object) -> None:
            await router.move(entry, to="shard-1")

        node.then("Hello", map_changes)
        again = await router.directory.reconcile(entry, _stale_of("shard-1", 0))
        request = node.requests("SetOwnership")[-1]
        assert request.definition.collection.epoch == again.slot_map.epoch == 2
        assert request.boot_id == node.boot_id
        assert [name for name, _ in node.seen][-2:] == ["Hello", "SetOwnership"]


async def test_a_router_that_is_behind_reads_and_tells_nobody(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        moved = await router.move(entry, to="shard-2")
        node = router.shards["shard-2"]
        sent = len(node.requests("SetOwnership"))
        assert await router.directory.reconcile(entry, _stale_of("shard-2", 2)) == moved
        assert len(node.requests("SetOwnership")) == sent


async def test_a_catalog_that_is_behind_a_node_is_not_served_from(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        with pytest.raises(NotAllowed, match="rebuild") as failed:
            await router.directory.reconcile(entry, _stale_of("shard-1", 5))
        assert failed.value.reason is Reason.CATALOG_BEHIND


async def test_many_calls_that_need_a_grant_share_one(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        node = router.shards["shard-1"]
        node.restart()
        node.forget_arrivals()
        sent, gate = len(node.requests("SetOwnership")), asyncio.Event()
        node.then("SetOwnership", wait_for(gate))
        calls = [
            asyncio.create_task(router.directory.reconcile(entry, _stale_of("shard-1", 0)))
            for _ in range(20)
        ]
        await node.arrival("SetOwnership")
        await router.catalog.revision()  # the others' reads stand before this one
        gate.set()
        assert set(await asyncio.gather(*(_id(call) for call in calls))) == {entry.id}
        assert len(node.requests("SetOwnership")) == sent + 1


async def test_a_grant_that_is_cancelled_frees_the_next(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        node = router.shards["shard-1"]
        node.restart()
        node.forget_arrivals()
        gate = asyncio.Event()
        node.then("SetOwnership", wait_for(gate))
        first = asyncio.create_task(router.directory.reconcile(entry, _stale_of("shard-1", 0)))
        await node.arrival("SetOwnership")
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await router.directory.reconcile(entry, _stale_of("shard-1", 0))
        assert node.epochs[entry.id] == 1
        gate.set()


async def test_a_push_reaches_who_is_there_and_hears_a_refusal(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        router.shards["shard-1"].then("SetOwnership", away())
        await router.directory.push(entry)
        router.shards["shard-2"].then("SetOwnership", InvalidRequest("no"))
        with pytest.raises(InvalidRequest):
            await router.directory.push(entry)


async def test_a_definition_that_a_node_refuses_is_not_the_callers_fault(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        node = router.shards["shard-1"]
        node.restart()
        node.then("SetOwnership", InvalidRequest("scripted: invalid value"))
        with pytest.raises(InternalFailure, match=r"shard-1 refuses .*invalid value"):
            await router.directory.reconcile(entry, _stale_of("shard-1", 0))


async def test_a_router_refuses_to_start_behind_a_node(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        node = router.shards["shard-1"]
        definition = definition_of(entry)
        holding = shard_pb2.ListHoldingsResponse(
            definition=definition, owned_slots=entry.slot_map.bitmap_of("shard-1")
        )
        node.holdings = [holding]
        await router.cluster.check_catalog()
        holding.definition.collection.epoch = 9
        with pytest.raises(NotAllowed, match="epoch 9") as failed:
            await router.cluster.check_catalog()
        assert failed.value.reason is Reason.CATALOG_BEHIND
        node.then("Hello", away())
        await router.cluster.check_catalog()  # a shard that is away is passed over


# ---------------------------------------------------------------- many are refused at a switch


async def test_what_another_call_has_read_already_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        moved = await router.move(entry, to="shard-2")
        router.directory.remember(moved)
        reads = Reads(router.catalog, monkeypatch)
        for shard, epoch in [("shard-2", 2), ("shard-1", 1), ("shard-1", 0)]:
            assert await router.directory.reconcile(entry, _stale_of(shard, epoch)) == moved
        assert reads.number == 0


async def test_what_is_known_is_read_again_for_a_node_that_is_ahead_of_it(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        router.directory.remember(await router.move(entry, to="shard-2"))
        newest = await router.move(entry, to="shard-1")
        assert await router.directory.reconcile(entry, _stale_of("shard-1", 3)) == newest
        with pytest.raises(NotAllowed) as failed:
            await router.directory.reconcile(entry, _stale_of("shard-1", 4))
        assert failed.value.reason is Reason.CATALOG_BEHIND


async def test_many_refused_calls_read_the_catalog_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        moved = await router.move(entry, to="shard-2")
        reads = Reads(router.catalog, monkeypatch)
        found = await asyncio.gather(
            *(router.directory.reconcile(entry, _stale_of("shard-2", 2)) for _ in range(256))
        )
        assert found == [moved] * 256
        assert reads.number <= 2


async def test_a_refresh_never_answers_with_what_was_read_before_it_was_asked_for(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        for _ in range(20):
            reading = [asyncio.create_task(router.directory.refresh(entry.id)) for _ in range(3)]
            await asyncio.sleep(0)
            entry = await router.catalog.update_collection(
                await router.catalog.collection(entry.id), metadata={"a": 1}
            )
            assert (await router.directory.refresh(entry.id)).version >= entry.version
            await asyncio.gather(*reading)


# --------------------------------------------------------------------------------------- fences


async def test_a_fenced_call_goes_on_when_this_router_remembers_the_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fences, "POLL_BASE", 5.0)
    monkeypatch.setattr(fences, "POLL_CAP", 0.2)
    monkeypatch.setattr(fences, "PATIENCE_BASE", 5.0)
    async with rig(tmp_path) as router:
        entry = await router.collection()
        fenced = [
            asyncio.create_task(router.directory.reconcile(entry, _fenced_by("shard-1")))
            for _ in range(256)
        ]
        await asyncio.sleep(0)
        moved = await router.move(entry, to="shard-2")
        reads = Reads(router.catalog, monkeypatch)
        began = asyncio.get_running_loop().time()
        router.directory.remember(moved)
        assert await asyncio.gather(*fenced) == [moved] * 256
        assert asyncio.get_running_loop().time() - began < 0.1
        assert reads.number == 0


async def test_a_fenced_call_goes_on_after_the_switch_of_another_router(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fences, "PATIENCE_BASE", 5.0)
    monkeypatch.setattr(fences, "PATIENCE_CAP", 5.0)
    async with rig(tmp_path) as router:
        entry = await router.collection()
        reads = Reads(router.catalog, monkeypatch)
        fenced = [
            asyncio.create_task(router.directory.reconcile(entry, _fenced_by("shard-1")))
            for _ in range(256)
        ]
        while reads.number < 3:  # noqa: ASYNC110 - the poll has no event for it
            await asyncio.sleep(0.001)
        moved = await router.move(entry, to="shard-2")  # reads it as well
        assert await asyncio.gather(*fenced) == [moved] * 256
        assert reads.number <= 10


async def test_a_fence_that_was_lifted_lets_calls_go_on_at_the_epoch_that_they_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fences, "PATIENCE_BASE", 0.02)
    async with rig(tmp_path) as router:
        entry = await router.collection()
        assert await router.directory.reconcile(entry, _fenced_by("shard-1")) == entry
        monkeypatch.setattr(fences, "PATIENCE_BASE", 5.0)
        held = asyncio.create_task(router.directory.reconcile(entry, _fenced_by("shard-1")))
        await asyncio.sleep(0)
        router.directory.fence_lifted(entry.id)
        assert await held == entry, "the mover of this router says it"


async def test_a_collection_that_is_deleted_behind_a_fence_is_gone(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        held = [
            asyncio.create_task(router.directory.reconcile(entry, _fenced_by("shard-1")))
            for _ in range(5)
        ]
        await asyncio.sleep(0)
        await router.catalog.begin_delete(entry.id)
        for one in held:
            with pytest.raises(NotFound):
                await one


# ---------------------------------------------------------------------------------------- grants


async def test_a_grant_is_what_the_catalog_has_after_it_was_asked_for(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        node = router.shards["shard-2"]
        node.forget_arrivals()
        gate = asyncio.Event()
        node.then("SetOwnership", wait_for(gate))
        before = asyncio.create_task(router.directory.grant(entry.id, "shard-2"))
        await node.arrival("SetOwnership")
        moved = await router.move(entry, to="shard-2")
        after = asyncio.create_task(router.directory.grant(entry.id, "shard-2"))
        gate.set()
        assert (await before).slot_map.epoch == 1
        assert await after == moved
        request = node.requests("SetOwnership")[-1]
        assert request.ownership_only
        assert len(slots_from_bitmap(request.owned_slots)) == 1024
        assert node.epochs[entry.id] == 2
        ref = types_pb2.CollectionRef(id=entry.id)
        assert await router.directory.resolve(ref) == moved, "what was granted is known here too"


async def test_refused_calls_ride_on_the_grant_of_the_mover(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        node = router.shards["shard-2"]
        moved = await router.move(entry, to="shard-2")
        router.directory.remember(moved)
        node.forget_arrivals()
        sent, gate = len(node.requests("SetOwnership")), asyncio.Event()
        node.then("SetOwnership", wait_for(gate))
        grant = asyncio.create_task(router.directory.grant(entry.id, "shard-2"))
        await node.arrival("SetOwnership")
        calls = [
            asyncio.create_task(router.directory.reconcile(moved, _stale_of("shard-2", 1)))
            for _ in range(100)
        ]
        line = router.directory._grants._lines["shard-2", entry.id]
        while line.passengers < 101:  # noqa: ASYNC110 - all have asked
            await asyncio.sleep(0)
        gate.set()
        assert await grant == moved
        assert await asyncio.gather(*calls) == [moved] * 100
        assert len(node.requests("SetOwnership")) == sent + 1


async def test_all_shards_and_more_are_granted_at_once_and_errors_told_by_shard(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, 4) as router:
        entry = await router.collection("shard-1", "shard-2", "shard-3")
        moved = await router.move(entry, to="shard-2")
        router.shards["shard-4"].then("Hello", away())
        together = asyncio.Barrier(2)

        async def meet(_: object) -> None:
            await together.wait()

        for name in ("shard-1", "shard-2"):
            router.shards[name].then("SetOwnership", meet)
        errors = await router.directory.grant_all(moved, ["shard-1", "shard-4", "shard-9"])
        assert {name: type(error) for name, error in errors.items()} == {
            "shard-4": Unavailable,
            "shard-9": Unavailable,
        }
        assert [shard.epochs.get(entry.id) for shard in router.shards.values()] == [2, 2, 1, None]


async def test_only_what_describes_a_collection_asks_for_its_description(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        (node,) = router.shards.values()
        assert not node.requests("SetOwnership")[-1].ownership_only
        await router.directory.push(entry)
        assert not node.requests("SetOwnership")[-1].ownership_only
        node.restart()
        await router.directory.reconcile(entry, _stale_of("shard-1", 0))
        assert node.requests("SetOwnership")[-1].ownership_only


def _fenced_by(shard: str, epoch: int = 1) -> Stale:
    return Stale("fenced", Reason.SLOTS_FENCED, metadata={"shard": shard, "epoch": str(epoch)})


def _stale_of(shard: str, epoch: int) -> NotAllowed:
    """What reconcile looks at of a refusal."""
    return NotAllowed("stale", metadata={"shard": shard, "epoch": str(epoch)})


async def _id(call: "asyncio.Task[object]") -> str:
    return str((await call).id)  # type: ignore[attr-defined]
