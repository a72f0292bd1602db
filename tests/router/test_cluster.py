"""Shards that come, change their address and go while a router serves."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from chroma_router.v1 import shard_pb2, types_pb2
from chroma_router.wire.errors import Stale, Unavailable
from router import cluster
from router.core.model import ShardRole
from router.core.slot_map import SlotMap
from tests.router.scripted import Rig, an_add, another_node, away, ids_on, rig, wait_for

pytestmark = pytest.mark.timeout(15)


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


async def until(holds: Callable[[], bool]) -> None:
    """Waits for what has no event of its own."""
    while not holds():  # noqa: ASYNC110 - that is the point
        await asyncio.sleep(0.001)


async def readdress(router: Rig, name: str, address: str) -> None:
    (entry,) = [shard for shard in await router.catalog.shards() if shard.name == name]
    await router.catalog.set_shard_address(entry, address)


# ---------------------------------------------------------------------------------------- coming


async def test_a_shard_that_is_added_is_served_from_after_a_refresh(tmp_path: Path) -> None:
    async with another_node("shard-3") as node, rig(tmp_path) as router:
        with pytest.raises(Unavailable, match="not in the catalog") as unknown:
            router.cluster.shard("shard-3")
        assert unknown.value.metadata == {"shard": "shard-3"}
        await router.catalog.add_shard("shard-3", node.address)
        await router.cluster.refresh()
        assert router.cluster.names == ("shard-1", "shard-2", "shard-3")
        assert await router.cluster.shard("shard-3").client.hello() == node.boot_id
        assert router.cluster.shard("shard-3").role is ShardRole.ACTIVE
        one = router.cluster.shard("shard-1")
        await router.cluster.refresh()
        assert router.cluster.shard("shard-1") is one, "what has not changed stays"


async def test_a_collection_on_a_shard_that_this_router_has_not_met_is_no_obstacle(
    tmp_path: Path,
) -> None:
    """Another router added the shard and moved slots there; this one reads and writes at once."""
    async with another_node("shard-3") as node, rig(tmp_path) as router:
        entry = await router.collection()
        await router.catalog.add_shard("shard-3", node.address)
        moved = await router.move(entry, to="shard-3")
        assert not router.cluster.knows(["shard-3"])
        found = await router.directory.resolve(types_pb2.CollectionRef(name="papers"))
        assert found == moved
        assert router.cluster.knows(["shard-3"])
        await router.writes.write(found, an_add(["a"]), None, soon())
        assert [list(operation.ids) for operation in node.applied] == [["a"]]


async def test_many_who_miss_a_shard_read_the_catalog_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with another_node("shard-3") as node, rig(tmp_path) as router:
        entry = await router.collection()
        await router.catalog.add_shard("shard-3", node.address)
        moved = await router.move(entry, to="shard-3")
        read, reads = router.catalog.shards, 0

        async def counted() -> object:
            nonlocal reads
            reads += 1
            return await read()

        monkeypatch.setattr(router.catalog, "shards", counted)
        usable = await asyncio.gather(*(router.directory.usable(moved) for _ in range(100)))
        assert usable == [moved] * 100
        assert reads <= 2


# -------------------------------------------------------------------------------- another address


async def test_what_waits_for_a_shard_goes_to_its_new_address(tmp_path: Path) -> None:
    async with another_node("shard-1") as moved, rig(tmp_path, 1) as router:
        entry = await router.collection()
        (old,) = router.shards.values()
        moved.epochs[entry.id] = entry.slot_map.epoch
        old.then("Apply", *(away() for _ in range(1000)))
        writes = [
            asyncio.create_task(router.writes.write(entry, an_add([f"w{n}"]), None, soon()))
            for n in range(5)
        ]
        await old.arrival("Apply")
        queue = router.cluster.shard("shard-1").queue
        await readdress(router, "shard-1", moved.address)
        await router.cluster.refresh()
        await asyncio.gather(*writes)
        assert sorted(i for o in moved.applied for i in o.ids) == [f"w{n}" for n in range(5)]
        assert not old.applied
        assert router.cluster.shard("shard-1").queue is queue
        assert router.cluster.shard("shard-1").client.address == moved.address


async def test_a_call_to_the_former_address_is_answered_from_there(tmp_path: Path) -> None:
    async with another_node("shard-1") as moved, rig(tmp_path, 1) as router:
        entry = await router.collection()
        (old,) = router.shards.values()
        gate = asyncio.Event()
        old.then("ShardCount", wait_for(gate))
        part = shard_pb2.ShardCountRequest(collection_id=entry.id, epoch=1)
        former = router.cluster.shard("shard-1").client
        count = asyncio.create_task(former.count(part, 5))
        await old.arrival("ShardCount")
        await readdress(router, "shard-1", moved.address)
        await router.cluster.refresh()
        await until(lambda: former._closing)
        with pytest.raises(Unavailable, match="no longer reached") as closed:
            await former.hello()
        assert closed.value.retry_after
        gate.set()
        assert (await count).count == 10
        await until(lambda: not router.cluster._retiring)


async def test_a_call_that_the_former_address_never_answers_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails as Unavailable, so that it is repeated; nothing looks as if it were cancelled."""
    monkeypatch.setattr(cluster, "RETIRE_SECONDS", 0.05)
    async with another_node("shard-1") as moved, rig(tmp_path, 1) as router:
        entry = await router.collection()
        (old,) = router.shards.values()
        moved.epochs[entry.id] = entry.slot_map.epoch
        gate = asyncio.Event()
        old.then("Apply", wait_for(gate))
        write = asyncio.create_task(router.writes.write(entry, an_add(["a"]), None, soon()))
        await old.arrival("Apply")
        await readdress(router, "shard-1", moved.address)
        await router.cluster.refresh()
        await write
        assert [list(operation.ids) for operation in moved.applied] == [["a"]]
        gate.set()


