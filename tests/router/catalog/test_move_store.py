"""What rebalances and moves may become, one by one; at random in test_moves_against_twin.py."""

import contextlib
import dataclasses
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from chroma_router.wire.errors import ClusterError, NotAllowed, NotFound, Reason, Stale
from router.catalog import Catalog, check
from router.catalog.move_rows import KEPT
from router.core.lease import Lease
from router.core.model import CollectionEntry, ShardRole
from router.core.move import Move, Stage
from router.core.rebalance import MoveProgress, Rebalance, RebalanceKind, RebalanceState
from tests.router.catalog.helpers import a_move, a_rebalance, leased, new, opened

NOW = 2_000

TO_FENCED = (Stage.COPYING, Stage.CATCHING_UP, Stage.VERIFIED, Stage.FENCED)


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    catalog = await opened(tmp_path / "catalog.db")
    yield catalog
    await catalog.close()
    assert check(tmp_path / "catalog.db") == []


async def _made(catalog: Catalog, name: str = "papers") -> CollectionEntry:
    return (await catalog.create_collection(new(name), False))[0]


async def _begun(
    catalog: Catalog, entry: CollectionEntry, count: int = 1
) -> tuple[Rebalance, list[Move]]:
    """A running rebalance of so many moves of one slot each, from shard-1 to shard-2."""
    rebalance = a_rebalance()
    planned = [a_move(rebalance, entry, [3 * n], "shard-1", "shard-2") for n in range(count)]
    begun = await catalog.moves.begin(rebalance, planned, {entry.id: entry.slot_map.epoch})
    return begun, await _moves(catalog)


async def _moves(catalog: Catalog) -> list[Move]:
    newest = await catalog.moves.newest()
    assert newest is not None
    return [move for move, _ in newest[1]]


async def _entered(catalog: Catalog, lease: Lease, move: Move, upto: Stage) -> Move:
    """The move after it has come that far, from PLANNED."""
    for stage in TO_FENCED[: TO_FENCED.index(upto) + 1]:
        move = await catalog.moves.enter(lease, move, stage)
    return move


async def _refused(call: Awaitable[object], reason: Reason, words: str = "") -> None:
    with pytest.raises(ClusterError) as refused:
        await call
    assert refused.value.reason is reason
    assert words in refused.value.message


async def test_what_is_next_is_the_first_move_that_has_not_ended(catalog: Catalog) -> None:
    entry = await _made(catalog)
    assert await catalog.moves.current() is None
    rebalance, (first, second) = await _begun(catalog, entry, 2)
    lease = await leased(catalog)
    for expected in (first, second):
        assert await catalog.moves.current() == (rebalance, (expected, MoveProgress()))
        await catalog.moves.note(lease, expected.id, MoveProgress(copied_records=7))
        assert await catalog.moves.current() == (rebalance, (expected, MoveProgress(7)))
        await catalog.moves.enter(lease, expected, Stage.CANCELLED)
    assert await catalog.moves.current() == (rebalance, None)
    await catalog.moves.finish(lease, rebalance, NOW)
    assert await catalog.moves.current() is None


async def test_a_rebalance_from_its_beginning_to_its_end(catalog: Catalog) -> None:
    entry = await _made(catalog)
    assert await catalog.moves.newest() is None
    begun, (first, second) = await _begun(catalog, entry, 2)
    assert (first.number, second.number) == (0, 1)
    assert (begun.state, begun.ended_at) == (RebalanceState.RUNNING, 0)
    lease = await leased(catalog)
    fenced = await _entered(catalog, lease, first, Stage.FENCED)
    assert fenced == dataclasses.replace(first, stage=Stage.FENCED, next_epoch=2, version=5)
    switched_entry, switched = await catalog.moves.switch(lease, fenced)
    assert switched == fenced.entered(Stage.SWITCHED)
    assert switched_entry.slot_map == entry.slot_map.reassigned([0], "shard-2")
    assert await catalog.collection(entry.id) == switched_entry
    await catalog.moves.enter(lease, switched, Stage.TRIMMED)
    await _refused(catalog.moves.finish(lease, begun, NOW), Reason.CONFLICT)
    fenced = await _entered(catalog, lease, second, Stage.FENCED)
    assert fenced.next_epoch == 3
    _, switched = await catalog.moves.switch(lease, fenced)
    await catalog.moves.enter(lease, switched, Stage.TRIMMED)
    done = await catalog.moves.finish(lease, begun, NOW)
    assert (done.state, done.ended_at) == (RebalanceState.DONE, NOW)
    assert await catalog.moves.finish(lease, begun, NOW + 1) == done
    assert await catalog.moves.running() is None
    newest = await catalog.moves.newest()
    assert newest is not None
    assert newest[0] == done


