"""Composition: a node and its gRPC server, from start to a clean end."""

import asyncio
import contextlib
import errno
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from chroma_router.v1 import shard_pb2, shard_pb2_grpc
from shard_node.directory import DataDirectory
from shard_node.node import Node
from shard_node.service import ShardService
from shard_node.settings import MESSAGE_BYTES, NodeSettings
from shard_node.stats import StatsReader

_log = structlog.get_logger(__name__)

_SERVICE = shard_pb2.DESCRIPTOR.services_by_name["ShardService"].full_name
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_GRACE_SECONDS = 5.0  # after the queue is drained, for answers under way
_UNIX_PATH_BYTES = 107

_OPTIONS = [
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
    # Routers ping every 10 s or more, also between calls, and find a dead peer within 20 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
]


class AddressRefused(Exception):
    """The node cannot listen there; the message says why."""


async def serve(
    shard: str, data: Path, listen: str, settings: NodeSettings, ready: Callable[[str], None]
) -> None:
    """Until SIGTERM or SIGINT. `ready` gets the address when the engine serves.

    Raises DirectoryRefused or AddressRefused before anything is served.
    """
    _raise_open_files(settings.open_files)
    directory = DataDirectory(data, shard)
    node = Node(directory, settings)
    server, servicer = grpc.aio.server(options=_OPTIONS), health.HealthServicer()
    shard_pb2_grpc.add_ShardServiceServicer_to_server(ShardService(node, StatsReader(node)), server)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection((_SERVICE, _HEALTH, reflection.SERVICE_NAME), server)
    address = _bind(server, listen)
    await node.open()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, node.stop)
    await server.start()
    try:
        async with asyncio.TaskGroup() as group:
            follow = group.create_task(_follow_health(node, servicer), name="health")
            running = group.create_task(node.run(), name="node")
            announce = group.create_task(_announce(node, ready, address), name="announce")
            await asyncio.wait([running])
            follow.cancel()
            announce.cancel()
    finally:
        await servicer.enter_graceful_shutdown()
        await server.stop(_GRACE_SECONDS)
        await node.close()


async def _announce(node: Node, ready: Callable[[str], None], address: str) -> None:
    await node.serving.wait()
    ready(address)


async def _follow_health(node: Node, servicer: health.HealthServicer) -> None:
    """Keeps the health service at what the node is."""
    kinds = health_pb2.HealthCheckResponse
    while True:
        await node.not_serving.wait()
        for name in ("", _SERVICE):
            await servicer.set(name, kinds.NOT_SERVING)
        await node.serving.wait()
        for name in ("", _SERVICE):
            await servicer.set(name, kinds.SERVING)


def _bind(server: grpc.aio.Server, listen: str) -> str:
    """Binds; the address with the port that was taken."""
    _check_address(listen)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise AddressRefused(f"cannot listen on {listen}: is it in use? ({error})") from error
    if listen.startswith("unix:"):
        return listen
    return f"{listen.rpartition(':')[0]}:{port}"


def _check_address(listen: str) -> None:
    """Says in time what gRPC would say late or not at all."""
    if not listen.startswith("unix:"):
        host, colon, port = listen.rpartition(":")
        if not (host and colon and port.isdigit() and int(port) < 1 << 16):
            raise AddressRefused(f"{listen!r} is neither HOST:PORT nor unix:PATH")
        return
    path = listen.removeprefix("unix:")
    if not path or len(path.encode()) > _UNIX_PATH_BYTES:
        raise AddressRefused(f"a socket's path has 1 to {_UNIX_PATH_BYTES} bytes: {path!r}")
    if not Path(path).absolute().parent.is_dir():
        raise AddressRefused(f"cannot listen on {listen}: its directory does not exist")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        probe.settimeout(1)
        if probe.connect_ex(path) not in {errno.ENOENT, errno.ECONNREFUSED}:
            raise AddressRefused(f"cannot listen on {listen}: another server does")


def _raise_open_files(wanted: int) -> None:
    """Each loaded collection has 5 files open; past the limit the engine answers wrongly."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
