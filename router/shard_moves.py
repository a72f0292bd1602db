"""The calls of a move to one shard node. Thin: what follows from an answer the mover decides.

All are idempotent and carry the token of the mover (shard.proto, MoveRef); a node that has seen a
higher one refuses with Stale (STALE_TOKEN). Each raises ClusterError as every call of ShardClient
does, with the shard in its metadata.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from chroma_router.v1 import shard_pb2, shard_pb2_grpc

CHUNK_TIMEOUT = 60.0
"""Seconds for a call that waits for a turn of the single writer, behind the foreground's writes."""

FENCE_TIMEOUT = 10.0
"""Seconds for a call between fence and switch: writes to the slots are held meanwhile."""

PREVIEW_TIMEOUT = 10.0
"""Seconds for a replayed query."""

_Response = TypeVar("_Response", bound=Message)


class Call(Protocol):
    """How a call is made: with its deadline in seconds, and errors of the error tree."""

    async def __call__(
        self, method: Callable[..., Awaitable[_Response]], request: Message, timeout: float
    ) -> _Response: ...


class ShardMoves:
    """The move calls of one node; reached as `ShardClient.moves`."""

    def __init__(self, stub: "shard_pb2_grpc.ShardServiceAsyncStub", call: Call) -> None:
        self._stub = stub
        self._call = call

    # ----------------------------------------------------------------------------------- source

    async def begin_capture(
        self, move: shard_pb2.MoveRef, timeout: float = CHUNK_TIMEOUT
    ) -> shard_pb2.BeginCaptureResponse:
        """From here on the source captures what changes in the moving slots."""
        request = shard_pb2.BeginCaptureRequest(move=move)
        return await self._call(self._stub.BeginCapture, request, timeout)

    async def read_move(
        self, request: shard_pb2.ReadMoveRequest, timeout: float = CHUNK_TIMEOUT
    ) -> shard_pb2.ReadMoveResponse:
        """Reads the next chunk.

        Raises NotAllowed (MOVE_OUT_OF_STEP) for a cursor of another capture.
        """
        return await self._call(self._stub.ReadMove, request, timeout)

    async def fence_slots(
        self, request: shard_pb2.FenceSlotsRequest, timeout: float = FENCE_TIMEOUT
    ) -> shard_pb2.FenceSlotsResponse:
        """The source takes no more writes to the slots; the rest of the stream."""
        return await self._call(self._stub.FenceSlots, request, timeout)

    async def fence_reads(self, move: shard_pb2.MoveRef, timeout: float = FENCE_TIMEOUT) -> None:
        """The source answers no more reads of the slots."""
        request = shard_pb2.FenceReadsRequest(move=move)
        await self._call(self._stub.FenceReads, request, timeout)

    async def end_capture(self, move: shard_pb2.MoveRef, timeout: float = CHUNK_TIMEOUT) -> None:
        """Ends the capture of a move that is cancelled; the source takes writes again."""
        request = shard_pb2.EndCaptureRequest(move=move)
        await self._call(self._stub.EndCapture, request, timeout)

    # ----------------------------------------------------------------------------------- target

    async def begin_arrival(
        self, move: shard_pb2.MoveRef, *, afresh: bool = False, timeout: float = CHUNK_TIMEOUT
    ) -> shard_pb2.BeginArrivalResponse:
        """Makes the target ready, or tells how far the move has come there."""
        request = shard_pb2.BeginArrivalRequest(move=move, afresh=afresh)
        return await self._call(self._stub.BeginArrival, request, timeout)

    async def apply_move(
        self, move: shard_pb2.MoveRef, chunk: bytes, timeout: float = CHUNK_TIMEOUT
    ) -> shard_pb2.ApplyMoveResponse:
        """Applies a chunk as ReadMove gave it.

        Raises NotAllowed (MOVE_OUT_OF_STEP) unless it begins where the target is.
        """
        request = shard_pb2.ApplyMoveRequest(move=move, chunk=chunk)
        return await self._call(self._stub.ApplyMove, request, timeout)

    async def end_arrival(self, move: shard_pb2.MoveRef, timeout: float = CHUNK_TIMEOUT) -> None:
        """The target forgets how far the move has come."""
        request = shard_pb2.EndArrivalRequest(move=move)
        await self._call(self._stub.EndArrival, request, timeout)

    # --------------------------------------------------------------------------------- either one

    async def drop_slots(
        self, move: shard_pb2.MoveRef, limit: int, timeout: float = CHUNK_TIMEOUT
    ) -> shard_pb2.DropSlotsResponse:
        """Deletes at most `limit` records (1 to 5,000) of slots that the node does not own."""
        request = shard_pb2.DropSlotsRequest(move=move, limit=limit)
        return await self._call(self._stub.DropSlots, request, timeout)

    async def preview_move(
        self,
        move: shard_pb2.MoveRef,
        query: shard_pb2.ShardQueryRequest,
        timeout: float = PREVIEW_TIMEOUT,
    ) -> shard_pb2.PreviewMoveResponse:
        """The nearest records of the moving slots, owned or not."""
        request = shard_pb2.PreviewMoveRequest(move=move, query=query)
        return await self._call(self._stub.PreviewMove, request, timeout)
