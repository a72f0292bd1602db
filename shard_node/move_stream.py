"""The next chunk of a move's stream: outcomes, then records as they are at one moment.

First every record of the moving slots in the order of (slot, id), then those that have changed
since the capture began, in the order of their last change; outcomes go alongside from the first
chunk on. Everything of a chunk is read within one turn of the single writer, so that it is of one
position. It remembers nothing: the cursor says all (DESIGN.md, "Moves").
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import InternalFailure, InvalidRequest, NotAllowed, Reason
from shard_node import capture_state
from shard_node.arrival_state import OwnKey, own_keys
from shard_node.capture_state import Capture, Change, DatedOutcome
from shard_node.engine import Engine
from shard_node.holdings import Holding
from shard_node.reads import ANSWER_BYTES, pack_records
from shard_node.state import State
from shard_node.state_thread import in_writer

MAX_RECORDS = 5000  # of one chunk
ITEM_BYTES = 24  # of protobuf around one of its items, at most
EVERYTHING = ("documents", "metadatas", "embeddings", "uris")  # what a record is made of

_T = TypeVar("_T")
_Row: TypeAlias = tuple[str, int | None]  # id, and sequence; None: it does not exist any more

_FIRST_READ, _LARGEST_READ = 64, 1000  # records of one engine call, before their size is known
_OUTCOMES = 2000  # looked at for one chunk: 10-20 ms of the writer's time
_UNSIGNED = (1 << 64) - 1


@dataclass(slots=True)
class _Items:
    """Records and removals as they are gathered, to their bounds; where `one`, at least one."""

    most: int
    max_bytes: int
    one: bool = True
    records: list[bytes] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    size: int = 0

    def take(self, record_id: str, sequence: int | None, record: bytes) -> bool:
        """False if it is past a bound. What is in the chunk already is as new there."""
        if record_id in self.ids:
            return True
        size = len(record or record_id.encode()) + ITEM_BYTES
        full = len(self.ids) == self.most or self.size + size > self.max_bytes
        if full and (self.ids or not self.one):
            return False
        if sequence is None:
            self.removed.append(record_id)
        else:
            self.records.append(record)
            self.sequences.append(sequence)
        self.ids.add(record_id)
        self.size += size
        return True

    @property
    def room(self) -> int:
        """How many more there may be."""
        return self.most - len(self.ids)

    @property
    def next_read(self) -> int:
        """How many records to ask the engine for, by the size of those so far."""
        if not self.records:
            return _FIRST_READ
        fit = (self.max_bytes - self.size) * len(self.ids) // self.size
        return max(1, min(_LARGEST_READ, fit + 1))


class MoveStream:
    """Reads chunks. Every call is within a turn of the single writer, for which all writes wait:
    so nothing of it queues behind clients' reads, neither in the engine nor in the threads here."""

    def __init__(self, engine: Engine, state: State, writer: Executor) -> None:
        self._engine, self._state, self._writer = engine, state, writer

    async def read(
        self, holding: Holding, capture: Capture, request: shard_pb2.ReadMoveRequest
    ) -> shard_pb2.ReadMoveResponse:
        """The chunk that begins at a cursor. Raises NotAllowed (MOVE_OUT_OF_STEP) for a cursor of
        another capture, InternalFailure if the engine lacks a record that it must have."""
        check_bounds(request)
        begin = _checked(request.begin, capture)
        end = shard_pb2.MoveCursor()
        end.CopyFrom(begin)
        end.capture_id = capture.id
        max_bytes = min(request.max_bytes or ANSWER_BYTES, ANSWER_BYTES)
        outcomes, no_outcome_left = await self._outcomes(capture, end, max_bytes // 2)
        used = sum(outcome.ByteSize() + ITEM_BYTES for outcome in outcomes)
        items = _Items(request.max_records, max_bytes - used)
        if not end.copy_done:
            await self._copy(holding, capture, end, items)
        no_change_left = end.copy_done and await self._changes(holding, capture, end, items)
        chunk = shard_pb2.MoveChunk(
            begin=request.begin, end=end, outcomes=outcomes, fenced=capture.move in holding.fences
        )
        response = shard_pb2.ReadMoveResponse(
            end=end, items=len(items.ids), caught_up=no_change_left and no_outcome_left
        )
        if request.compare and response.caught_up:
            left = _Items(request.max_records, items.max_bytes - items.size, one=not items.ids)
            await self._compare(holding, capture, request, left, chunk, response)
        response.chunk = await self._in_writer(_packed, chunk, items)
        return response

    # ------------------------------------------------------------------------------ parts

    async def _outcomes(
        self, capture: Capture, end: shard_pb2.MoveCursor, max_bytes: int
    ) -> tuple[list[shard_pb2.MovedOutcome], bool]:
        """Outcomes of whole batches, and whether they are the last."""
        looked_at = _OUTCOMES
        while True:
            page = await self._in_writer(
                capture_state.outcomes, self._state, capture.collection, capture.slots,
                end.outcome_batch, looked_at,
            )  # fmt: skip
            wire = [_outcome_to_wire(dated) for dated in page.found]
            if looked_at == 1 or sum(outcome.ByteSize() for outcome in wire) <= max_bytes:
                end.outcome_batch = page.upto
                return wire, page.last
            looked_at = max(1, looked_at // 8)

    async def _copy(
        self, holding: Holding, capture: Capture, end: shard_pb2.MoveCursor, items: _Items
    ) -> None:
        """Records that may have been there when the capture began."""
        after = (end.copied.sequence, end.copied.id) if end.HasField("copied") else None
        limit = items.room
        keys = await self._keys(capture, after, limit)
        taken = await self._gather(holding, [(key.id, key.sequence) for key in keys], items)
        if taken:
            end.copied.sequence, end.copied.id = keys[taken - 1].slot, keys[taken - 1].id
        if taken == len(keys) < limit:
            end.copy_done = True
            end.ClearField("copied")

    async def _changes(
        self, holding: Holding, capture: Capture, end: shard_pb2.MoveCursor, items: _Items
    ) -> bool:
        """Records that have changed since; False if more may have."""
        limit = items.room
        changes = await self._in_writer(
            capture_state.changes, self._state, capture.move,
            Change(end.changed_batch, end.changed_id), limit,
        )  # fmt: skip
        ids = [change.id for change in changes]
        present = await self._in_writer(
            capture_state.sequences, self._state, capture.collection, ids
        )
        taken = await self._gather(holding, [(i, present.get(i)) for i in ids], items)
        if taken:
            end.changed_batch, end.changed_id = changes[taken - 1]
        return taken == len(changes) < limit

    async def _compare(
        self,
        holding: Holding,
        capture: Capture,
        request: shard_pb2.ReadMoveRequest,
        items: _Items,
        chunk: shard_pb2.MoveChunk,
        response: shard_pb2.ReadMoveResponse,
    ) -> None:
        """Adds the next records to compare, unless there is no room for any; the last of them
        without an end, so that the target looks at whatever it has beyond."""
        after: tuple[int, str] | None = None
        if request.HasField("compared"):
            after = (request.compared.sequence, request.compared.id)
        keys = await self._keys(capture, after, request.max_records)
        taken = await self._gather(holding, [(key.id, key.sequence) for key in keys], items)
        response.compare_done = taken == len(keys) < request.max_records
        if not taken and not response.compare_done:
            return
        comparison = chunk.comparison
        comparison.SetInParent()
        comparison.records.extend(items.records)
        comparison.sequences.extend(items.sequences)
        if after is not None:
            comparison.after.CopyFrom(request.compared)
        if taken:
            response.compared.sequence = keys[taken - 1].slot
            response.compared.id = keys[taken - 1].id
        if not response.compare_done:
            comparison.upto.CopyFrom(response.compared)

    # ------------------------------------------------------------------------------ reading

    async def _keys(
        self, capture: Capture, after: tuple[int, str] | None, limit: int
    ) -> list[OwnKey]:
        return await self._in_writer(
            self._state.look, own_keys, capture.collection, capture.slots, after, None, limit
        )

    async def _gather(self, holding: Holding, rows: Sequence[_Row], items: _Items) -> int:
        """Takes rows in their order, with their contents, to the bounds; returns how many."""
        at = 0
        while at < len(rows):
            some = rows[at : at + items.next_read]
            ids = [i for i, sequence in some if sequence is not None and i not in items.ids]
            records = await self._contents(holding, ids)
            for record_id, sequence in some:
                if not items.take(record_id, sequence, records.get(record_id, b"")):
                    return at
                at += 1
        return at

    async def _contents(self, holding: Holding, ids: list[str]) -> dict[str, bytes]:
        if not ids:
            return {}
        found = await self._engine.get_in_turn(holding.physical, ids, include=EVERYTHING)
        if len(found.ids) != len(ids):
            missing = next(iter(set(ids).difference(found.ids)))
            raise InternalFailure(
                f"collection {holding.row.id}: the engine has no record {missing[:100]!r}, but the"
                " node's tables have it: restore the shard's directory from a snapshot"
            )
        return await self._in_writer(pack_records, found)

    async def _in_writer(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await in_writer(self._writer, work, *arguments)


def check_bounds(request: shard_pb2.ReadMoveRequest) -> None:
    """Raises InvalidRequest for a chunk of no records or of too many."""
    if not 1 <= request.max_records <= MAX_RECORDS:
        raise InvalidRequest(f"max_records is 1 to {MAX_RECORDS}, got {request.max_records}")


def _checked(cursor: shard_pb2.MoveCursor, capture: Capture) -> shard_pb2.MoveCursor:
    """The cursor if it is of this capture; what no capture is named in is the beginning."""
    if not cursor.capture_id:
        return shard_pb2.MoveCursor()
    if cursor.capture_id != capture.id:
        raise NotAllowed(
            f"move {capture.move}: the cursor is of capture {cursor.capture_id}, the present one is"
            f" {capture.id}: begin again",
            Reason.MOVE_OUT_OF_STEP,
        )
    return cursor


def _outcome_to_wire(dated: DatedOutcome) -> shard_pb2.MovedOutcome:
    outcome = dated.outcome
    return shard_pb2.MovedOutcome(
        request_id=outcome.request_id,
        index=outcome.index,
        kind=shard_pb2.OperationKind.Name(outcome.kind),
        slots=sorted(outcome.slots),
        deleted_slots=outcome.deleted_slots,
        at=dated.at,
        digest=outcome.digest & _UNSIGNED,
    )


def _packed(chunk: shard_pb2.MoveChunk, items: _Items) -> bytes:
    chunk.records.extend(items.records)
    chunk.sequences.extend(items.sequences)
    chunk.removed.extend(items.removed)
    return chunk.SerializeToString()
