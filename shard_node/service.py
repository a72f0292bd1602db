"""The gRPC face of the node: parses, calls, and turns every failure into a status. Nothing else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import grpc.aio
import structlog

from chroma_router.v1 import shard_pb2, shard_pb2_grpc
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    InternalFailure,
    Overloaded,
)
from chroma_router.wire.slots import SLOT_BITMAP_BYTES
from chroma_router.wire.status import grpc_status, status_metadata
from shard_node.engine import EngineRefused
from shard_node.node import Node
from shard_node.stats import StatsReader

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_LONGEST_CALL_SECONDS = 300.0  # also for a caller that gives no deadline


class ShardService(shard_pb2_grpc.ShardServiceServicer):
    """The contract's ShardService over one Node."""

    def __init__(self, node: Node, stats: StatsReader) -> None:
        self._node, self._stats = node, stats

    async def Hello(
        self, request: shard_pb2.HelloRequest, context: _Context
    ) -> shard_pb2.HelloResponse:
        return await self._answer(context, self._node.hello(request))

    async def SetOwnership(
        self, request: shard_pb2.SetOwnershipRequest, context: _Context
    ) -> shard_pb2.SetOwnershipResponse:
        async def work() -> shard_pb2.SetOwnershipResponse:
            now = self._node.incarnation()
            return await now.applier.turn(lambda: now.ownership.set(request))

        return await self._answer(context, work())

    async def DropCollection(
        self, request: shard_pb2.DropCollectionRequest, context: _Context
    ) -> shard_pb2.DropCollectionResponse:
        async def work() -> shard_pb2.DropCollectionResponse:
            now = self._node.incarnation()
            await now.applier.turn(lambda: now.ownership.drop(request.collection_id, request.epoch))
            return shard_pb2.DropCollectionResponse()

        return await self._answer(context, work())

    async def Apply(
        self, request: shard_pb2.ApplyRequest, context: _Context
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
        self, request: shard_pb2.ShardQueryRequest, context: _Context
    ) -> shard_pb2.ShardQueryResponse:
        async def work() -> shard_pb2.ShardQueryResponse:
            now = self._node.incarnation()
            with now.holdings.read(request.collection_id, request.epoch):
                return await now.queries.query(request)

        return await self._answer(context, work())

    async def ShardGet(
        self, request: shard_pb2.ShardGetRequest, context: _Context
    ) -> shard_pb2.ShardGetResponse:
        async def work() -> shard_pb2.ShardGetResponse:
            now = self._node.incarnation()
            with now.holdings.read(request.collection_id, request.epoch):
                return await now.reads.get(request)

        return await self._answer(context, work())

    async def ShardCount(
        self, request: shard_pb2.ShardCountRequest, context: _Context
    ) -> shard_pb2.ShardCountResponse:
        async def work() -> shard_pb2.ShardCountResponse:
            return self._node.incarnation().reads.count(request)

        return await self._answer(context, work())

    async def GetShardStats(
        self, request: shard_pb2.GetShardStatsRequest, context: _Context
    ) -> shard_pb2.GetShardStatsResponse:
        return await self._answer(context, self._stats.read())

    async def ListHoldings(
        self, request: shard_pb2.ListHoldingsRequest, context: _Context
    ) -> AsyncIterator[shard_pb2.ListHoldingsResponse]:
        for holding in await self._answer(context, _holdings(self._node)):
            yield holding

    async def _answer(self, context: _Context, work: Awaitable[_T]) -> _T:
        """The work's result; or the call is ended with the status of its failure."""
        bound = _LONGEST_CALL_SECONDS
        if (remaining := cast("float | None", context.time_remaining())) is not None:
            bound = min(bound, remaining)
        try:
            async with asyncio.timeout(bound):
                return await work
        except ClusterError as error:
            await self._abort(context, error)
        except EngineRefused as refused:
            await self._abort(context, refused.as_error())
        except TimeoutError:
            expired = DeadlineExpired(f"the shard did not answer within {bound:.3f} s")
            await self._abort(context, expired)
        except Exception:
            _log.exception("a call failed in a way that is not foreseen")
            defect = InternalFailure("a defect in the shard node; its log has the trace")
            await self._abort(context, defect)

    async def _abort(self, context: _Context, error: ClusterError) -> NoReturn:
        if isinstance(error, Overloaded):  # a router tells it by this from gRPC's own refusals
            error.metadata.setdefault("shard", self._node.shard)
        trailing = status_metadata(error)
        await context.abort(grpc_status(error), error.message, trailing_metadata=trailing)
        raise AssertionError("abort raises")


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
