"""The catalog's part of moves: the mover's lease, rebalances, and how far each move has come.

Each method is one transaction. A router that carries out moves holds the lease; whatever it writes
is refused (Stale, STALE_TOKEN) once another acquisition has been made, which is looked at in the
very transaction that writes. What was decided on a move read earlier is guarded by its version
besides (Stale, CONFLICT).
"""

import dataclasses
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from chroma_router.wire.errors import NotAllowed, NotFound, Reason, Stale
from router.catalog import codec, move_changes, move_rows, shard_rows
from router.catalog.connection import Connection, Job
from router.catalog.move_rows import MoveRow
from router.core.lease import Lease
from router.core.model import CollectionEntry, CollectionState
from router.core.move import CANCELLABLE, Move, Stage
from router.core.rebalance import MoveProgress, Rebalance, RebalanceState

_T = TypeVar("_T")

NOBODY = ""
"""The holder of a lease that nobody has."""

FARTHEST_TTLS = 3
"""A lease ends within one ttl by its holder's clock; the rest is for clocks that differ."""


class MoveStore:
    """Rebalances, moves and the lease of one catalog. Reached as `Catalog.moves`.

    Besides what each method names, any of them raises what those of Catalog do.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # ---------------------------------------------------------------------------------- lease

    async def acquire(self, holder: str, now_us: int, ttl_us: int) -> Lease | None:
        """Takes the lease until `ttl_us` after `now_us`; None while another holder has it.

        The token is higher than any before, also than the holder's own: what its last run has still
        under way is refused from now on. It is the time in microseconds where that is higher than
        the last token + 1: so it is above the tokens that nodes have seen, even if this catalog is
        an old copy, or was rebuilt from them.

        A lease that would last for longer than FARTHEST_TTLS times `ttl_us` yet is nobody's: the
        clock was set back since, and its holder may have died long ago. Should it live, the token
        keeps it from harm.
        """
        assert holder != NOBODY

        def take(db: sqlite3.Connection) -> Lease | None:
            last = move_rows.select_lease(db)
            left = last.expires_at - now_us
            if last.holder not in (NOBODY, holder) and 0 < left <= FARTHEST_TTLS * ttl_us:
                return None
            token = max(last.token + 1, now_us)
            return move_rows.update_lease(db, Lease(holder, token, now_us + ttl_us))

        return await self._connection.write(take)

    async def renew(self, lease: Lease, now_us: int, ttl_us: int) -> Lease:
        """Prolongs the lease, also one that ran out with nobody else taking it.

        Raises Stale (STALE_TOKEN) if it was acquired again or released.
        """

        def prolong(db: sqlite3.Connection) -> Lease:
            _check_lease(db, lease)
            return move_rows.update_lease(db, Lease(lease.holder, lease.token, now_us + ttl_us))

        return await self._connection.write(prolong, counts=False)

    async def release(self, lease: Lease) -> None:
        """Gives the lease back, so that another router need not wait. Idempotent."""

        def give_back(db: sqlite3.Connection) -> None:
            last = move_rows.select_lease(db)
            if (last.holder, last.token) == (lease.holder, lease.token):
                move_rows.update_lease(db, Lease(NOBODY, last.token, 0))

        await self._connection.write(give_back)

    async def holder(self, now_us: int) -> str:
        """Who has a lease that has not expired; empty if nobody has."""

        def read(db: sqlite3.Connection) -> str:
            lease = move_rows.select_lease(db)
            return lease.holder if lease.expires_at > now_us else NOBODY

        return await self._connection.read(read)

    # ----------------------------------------------------------------------------- rebalances

    async def begin(
        self,
        rebalance: Rebalance,
        moves: Sequence[Move],
        planned_epochs: Mapping[str, int],
        *,
        placement_after: int | None = None,
    ) -> Rebalance:
        """Puts a planned rebalance and its moves, numbered in their order, into the catalog.

        `planned_epochs` has the epoch of each collection that the plan looked at, by its UUID. A
        DRAIN makes its shard DRAINING; a PLACE, and no other, is given `placement_after`, the
        collection's placement_shards from now on. With no moves it is DONE at once, at its
        started_at. Returns it as it was stored.

        Raises NotAllowed: REBALANCE_RUNNING if one has not ended, LAST_SHARD if no other shard than
        the drained one takes new data. NotFound (SHARD_NOT_FOUND). Stale (CONFLICT) if the catalog
        is not as planned: another epoch, a collection that is gone, a shard that is unknown or, as
        a target, draining, slots that the source does not own or that are in two moves.
        """
        assert rebalance.state is RebalanceState.RUNNING
        assert all(move.rebalance_id == rebalance.id for move in moves)

        def start(db: sqlite3.Connection) -> Rebalance:
            _check_none_runs(db)
            prepared = move_changes.prepare(db, rebalance, placement_after)
            move_changes.check_plan(db, moves, planned_epochs)
            move_rows.insert_rebalance(db, prepared)
            move_rows.insert_moves(db, prepared.id, moves)
            return move_changes.conclude(db, prepared, prepared.started_at)

        return await self._connection.write(start)

    async def newest(self) -> tuple[Rebalance, list[MoveRow]] | None:
        """The rebalance that was begun last, with its moves in their order."""
        return await self._connection.read(
            lambda db: _with_moves(db, move_rows.newest_rebalance(db))
        )

    async def running(self) -> tuple[Rebalance, list[MoveRow]] | None:
        """The rebalance that has not ended, with its moves in their order."""
        return await self._connection.read(
            lambda db: _with_moves(db, move_rows.unended_rebalance(db))
        )

    async def current(self) -> tuple[Rebalance, MoveRow | None] | None:
        """The rebalance that has not ended, with the first of its moves that has not, if any.

        What a mover asks for again and again: it costs the same however many moves there are.
        """

        def read(db: sqlite3.Connection) -> tuple[Rebalance, MoveRow | None] | None:
            rebalance = move_rows.unended_rebalance(db)
            return None if rebalance is None else (rebalance, move_rows.next_move(db, rebalance.id))

        return await self._connection.read(read)

    async def pause(self) -> Rebalance:
        """Has the mover stop where a move may wait. Idempotent.

        Raises NotFound (NO_REBALANCE), NotAllowed (REBALANCE_ENDED, also while it is CANCELLING).
        """

        def stop(db: sqlite3.Connection) -> Rebalance:
            return _change(db, _under_way(db), state=RebalanceState.PAUSED)

        return await self._connection.write(stop)

    async def resume(
        self, records_per_second: int | None, query_agreement: float | None
    ) -> Rebalance:
        """Has the mover go on, perhaps in another way; None keeps what is. Idempotent.

        Raises NotFound (NO_REBALANCE), NotAllowed (REBALANCE_ENDED, also while it is CANCELLING).
        """

        def go_on(db: sqlite3.Connection) -> Rebalance:
            options = {
                "records_per_second": records_per_second,
                "query_agreement": query_agreement,
            }
            given = {name: value for name, value in options.items() if value is not None}
            return _change(db, _under_way(db), state=RebalanceState.RUNNING, **given)

        return await self._connection.write(go_on)

    async def cancel(self, now_us: int) -> Rebalance:
        """Takes back what is not switched yet; what was switched stays where it is. Idempotent.

        A DRAIN's shard is ACTIVE again, a PLACE's placement what it was. The rebalance is
        CANCELLING, or CANCELLED at once if all its moves have ended. Raises NotFound
        (NO_REBALANCE); NotAllowed: REBALANCE_ENDED, MOVE_SWITCHED if all that is left to do is to
        trim.
        """

        def give_up(db: sqlite3.Connection) -> Rebalance:
            rebalance = _not_ended(db)
            if rebalance.state is RebalanceState.CANCELLING:
                return rebalance
            stages = {move.stage for move, _ in move_rows.moves_of(db, rebalance.id)}
            if Stage.SWITCHED in stages and not stages & CANCELLABLE:
                raise NotAllowed(
                    f"rebalance {rebalance.id} cannot be cancelled any more: its slots were"
                    " switched, and only what they left is being deleted; to bring them back, wait"
                    " for its end and begin another rebalance",
                    Reason.MOVE_SWITCHED,
                )
            return move_changes.conclude(db, move_changes.undo(db, rebalance), now_us)

        return await self._connection.write(give_up)

    # ------------------------------------------------------------------------------ the mover

    async def append(
        self,
        lease: Lease,
        rebalance: Rebalance,
        moves: Sequence[Move],
        planned_epochs: Mapping[str, int],
    ) -> None:
        """Adds moves to a rebalance that is RUNNING or PAUSED; their numbers go on.

        Raises Stale: STALE_TOKEN; CONFLICT as `begin`, and if the rebalance is given up meanwhile.
        """
        assert all(move.rebalance_id == rebalance.id for move in moves)

        def add(db: sqlite3.Connection) -> None:
            present = _present(db, rebalance)
            if present.state not in (RebalanceState.RUNNING, RebalanceState.PAUSED):
                raise Stale(f"rebalance {present.id} is {present.state}", Reason.CONFLICT)
            move_changes.check_plan(db, moves, planned_epochs)
            move_rows.insert_moves(db, present.id, moves)

        await self._write(lease, add)

    async def enter(self, lease: Lease, move: Move, stage: Stage, problem: str = "") -> Move:
        """Puts a move at its next stage, any but SWITCHED; FENCED with the epoch of the switch.

        Raises Stale: STALE_TOKEN, CONFLICT if the move has changed since it was read. A CANCELLED
        move keeps the problem that it was cancelled for.
        """
        assert stage is not Stage.SWITCHED, "only `switch` does that, with the slot map"

        def go(db: sqlite3.Connection) -> Move:
            present = _unchanged(db, move)
            next_epoch = 0
            if stage is Stage.FENCED:
                next_epoch = _collection(db, present).slot_map.epoch + 1
            why = problem or (present.problem if stage is Stage.CANCELLED else "")
            return move_rows.update_move(
                db, present.entered(stage, next_epoch=next_epoch, problem=why)
            )

        return await self._write(lease, go)

    async def switch(self, lease: Lease, move: Move) -> tuple[CollectionEntry, Move]:
        """Makes the target the owner of the slots: the slot map of the next epoch, and SWITCHED.

        Raises Stale: STALE_TOKEN; CONFLICT if the move or the collection has changed: its epoch is
        not the one that was fenced for, a slot is not the source's, the target is gone.
        """
        assert move.stage is Stage.FENCED, f"move {move.id} is switched from {move.stage}"

        def put(db: sqlite3.Connection) -> tuple[CollectionEntry, Move]:
            present = _unchanged(db, move)
            entry = _collection(db, present)
            if entry.slot_map.epoch != present.next_epoch - 1:
                raise Stale(
                    f"Collection [{entry.name}] is at epoch {entry.slot_map.epoch}, move"
                    f" {present.id} was to make epoch {present.next_epoch}",
                    Reason.CONFLICT,
                )
            move_changes.check_owned(entry, present)
            shard_rows.check_known(db, [present.target])
            slot_map = entry.slot_map.reassigned(present.slots, present.target)
            # Invariant 1: one map for each epoch, and it is the one that the source was fenced for.
            assert slot_map.epoch == present.next_epoch, "invariant 1: the epoch rises by 1"
            entry = codec.update_collection(db, dataclasses.replace(entry, slot_map=slot_map))
            return entry, move_rows.update_move(db, present.entered(Stage.SWITCHED))

        return await self._write(lease, put)

    async def note(self, lease: Lease, move_id: str, progress: MoveProgress) -> None:
        """Notes how far a move has come. Raises Stale: STALE_TOKEN, CONFLICT if there is none."""

        def write(db: sqlite3.Connection) -> None:
            if not move_rows.update_progress(db, move_id, progress):
                raise Stale(f"move {move_id} is not in the catalog", Reason.CONFLICT)

        await self._write(lease, write, counts=False)

    async def set_problem(self, lease: Lease, rebalance_id: str, text: str) -> None:
        """Notes what stands in the way of the rebalance that has not ended; empty: nothing does.

        Why it gives up, if it does, is told again at its end. Raises Stale: STALE_TOKEN, CONFLICT
        if it has ended.
        """

        def write(db: sqlite3.Connection) -> None:
            present = _unended(db, rebalance_id)
            _change(db, present, problem=text or move_rows.failure_of(db, rebalance_id))

        await self._write(lease, write)

    async def fail(
        self, lease: Lease, rebalance: Rebalance, problem: str, now_us: int
    ) -> Rebalance:
        """Takes back what is not switched yet, as `cancel` does; the rebalance ends as FAILED.

        One that is CANCELLING goes on for the reason that it has. Raises Stale: STALE_TOKEN,
        CONFLICT if it has ended.
        """
        assert problem

        def give_up(db: sqlite3.Connection) -> Rebalance:
            undone = move_changes.undo(db, _unended(db, rebalance.id), problem)
            return move_changes.conclude(db, undone, now_us)

        return await self._write(lease, give_up)

    async def finish(self, lease: Lease, rebalance: Rebalance, now_us: int) -> Rebalance:
        """Ends a rebalance whose moves have all ended. Idempotent.

        DONE; from CANCELLING: CANCELLED, or FAILED if it gave up by itself. Raises Stale:
        STALE_TOKEN, CONFLICT if a move has not ended.
        """

        def end(db: sqlite3.Connection) -> Rebalance:
            present = _present(db, rebalance)
            if present.ended:
                return present
            ended = move_changes.conclude(db, present, now_us)
            if not ended.ended:
                raise Stale(f"a move of rebalance {present.id} has not ended", Reason.CONFLICT)
            return ended

        return await self._write(lease, end)

    async def _write(self, lease: Lease, job: Job[_T], *, counts: bool = True) -> _T:
        """A transaction of the mover: nothing of it happens under a lease that is another's."""

        def guarded(db: sqlite3.Connection) -> _T:
            _check_lease(db, lease)
            return job(db)

        return await self._connection.write(guarded, counts=counts)


