"""The target of a move: makes room for it, takes in its chunks, and deletes what is not owned.

Everything here is about slots that the node does not own, so that no read sees it and no client
writes there. What changes anything is a turn of the single writer, in the background lane where
there may be many, and each turn looks anew at token, ownership and cursor: a mover that has been
replaced meanwhile, or an ownership that has come, ends the call between two turns. Only the rest of
a stream that is fenced goes before clients' writes, since it holds some up.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import InvalidRequest, NotAllowed, Overloaded, Reason
from chroma_router.wire.slots import slots_from_bitmap
from shard_node import arrival_state
from shard_node.applier import Applier
from shard_node.arrival_state import Arrival, OutcomeKey, OwnKey
from shard_node.batches import Batch, Batches
from shard_node.engine import Engine
from shard_node.grouping import GroupLimits
from shard_node.holdings import Holding, Holdings
from shard_node.move_chunk import Chunk, Comparison
from shard_node.move_comparison import Differences, compare_contents, compare_keys
from shard_node.move_ref import MoveRef
from shard_node.move_token import MoveToken
from shard_node.operations import Kind
from shard_node.queries import Queries
from shard_node.record_index import RecordIndex
from shard_node.state import ArrivalCursor, StagedRow, State
from shard_node.state_thread import in_writer

_T = TypeVar("_T")

MAX_DROPPED = 5000  # of one DropSlots
_ROWS_ADDED = 500  # by one engine call, at most, so that clients' writes wait little behind it
_OWN_TURN = 1  # of what the writer has queued, that in which the question is asked
_ROWS_DELETED = 100  # by one engine call: 25 to 40 ms at 384 dimensions
_ROWS_COMPARED = 500  # read from the engine at once
_ROWS_AMISS = 1000  # more records of a compared range than the source has are not looked for
_OUTCOMES_LOOKED_AT = 4000  # at once: a few milliseconds of a reader's thread
_MOST_CALLS = 8  # one mover has one call under way; the rest are those of movers that were replaced
_RETRY_AFTER_SECONDS = 0.5


@dataclass(slots=True)
class _Applying:
    """A chunk on its way: what is left to commit of it, and how long the engine has worked."""

    holding: Holding
    left: list[Batch]
    engine_seconds: float = 0.0


class MoveTarget:
    """The target's calls of a move, for one incarnation of the engine; see the head of this file.

    It owns no task. The calls that change something go one after the other.
    """

    def __init__(
        self,
        engine: Engine,
        state: State,
        writer: Executor,
        holdings: Holdings,
        index: RecordIndex,
        queries: Queries,
        applier: Applier,
        batches: Batches,
        token: MoveToken,
        limits: GroupLimits,
    ) -> None:
        self._engine, self._state, self._writer = engine, state, writer
        self._holdings, self._index, self._queries = holdings, index, queries
        self._applier, self._batches = applier, batches
        self._token, self._limits = token, limits
        self._one = asyncio.Lock()
        self._calls = 0

    # ------------------------------------------------------------------------------ arrivals

    async def begin_arrival(
        self, request: shard_pb2.BeginArrivalRequest
    ) -> shard_pb2.BeginArrivalResponse:
        """See the contract. Ready, unless records of the slots are here that the move has not
        brought; outcomes that an older move has left are forgotten on the way."""
        move = MoveRef.of(request.move)
        async with self._one_call():
            arrival = await self._at_once(partial(self._begin, move, afresh=request.afresh))
            if not arrival.ready and await self._forget_outcomes(move):
                arrival = replace(arrival, ready=True)
        applied = shard_pb2.MoveCursor.FromString(arrival.cursor)
        return shard_pb2.BeginArrivalResponse(applied=applied, ready=arrival.ready)

    async def _begin(self, move: MoveRef, *, afresh: bool) -> Arrival:
        holding = await self._admit(move)
        arrival = await self._look(arrival_state.find, move.id)
        number = holding.row.number
        if arrival is None or afresh or (arrival.collection, arrival.slots) != (number, move.slots):
            await self._in_writer(arrival_state.begin, self._state, move.id, number, move.slots)
            arrival = Arrival(move.id, number, move.slots, ready=False, cursor=b"")
        return arrival

    async def end_arrival(
        self, request: shard_pb2.EndArrivalRequest
    ) -> shard_pb2.EndArrivalResponse:
        """See the contract. The collection need not be here any more."""
        move = MoveRef.of(request.move)

        async def work() -> None:
            await self._token.admit(move.token)
            await self._in_writer(arrival_state.end, self._state, move.id)

        async with self._one_call():
            await self._applier.turn(work)
        return shard_pb2.EndArrivalResponse()

    # ------------------------------------------------------------------------------ chunks

    async def apply(self, request: shard_pb2.ApplyMoveRequest) -> shard_pb2.ApplyMoveResponse:
        """See the contract. A chunk that is wholly applied already is only compared."""
        move = MoveRef.of(request.move)
        async with self._one_call():
            chunk = await self._index.run(Chunk.parse, request.chunk, move.slots)
            if chunk.fenced:  # in one turn: between two, others' writes would have theirs
                applying = await self._at_once(partial(self._whole, move, chunk))
            else:
                applying = await self._in_background(partial(self._first, move, chunk))
            while applying.left:
                await self._in_background(partial(self._next, move, chunk, applying))
            differences = Differences()
            if chunk.comparison is not None:
                await self._compare(applying.holding, move, chunk.comparison, differences)
            return shard_pb2.ApplyMoveResponse(
                records=move.records(applying.holding),
                differences=differences.count,
                differing=differences.words,
                apply_microseconds=round(applying.engine_seconds * 1e6),
            )

    async def _first(self, move: MoveRef, chunk: Chunk) -> _Applying:
        """Begins a chunk. From here on nothing else changes records of the slots: of a call that
        was given up, a turn that had begun has ended before this one."""
        holding, cursor = await self._arrived(move)
        if cursor == chunk.end:
            return _Applying(holding, [])
        self._check_step(move, chunk, cursor)
        present = await self._look(arrival_state.present, holding.row.number, chunk.ids)
        applying = _Applying(holding, _batches(move, chunk, holding, present, self._most_rows))
        await self._commit_next(applying)
        return applying

    async def _whole(self, move: MoveRef, chunk: Chunk) -> _Applying:
        applying = await self._first(move, chunk)
        while applying.left:
            await self._commit_next(applying)
        return applying

    async def _next(self, move: MoveRef, chunk: Chunk, applying: _Applying) -> None:
        _, cursor = await self._arrived(move)
        self._check_step(move, chunk, cursor)
        await self._commit_next(applying)

    async def _commit_next(self, applying: _Applying) -> None:
        before = self._batches.engine_seconds
        await self._batches.commit(applying.left[0])
        del applying.left[0]
        applying.engine_seconds += self._batches.engine_seconds - before

    async def _arrived(self, move: MoveRef) -> tuple[Holding, bytes]:
        """The collection, and how far the move has come."""
        holding = await self._admit(move)
        arrival = await self._look(arrival_state.find, move.id)
        if (
            arrival is None
            or not arrival.ready
            or (arrival.collection, arrival.slots) != (holding.row.number, move.slots)
        ):
            raise _out_of_step(move, "the node is not ready for it: BeginArrival, then DropSlots")
        return holding, arrival.cursor

    @staticmethod
    def _check_step(move: MoveRef, chunk: Chunk, cursor: bytes) -> None:
        if chunk.begin != cursor:
            raise _out_of_step(move, "the chunk does not begin where the node is")

    async def _compare(
        self, holding: Holding, move: MoveRef, theirs: Comparison, differences: Differences
    ) -> None:
        mine = await self._index.look(
            arrival_state.own_keys, holding.row.number, move.slots, theirs.after, theirs.upto,
            len(theirs.rows) + _ROWS_AMISS,
        )  # fmt: skip
        ids = compare_keys(theirs.rows, mine, differences)
        records = {record.id: record for record in theirs.records}
        include = ("embeddings", "documents", "uris", "metadatas")
        for at in range(0, len(ids), _ROWS_COMPARED):
            some = ids[at : at + _ROWS_COMPARED]
            found = await self._engine.get(holding.physical, some, include=include)
            await self._index.run(compare_contents, records, found, some, differences)

    # ------------------------------------------------------------------------------ drops

    async def drop_slots(self, request: shard_pb2.DropSlotsRequest) -> shard_pb2.DropSlotsResponse:
        """See the contract. Refused unless an ownership without the slots was given since the node
        began: a source that has not learnt of the switch loses nothing."""
        move = MoveRef.of(request.move)
        if not 1 <= request.limit <= MAX_DROPPED:
            raise InvalidRequest(f"a limit is 1 to {MAX_DROPPED}, got {request.limit}")
        dropped = 0
        async with self._one_call():
            while True:
                most = min(_ROWS_DELETED, request.limit - dropped)
                gone, left = await self._in_background(partial(self._drop, move, most))
                dropped += gone
                if not left or dropped == request.limit:
                    break
            done = not left and await self._forget_outcomes(move)
        return shard_pb2.DropSlotsResponse(dropped=dropped, done=done, left=left)

    async def _drop(self, move: MoveRef, most: int) -> tuple[int, int]:
        """Deletes at most so many records; how many, and how many are left."""
        holding = await self._admit(move)
        number = holding.row.number
        await self._in_writer(arrival_state.restart, self._state, number, move.slots)
        slots = [slot for slot in move.slots if holding.counts[slot]]
        keys = await self._look(arrival_state.own_keys, number, slots, None, None, most)
        if keys:
            await self._batches.commit(_deletion(holding, keys))
        assert keys or not move.records(holding), "records are counted that are not there"
        return len(keys), move.records(holding)

    async def _forget_outcomes(self, move: MoveRef) -> bool:
        """Forgets what is remembered of the slots; the move's arrival, if there is one, is ready
        then. False if there are records of the slots, which must go first."""
        holding, _ = self._holdings.given(move.collection_id)
        after: OutcomeKey | None = None
        while not move.records(holding):
            # Found on a reader's connection, which keeps the writer free: of slots that are not
            # owned, no outcome comes while they are looked for.
            found, after = await self._index.look(
                arrival_state.outcomes_of, holding.row.number, move.slots, after,
                _OUTCOMES_LOOKED_AT,
            )  # fmt: skip
            if found:
                await self._in_background(partial(self._strip, move, found))
            if after is None:
                return await self._in_background(partial(self._make_ready, move))
        return False

    async def _strip(self, move: MoveRef, found: Sequence[OutcomeKey]) -> None:
        await self._admit(move)
        await self._in_writer(arrival_state.strip_outcomes, self._state, found, move.slots)

    async def _make_ready(self, move: MoveRef) -> bool:
        holding = await self._admit(move)
        if move.records(holding):
            return False
        number = holding.row.number
        await self._in_writer(arrival_state.make_ready, self._state, move.id, number, move.slots)
        return True

    # ------------------------------------------------------------------------------ previews

    async def preview(self, request: shard_pb2.PreviewMoveRequest) -> shard_pb2.PreviewMoveResponse:
        """See the contract; at the target as at the source."""
        move = MoveRef.of(request.move)
        if request.query.collection_id != move.collection_id:
            raise InvalidRequest("the query is not of the move's collection")
        self._token.refuse_lower(move.token)
        holding, _ = self._holdings.given(move.collection_id)
        if not await self._index.look(arrival_state.takes_part, move.id, holding.row.number):
            raise _out_of_step(move, "the node takes no part in it")
        found = await self._queries.nearest(holding, move.as_grant(), request.query)
        return shard_pb2.PreviewMoveResponse(results=found.results)

    # ------------------------------------------------------------------------------ machinery

    async def _admit(self, move: MoveRef) -> Holding:
        """In a turn: the collection, if this mover may still change what is here of the slots."""
        await self._token.admit(move.token)
        await self._batches.settle()
        holding, grant = self._holdings.given(move.collection_id)
        owned = move.slots & (grant.slots | slots_from_bitmap(holding.row.owned))
        if owned:
            raise _out_of_step(move, f"the node owns {len(owned)} of its slots")
        return holding

    @asynccontextmanager
    async def _one_call(self) -> AsyncIterator[None]:
        if self._calls == _MOST_CALLS:
            raise Overloaded(
                f"{self._calls} calls of moves are under way",
                Reason.QUEUE_FULL,
                retry_after=_RETRY_AFTER_SECONDS,
            )
        self._calls += 1
        try:
            async with self._one:
                yield
        finally:
            self._calls -= 1

    def _most_rows(self, dimension: int) -> int:
        """How many rows of a dimension one engine call may add. While no client's write waits it is
        the mover that bounds a chunk; larger calls cost less each row (250 rows 80 ms, 500 145)."""
        if self._applier.queued_operations <= _OWN_TURN:
            return _ROWS_ADDED
        return min(_ROWS_ADDED, self._limits.rows_for(dimension))

    async def _at_once(self, work: Callable[[], Awaitable[_T]]) -> _T:
        return await self._applier.turn(work, urgent=True)

    async def _in_background(self, work: Callable[[], Awaitable[_T]]) -> _T:
        return await self._applier.turn(work, background=True)

    async def _look(self, work: Callable[..., _T], *arguments: object) -> _T:
        """In a turn: on the writer's own connection, for those of the readers may all be busy."""
        return await self._in_writer(self._state.look, work, *arguments)

    async def _in_writer(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await in_writer(self._writer, work, *arguments)


def _batches(
    move: MoveRef,
    chunk: Chunk,
    holding: Holding,
    present: Sequence[OwnKey],
    most_rows: Callable[[int], int],
) -> list[Batch]:
    """The engine calls of a chunk: `present` records are deleted, then its own are added.

    Outcomes and cursor go with the last: after a kill between two of them the chunk is applied
    again from its beginning, and comes to the same.
    """
    batches = [
        _deletion(holding, present[at : at + _ROWS_DELETED])
        for at in range(0, len(present), _ROWS_DELETED)
    ]
    dimension = max((len(record.embedding or b"") // 4 for record in chunk.records), default=0)
    step = most_rows(dimension)
    batches += [
        Batch(holding, Kind.ADD, chunk.rows[at : at + step], chunk.records[at : at + step])
        for at in range(0, len(chunk.rows), step)
    ]
    last = batches.pop() if batches else Batch(holding, Kind.DELETE, [])
    arrival = ArrivalCursor(move.id, chunk.end)
    return [*batches, replace(last, outcomes=chunk.outcomes, arrival=arrival)]


def _deletion(holding: Holding, keys: Sequence[OwnKey]) -> Batch:
    rows = [StagedRow(key.id, key.slot, key.sequence) for key in keys]
    return Batch(holding, Kind.DELETE, rows)


def _out_of_step(move: MoveRef, why: str) -> NotAllowed:
    return NotAllowed(f"move {move.id}: {why}", Reason.MOVE_OUT_OF_STEP)
