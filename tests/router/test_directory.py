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
    Unavailable,
)
from chroma_router.wire.slots import slots_from_bitmap
from router.directory import definition_of
from tests.router.catalog.helpers import new
from tests.router.scripted import away, rig, wait_for

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


def _stale_of(shard: str, epoch: int) -> NotAllowed:
    """What reconcile looks at of a refusal."""
    return NotAllowed("stale", metadata={"shard": shard, "epoch": str(epoch)})


async def _id(call: "asyncio.Task[object]") -> str:
    return str((await call).id)  # type: ignore[attr-defined]
