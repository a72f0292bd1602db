"""One group of writes, from the check of each to the engine's commit.

Called by the single writer only, one group at a time. It owns no task and no queue.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TypeVar

import structlog

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import (
    ClusterError,
    InternalFailure,
    InvalidRequest,
    OutcomeUnknown,
    Stale,
    Unavailable,
)
from chroma_router.wire.request_id import time_of
from chroma_router.wire.slots import slot_of
from shard_node import capture_state
from shard_node.batches import Batch, Batches
from shard_node.engine import Engine, EngineRefused
from shard_node.holdings import Grant, Holding, Holdings
from shard_node.operations import ENGINE_ROWS, Kind, Write
from shard_node.state import Outcome, Remembered, StagedRow, State
from shard_node.state_thread import in_writer

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

# Requests are dated by other hosts' clocks; outcomes are kept that much past the window.
_CLOCK_SKEW_SECONDS = 60
_PRUNED_AT_ONCE = 4000


@dataclass(slots=True)
class _Part:
    """What is left to do of the group's write at `position`."""

    position: int
    write: Write
    named: int  # how many ids the whole operation named
    remembered: Remembered
    covers: frozenset[int]  # the slots whose outcome this application makes known


class Committer:
    """Applies groups, by way of `batches`."""

    def __init__(
        self,
        engine: Engine,
        state: State,
        writer: Executor,
        holdings: Holdings,
        retry_window_seconds: int,
    ) -> None:
        self._engine, self._state, self._writer = engine, state, writer
        self._holdings = holdings
        self._window_seconds = retry_window_seconds
        self.batches = Batches(engine, state, writer, holdings)

    @property
    def engine_seconds(self) -> float:
        """How long the engine has worked on batches, all told."""
        return self.batches.engine_seconds

    async def apply(self, group: Sequence[Write]) -> list[shard_pb2.OperationResult]:
        """What became of each write of a group (see grouping.take). Raises Unavailable."""
        await self.batches.settle()
        results: list[shard_pb2.OperationResult | None] = [None] * len(group)
        allowed: list[int] = []
        for position, write in enumerate(group):
            try:
                self._check(write)
                allowed.append(position)
            except ClusterError as error:
                results[position] = refusal(error)
        if allowed:
            # The group is of one collection at one epoch. Its grant is taken here, once: another
            # may take effect while it is applied.
            first = group[allowed[0]]
            holding, grant = self._holdings.granted(first.collection_id, first.epoch)
            parts = await self._parts(holding, grant, group, allowed, results)
            await self._apply_parts(holding, parts, results)
        assert all(result is not None for result in results)
        return [result for result in results if result is not None]

    async def prune(self) -> None:
        """Forgets some outcomes that no repeat may ask for any more, and some marks of captures
        that have ended."""
        before = time.time_ns() // 1000 - (self._window_seconds + _CLOCK_SKEW_SECONDS) * 1_000_000
        try:
            await self._in_writer(self._state.prune_outcomes, before, _PRUNED_AT_ONCE)
            await self._in_writer(capture_state.sweep, self._state, _PRUNED_AT_ONCE)
        except Unavailable as error:
            _log.warning("what is old is not forgotten yet", error=error.message)

    # ---------------------------------------------------------------------------- checks

    def _check(self, write: Write) -> None:
        holding, grant = self._holdings.granted(write.collection_id, write.epoch)
        if holding.row.epoch < grant.epoch:  # the turn that makes it durable has not been
            why = f"asked to write at epoch {write.epoch}"
            raise self._holdings.stale_at(write.collection_id, holding.row.epoch, why)
        for record_id, slot in zip(write.ids, write.slots, strict=True):
            if not grant.owned[slot]:
                raise InternalFailure(
                    f"record {record_id!r} is in slot {slot}, which this shard does not own at"
                    f" epoch {grant.epoch}: it was routed wrongly"
                )
        anywhere = write.conditional and not write.ids
        self._holdings.refuse_fenced(holding, grant, None if anywhere else write.slots)

    async def _parts(
        self,
        holding: Holding,
        grant: Grant,
        group: Sequence[Write],
        allowed: Sequence[int],
        results: list[shard_pb2.OperationResult | None],
    ) -> list[_Part]:
        """Takes out what was applied before under the same identity (invariant 8)."""
        identities = [(group[p].request_id, group[p].index) for p in allowed]
        known = await self._in_writer(
            self._state.remembered, holding.row.number, identities, grant.owned
        )
        parts: list[_Part] = []
        for position, remembered in zip(allowed, known, strict=True):
            write = group[position]
            rows = [i for i, slot in enumerate(write.slots) if slot not in remembered.slots]
            named = len(write.ids)
            covers = _covers(write, grant) - remembered.slots
            if remembered.digest not in (None, write.digest):
                results[position] = refusal(
                    InvalidRequest(
                        f"request id {write.request_id} was used for another request; use a new one"
                    )
                )
            elif not covers:
                results[position] = _applied(write, named, remembered.deleted)
            elif self._too_old(write):
                results[position] = refusal(
                    OutcomeUnknown(
                        f"request {write.request_id} is older than the retry window of"
                        f" {self._window_seconds} s, and its outcome is not remembered"
                    )
                )
            elif self._too_new(write):
                results[position] = refusal(
                    InvalidRequest(
                        f"request {write.request_id} is dated more than {_CLOCK_SKEW_SECONDS} s"
                        " after this node's clock: correct the clock of the host that made it, or"
                        " of the node"
                    )
                )
            else:
                left = write if len(rows) == named else write.only(rows)
                parts.append(_Part(position, left, named, remembered, covers))
        return parts

    def _too_old(self, write: Write) -> bool:
        made = time_of(write.request_id)
        return made is not None and made < (time.time() - self._window_seconds) * 1000

    @staticmethod
    def _too_new(write: Write) -> bool:
        """Its outcome could be pruned before a repeat of it is judged too old."""
        made = time_of(write.request_id)
        return made is not None and made > (time.time() + _CLOCK_SKEW_SECONDS) * 1000

    # ---------------------------------------------------------------------------- applying

    async def _apply_parts(
        self,
        holding: Holding,
        parts: Sequence[_Part],
        results: list[shard_pb2.OperationResult | None],
    ) -> None:
        """One engine call; refused, each alone, so that only the guilty one fails."""
        if not parts:
            return
        try:
            if _in_steps(parts[0].write):
                await self._delete_in_steps(holding, parts[0])
            else:
                await self._commit(holding, parts)
        except EngineRefused as refused:
            if len(parts) == 1:
                results[parts[0].position] = refusal(refused.as_error())
                return
            for part in parts:
                await self._apply_parts(holding, [part], results)
            return
        for part in parts:
            deleted = part.remembered.deleted + len(part.write.ids)
            results[part.position] = _applied(part.write, part.named, deleted)

    async def _delete_in_steps(self, holding: Holding, part: _Part) -> None:
        """A delete of what matches now, or of many ids: as many steps as the engine's bound asks.

        Slot by slot, and every step remembers what it deleted and which slots it has completed; the
        last one completes all. So a repeat after a crash between two of them deletes the rest and
        counts both, and leaves alone what was written again in the meantime (invariant 8).
        """
        write = part.write
        found = list(write.ids)
        if write.conditional and (found or not part.named):  # no ids at all, or some are left
            found = await self._engine.matching(
                holding.physical, write.ids or None, write.where, write.where_document
            )
        rows = [(i, slot) for i, slot in ((i, slot_of(i)) for i in found) if slot in part.covers]
        for chunk, completed in _steps(rows, part.covers):
            step = replace(part, write=_of(write, chunk), covers=completed)
            await self._commit(holding, [step])
        part.write = _of(write, rows)

    async def _commit(self, holding: Holding, parts: Sequence[_Part]) -> None:
        """Commits the parts as one batch. Raises EngineRefused: none landed."""
        rows = [row for part in parts for row in _staged_rows(part.write)]
        records = [record for part in parts for record in part.write.records]
        outcomes = [_outcome(part) for part in parts]
        await self.batches.commit(Batch(holding, parts[0].write.kind, rows, records, outcomes))

    async def _in_writer(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await in_writer(self._writer, work, *arguments)


def _steps(
    rows: Sequence[tuple[str, int]], covers: frozenset[int]
) -> Iterator[tuple[Sequence[tuple[str, int]], frozenset[int]]]:
    """The (id, slot) rows in pieces that the engine takes, with the slots that each completes.

    At least one, and the last completes all of `covers`. Only a slot of more rows than the engine
    takes is in two pieces.
    """
    rows = sorted(rows, key=itemgetter(1))
    begin = 0
    while len(rows) - begin > ENGINE_ROWS:
        end = begin + ENGINE_ROWS
        next_slot = rows[end][1]
        first = bisect_left(rows, next_slot, begin, end, key=itemgetter(1))
        end = first if first > begin else end
        yield rows[begin:end], frozenset(slot for _, slot in rows[begin:end]) - {next_slot}
        begin = end
    yield rows[begin:], covers


def refusal(error: ClusterError) -> shard_pb2.OperationResult:
    """The result of an operation of which nothing was applied."""
    epoch = int(error.metadata.get("epoch", "0")) if isinstance(error, Stale) else 0
    return shard_pb2.OperationResult(
        refused_reason=error.reason.value, message=error.message, node_epoch=epoch
    )


def _covers(write: Write, grant: Grant) -> frozenset[int]:
    """The slots whose outcome a write makes known: of its ids; of a condition, all owned ones,
    since what it held for then is not what it may hold for at a repeat."""
    return grant.slots if write.conditional else frozenset(write.slots)


def _in_steps(write: Write) -> bool:
    """A delete that is not simply one engine call."""
    return write.conditional or len(write.ids) > ENGINE_ROWS


def _of(write: Write, rows: Sequence[tuple[str, int]]) -> Write:
    """The same delete, of these (id, slot) rows."""
    return replace(write, ids=[row[0] for row in rows], slots=[row[1] for row in rows])


def _applied(write: Write, named: int, deleted: int) -> shard_pb2.OperationResult:
    if write.kind is not Kind.DELETE:
        return shard_pb2.OperationResult()
    return shard_pb2.OperationResult(deleted=deleted if write.conditional else named)


def _staged_rows(write: Write) -> list[StagedRow]:
    sequences = write.sequences or [0] * len(write.ids)
    return [StagedRow(*row) for row in zip(write.ids, write.slots, sequences, strict=True)]


def _outcome(part: _Part) -> Outcome:
    write = part.write
    deleted = tuple(write.slots) if write.conditional else ()
    return Outcome(write.request_id, write.index, write.kind, part.covers, deleted, write.digest)
