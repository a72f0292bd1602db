"""A collection that has outgrown its one shard is placed on all, once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import Unavailable
from router.core.model import CollectionEntry, ShardRole
from router.core.rebalance import RebalanceKind, RebalanceState
from router.loads import LastHeard
from router.mover import spread as spreads
from router.mover.spread import AutoSpread
from router.planning import Planning, new_rebalance
from tests.router.catalog.helpers import new
from tests.router.mover.moving import count_records, now_us
from tests.router.scripted import Rig, away, rig

pytestmark = pytest.mark.timeout(15)

AT = 100


@pytest.fixture(autouse=True)
def _look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreads, "LOOK_SECONDS", 0.0)


class Spreading:
    """An AutoSpread as the router makes it, over scripted shards."""

    def __init__(self, router: Rig, at: int = AT) -> None:
        self.router = router
        self.begun: list[str] = []
        self.planning = Planning(router.catalog, router.cluster, LastHeard())
        self.look = AutoSpread(router.catalog, router.cluster, at, self._spread).look

    async def _spread(self, collection_id: str) -> None:
        asked = new_rebalance(RebalanceKind.PLACE, collection_id)
        await self.planning.begin(asked, placement=0)
        self.begun.append(collection_id)

    async def alone(self, name: str, shard: str = "shard-1", placement: int = 1) -> CollectionEntry:
        """A collection that is placed on one shard."""
        asked = replace(new(name, shards=(shard,)), placement_shards=placement)
        entry, _ = await self.router.catalog.create_collection(asked, False)
        return await self.router.directory.refresh(entry.id)

    def holds(self, shard: str, *holdings: tuple[CollectionEntry, int]) -> None:
        """The shard says from here on that it has so many records of each."""
        told = shard_pb2.GetShardStatsResponse(
            boot_id="b",
            holdings=[
                shard_pb2.HoldingStats(collection_id=entry.id, records=records)
                for entry, records in holdings
            ],
        )
        node = self.router.shards[shard]
        node.usual["GetShardStats"] = lambda _: told
        node.slot_counts.clear()
        for entry, _ in holdings:
            count_records([node], entry)

    async def state(self) -> RebalanceState:
        newest = await self.router.catalog.moves.newest()
        assert newest is not None
        return newest[0].state


async def test_it_begins_one_placement_and_no_other(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        here = Spreading(router)
        entry, small = await here.alone("grown"), await here.alone("small")
        here.holds("shard-1", (entry, AT), (small, AT - 1))
        await here.look()
        assert here.begun == [entry.id]
        newest = await router.catalog.moves.newest()
        assert newest is not None
        rebalance, moves = newest
        assert (rebalance.kind, rebalance.subject) == (RebalanceKind.PLACE, entry.id)
        assert {move.collection_id for move, _ in moves} == {entry.id}
        assert (await router.catalog.collection(entry.id)).placement_shards == 0
        for _ in range(3):
            await here.look()
        assert here.begun == [entry.id]


async def test_it_is_off_unless_asked_for_and_asks_nobody(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        here = Spreading(router, at=0)
        here.holds("shard-1", (await here.alone("grown"), 10 * AT))
        await here.look()
        assert here.begun == []
        assert router.shards["shard-1"].requests("GetShardStats") == []


async def test_it_looks_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreads, "LOOK_SECONDS", 3600.0)
    async with rig(tmp_path) as router:
        here = Spreading(router)
        await here.look()
        await here.look()
        assert len(router.shards["shard-1"].requests("GetShardStats")) == 1


async def test_what_is_placed_on_several_shards_or_is_going_is_left(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        here = Spreading(router)
        two, doomed = await here.alone("two", placement=2), await here.alone("doomed")
        await router.catalog.begin_delete(doomed.id)
        here.holds("shard-1", (two, AT), (doomed, AT))
        await here.look()
        assert here.begun == []


async def test_there_must_be_somewhere_to_go(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        here = Spreading(router)
        here.holds("shard-1", (await here.alone("grown"), AT))
        (second,) = [s for s in await router.catalog.shards() if s.name == "shard-2"]
        await router.catalog.set_shard_role(second, ShardRole.DRAINING)
        await router.cluster.refresh()
        await here.look()
        assert here.begun == []


async def test_a_shard_that_is_away_is_passed_over_until_a_plan_needs_it(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        here = Spreading(router)
        entry = await here.alone("grown")
        here.holds("shard-1", (entry, AT))
        other = router.shards["shard-2"]

        async def gone(_request: Any) -> Any:
            raise away()

        other.usual["GetShardStats"] = gone
        with pytest.raises(Unavailable, match="nothing can be planned without shard shard-2"):
            await here.look()
        assert (await router.catalog.collection(entry.id)).placement_shards == 1
        del other.usual["GetShardStats"]
        await here.look()
        assert here.begun == [entry.id]


async def test_what_was_cancelled_is_not_begun_again_at_once(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        here = Spreading(router)
        entry = await here.alone("a-grown")
        here.holds("shard-1", (entry, AT))
        await here.look()
        await router.catalog.moves.cancel(now_us())
        assert await here.state() is RebalanceState.CANCELLED
        assert (await router.catalog.collection(entry.id)).placement_shards == 1
        await here.look()
        assert here.begun == [entry.id]
        # Others are, though.
        other = await here.alone("other")
        here.holds("shard-1", (entry, AT), (other, AT))
        await here.look()
        assert here.begun == [entry.id, other.id]


async def test_nor_is_what_has_failed(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        here = Spreading(router)
        entry = await here.alone("grown")
        here.holds("shard-1", (entry, AT))
        await here.look()
        moves = router.catalog.moves
        newest = await moves.newest()
        lease = await moves.acquire("mover", now_us(), 10**9)
        assert newest is not None
        assert lease is not None
        await moves.fail(lease, newest[0], "source and target differ", now_us())
        assert await here.state() is RebalanceState.FAILED
        await here.look()
        assert here.begun == [entry.id]