async def test_one_rebalance_at_a_time(catalog: Catalog) -> None:
    entry = await _made(catalog)
    begun, _ = await _begun(catalog, entry)
    other = a_rebalance()
    with pytest.raises(NotAllowed) as refused:
        await catalog.moves.begin(other, [a_move(other, entry, [1], "shard-2", "shard-1")], {})
    assert refused.value.reason is Reason.REBALANCE_RUNNING
    for words in (begun.id, "balance", "wait for it", "rebalance status", "rebalance cancel"):
        assert words in refused.value.message
    assert len(await _moves(catalog)) == 1


async def test_with_nothing_to_move_it_is_done_at_once(catalog: Catalog) -> None:
    begun = await catalog.moves.begin(a_rebalance(started_at=NOW), [], {})
    assert (begun.state, begun.started_at, begun.ended_at) == (RebalanceState.DONE, NOW, NOW)
    assert await catalog.moves.newest() == (begun, [])


async def test_old_rebalances_are_forgotten(catalog: Catalog, tmp_path: Path) -> None:
    await _begun(catalog, await _made(catalog), 2)
    await catalog.moves.cancel(NOW)
    for _ in range(KEPT):
        await catalog.moves.begin(a_rebalance(), [], {})
    with contextlib.closing(sqlite3.connect(tmp_path / "catalog.db")) as db:
        rows = [
            db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("rebalances", "moves")
        ]
    assert rows == [KEPT, 0]


async def test_a_plan_that_is_no_longer_true_begins_nothing(catalog: Catalog) -> None:
    entry, doomed = await _made(catalog), await _made(catalog, "doomed")
    await catalog.begin_delete(doomed.id)
    shard = (await catalog.shards())[2]
    await catalog.set_shard_role(shard, ShardRole.DRAINING)
    epochs = {entry.id: 1}
    cases = [
        ([([0], "shard-1", "shard-2")], {entry.id: 2}, "at epoch 1"),
        ([([0], "shard-1", "shard-2")], {**epochs, doomed.id: 1}, "was deleted"),
        ([([0], "shard-1", "shard-2")], {**epochs, "nothing": 1}, "was deleted"),
        ([([0], "shard-1", "shard-9")], epochs, "[shard-9] is not in the catalog"),
        ([([0], "shard-9", "shard-1")], epochs, "[shard-9] is not in the catalog"),
        ([([0], "shard-1", "shard-3")], epochs, "[shard-3] is being drained"),
        ([([0, 1], "shard-1", "shard-2")], epochs, "slot 1 is owned by shard-2"),
        (
            [([0], "shard-1", "shard-2"), ([0, 3], "shard-1", "shard-2")],
            epochs,
            "slot 0 is in two moves",
        ),
    ]
    for planned, planned_epochs, words in cases:
        rebalance = a_rebalance()
        moves = [a_move(rebalance, entry, *move) for move in planned]
        begin = catalog.moves.begin(rebalance, moves, planned_epochs)
        await _refused(begin, Reason.CONFLICT, words)
    assert await catalog.moves.newest() is None