# ----------------------------------------------------------------------------------------- going


@pytest.mark.parametrize("stage", ["under way", "waiting"])
async def test_what_waits_for_a_shard_that_is_removed_is_routed_anew(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "RETIRE_SECONDS", 0.05)
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        gate = asyncio.Event()
        two.then("Apply", wait_for(gate))
        ids = ids_on(entry.slot_map, "shard-2", 2)
        writes = [
            asyncio.create_task(router.writes.write(entry, an_add([i]), None, soon())) for i in ids
        ]
        await two.arrival("Apply")
        queue = router.cluster.shard("shard-2").queue
        await until(lambda: queue.operations == 2)
        write = writes[0] if stage == "under way" else writes[1]
        await router.move(entry, to="shard-1")
        await router.forget_shard("shard-2")
        await router.cluster.refresh()
        assert not router.cluster.knows(["shard-2"])
        await write
        await asyncio.gather(*writes)
        assert sorted(i for o in one.applied for i in o.ids) == sorted(ids)
        assert {o.epoch for o in one.applied} == {2}
        with pytest.raises(Stale):
            queue.check_room(1, 1)
        await until(lambda: len(router.cluster._workers) == 1)
        gate.set()


async def test_an_old_entry_that_names_a_removed_shard_is_read_again(tmp_path: Path) -> None:
    """The router's cache is older than the removal: no call fails for it."""
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, _ = router.shards.values()
        moved = await router.move(entry, to="shard-1")
        await router.forget_shard("shard-2")
        await router.cluster.refresh()
        ref = types_pb2.CollectionRef(id=entry.id)
        await router.writes.write(entry, an_add(ids_on(entry.slot_map, "shard-2", 1)), None, soon())
        assert len(one.applied) == 1
        assert await router.directory.resolve(ref) == moved


async def test_a_removed_shard_that_a_slot_map_still_names_is_told_as_it_is(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        await router.forget_shard("shard-2")
        await router.cluster.refresh()
        ids = ids_on(entry.slot_map, "shard-2", 1)
        with pytest.raises(Unavailable, match="shard-2 owns a part"):
            await router.writes.write(entry, an_add(ids), None, soon())
        raw = await router.directory.refresh(entry.id)
        assert raw.slot_map == SlotMap.deal(1, ["shard-1", "shard-2"])


# --------------------------------------------------------------------------------------- watching


async def test_the_watch_sees_what_another_router_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WATCH_SECONDS", 0.005)
    async with another_node("shard-3") as node, rig(tmp_path) as router:
        router.cluster.watch()
        await router.catalog.add_shard("shard-3", node.address)
        await until(lambda: router.cluster.knows(["shard-3"]))
        await router.forget_shard("shard-3")
        await until(lambda: not router.cluster.knows(["shard-3"]))


async def test_the_watch_reads_the_shards_only_when_something_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WATCH_SECONDS", 0.001)
    async with rig(tmp_path) as router:
        looks = reads = 0
        revision, shards = router.catalog.revision, router.catalog.shards

        async def looked() -> int:
            nonlocal looks
            looks += 1
            return await revision()

        async def read() -> object:
            nonlocal reads
            reads += 1
            return await shards()

        monkeypatch.setattr(router.catalog, "revision", looked)
        monkeypatch.setattr(router.catalog, "shards", read)
        router.cluster.watch()
        await until(lambda: looks > 20)
        assert reads == 1, "once to begin with"


async def test_the_watch_outlives_what_is_wrong_and_says_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WATCH_SECONDS", 0.001)
    async with rig(tmp_path) as router:
        revision, failures = router.catalog.revision, 0

        async def fails() -> int:
            nonlocal failures
            failures += 1
            if failures > 10:
                return await revision()
            raise Unavailable("busy") if failures % 2 else RuntimeError("a defect")

        monkeypatch.setattr(router.catalog, "revision", fails)
        with capture_logs() as logs:
            router.cluster.watch()
            await until(lambda: any(entry["event"] == "shards_watched_again" for entry in logs))
        assert [entry["event"] for entry in logs] == ["shards_not_watched", "shards_watched_again"]


async def test_nothing_is_begun_once_the_router_drains(tmp_path: Path) -> None:
    async with another_node("shard-3") as node, rig(tmp_path) as router:
        router.cluster.watch()
        await router.catalog.add_shard("shard-3", node.address)
        await router.cluster.drain(0.1)
        await router.cluster.refresh()
        assert not router.cluster.knows(["shard-3"])
