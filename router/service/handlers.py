"""How every call is wrapped: its deadline, its ids, its errors, and what is logged of a defect."""

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import NoReturn, Self, TypeAlias, TypeVar, cast

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
    Unavailable,
)
from chroma_router.wire.status import bounded, grpc_status, status_metadata
from router.core.identity import CallIdentity
from router.ids import fresh_id
from router.service.gates import Gate, StreamBounds
from router.shard_client import MAX_MESSAGE_BYTES

log = structlog.get_logger(__name__)

_Request = TypeVar("_Request")
_Response = TypeVar("_Response", bound=Message)

Handler = Callable[[_Request, float], Awaitable[_Response]]
"""A call: its request and its deadline on the clock of time.monotonic()."""

StreamHandler = Callable[[_Request, Callable[[], float]], AsyncGenerator[_Response, None]]
"""A call answered in pages: its request, and the deadline of a page's work that begins now."""

Observer = Callable[[float, float], None]
"""Is told of each call when it has ended, well or not: the time on the clock of time.monotonic(),
and how many seconds it took. It is called on the event loop and must be done at once."""

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"

ANSWER_MARGIN = 0.25
"""Seconds (at most; a tenth of a short deadline) kept back to send an error before the client has
given up: a client that cancelled learns nothing of what became of its write."""


def headers_of(context: Context) -> list[tuple[str, str | bytes]]:
    """The headers of a call."""
    return [(str(key), value) for key, value in context.invocation_metadata() or ()]


class Call:
    """One call: the ids it is found by, and what its client is told when it fails.

    As a context manager it ends the call with the status of any error, whose ErrorInfo carries
    `request_id` and `trace_id`; a defect is logged under both, and told without its inside.
    """

    def __init__(self, context: Context, method: str) -> None:
        self._context = context
        self._method = method
        self._named = ""
        # None when the client set no deadline; the stubs deny it.
        self.remaining = cast(float | None, context.time_remaining())
        """Seconds of the client's deadline; None if it set none."""

    @functools.cached_property
    def connection(self) -> str:
        """The connection that the call came by."""
        peer: str = self._context.peer()
        return peer

    @functools.cached_property
    def _fresh(self) -> str:
        """An id for a call that brings none; most reads need none at all."""
        return fresh_id()

    def takes(self, request: _Request) -> _Request:
        """Takes the request's id from it, or gives it one: errors and outcome name the same."""
        if hasattr(request, "request_id"):
            self._named = request.request_id
            request.request_id = self._named or self._fresh
        return request

    @property
    def identity(self) -> CallIdentity:
        """The ids of the call, as far as they are known."""
        return CallIdentity.of(headers_of(self._context), self._named, self._fresh)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, Exception):  # the end, or a client that went away
            return
        await abort(self._context, self._told(error), self.identity)

    def _told(self, error: Exception) -> ClusterError:
        match error:
            case ClusterError():
                return error
            case TimeoutError():
                return DeadlineExpired(
                    f"the router was not done within {self.remaining or 0.0:.3f} s; give the call "
                    "more time"
                )
            case DecodeError():
                return InvalidRequest(
                    "the request is not a message of this method: it is truncated, or a text in it "
                    "is not UTF-8; build it from the .proto"
                )
            case _:
                ids = self.identity.metadata()
                log.error("defect", method=self._method, exc_info=error, **ids)
                return InternalFailure(
                    "the router failed on this request through a defect of its own; its log has "
                    "the details under 'defect'"
                )


