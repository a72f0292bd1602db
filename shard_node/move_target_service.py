"""The gRPC face of a move's target. Nothing else."""

from chroma_router.v1 import shard_pb2
from shard_node.answering import Answering, Context


class TargetCalls(Answering):
    """The calls of ShardService that shard_node/move_target.py answers."""

    async def BeginArrival(
        self, request: shard_pb2.BeginArrivalRequest, context: Context
    ) -> shard_pb2.BeginArrivalResponse:
        async def work() -> shard_pb2.BeginArrivalResponse:
            return await self._node.incarnation().target.begin_arrival(request)

        return await self._answer(context, work())

    async def ApplyMove(
        self, request: shard_pb2.ApplyMoveRequest, context: Context
    ) -> shard_pb2.ApplyMoveResponse:
        async def work() -> shard_pb2.ApplyMoveResponse:
            return await self._node.incarnation().target.apply(request)

        return await self._answer(context, work())

    async def EndArrival(
        self, request: shard_pb2.EndArrivalRequest, context: Context
    ) -> shard_pb2.EndArrivalResponse:
        async def work() -> shard_pb2.EndArrivalResponse:
            return await self._node.incarnation().target.end_arrival(request)

        return await self._answer(context, work())

    async def DropSlots(
        self, request: shard_pb2.DropSlotsRequest, context: Context
    ) -> shard_pb2.DropSlotsResponse:
        async def work() -> shard_pb2.DropSlotsResponse:
            return await self._node.incarnation().target.drop_slots(request)

        return await self._answer(context, work())

    async def PreviewMove(
        self, request: shard_pb2.PreviewMoveRequest, context: Context
    ) -> shard_pb2.PreviewMoveResponse:
        async def work() -> shard_pb2.PreviewMoveResponse:
            return await self._node.incarnation().target.preview(request)

        return await self._answer(context, work())
