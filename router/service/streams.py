"""How a call that streams both ways is wrapped: its messages and its deadline.

Its ids and what becomes of its errors are those of every call (router/service/handlers.py).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import grpc
from google.protobuf.message import Message

from router.core.identity import CallIdentity
from router.ids import fresh_id
from router.service.gates import StreamBounds
from router.service.handlers import ANSWER_MARGIN, Call, Context, headers_of


class Stream:
    """The messages of one call, as bytes inwards: what they are is the service's to say."""

    def __init__(self, context: Context, deadline: float | None) -> None:
        self._context = context
        self.deadline = deadline
        """The client's deadline less what telling an error takes, on the clock of time.monotonic();
        None if it set none."""

    def identity(self, request_id: str) -> CallIdentity:
        """The ids of one message that has this request id (or "")."""
        return CallIdentity.of(headers_of(self._context), request_id, fresh_id())

    async def read(self) -> bytes | None:
        """The next message; None when the client has sent its last."""
        message: object = await self._context.read()  # at the end grpc.aio.EOF; the stubs deny it
        return message if isinstance(message, bytes) else None

    async def write(self, message: Message) -> None:
        """Sends a message; returns when the client's window has room for the next."""
        await self._context.write(message.SerializeToString())


BidirectionalHandler = Callable[[Stream], Awaitable[None]]
"""A call that streams both ways; it ends with the status OK when this returns."""


def bidirectional(
    handler: BidirectionalHandler, bounds: StreamBounds
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """The gRPC handler of a call that streams both ways."""

    async def serve(_messages: object, context: Context) -> None:
        call = Call(context, handler.__qualname__)
        deadline, seconds = None, None
        if call.remaining is not None:
            margin = min(ANSWER_MARGIN, max(0.0, call.remaining) / 10)
            deadline = time.monotonic() + call.remaining - margin
            seconds = call.remaining - margin / 2
        async with call, asyncio.timeout(seconds):
            with bounds.open.taken(call.connection):
                await handler(Stream(context, deadline))

    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(serve)
    return method
