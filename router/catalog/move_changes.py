"""What becomes of rebalances and moves, inside a transaction: plans that begin, and moves that end.

Shared by the methods of MoveStore and by those of Catalog that end moves by the way. Which lease
allows what is MoveStore's business.

    RUNNING <--> PAUSED      by pause and resume
       |           |
       | undo      | undo    what is not switched yet is taken back: PLANNED -> CANCELLED at once,
       v           v         COPYING to FENCED -> CANCELLING, which the mover carries out
       CANCELLING  |
       |           |         conclude, when every move has ended:
       v           v
    CANCELLED    DONE        CANCELLED is FAILED if the rebalance gave up by itself
"""

import dataclasses
import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from chroma_router.wire.errors import NotFound, Reason, Stale
from router.catalog import codec, move_rows, shard_rows
from router.core.model import CollectionEntry, CollectionState, ShardRole
from router.core.move import CANCELLABLE, Move, Stage
from router.core.rebalance import Rebalance, RebalanceKind, RebalanceState


def check_plan(
    db: sqlite3.Connection, moves: Sequence[Move], planned_epochs: Mapping[str, int]
) -> None:
    """Raises Stale (CONFLICT) unless the catalog still is as it was when the moves were planned."""
    entries = {
        collection_id: _as_planned(db, collection_id, epoch)
        for collection_id, epoch in planned_epochs.items()
    }
    shard_rows.check_known(db, (move.source for move in moves))
    shard_rows.check_active(db, (move.target for move in moves))
    taken: dict[str, set[int]] = {}
    for move in move_rows.unended_moves(db):
        taken.setdefault(move.collection_id, set()).update(move.slots)
    for move in moves:
        assert move.stage is Stage.PLANNED, f"move {move.id} begins at {move.stage}"
        assert move.collection_id in entries, f"move {move.id}: planned at no epoch"
        check_owned(entries[move.collection_id], move)
        in_two = taken.setdefault(move.collection_id, set())
        if not in_two.isdisjoint(move.slots):
            raise _conflict(f"slot {min(in_two & move.slots)} is in two moves", move)
        in_two |= move.slots


def check_owned(entry: CollectionEntry, move: Move) -> None:
    """Raises Stale (CONFLICT) unless the source owns every slot of a move."""
    for slot in sorted(move.slots):
        if (owner := entry.slot_map.owner(slot)) != move.source:
            raise _conflict(f"slot {slot} is owned by {owner}", move)


def prepare(db: sqlite3.Connection, rebalance: Rebalance, placement_after: int | None) -> Rebalance:
    """Takes what a rebalance is for into the catalog: the role of a shard, a placement.

    Returns it with what an `undo` needs to know. Raises NotFound (SHARD_NOT_FOUND), NotAllowed
    (LAST_SHARD), Stale (CONFLICT).
    """
    assert (placement_after is not None) == (rebalance.kind is RebalanceKind.PLACE)
    if rebalance.kind is RebalanceKind.DRAIN:
        shard = shard_rows.known_shard(db, rebalance.subject)
        shard_rows.check_not_last(db, shard.name, "drained")
        shard_rows.change(db, shard, role=ShardRole.DRAINING)
    if placement_after is not None:
        entry = _present(db, rebalance.subject)
        codec.update_collection(db, dataclasses.replace(entry, placement_shards=placement_after))
        return dataclasses.replace(rebalance, placement_before=entry.placement_shards)
    return rebalance