async def test_a_drain_takes_its_shard_out_of_service(catalog: Catalog) -> None:
    entry = await _made(catalog)
    drain = a_rebalance(RebalanceKind.DRAIN, "shard-3")
    move = a_move(drain, entry, entry.slot_map.slots_of("shard-3"), "shard-3", "shard-1")
    await catalog.moves.begin(drain, [move], {entry.id: 1})
    assert [shard.role for shard in await catalog.shards()] == [
        ShardRole.ACTIVE,
        ShardRole.ACTIVE,
        ShardRole.DRAINING,
    ]
    cancelled = await catalog.moves.cancel(NOW)
    assert cancelled.state is RebalanceState.CANCELLED
    assert {shard.role for shard in await catalog.shards()} == {ShardRole.ACTIVE}
    nothing = a_rebalance(RebalanceKind.DRAIN, "shard-9")
    await _refused(
        catalog.moves.begin(nothing, [], {}), Reason.SHARD_NOT_FOUND, "there are: shard-1"
    )
    for name in ("shard-1", "shard-2"):
        await catalog.moves.begin(a_rebalance(RebalanceKind.DRAIN, name), [], {})
    last = a_rebalance(RebalanceKind.DRAIN, "shard-3")
    await _refused(catalog.moves.begin(last, [], {}), Reason.LAST_SHARD, "no other shard")
    # A drain that moves to the very shard is no plan.
    onto = a_rebalance(RebalanceKind.DRAIN, "shard-2")
    move = a_move(onto, entry, [0], "shard-1", "shard-2")
    await _refused(catalog.moves.begin(onto, [move], {entry.id: 1}), Reason.CONFLICT)


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_placement_is_taken_back_by_a_cancel(catalog: Catalog, deleted: bool) -> None:
    entry = await _made(catalog)
    place = a_rebalance(RebalanceKind.PLACE, entry.id)
    move = a_move(place, entry, [2], "shard-3", "shard-1")
    begun = await catalog.moves.begin(place, [move], {entry.id: 1}, placement_after=2)
    assert begun.placement_before == 0
    assert (await catalog.collection(entry.id)).placement_shards == 2
    if deleted:
        await catalog.begin_delete(entry.id)
    assert (await catalog.moves.cancel(NOW)).state is RebalanceState.CANCELLED
    (entry,) = await catalog.all_collections()
    assert entry.placement_shards == (2 if deleted else 0)
    gone = a_rebalance(RebalanceKind.PLACE, "nothing")
    await _refused(catalog.moves.begin(gone, [], {}, placement_after=1), Reason.CONFLICT)


async def test_set_placement(catalog: Catalog) -> None:
    entry = await _made(catalog)
    placed = await catalog.set_placement(entry, 2)
    assert placed == dataclasses.replace(entry, placement_shards=2, version=2)
    assert await catalog.set_placement(placed, 2) == placed
    await _refused(catalog.set_placement(entry, 1), Reason.CONFLICT)


async def test_pause_and_resume(catalog: Catalog) -> None:
    await _begun(catalog, await _made(catalog))
    paused = await catalog.moves.pause()
    assert paused.state is RebalanceState.PAUSED
    assert await catalog.moves.pause() == paused
    resumed = await catalog.moves.resume(500, None)
    assert (resumed.state, resumed.records_per_second) == (RebalanceState.RUNNING, 500)
    resumed = await catalog.moves.resume(None, 0.5)
    assert (resumed.records_per_second, resumed.query_agreement) == (500, 0.5)
    assert await catalog.moves.resume(None, None) == resumed
    resumed = await catalog.moves.resume(0, 0.0)
    assert (resumed.records_per_second, resumed.query_agreement) == (0, 0.0)


async def test_an_operator_is_told_what_cannot_be(catalog: Catalog) -> None:
    calls: list[Callable[[], Awaitable[object]]] = [
        catalog.moves.pause,
        lambda: catalog.moves.resume(None, None),
        lambda: catalog.moves.cancel(NOW),
    ]
    for call in calls:
        await _refused(call(), Reason.NO_REBALANCE, "rebalance start")
    entry = await _made(catalog)
    _, (move,) = await _begun(catalog, entry)
    lease = await leased(catalog)
    fenced = await _entered(catalog, lease, move, Stage.FENCED)
    cancelling = await catalog.moves.cancel(NOW)
    assert (cancelling.state, cancelling.ended_at) == (RebalanceState.CANCELLING, 0)
    assert await catalog.moves.cancel(NOW) == cancelling
    for call in calls[:2]:
        await _refused(call(), Reason.REBALANCE_ENDED, "is being cancelled")
    await _refused(catalog.moves.switch(lease, fenced), Reason.CONFLICT, "has changed")
    (move,) = await _moves(catalog)
    await catalog.moves.enter(lease, move, Stage.CANCELLED)
    ended = await catalog.moves.finish(lease, cancelling, NOW)
    assert (ended.state, ended.problem) == (RebalanceState.CANCELLED, "")
    for call in calls:
        await _refused(call(), Reason.REBALANCE_ENDED, f"{ended.id} has ended: it is cancelled")
    assert (await catalog.collection(entry.id)).slot_map == entry.slot_map


