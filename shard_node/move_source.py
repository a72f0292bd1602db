"""The source of a move: captures what changes, hands out the stream, and falls silent.

A capture begins in bounded time, whatever the slots hold: the copy walks them afterwards, and what
it has passed when it changes is marked. A fence is durable before anyone hears of it, and nothing
but the next epoch or the move's end lifts it (DESIGN.md, "Moves").
"""

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import TypeVar
from uuid import uuid4

import structlog

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import InvalidRequest, NotAllowed, Reason
from chroma_router.wire.slots import slots_from_bitmap
from shard_node import capture_state
from shard_node.capture_state import Capture, StoredFence
from shard_node.holdings import Fence, Holding, Holdings
from shard_node.move_ref import MoveRef
from shard_node.move_stream import MoveStream, check_bounds
from shard_node.move_token import MoveToken
from shard_node.state import MAX_INTEGER, State
from shard_node.state_thread import in_writer

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

_SWEPT_AT_ONCE = 5000


class MoveSource:
    """The moves away from one incarnation's shard. Every method is a turn of the single writer,
    but for `is_fenced` and `fence_reads`. Each that changes or reads something raises Stale
    (STALE_TOKEN) for a mover that was replaced."""

    def __init__(
        self,
        state: State,
        writer: Executor,
        holdings: Holdings,
        token: MoveToken,
        stream: MoveStream,
        settle: Callable[[], Awaitable[None]],
    ) -> None:
        """`settle` brings counts and state into agreement, after a group of which it was not to be
        found out whether it landed."""
        self._state, self._writer, self._holdings = state, writer, holdings
        self._token, self._stream, self._settle = token, stream, settle

    async def begin_capture(
        self, request: shard_pb2.BeginCaptureRequest
    ) -> shard_pb2.BeginCaptureResponse:
        """See the contract. A capture of another move that has some of the slots ends: the token
        says who is in charge."""
        move = MoveRef.of(request.move)
        holding = await self._admit(move)
        self._check_owned(move, holding)
        capture = await self._in_writer(capture_state.find, self._state, move.id)
        wanted = (move.id, holding.row.number, move.slots)
        if capture is None or (capture.move, capture.collection, capture.slots) != wanted:
            capture = Capture(move.id, holding.row.number, str(uuid4()), move.slots)
            await self._in_writer(capture_state.begin, self._state, capture)
            _log.info("capture begun", move=move.id, collection=move.collection_id)
        return shard_pb2.BeginCaptureResponse(capture_id=capture.id, records=move.records(holding))

    async def read(self, request: shard_pb2.ReadMoveRequest) -> shard_pb2.ReadMoveResponse:
        """See the contract."""
        move = MoveRef.of(request.move)
        holding = await self._admit(move)
        capture = await self._capture(move, holding)
        return await self._stream.read(holding, capture, request)

    def is_fenced(self, move: shard_pb2.MoveRef) -> bool:
        """Whether clients may be held by a fence of this move. No turn."""
        holding = self._holdings.live.get(move.collection_id)
        return holding is not None and move.move_id in holding.fences

    async def fence(self, request: shard_pb2.FenceSlotsRequest) -> shard_pb2.FenceSlotsResponse:
        """See the contract. The fence stays if the tail cannot be read."""
        move = MoveRef.of(request.move)
        reading = shard_pb2.ReadMoveRequest(
            begin=request.begin, max_records=request.max_records, max_bytes=request.max_bytes
        )
        check_bounds(reading)
        holding = await self._admit(move)
        self._check_next_epoch(move, holding, request.next_epoch)
        capture = await self._capture(move, holding)
        await self._put_fence(move, holding, request.next_epoch)
        tail = await self._stream.read(holding, capture, reading)
        return shard_pb2.FenceSlotsResponse(tail=tail, records=move.records(holding))

    def fence_reads(self, request: shard_pb2.FenceReadsRequest) -> shard_pb2.FenceReadsResponse:
        """See the contract; at once, whatever the writer is doing."""
        move = MoveRef.of(request.move)
        self._token.refuse_lower(move.token)
        holding = self._holdings.live.get(move.collection_id)
        fence = holding.fences.get(move.id) if holding is not None else None
        if holding is None or fence is None or (fence.token, fence.slots) != (
            move.token, move.slots
        ):  # fmt: skip
            raise _out_of_step(move, f"its slots are not fenced under token {move.token}")
        holding.fences[move.id] = replace(fence, reads=True)
        return shard_pb2.FenceReadsResponse()

    async def end_capture(
        self, request: shard_pb2.EndCaptureRequest
    ) -> shard_pb2.EndCaptureResponse:
        """See the contract. The collection need not be here any more. What was marked is left to
        `sweep`."""
        move = MoveRef.of(request.move)
        await self._token.admit(move.token)
        await self._in_writer(capture_state.end, self._state, move.id)
        holding = self._holdings.live.get(move.collection_id)
        if holding is not None and holding.fences.pop(move.id, None) is not None:
            _log.info("fence lifted", move=move.id, collection=move.collection_id)
        return shard_pb2.EndCaptureResponse()

    async def sweep(self) -> bool:
        """Deletes some of what captures that have ended had marked; whether more is left."""
        return await self._in_writer(capture_state.sweep, self._state, _SWEPT_AT_ONCE) > 0

    # ------------------------------------------------------------------------------ checks

    async def _admit(self, move: MoveRef) -> Holding:
        """The collection, which is loaded, if no other mover has replaced this one. Raises Stale
        and NotFound."""
        await self._token.admit(move.token)
        await self._settle()
        return self._holdings.given(move.collection_id)[0]

    def _check_owned(self, move: MoveRef, holding: Holding) -> None:
        """Raises Stale (STALE_EPOCH): the node is behind the catalog, or ahead of the mover."""
        if not move.slots <= slots_from_bitmap(holding.row.owned):
            raise self._holdings.stale_at(
                move.collection_id, holding.row.epoch, f"slots of move {move.id} are not owned"
            )

    def _check_next_epoch(self, move: MoveRef, holding: Holding, next_epoch: int) -> None:
        if not 2 <= next_epoch <= MAX_INTEGER:
            raise InvalidRequest(f"the epoch of a switch is 2 to {MAX_INTEGER}, got {next_epoch}")
        here = max(holding.row.epoch, holding.grant.epoch if holding.grant else 0)
        if next_epoch <= here:
            raise self._holdings.stale_at(
                move.collection_id, here, f"move {move.id} cannot make epoch {next_epoch}"
            )

    async def _capture(self, move: MoveRef, holding: Holding) -> Capture:
        capture = await self._in_writer(capture_state.find, self._state, move.id)
        if capture is None or (capture.collection, capture.slots) != (
            holding.row.number, move.slots
        ):  # fmt: skip
            raise _out_of_step(move, "changes of its slots are not captured")
        return capture

    async def _put_fence(self, move: MoveRef, holding: Holding, next_epoch: int) -> None:
        present = holding.fences.get(move.id)
        reads = present is not None and present.reads
        fence = Fence(move.slots, next_epoch, move.token, reads)
        if fence == present:
            return
        stored = StoredFence(move.id, holding.row.number, move.slots, next_epoch, move.token)
        await self._in_writer(capture_state.put_fence, self._state, stored)
        holding.fences[move.id] = fence
        _log.info("slots fenced", move=move.id, collection=move.collection_id, until=next_epoch)

    async def _in_writer(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await in_writer(self._writer, work, *arguments)


def _out_of_step(move: MoveRef, why: str) -> NotAllowed:
    return NotAllowed(f"move {move.id}: {why}", Reason.MOVE_OUT_OF_STEP)
