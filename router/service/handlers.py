"""How every call is wrapped: its deadline, its errors, and what is logged of a defect."""

import time
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar, cast

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from chroma_router.wire.errors import (
    ClusterError,
    InternalFailure,
    InvalidRequest,
)
from chroma_router.wire.status import grpc_status, status_metadata

log = structlog.get_logger(__name__)

_Request = TypeVar("_Request")
_Response = TypeVar("_Response", bound=Message)

Handler = Callable[[_Request, float], Awaitable[_Response]]
"""A call: its request and its deadline on the clock of time.monotonic()."""

ANSWER_MARGIN = 0.25
"""Seconds (at most; a tenth of a short deadline) kept back to send an error before the client has
given up: a client that cancelled learns nothing of what became of its write."""


def unary(
    handler: Handler[_Request, _Response],
    parse: Callable[[bytes], _Request],
    default_timeout: float,
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """The gRPC handler of a unary call.

    The request is parsed inside, so that bytes that are no message get a clear answer too.
    """

    async def serve(data: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        # None when the client set no deadline; the stubs deny it.
        remaining = cast(float | None, context.time_remaining())
        seconds = default_timeout if remaining is None else max(0.0, remaining)
        deadline = time.monotonic() + seconds - min(ANSWER_MARGIN, seconds / 10)
        try:
            answer = await handler(parse(data), deadline)
            return answer.SerializeToString()
        except ClusterError as error:
            await _abort(context, error)
        except DecodeError:
            await _abort(
                context,
                InvalidRequest(
                    "the request is not a message of this method: it is truncated, or a text in it "
                    "is not UTF-8; build it from the .proto"
                ),
            )
        except Exception:
            log.exception("defect", method=handler.__qualname__)
            await _abort(
                context,
                InternalFailure(
                    "the router failed on this request through a defect of its own; its log has "
                    "the details under 'defect'"
                ),
            )

    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(serve)
    return method


async def _abort(
    context: "grpc.aio.ServicerContext[bytes, bytes]", error: ClusterError
) -> NoReturn:
    await context.abort(grpc_status(error), error.message, status_metadata(error))
    raise AssertionError("abort returned")
