"""What the supervisor does for its router: SupervisorService, on a Unix socket for this user alone.

Owns the server. What it is asked for is done by Nodes.
"""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import structlog

from chroma_router.v1 import supervisor_pb2, supervisor_pb2_grpc
from chroma_router.wire.errors import ClusterError, NotAllowed
from chroma_router.wire.status import grpc_status, status_metadata
from router.supervisor.nodes import Nodes

log = structlog.get_logger(__name__)

_CLOSE_GRACE_SECONDS = 1.0

_T = TypeVar("_T")


class SupervisorService(supervisor_pb2_grpc.SupervisorServiceServicer):
    """Starts and stops nodes when the router asks for it."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._server: grpc.aio.Server | None = None

    async def serve(self, address: str) -> None:
        """Serves at unix:PATH until `close`. Raises NotAllowed when it cannot.

        What stands there was left by a supervisor that was killed: the directory's lock is held.
        """
        server = grpc.aio.server()
        supervisor_pb2_grpc.add_SupervisorServiceServicer_to_server(self, server)
        try:
            _bind(server, address)
        except (OSError, RuntimeError) as error:
            raise NotAllowed(f"cannot listen on {address}: {error}") from None
        await server.start()
        self._server = server

    async def close(self) -> None:
        """Answers nothing more. Idempotent."""
        if self._server is not None:
            await self._server.stop(_CLOSE_GRACE_SECONDS)

    async def StartShard(
        self, request: supervisor_pb2.StartShardRequest, context: Any
    ) -> supervisor_pb2.StartShardResponse:
        """See the contract."""

        async def start() -> supervisor_pb2.StartShardResponse:
            name, address = await self._nodes.start(request.name, request.known)
            log.info("shard_started", shard=name, address=address)
            return supervisor_pb2.StartShardResponse(name=name, address=address)

        return await _answered(context, start)

    async def StopShard(
        self, request: supervisor_pb2.StopShardRequest, context: Any
    ) -> supervisor_pb2.StopShardResponse:
        """See the contract."""

        async def stop() -> supervisor_pb2.StopShardResponse:
            directory = await self._nodes.stop(request.name)
            log.info("shard_put_aside", shard=request.name, directory=str(directory))
            return supervisor_pb2.StopShardResponse(directory=str(directory))

        return await _answered(context, stop)


def _bind(server: grpc.aio.Server, address: str) -> None:
    Path(address.removeprefix("unix:")).unlink(missing_ok=True)
    before = os.umask(0o177)  # whoever may write to the socket may start processes here
    try:
        server.add_insecure_port(address)
    finally:
        os.umask(before)


async def _answered(context: Any, work: Callable[[], Awaitable[_T]]) -> _T:
    """The answer; or the call ends with the status of its error."""
    try:
        return await work()
    except ClusterError as error:
        await context.abort(grpc_status(error), error.message, status_metadata(error))
        raise AssertionError("abort returned") from None
