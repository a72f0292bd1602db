"""The reaper: what is doomed is dropped everywhere, however long a shard is away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router import reaper
from router.core.model import CollectionState
from router.reaper import Reaper
from tests.router.scripted import Rig, away, rig, wait_for

pytestmark = pytest.mark.timeout(10)


@pytest.fixture(autouse=True)
def _quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "RETRY_BASE", 0.005)
    monkeypatch.setattr(reaper, "RETRY_CAP", 0.01)


@asynccontextmanager
async def reaping(router: Rig) -> AsyncIterator[Reaper]:
    """A reaper whose tasks end with the block."""
    async with asyncio.TaskGroup() as tasks:
        one = Reaper(router.catalog, router.cluster, tasks)
        try:
            yield one
        finally:
            one.stop()


async def forgotten(router: Rig, collection_id: str) -> None:
    """Waits until the catalog has forgotten the collection; each look is a turn of its thread."""
    while collection_id in {entry.id for entry in await router.catalog.all_collections()}:
        pass


async def test_when_every_shard_confirms_it_is_done_at_once(tmp_path: Path) -> None:
    async with rig(tmp_path) as router, reaping(router) as one:
        entry = await router.collection("shard-1")
        doomed = await router.catalog.begin_delete(entry.id)
        await one.finish(doomed, 5)
        assert await router.catalog.all_collections() == []
        for shard in router.shards.values():  # also one that owns nothing of it
            (request,) = shard.requests("DropCollection")
            assert request.collection_id == entry.id
            assert request.epoch == doomed.slot_map.epoch == entry.slot_map.epoch + 1


async def test_a_shard_that_is_away_is_tried_until_it_confirms(tmp_path: Path) -> None:
    async with rig(tmp_path) as router, reaping(router) as one:
        entry = await router.collection()
        first, second = router.shards.values()
        second.then("DropCollection", *(away() for _ in range(4)))
        doomed = await router.catalog.begin_delete(entry.id)
        await one.finish(doomed, 0)
        (left,) = await router.catalog.deleting()
        assert (left.id, left.state) == (entry.id, CollectionState.DELETING)
        await forgotten(router, entry.id)
        assert len(second.requests("DropCollection")) == 5
        assert len(first.requests("DropCollection")) == 1, "who confirmed is not asked again"


async def test_what_was_left_is_resumed_after_a_restart(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        doomed = await router.catalog.begin_delete(entry.id)
        node = router.shards["shard-2"]
        node.then("DropCollection", away())
        async with reaping(router) as one:
            await one.finish(doomed, 0)
            await node.arrival("DropCollection")
        assert [left.id for left in await router.catalog.deleting()] == [entry.id]
        async with reaping(router) as another:
            await another.resume()
            await forgotten(router, entry.id)


async def test_one_that_cannot_be_finished_does_not_keep_the_others(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router, reaping(router) as one:
        (node,) = router.shards.values()
        ids = []
        for _ in range(2):
            entry = await router.collection()
            ids.append(entry.id)
            await router.catalog.begin_delete(entry.id)
        stuck, free = sorted(ids)

        async def not_the_stuck_one(request: object) -> None:
            node.then("DropCollection", not_the_stuck_one)
            if request.collection_id == stuck:  # type: ignore[attr-defined]
                raise away()

        node.then("DropCollection", not_the_stuck_one, not_the_stuck_one)
        await one.resume()
        await forgotten(router, free)
        assert [entry.id for entry in await router.catalog.deleting()] == [stuck]


async def test_another_router_may_be_quicker(tmp_path: Path) -> None:
    async with rig(tmp_path) as router, reaping(router) as one, reaping(router) as another:
        entry = await router.collection()
        doomed = await router.catalog.begin_delete(entry.id)
        await asyncio.gather(one.finish(doomed, 5), another.finish(doomed, 5))
        assert await router.catalog.all_collections() == []


async def test_a_caller_that_goes_away_does_not_stop_it(tmp_path: Path) -> None:
    async with rig(tmp_path) as router, reaping(router) as one:
        entry = await router.collection()
        gate = asyncio.Event()
        node = router.shards["shard-1"]
        node.then("DropCollection", wait_for(gate))
        doomed = await router.catalog.begin_delete(entry.id)
        caller = asyncio.create_task(one.finish(doomed, 5))
        await node.arrival("DropCollection")
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        gate.set()
        await forgotten(router, entry.id)
