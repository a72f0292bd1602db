"""As transport.py, for asyncio: same endpoint, identities and decisions on a grpc.aio channel."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from chroma_router.errors import RouterError
from chroma_router.forking import GATE
from chroma_router.requests import Call, Operation
from chroma_router.retry import RetryPolicy, pause_before_repeat
from chroma_router.transport import (
    CHANNEL_OPTIONS,
    STUBS,
    Endpoint,
    call_metadata,
    final_exception,
    read_failure,
)

R = TypeVar("R")


class AsyncTransport:
    """Drives operations over a channel of one event loop, opened at the first call."""

    def __init__(self, endpoint: Endpoint, timeout: float, policy: RetryPolicy) -> None:
        self._endpoint = endpoint
        self._timeout = timeout
        self._policy = policy
        self._metadata = endpoint.metadata()
        self._channel: grpc.aio.Channel | None = None
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Allows calls again after close()."""
        self._closed = False

    def close(self) -> None:
        """Refuses further calls, and closes the channel if its event loop runs. Idempotent."""
        self._closed = True
        channel, self._channel = self._channel, None
        if channel is None:
            return
        try:
            loop = asyncio.get_running_loop()
        except (
            RuntimeError
        ):  # chromadb stops components outside of any loop; the collector closes it
            return
        self._closing = loop.create_task(channel.close())

    async def run(self, operation: Operation[R]) -> R:
        """Talks an operation through and gives its result. Raises RouterError."""
        try:
            call = next(operation)
            while True:
                call = operation.send(await self._call(call))
        except StopIteration as done:
            result: R = done.value
            return result

    async def _call(self, call: Call) -> Message:
        identity, metadata = call_metadata(call, self._metadata)
        deadline = time.monotonic() + self._timeout
        remaining = self._timeout
        attempt = 1
        while True:
            try:
                with GATE.async_call():
                    return await self._callable(call)(
                        call.request, timeout=remaining, metadata=metadata
                    )
            except grpc.RpcError as rpc_error:
                error, failure = read_failure(rpc_error)
                remaining = deadline - time.monotonic()
                pause = pause_before_repeat(
                    self._policy, failure, call.method.repeat, attempt, remaining, random.random()
                )
                if pause is None:
                    raise final_exception(error, failure, call, identity) from rpc_error
            await asyncio.sleep(pause)
            remaining = deadline - time.monotonic()
            attempt += 1

    def _callable(self, call: Call) -> Callable[..., Awaitable[Message]]:
        if self._closed:
            raise RouterError("the client is closed")
        if self._channel is None:
            self._channel = _open_channel(self._endpoint)
            self._stubs = {service: stub(self._channel) for service, stub in STUBS.items()}
        found: Callable[..., Awaitable[Message]]
        found = getattr(self._stubs[call.method.service], call.method.name)
        return found


def _open_channel(endpoint: Endpoint) -> grpc.aio.Channel:
    if endpoint.credentials is None:
        return grpc.aio.insecure_channel(endpoint.target, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(endpoint.target, endpoint.credentials, options=CHANNEL_OPTIONS)
