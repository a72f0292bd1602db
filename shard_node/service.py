"""The gRPC face of the node: one method for each call of the contract. Nothing else."""

from collections.abc import AsyncIterator

from chroma_router.v1 import shard_pb2
from chroma_router.wire.slots import SLOT_BITMAP_BYTES
from shard_node.answering import Context
from shard_node.move_source_service import SourceCalls
from shard_node.move_target_service import TargetCalls
from shard_node.node import Node
from shard_node.stats import StatsReader


class ShardService(SourceCalls, TargetCalls):
    """The contract's ShardService over one Node."""

    def __init__(self, node: Node, stats: StatsReader) -> None:
        super().__init__(node)
        self._stats = stats

    async def Hello(
        self, request: shard_pb2.HelloRequest, context: Context
    ) -> shard_pb2.HelloResponse:
        return await self._answer(context, self._node.hello(request))

    async def SetOwnership(
        self, request: shard_pb2.SetOwnershipRequest, context: Context
    ) -> shard_pb2.SetOwnershipResponse:
        async def work() -> shard_pb2.SetOwnershipResponse:
            now = self._node.incarnation()
            now.ownership.set_at_once(request)
            return await now.applier.turn(lambda: now.ownership.set(request), urgent=True)

        return await self._answer(context, work())

    async def DropCollection(
        self, request: shard_pb2.DropCollectionRequest, context: Context
    ) -> shard_pb2.DropCollectionResponse:
        async def work() -> shard_pb2.DropCollectionResponse:
            now = self._node.incarnation()
            await now.applier.turn(lambda: now.ownership.drop(request.collection_id, request.epoch))
            return shard_pb2.DropCollectionResponse()

        return await self._answer(context, work())

    async def Apply(
        self, request: shard_pb2.ApplyRequest, context: Context
    ) -> shard_pb2.ApplyResponse:
        async def work() -> shard_pb2.ApplyResponse:
            now = self._node.incarnation()
            applied = await now.applier.submit(request.operations, request.ByteSize())
            return shard_pb2.ApplyResponse(
                results=applied.results,
                apply_microseconds=round(applied.engine_seconds * 1e6),
                boot_id=now.boot_id,
            )

        return await self._answer(context, work())

    async def ShardQuery(
        self, request: shard_pb2.ShardQueryRequest, context: Context
    ) -> shard_pb2.ShardQueryResponse:
        async def work() -> shard_pb2.ShardQueryResponse:
            now = self._node.incarnation()
            with now.holdings.read(request.collection_id, request.epoch):
                return await now.queries.query(request)

        return await self._answer(context, work())

    async def ShardGet(
        self, request: shard_pb2.ShardGetRequest, context: Context
    ) -> shard_pb2.ShardGetResponse:
        async def work() -> shard_pb2.ShardGetResponse:
            now = self._node.incarnation()
            with now.holdings.read(request.collection_id, request.epoch):
                return await now.reads.get(request)

        return await self._answer(context, work())

    async def ShardCount(
        self, request: shard_pb2.ShardCountRequest, context: Context
    ) -> shard_pb2.ShardCountResponse:
        async def work() -> shard_pb2.ShardCountResponse:
            return self._node.incarnation().reads.count(request)

        return await self._answer(context, work())

    async def GetShardStats(
        self, request: shard_pb2.GetShardStatsRequest, context: Context
    ) -> shard_pb2.GetShardStatsResponse:
        return await self._answer(context, self._stats.read())

    async def ListHoldings(
        self, request: shard_pb2.ListHoldingsRequest, context: Context
    ) -> AsyncIterator[shard_pb2.ListHoldingsResponse]:
        for holding in await self._answer(context, _holdings(self._node)):
            yield holding

    async def ListSlotCounts(
        self, request: shard_pb2.ListSlotCountsRequest, context: Context
    ) -> AsyncIterator[shard_pb2.ListSlotCountsResponse]:
        for collection_id in await self._answer(context, self._collections()):
            counts = self._node.incarnation().slot_counts.read(collection_id)
            if (answer := await self._answer(context, counts)) is not None:
                yield answer

    async def _collections(self) -> list[str]:
        return list(self._node.incarnation().holdings.live)


async def _holdings(node: Node) -> list[shard_pb2.ListHoldingsResponse]:
    """All holdings at one moment; each is small, and there are as many as collections."""
    holdings, dimensions = node.present().holdings, await node.dimensions()
    listed: list[shard_pb2.ListHoldingsResponse] = []
    for holding in holdings.live.values():
        definition = holding.definition
        definition.collection.epoch = holding.row.epoch
        definition.collection.dimension = dimensions.get(holding.physical, 0)
        listed.append(
            shard_pb2.ListHoldingsResponse(definition=definition, owned_slots=holding.row.owned)
        )
    for row in holdings.dropped.values():
        definition = shard_pb2.CollectionDefinition.FromString(row.definition)
        nothing = bytes(SLOT_BITMAP_BYTES)
        listed.append(
            shard_pb2.ListHoldingsResponse(definition=definition, owned_slots=nothing, dropped=True)
        )
    return listed
