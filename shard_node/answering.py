"""How a call of the node's gRPC face ends: with its answer, or the status of its failure."""

import asyncio
from collections.abc import Awaitable
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import grpc.aio
import structlog

from chroma_router.v1 import shard_pb2_grpc
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    InternalFailure,
    Overloaded,
)
from chroma_router.wire.status import grpc_status, status_metadata
from shard_node.engine import EngineRefused
from shard_node.node import Node

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_LONGEST_CALL_SECONDS = 300.0  # also for a caller that gives no deadline


class Answering(shard_pb2_grpc.ShardServiceServicer):
    """What the parts of the ShardService share: the Node, and how they answer."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def _answer(self, context: Context, work: Awaitable[_T]) -> _T:
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

    async def _abort(self, context: Context, error: ClusterError) -> NoReturn:
        if isinstance(error, Overloaded):  # a router tells it by this from gRPC's own refusals
            error.metadata.setdefault("shard", self._node.shard)
        trailing = status_metadata(error)
        await context.abort(grpc_status(error), error.message, trailing_metadata=trailing)
        raise AssertionError("abort raises")
