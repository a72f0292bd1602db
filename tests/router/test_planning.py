"""Plans become rebalances, whatever the catalog does meanwhile; drains are planned to their end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import NotAllowed, NotFound, Reason, Stale, Unavailable
from router.catalog import Catalog
from router.core.model import CollectionEntry, ShardRole
from router.core.move import Stage
from router.core.rebalance import Rebalance, RebalanceKind, RebalanceState
from router.loads import LastHeard
from router.planning import PLAN_ROUNDS, Planning, new_rebalance
from tests.router.mover.moving import count_records, now_us
from tests.router.scripted import Rig, away, rig

pytestmark = pytest.mark.timeout(30)


def _planning(router: Rig) -> Planning:
    return Planning(router.catalog, router.cluster, LastHeard())


async def _counted(router: Rig, *shards: str, name: str = "papers") -> CollectionEntry:
    """A collection with one record in each slot."""
    entry = await router.collection(*shards, name=name)
    count_records(router.shards.values(), entry)
    return entry


async def _ended(catalog: Catalog, rebalance: Rebalance) -> None:
    """Its moves are done, as a mover does it; it is not finished."""
    moves = catalog.moves
    lease = await moves.acquire("mover", now_us(), 10**9)
    newest = await moves.newest()
    assert lease is not None
    assert newest is not None
    assert newest[0].id == rebalance.id
    for move, _ in newest[1]:
        for stage in (Stage.COPYING, Stage.CATCHING_UP, Stage.VERIFIED, Stage.FENCED):
            move = await moves.enter(lease, move, stage)  # noqa: PLW2901
        _, move = await moves.switch(lease, move)  # noqa: PLW2901
        await moves.enter(lease, move, Stage.TRIMMED)
    await moves.release(lease)


def test_a_new_rebalance_has_an_id_of_its_own_and_begins_now() -> None:
    before = now_us()
    one = new_rebalance(RebalanceKind.DRAIN, "shard-1", records_per_second=5, query_agreement=0.5)
    two = new_rebalance(RebalanceKind.DRAIN, "shard-1")
    assert one.id != two.id
    assert before <= one.started_at <= now_us()
    assert (one.kind, one.subject, one.state) == (
        RebalanceKind.DRAIN, "shard-1", RebalanceState.RUNNING,
    )  # fmt: skip
    assert (one.records_per_second, one.query_agreement) == (5, 0.5)


# ------------------------------------------------------------------------------------- plan


async def test_a_plan_changes_nothing_and_a_start_does_the_same(tmp_path: Path) -> None:
    async with rig(tmp_path, 3) as router:
        entry = await _counted(router, "shard-1", "shard-2")
        planning = _planning(router)
        _, planned = await planning.plan()
        assert await router.catalog.moves.newest() is None
        begun = await planning.begin(new_rebalance(RebalanceKind.BALANCE, ""))
        newest = await router.catalog.moves.newest()
        assert newest is not None
        assert newest[0] == begun
        assert [(m.source, m.target, m.slots, m.records) for m, _ in newest[1]] == [
            (m.source, m.target, m.slots, m.records) for m in planned.moves
        ]
        assert {m.collection_id for m, _ in newest[1]} == {entry.id}


async def test_emptying_a_shard_is_planned_without_it(tmp_path: Path) -> None:
    async with rig(tmp_path, 3) as router:
        await _counted(router)
        other = await _counted(router, "shard-2", name="other")
        _, planned = await _planning(router).plan("shard-1")
        assert {move.source for move in planned.moves} == {"shard-1"}
        assert other.id not in {move.collection_id for move in planned.moves}
        roles = {shard.role for shard in await router.catalog.shards()}
        assert roles == {ShardRole.ACTIVE}, "it was only asked about"


async def test_what_cannot_be_emptied_is_refused(tmp_path: Path) -> None:
    async with rig(tmp_path, 2) as router:
        await _counted(router)
        planning = _planning(router)
        with pytest.raises(NotFound, match=r"shard-9.*shard-1, shard-2") as refused:
            await planning.plan("shard-9")
        assert refused.value.reason is Reason.SHARD_NOT_FOUND
        (second,) = [s for s in await router.catalog.shards() if s.name == "shard-2"]
        await router.catalog.set_shard_role(second, ShardRole.DRAINING)
        for ask in (
            planning.plan("shard-1"),
            planning.begin(new_rebalance(RebalanceKind.DRAIN, "shard-1")),
        ):
            with pytest.raises(NotAllowed, match="no other shard takes new data") as last:
                await ask
            assert last.value.reason is Reason.LAST_SHARD
        assert await router.catalog.moves.newest() is None


async def test_what_does_not_fit_is_refused_and_begins_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        await _counted(router)
        full = shard_pb2.GetShardStatsResponse(memory_bytes=1000, memory_limit_bytes=1001)
        router.shards["shard-2"].usual["GetShardStats"] = lambda _: full
        with pytest.raises(NotAllowed, match="shard-2 has no room") as refused:
            await _planning(router).begin(new_rebalance(RebalanceKind.DRAIN, "shard-1"))
        assert refused.value.reason is Reason.NO_ROOM
        assert await router.catalog.moves.newest() is None
        assert {s.role for s in await router.catalog.shards()} == {ShardRole.ACTIVE}


# ------------------------------------------------------------------------------------ begin


async def test_a_drain_is_known_to_this_router_at_once(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        await _counted(router)
        began: list[str] = []
        await _planning(router).begin(
            new_rebalance(RebalanceKind.DRAIN, "shard-1"), began=lambda: began.append("")
        )
        assert router.cluster.shard("shard-1").role is ShardRole.DRAINING
        assert began == [""]


async def test_with_nothing_to_move_it_is_done_and_nobody_is_woken(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        await _counted(router)
        began: list[str] = []
        begun = await _planning(router).begin(
            new_rebalance(RebalanceKind.BALANCE, ""), began=lambda: began.append("")
        )
        assert (begun.state, began) == (RebalanceState.DONE, [])


async def test_a_placement_moves_this_collection_only(tmp_path: Path) -> None:
    async with rig(tmp_path, 3) as router:
        entry = await _counted(router, "shard-1")
        await _counted(router, "shard-1", name="other")
        asked = new_rebalance(RebalanceKind.PLACE, entry.id)
        begun = await _planning(router).begin(asked, placement=2)
        newest = await router.catalog.moves.newest()
        assert newest is not None
        assert {m.collection_id for m, _ in newest[1]} == {entry.id}
        assert (await router.catalog.collection(entry.id)).placement_shards == 2
        assert begun.placement_before == 0
        with pytest.raises(NotFound, match="does not exist any more"):
            await _planning(router).begin(new_rebalance(RebalanceKind.PLACE, "gone"), placement=2)


def _meddled(router: Rig, entry: CollectionEntry, times: int) -> Callable[[], int]:
    """The collection gets another epoch each time it has just been planned; how often it has."""
    begin = router.catalog.moves.begin
    done = 0

    async def meddling(*arguments: Any, **more: Any) -> Rebalance:
        nonlocal done
        if done < times:
            done += 1
            present = await router.catalog.collection(entry.id)
            slot_map = present.slot_map.reassigned([done], "shard-2")
            await router.catalog.replace_slot_map(present, slot_map)
        return await begin(*arguments, **more)

    router.catalog.moves.begin = meddling  # type: ignore[method-assign]
    return lambda: done


async def test_it_is_planned_again_when_the_catalog_has_changed(tmp_path: Path) -> None:
    async with rig(tmp_path, 3) as router:
        entry = await _counted(router, "shard-1", "shard-2")
        meddled = _meddled(router, entry, PLAN_ROUNDS - 1)
        begun = await _planning(router).begin(new_rebalance(RebalanceKind.BALANCE, ""))
        assert (begun.state, meddled()) == (RebalanceState.RUNNING, PLAN_ROUNDS - 1)
        newest = await router.catalog.moves.newest()
        assert newest is not None
        present = await router.catalog.collection(entry.id)
        for move, _ in newest[1]:
            assert move.slots <= present.slot_map.slots_of(move.source)


async def test_but_not_for_ever(tmp_path: Path) -> None:
    async with rig(tmp_path, 3) as router:
        entry = await _counted(router, "shard-1", "shard-2")
        meddled = _meddled(router, entry, 100)
        with pytest.raises(Stale) as stale:
            await _planning(router).begin(new_rebalance(RebalanceKind.BALANCE, ""))
        assert (stale.value.reason, meddled()) == (Reason.CONFLICT, PLAN_ROUNDS)
        assert await router.catalog.moves.newest() is None


async def test_one_that_runs_already_is_named(tmp_path: Path) -> None:
    async with rig(tmp_path, 3) as router:
        await _counted(router, "shard-1")
        planning = _planning(router)
        begun = await planning.begin(new_rebalance(RebalanceKind.BALANCE, ""))
        with pytest.raises(NotAllowed, match=begun.id) as refused:
            await planning.begin(new_rebalance(RebalanceKind.BALANCE, ""))
        assert refused.value.reason is Reason.REBALANCE_RUNNING


async def test_what_has_begun_has_begun_though_the_shards_cannot_be_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a client is told to repeat it, and is then refused: one is running."""
    async with rig(tmp_path, 3) as router:
        await _counted(router, "shard-1")
        begin, refresh = router.catalog.moves.begin, router.cluster.refresh
        begun: list[Rebalance] = []

        async def beginning(*arguments: Any, **more: Any) -> Rebalance:
            begun.append(await begin(*arguments, **more))
            return begun[0]

        async def refreshing() -> None:
            if begun:
                raise Unavailable("the catalog is busy", Reason.CATALOG_BUSY)
            await refresh()

        monkeypatch.setattr(router.catalog.moves, "begin", beginning)
        monkeypatch.setattr(router.cluster, "refresh", refreshing)
        woken: list[str] = []
        asked = new_rebalance(RebalanceKind.BALANCE, "")
        assert await _planning(router).begin(asked, began=lambda: woken.append("")) == begun[0]
        assert woken == [""]