async def test_cancel_takes_back_what_is_not_switched(catalog: Catalog) -> None:
    entry = await _made(catalog)
    begun, (first, second, third) = await _begun(catalog, entry, 3)
    lease = await leased(catalog)
    _, switched = await catalog.moves.switch(
        lease, await _entered(catalog, lease, first, Stage.FENCED)
    )
    await _entered(catalog, lease, second, Stage.COPYING)
    await catalog.moves.set_problem(lease, begun.id, "shard-2 does not answer")
    cancelling = await catalog.moves.cancel(NOW)
    assert (cancelling.state, cancelling.problem) == (RebalanceState.CANCELLING, "")
    stages = [move.stage for move in await _moves(catalog)]
    assert stages == [Stage.SWITCHED, Stage.CANCELLING, Stage.CANCELLED]
    await catalog.moves.enter(lease, (await _moves(catalog))[1], Stage.CANCELLED)
    await catalog.moves.enter(lease, switched, Stage.TRIMMED)
    # What passes is not what it ends with.
    await catalog.moves.set_problem(lease, begun.id, "shard-1 does not answer")
    ended = await catalog.moves.finish(lease, begun, NOW)
    assert (ended.state, ended.problem) == (RebalanceState.CANCELLED, "")
    assert third.ended is False


async def test_what_is_only_to_be_trimmed_is_not_cancelled(catalog: Catalog) -> None:
    _, (move,) = await _begun(catalog, await _made(catalog))
    lease = await leased(catalog)
    await catalog.moves.switch(lease, await _entered(catalog, lease, move, Stage.FENCED))
    await _refused(catalog.moves.cancel(NOW), Reason.MOVE_SWITCHED, "begin another rebalance")


async def test_a_rebalance_that_gives_up_keeps_why(catalog: Catalog) -> None:
    entry = await _made(catalog)
    begun, (first, _) = await _begun(catalog, entry, 2)
    lease = await leased(catalog)
    await _entered(catalog, lease, first, Stage.CATCHING_UP)
    (first, _) = await _moves(catalog)
    first = await catalog.moves.enter(lease, first, Stage.CANCELLING, "they differ")
    failing = await catalog.moves.fail(lease, begun, "a move failed", NOW)
    assert (failing.state, failing.problem) == (RebalanceState.CANCELLING, "a move failed")
    # What stands in its way meanwhile is told while it does.
    await catalog.moves.set_problem(lease, begun.id, "shard-2 does not answer")
    assert (await catalog.moves.running() or (begun, []))[0].problem == "shard-2 does not answer"
    await catalog.moves.set_problem(lease, begun.id, "")
    assert (await catalog.moves.running() or (begun, []))[0].problem == "a move failed"
    assert (
        await catalog.moves.fail(lease, begun, "again", NOW)
        == (await catalog.moves.running() or (begun, []))[0]
    )
    await catalog.moves.enter(lease, first, Stage.CANCELLED)
    ended = await catalog.moves.finish(lease, begun, NOW)
    assert (ended.state, ended.problem) == (RebalanceState.FAILED, "a move failed")
    first, second = await _moves(catalog)
    assert (first.problem, second.problem) == ("they differ", "a move failed")
    await _refused(catalog.moves.fail(lease, begun, "late", NOW), Reason.CONFLICT)


async def test_it_fails_at_once_when_nothing_is_left_to_undo(catalog: Catalog) -> None:
    begun, _ = await _begun(catalog, await _made(catalog))
    failed = await catalog.moves.fail(await leased(catalog), begun, "it is full", NOW)
    assert (failed.state, failed.ended_at) == (RebalanceState.FAILED, NOW)


async def test_further_moves(catalog: Catalog) -> None:
    entry = await _made(catalog)
    begun, (first,) = await _begun(catalog, entry)
    lease = await leased(catalog)
    again = a_move(begun, entry, [0], "shard-1", "shard-3")
    append = catalog.moves.append(lease, begun, [again], {entry.id: 1})
    await _refused(append, Reason.CONFLICT, "slot 0 is in two moves")
    others = [a_move(begun, entry, [slot], "shard-1", "shard-3") for slot in (3, 6)]
    await catalog.moves.append(lease, begun, others, {entry.id: 1})
    moves = await _moves(catalog)
    assert [move.number for move in moves] == [0, 1, 2]
    assert [move.id for move in moves] == [first.id, *(move.id for move in others)]
    await catalog.moves.cancel(NOW)
    late = catalog.moves.append(lease, begun, [again], {entry.id: 1})
    await _refused(late, Reason.CONFLICT)