def unary(
    handler: Handler[_Request, _Response],
    parse: Callable[[bytes], _Request],
    default_timeout: float,
    gate: Gate,
    observe: Observer | None = None,
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """The gRPC handler of a unary call.

    The request is parsed inside, so that bytes that are no message get a clear answer too.
    """

    async def serve(data: bytes, context: Context) -> bytes:
        call = Call(context, handler.__qualname__)
        if call.remaining is None:
            call.remaining = default_timeout
        seconds = max(0.0, call.remaining)
        margin = min(ANSWER_MARGIN, seconds / 10)
        began = time.monotonic()
        deadline = began + seconds - margin
        try:
            async with call:
                with gate.passed(len(data)):
                    # Handlers mind the deadline themselves and can say more at it; this is for
                    # those that wait for something else.
                    async with asyncio.timeout(seconds - margin / 2):
                        answer = await handler(call.takes(parse(data)), deadline)
                    return _packed(answer)
        finally:
            if observe is not None:
                now = time.monotonic()
                observe(now, now - began)

    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(serve)
    return method


def server_stream(
    handler: StreamHandler[_Request, _Response],
    parse: Callable[[bytes], _Request],
    bounds: StreamBounds,
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """The gRPC handler of a call that is answered with a stream of pages.

    A page is made when the client's window has room for it, and has `bounds.page_seconds` to be
    made in; the stream as a whole has only the deadline that the client sets. It ends after the
    page that the client does not take within `bounds.patience_seconds`; once the router is
    draining, after the next.
    """

    async def serve(data: bytes, context: Context) -> None:
        call = Call(context, handler.__qualname__)
        end, margin = math.inf, ANSWER_MARGIN
        if call.remaining is not None:
            margin = min(ANSWER_MARGIN, max(0.0, call.remaining) / 10)
            end = time.monotonic() + call.remaining - margin

        def deadline() -> float:
            return min(end, time.monotonic() + bounds.page_seconds)

        # gRPC cannot take back a page that it was given: it has the page, and the stream, until
        # the client has read it or went away. Both are held until then, which is when the call's
        # status is sent; the request is not.
        held, page_held = contextlib.ExitStack(), contextlib.ExitStack()
        with held, page_held:
            async with call:
                held.enter_context(bounds.open.taken(call.connection))
                with bounds.requests.taken(call.connection, len(data)):
                    # By itself: it would be part of the first page, and no status could follow one
                    # that is not taken.
                    await _sent(context.send_initial_metadata(()))
                    pages = handler(call.takes(parse(data)), deadline)
                    async with contextlib.aclosing(pages):
                        while (
                            page := await _next(pages, deadline() + margin / 2, end)
                        ) is not None:
                            packed = _packed(page)
                            page_held.enter_context(
                                bounds.pages.taken(call.connection, len(packed))
                            )
                            await _write(context, packed, bounds.patience_seconds)
                            page_held.close()
                            if bounds.draining.is_set():
                                raise _ends_early("the router is stopping", Reason.DRAINING)

    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(serve)
    return method


async def _write(context: Context, data: bytes, patience: float) -> None:
    """Sends a page; returns when the client's window has taken it."""
    try:
        async with asyncio.timeout(patience):
            await _sent(context.write(data))
    except TimeoutError:
        raise DeadlineExpired(
            f"the client took nothing for {patience:.0f} s; go on from the cursor of the last page"
        ) from None


async def _sent(sending: Awaitable[None]) -> None:
    try:
        await sending
    except grpc.aio.BaseError as error:
        # The client went away or its deadline passed, and gRPC had no time yet to cancel us.
        raise asyncio.CancelledError("the call is over") from error


async def _next(
    pages: AsyncGenerator[_Response, None], until: float, end: float
) -> _Response | None:
    """The next page; None after the last. `end` is the client's deadline, `until` the page's."""
    try:
        async with asyncio.timeout(until - time.monotonic()):
            return await anext(pages, None)
    except (DeadlineExpired, TimeoutError) as error:
        if time.monotonic() >= end:
            raise
        known = error if isinstance(error, DeadlineExpired) else None
        raise _ends_early(
            known.message if known else "a page took too long",
            Reason.SHARD_UNAVAILABLE,
            known.metadata if known else None,
        ) from error


def _ends_early(why: str, reason: Reason, metadata: Mapping[str, str] | None = None) -> Unavailable:
    return Unavailable(
        f"{why}; go on from the cursor of the last page", reason, metadata=metadata, retry_after=1.0
    )


def _packed(answer: Message) -> bytes:
    data = answer.SerializeToString()
    if len(data) > MAX_MESSAGE_BYTES:
        raise Overloaded(
            f"the answer has {len(data)} bytes, more than the {MAX_MESSAGE_BYTES} of a message; "
            "ask for fewer records, fewer hits, or less of each",
            Reason.ANSWER_TOO_LARGE,
        )
    return data


async def abort(context: Context, error: ClusterError, identity: CallIdentity) -> NoReturn:
    """Ends a call with the status of an error, which carries the call's ids."""
    trailing = status_metadata(error, identity.metadata())
    await context.abort(grpc_status(error), bounded(error.message), trailing)
    raise AssertionError("abort returned")