def _check_lease(db: sqlite3.Connection, lease: Lease) -> None:
    present = move_rows.select_lease(db)
    if (present.holder, present.token) != (lease.holder, lease.token):
        now = f"{present.holder} has it" if present.holder != NOBODY else "it was given back"
        raise Stale(
            f"{lease.holder} is not the mover any more: it had the lease under token {lease.token},"
            f" {now} under {present.token}",
            Reason.STALE_TOKEN,
            metadata={"token": str(present.token)},
        )


def _check_none_runs(db: sqlite3.Connection) -> None:
    running = move_rows.unended_rebalance(db)
    if running is not None:
        raise NotAllowed(
            f"rebalance {running.id} ({running.kind}, {running.state}) has not ended; wait for it"
            " (`chroma-router rebalance status`) or cancel it (`chroma-router rebalance cancel`)",
            Reason.REBALANCE_RUNNING,
            metadata={"rebalance": running.id},
        )


def _with_moves(
    db: sqlite3.Connection, rebalance: Rebalance | None
) -> tuple[Rebalance, list[MoveRow]] | None:
    return None if rebalance is None else (rebalance, move_rows.moves_of(db, rebalance.id))


def _not_ended(db: sqlite3.Connection) -> Rebalance:
    """The rebalance that an operator means. Raises NotFound, NotAllowed."""
    newest = move_rows.newest_rebalance(db)
    if newest is None:
        raise NotFound(
            "there has been no rebalance; `chroma-router rebalance start` begins one",
            Reason.NO_REBALANCE,
        )
    if newest.ended:
        raise NotAllowed(
            f"rebalance {newest.id} has ended: it is {newest.state};"
            " `chroma-router rebalance start` begins another",
            Reason.REBALANCE_ENDED,
        )
    return newest


