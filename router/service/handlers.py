"""How every call is wrapped: its deadline, its errors, and what is logged of a defect."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import NoReturn, TypeVar, cast

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    InternalFailure,
    InvalidRequest,
    Overloaded,
    Reason,
)
from chroma_router.wire.status import bounded, grpc_status, status_metadata
from router.shard_client import MAX_MESSAGE_BYTES

log = structlog.get_logger(__name__)

_Request = TypeVar("_Request")
_Response = TypeVar("_Response", bound=Message)

Handler = Callable[[_Request, float], Awaitable[_Response]]
"""A call: its request and its deadline on the clock of time.monotonic()."""

ANSWER_MARGIN = 0.25
"""Seconds (at most; a tenth of a short deadline) kept back to send an error before the client has
given up: a client that cancelled learns nothing of what became of its write."""


class Gate:
    """Bounds the bytes of all requests that are being worked on (invariant 6)."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._bytes = 0

    @contextlib.contextmanager
    def passed(self, size: int) -> Iterator[None]:
        """Holds `size` bytes of the bound meanwhile. Raises Overloaded when they do not fit."""
        if self._bytes + size > self._limit:
            raise Overloaded(
                f"the router is working on {self._bytes} bytes of requests and takes no more than "
                f"{self._limit}; slow down and repeat",
                retry_after=0.5,
            )
        self._bytes += size
        try:
            yield
        finally:
            self._bytes -= size


def unary(
    handler: Handler[_Request, _Response],
    parse: Callable[[bytes], _Request],
    default_timeout: float,
    gate: Gate,
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """The gRPC handler of a unary call.

    The request is parsed inside, so that bytes that are no message get a clear answer too.
    """

    async def serve(data: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        # None when the client set no deadline; the stubs deny it.
        remaining = cast(float | None, context.time_remaining())
        seconds = default_timeout if remaining is None else max(0.0, remaining)
        margin = min(ANSWER_MARGIN, seconds / 10)
        deadline = time.monotonic() + seconds - margin
        try:
            with gate.passed(len(data)):
                # Handlers mind the deadline themselves and can say more at it; this is for those
                # that wait for something else.
                async with asyncio.timeout(seconds - margin / 2):
                    answer = await handler(parse(data), deadline)
                return _packed(answer)
        except ClusterError as error:
            await _abort(context, error)
        except TimeoutError:
            await _abort(
                context,
                DeadlineExpired(
                    f"the router was not done within {seconds:.3f} s; give the call more time"
                ),
            )
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


def _packed(answer: Message) -> bytes:
    data = answer.SerializeToString()
    if len(data) > MAX_MESSAGE_BYTES:
        raise Overloaded(
            f"the answer has {len(data)} bytes, more than the {MAX_MESSAGE_BYTES} of a message; "
            "ask for fewer records, fewer hits, or less of each",
            Reason.ANSWER_TOO_LARGE,
        )
    return data


async def _abort(
    context: "grpc.aio.ServicerContext[bytes, bytes]", error: ClusterError
) -> NoReturn:
    await context.abort(grpc_status(error), bounded(error.message), status_metadata(error))
    raise AssertionError("abort returned")