def undo(db: sqlite3.Connection, rebalance: Rebalance, failure: str = "") -> Rebalance:
    """Begins to take back what is not switched yet, because it was asked for or by `failure`.

    The rebalance is CANCELLING afterwards; one that was already goes on for its first reason.
    """
    if rebalance.state is RebalanceState.CANCELLING:
        return rebalance
    assert not rebalance.ended, f"rebalance {rebalance.id} has ended"
    for move, _ in move_rows.moves_of(db, rebalance.id):
        if move.stage in CANCELLABLE:
            # No record of a PLANNED move is at its target yet.
            planned = move.stage is Stage.PLANNED
            stage = Stage.CANCELLED if planned else Stage.CANCELLING
            move_rows.update_move(db, move.entered(stage, problem=failure))
    _restore(db, rebalance)
    move_rows.set_failure(db, rebalance.id, failure)
    return move_rows.update_rebalance(
        db, dataclasses.replace(rebalance, state=RebalanceState.CANCELLING, problem=failure)
    )


def conclude(db: sqlite3.Connection, rebalance: Rebalance, now_us: int) -> Rebalance:
    """Ends a rebalance whose moves have all ended; returns any other as it is."""
    if any(not move.ended for move, _ in move_rows.moves_of(db, rebalance.id)):
        return rebalance
    failure = move_rows.failure_of(db, rebalance.id)
    if rebalance.state is not RebalanceState.CANCELLING:
        state = RebalanceState.DONE
    else:
        state = RebalanceState.FAILED if failure else RebalanceState.CANCELLED
    return move_rows.update_rebalance(
        db, dataclasses.replace(rebalance, state=state, problem=failure, ended_at=now_us)
    )


def end_moves(db: sqlite3.Connection, moves: Iterable[Move], why: str, *, lost: str = "") -> None:
    """Ends moves at once, whatever their stage: nothing is left to do, or nobody to do it with.

    A switched one is TRIMMED, unless its data went with the shard `lost`; any other is CANCELLED.
    """
    for move in moves:
        done = move.stage is Stage.SWITCHED and move.target != lost
        changed = dataclasses.replace(
            move,
            stage=Stage.TRIMMED if done else Stage.CANCELLED,
            problem=why,
            version=move.version + 1,
        )
        move_rows.update_move(db, changed)


def end_moves_of(db: sqlite3.Connection, collection_id: str) -> None:
    """Ends the moves of a collection that is being deleted: each node drops all of it."""
    moves = move_rows.unended_moves(db)
    doomed = [move for move in moves if move.collection_id == collection_id]
    end_moves(db, doomed, "the collection was deleted")


def _restore(db: sqlite3.Connection, rebalance: Rebalance) -> None:
    """Takes back what `prepare` did; not where the shard or the collection is gone meanwhile."""
    if rebalance.kind is RebalanceKind.DRAIN:
        try:
            shard = shard_rows.known_shard(db, rebalance.subject)
        except NotFound:
            return
        shard_rows.change(db, shard, role=ShardRole.ACTIVE)
    if rebalance.kind is RebalanceKind.PLACE:
        entry = codec.select_collection(db, rebalance.subject)
        if entry is not None and entry.state is CollectionState.ACTIVE:
            wanted = dataclasses.replace(entry, placement_shards=rebalance.placement_before)
            codec.update_collection(db, wanted)


def _as_planned(db: sqlite3.Connection, collection_id: str, epoch: int) -> CollectionEntry:
    entry = _present(db, collection_id)
    if entry.slot_map.epoch != epoch:
        raise Stale(
            f"Collection [{entry.name}] is at epoch {entry.slot_map.epoch}, the moves were planned"
            f" at {epoch}; plan again",
            Reason.CONFLICT,
        )
    return entry


def _present(db: sqlite3.Connection, collection_id: str) -> CollectionEntry:
    entry = codec.select_collection(db, collection_id)
    if entry is None or entry.state is not CollectionState.ACTIVE:
        raise Stale(f"Collection [{collection_id}] was deleted; plan again", Reason.CONFLICT)
    return entry


def _conflict(what: str, move: Move) -> Stale:
    return Stale(
        f"the move of {len(move.slots)} slots of collection {move.collection_id} from {move.source}"
        f" to {move.target} cannot be: {what}; plan again",
        Reason.CONFLICT,
    )
