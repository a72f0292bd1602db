"""The calls of a move to its source."""

from chroma_router.v1 import shard_pb2
from shard_node.answering import Answering, Context


class SourceCalls(Answering):
    """Each in the lane of the writer where it belongs: the stream lets clients' writes go first,
    for a while; what holds them up, or lets them go on, goes before all that waits."""

    async def BeginCapture(
        self, request: shard_pb2.BeginCaptureRequest, context: Context
    ) -> shard_pb2.BeginCaptureResponse:
        async def work() -> shard_pb2.BeginCaptureResponse:
            now = self._node.incarnation()
            return await now.applier.turn(lambda: now.source.begin_capture(request))

        return await self._answer(context, work())

    async def ReadMove(
        self, request: shard_pb2.ReadMoveRequest, context: Context
    ) -> shard_pb2.ReadMoveResponse:
        async def work() -> shard_pb2.ReadMoveResponse:
            now = self._node.incarnation()
            fenced = now.source.is_fenced(request.move)
            return await now.applier.turn(
                lambda: now.source.read(request), urgent=fenced, background=not fenced
            )

        return await self._answer(context, work())

    async def FenceSlots(
        self, request: shard_pb2.FenceSlotsRequest, context: Context
    ) -> shard_pb2.FenceSlotsResponse:
        async def work() -> shard_pb2.FenceSlotsResponse:
            now = self._node.incarnation()
            return await now.applier.turn(lambda: now.source.fence(request), urgent=True)

        return await self._answer(context, work())

    async def FenceReads(
        self, request: shard_pb2.FenceReadsRequest, context: Context
    ) -> shard_pb2.FenceReadsResponse:
        async def work() -> shard_pb2.FenceReadsResponse:
            return self._node.incarnation().source.fence_reads(request)

        return await self._answer(context, work())

    async def EndCapture(
        self, request: shard_pb2.EndCaptureRequest, context: Context
    ) -> shard_pb2.EndCaptureResponse:
        async def work() -> shard_pb2.EndCaptureResponse:
            now = self._node.incarnation()
            ended = await now.applier.turn(lambda: now.source.end_capture(request), urgent=True)
            while await now.applier.turn(now.source.sweep, background=True):
                pass
            return ended

        return await self._answer(context, work())