def _under_way(db: sqlite3.Connection) -> Rebalance:
    """The same, unless it is being taken back. Raises NotFound, NotAllowed."""
    rebalance = _not_ended(db)
    if rebalance.state is RebalanceState.CANCELLING:
        raise NotAllowed(
            f"rebalance {rebalance.id} is being cancelled, which cannot be held up; wait for its"
            " end (`chroma-router rebalance status`), then begin another",
            Reason.REBALANCE_ENDED,
        )
    return rebalance


def _present(db: sqlite3.Connection, rebalance: Rebalance) -> Rebalance:
    """The newest rebalance, which is to be this one. Raises Stale."""
    newest = move_rows.newest_rebalance(db)
    if newest is None or newest.id != rebalance.id:
        raise Stale(f"rebalance {rebalance.id} is not the newest one", Reason.CONFLICT)
    return newest


def _unended(db: sqlite3.Connection, rebalance_id: str) -> Rebalance:
    """The rebalance that has not ended, which is to be this one. Raises Stale."""
    running = move_rows.unended_rebalance(db)
    if running is None or running.id != rebalance_id:
        raise Stale(f"rebalance {rebalance_id} has ended", Reason.CONFLICT)
    return running


def _unchanged(db: sqlite3.Connection, expected: Move) -> Move:
    present = move_rows.select_move(db, expected.id)
    if present is None or present.version != expected.version:
        raise Stale(f"move {expected.id} has changed meanwhile; read it again", Reason.CONFLICT)
    return present


def _collection(db: sqlite3.Connection, move: Move) -> CollectionEntry:
    entry = codec.select_collection(db, move.collection_id)
    if entry is None or entry.state is not CollectionState.ACTIVE:
        raise Stale(f"Collection [{move.collection_id}] was deleted", Reason.CONFLICT)
    return entry


def _change(db: sqlite3.Connection, present: Rebalance, **changes: Any) -> Rebalance:
    wanted = dataclasses.replace(present, **changes)
    return present if wanted == present else move_rows.update_rebalance(db, wanted)