# ------------------------------------------------------------------------------------- more


async def test_what_came_to_a_shard_that_is_drained_is_appended(tmp_path: Path) -> None:
    async with rig(tmp_path, 3) as router:
        planning = _planning(router)
        papers = await _counted(router)
        begun = await planning.begin(new_rebalance(RebalanceKind.DRAIN, "shard-1"))
        await _ended(router.catalog, begun)
        # Another router's: some slots are there again.
        present = await router.catalog.collection(papers.id)
        await router.catalog.replace_slot_map(present, present.slot_map.reassigned([7], "shard-1"))
        lease = await router.catalog.moves.acquire("mover", now_us(), 10**9)
        assert lease is not None
        assert await planning.more(lease, begun)
        newest = await router.catalog.moves.newest()
        assert newest is not None
        added = [move for move, _ in newest[1] if not move.ended]
        assert [(move.source, move.slots) for move in added] == [("shard-1", frozenset({7}))]
        assert [move.number for move, _ in newest[1]] == list(range(len(newest[1])))


async def test_nothing_more_is_to_be_moved(tmp_path: Path) -> None:
    async with rig(tmp_path, 3) as router:
        planning = _planning(router)
        await _counted(router)
        begun = await planning.begin(new_rebalance(RebalanceKind.DRAIN, "shard-1"))
        await _ended(router.catalog, begun)
        lease = await router.catalog.moves.acquire("mover", now_us(), 10**9)
        assert lease is not None
        # No shard is asked: one that is away does not keep it from ending.
        router.shards["shard-2"].then("Hello", away())
        assert not await planning.more(lease, begun)
        balance = new_rebalance(RebalanceKind.BALANCE, "")
        assert not await planning.more(lease, balance), "only a drain is planned to its end"


async def test_a_collection_that_is_being_deleted_does_not_keep_a_drain_from_its_end(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, 3) as router:
        planning = _planning(router)
        entry = await _counted(router)
        begun = await planning.begin(new_rebalance(RebalanceKind.DRAIN, "shard-1"))
        await router.catalog.begin_delete(entry.id)
        lease = await router.catalog.moves.acquire("mover", now_us(), 10**9)
        assert lease is not None
        assert not await planning.more(lease, begun)


async def test_a_mover_that_was_replaced_appends_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path, 3) as router:
        planning = _planning(router)
        papers = await _counted(router)
        begun = await planning.begin(new_rebalance(RebalanceKind.DRAIN, "shard-1"))
        await _ended(router.catalog, begun)
        present = await router.catalog.collection(papers.id)
        await router.catalog.replace_slot_map(present, present.slot_map.reassigned([7], "shard-1"))
        moves = router.catalog.moves
        old = await moves.acquire("mover", now_us(), 10**9)
        await moves.acquire("mover", now_us(), 10**9)
        assert old is not None
        with pytest.raises(Stale) as stale:
            await planning.more(old, begun)
        assert stale.value.reason is Reason.STALE_TOKEN
