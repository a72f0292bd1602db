"""`chroma-router up` as its router sees it: nodes that it starts and puts aside.

Owns the gRPC channel to the supervisor's socket.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from chroma_router.v1 import supervisor_pb2, supervisor_pb2_grpc
from chroma_router.wire.errors import Unavailable
from chroma_router.wire.status import carries_details, from_rpc_error

_Response = TypeVar("_Response", bound=Message)

STOP_TIMEOUT = 45.0
"""Seconds for a node to end; past the supervisor's own patience with it."""


class SupervisorClient:
    """The calls of SupervisorService."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub = supervisor_pb2_grpc.SupervisorServiceStub(self._channel)

    async def close(self) -> None:
        """Ends the channel; calls under way fail."""
        await self._channel.close()

    async def start(self, name: str, known: Iterable[str], timeout: float) -> tuple[str, str]:
        """Starts the node of one more shard; its name and address (supervisor.proto).

        Raises InvalidRequest and AlreadyExists for the name, Unavailable when it does not start.
        """
        request = supervisor_pb2.StartShardRequest(name=name, known=known)
        answer = await _answer(self._stub.StartShard, request, timeout)
        return answer.name, answer.address

    async def stop(self, name: str, timeout: float = STOP_TIMEOUT) -> str:
        """Stops a node and puts its data directory aside; where that is. Raises NotFound."""
        request = supervisor_pb2.StopShardRequest(name=name)
        return (await _answer(self._stub.StopShard, request, timeout)).directory


async def _answer(
    method: Callable[..., Awaitable[_Response]], request: Message, timeout: float
) -> _Response:
    try:
        return await method(request, timeout=timeout)
    except grpc.aio.AioRpcError as error:
        if carries_details(error):
            raise from_rpc_error(error) from None
        raise Unavailable(
            f"`chroma-router up` does not say whether it did it ({error.details()}); repeat the "
            "request",
            retry_after=1.0,
        ) from None