async def test_progress_is_kept(catalog: Catalog) -> None:
    begun, (move,) = await _begun(catalog, await _made(catalog))
    lease = await leased(catalog)
    before = await catalog.revision()
    progress = MoveProgress(1, 2, 3, 4, 5, 6)
    await catalog.moves.note(lease, move.id, progress)
    assert await catalog.revision() == before
    assert await catalog.moves.running() == (begun, [(move, progress)])
    await _refused(catalog.moves.note(lease, "nothing", progress), Reason.CONFLICT)
    await catalog.moves.set_problem(lease, begun.id, "")
    assert await catalog.revision() == before


async def test_a_switch_is_refused_when_the_ground_has_shifted(catalog: Catalog) -> None:
    entry = await _made(catalog)
    _, (move,) = await _begun(catalog, entry)
    lease = await leased(catalog)
    fenced = await _entered(catalog, lease, move, Stage.FENCED)
    shifted = await catalog.replace_slot_map(entry, entry.slot_map.reassigned([9], "shard-3"))
    await _refused(catalog.moves.switch(lease, fenced), Reason.CONFLICT, "is at epoch 2")
    assert await catalog.collection(entry.id) == shifted
    assert await _moves(catalog) == [fenced]


async def test_stages_change_by_compare_and_swap(catalog: Catalog) -> None:
    _, (move,) = await _begun(catalog, await _made(catalog))
    lease = await leased(catalog)
    copying = await catalog.moves.enter(lease, move, Stage.COPYING)
    await _refused(catalog.moves.enter(lease, move, Stage.COPYING), Reason.CONFLICT, move.id)
    with pytest.raises(ValueError, match="never to"):
        await catalog.moves.enter(lease, copying, Stage.FENCED)
    with pytest.raises(AssertionError, match="only `switch`"):
        await catalog.moves.enter(lease, copying, Stage.SWITCHED)
    assert await _moves(catalog) == [copying]


async def test_a_mover_that_was_taken_over_writes_nothing(catalog: Catalog, tmp_path: Path) -> None:
    entry = await _made(catalog)
    begun, (move,) = await _begun(catalog, entry)
    stale = await leased(catalog)
    fenced = await _entered(catalog, stale, move, Stage.FENCED)
    await leased(catalog, "router-2", now_us=10_000)
    other = a_move(begun, entry, [3], "shard-1", "shard-2")
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: catalog.moves.append(stale, begun, [other], {entry.id: 1}),
        lambda: catalog.moves.enter(stale, fenced, Stage.CANCELLING),
        lambda: catalog.moves.switch(stale, fenced),
        lambda: catalog.moves.note(stale, move.id, MoveProgress(1)),
        lambda: catalog.moves.set_problem(stale, begun.id, "x"),
        lambda: catalog.moves.fail(stale, begun, "x", NOW),
        lambda: catalog.moves.finish(stale, begun, NOW),
    ]
    before = await catalog.moves.newest()
    for call in calls:
        await _refused(call(), Reason.STALE_TOKEN, "router-2 has it")
    assert await catalog.moves.newest() == before
    assert await catalog.collection(entry.id) == entry


@pytest.mark.parametrize("whole", [False, True])
async def test_a_deleted_collection_has_no_moves(catalog: Catalog, whole: bool) -> None:
    entry = await _made(catalog)
    begun, (first, second, _) = await _begun(catalog, entry, 3)
    lease = await leased(catalog)
    await catalog.moves.switch(lease, await _entered(catalog, lease, first, Stage.FENCED))
    fenced = await _entered(catalog, lease, second, Stage.FENCED)
    if whole:
        await catalog.reset()
    else:
        await catalog.begin_delete(entry.id)
    moves = await _moves(catalog)
    assert [move.stage for move in moves] == [Stage.TRIMMED, Stage.CANCELLED, Stage.CANCELLED]
    assert {move.problem for move in moves} == {"the collection was deleted"}
    with pytest.raises(Stale):
        await catalog.moves.switch(lease, fenced)
    assert (await catalog.moves.finish(lease, begun, NOW)).state is RebalanceState.DONE


async def test_a_collection_is_not_made_on_a_shard_that_is_drained(catalog: Catalog) -> None:
    await catalog.moves.begin(a_rebalance(RebalanceKind.DRAIN, "shard-2"), [], {})
    call = catalog.create_collection(new(), False)
    await _refused(call, Reason.CONFLICT, "[shard-2] is being drained")
    await catalog.create_collection(new(shards=["shard-1", "shard-3"]), False)
    with pytest.raises(NotFound):
        await catalog.remove_shard("shard-9")
