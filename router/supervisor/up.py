"""The supervisor: nodes first, then the router; on SIGTERM the router drains first, then the nodes.

It never touches data: it makes the directory's layout, holds its lock, and watches processes.
"""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from chroma_router.wire.errors import ClusterError, InvalidRequest, NotAllowed
from router.supervisor.backoff import RestartPolicy
from router.supervisor.child import Child
from router.supervisor.layout import Layout
from router.supervisor.nodes import NODE_GRACE_SECONDS, Nodes, node_of
from router.supervisor.service import SupervisorService

log = structlog.get_logger(__name__)

ROUTER_GRACE_SECONDS = 50.0
"""Past the router's own grace, which it may use twice: for calls, then for its queues."""


async def up(
    directory: Path,
    shards: int | None,
    listen: str,
    router_arguments: Sequence[str],
    ready: Callable[[str, int], None],
) -> None:
    """Runs a cluster until SIGTERM or SIGINT.

    `ready` is called with the router's address and the number of shards when all of them serve.
    Raises ClusterError when it cannot start; nothing is left running then.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    layout = Layout.of(directory)
    lock = layout.lock()
    try:
        _check_listen(listen)
        names = layout.settle(shards)
        async with asyncio.TaskGroup() as tasks:
            await _supervise(layout, names, listen, router_arguments, tasks, stop, ready)
    except* ClusterError as failures:
        first: BaseException = failures
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    finally:
        os.close(lock)
    log.info("stopped", directory=str(layout.directory))


@asynccontextmanager
async def nodes_only(directory: Path) -> AsyncIterator[list[tuple[str, str]]]:
    """Runs the shard nodes of a directory without a router; their names and addresses.

    Raises NotAllowed when the directory is in use or has no shards.
    """
    layout = Layout.of(directory)
    if not layout.names():
        raise NotAllowed(f"{layout.directory} has no shards; name the directory of an `up`")
    lock = layout.lock()
    try:
        async with asyncio.TaskGroup() as tasks:
            nodes = [node_of(layout, name) for name in layout.names()]
            for node in nodes:
                tasks.create_task(node.run(), name=f"keep-{node.name}")
            try:
                for node in nodes:
                    await node.first_ready()
                yield [(node.name, layout.address_of(node.name)) for node in nodes]
            finally:
                await asyncio.gather(*(node.stop(NODE_GRACE_SECONDS) for node in nodes))
    finally:
        os.close(lock)


async def _supervise(
    layout: Layout,
    names: Sequence[str],
    listen: str,
    router_arguments: Sequence[str],
    tasks: asyncio.TaskGroup,
    stop: asyncio.Event,
    ready: Callable[[str, int], None],
) -> None:
    nodes = Nodes(layout, tasks)
    service = SupervisorService(nodes)
    router = _router(layout, names, listen, router_arguments)
    router_started = False
    try:
        if not await _all_ready([nodes.begin(name) for name in names], stop):
            return
        await service.serve(layout.control)
        tasks.create_task(router.run(), name="keep-router")
        router_started = True
        if not await _all_ready([router], stop):
            return
        address = _address(await router.first_ready())
        # A restarted router must be found where its clients know it, also after `--listen HOST:0`.
        router.arguments[router.arguments.index("--listen") + 1] = address
        ready(address, len(names))
        await stop.wait()
        log.info("draining")
    finally:
        if router_started:
            await router.stop(ROUTER_GRACE_SECONDS)
        await service.close()
        await nodes.stop_all()


async def _all_ready(children: Sequence[Child], stop: asyncio.Event) -> bool:
    """Waits until all serve; False if the supervisor was told to stop before.

    Raises Unavailable when one of them ended instead.
    """
    stopped = asyncio.ensure_future(stop.wait())
    serving = asyncio.gather(*(child.first_ready() for child in children))
    either: list[asyncio.Future[Any]] = [stopped, serving]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            return False
        await serving
        return True
    finally:
        stopped.cancel()
        serving.cancel()


def _router(layout: Layout, names: Sequence[str], listen: str, more: Sequence[str]) -> Child:
    arguments = ["serve", "--catalog", str(layout.catalog), "--listen", listen, *more]
    arguments += ["--supervisor", layout.control]
    # All of them become known at the first start; later only their addresses are taken from here.
    for name in names:
        arguments += ["--shard", f"{name}={layout.address_of(name)}"]
    return Child("router", "router.cli.main", arguments, RestartPolicy())


def _address(line: str) -> str:
    """The address in a router's "ready grpc=ADDRESS shards=N"."""
    words = dict(word.partition("=")[::2] for word in line.split())
    return words["grpc"]


def _check_listen(listen: str) -> None:
    """Refuses a port in use before anything is started. The router's own bind is what decides."""
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise InvalidRequest(f"--listen: {listen!r} is not HOST:PORT, such as 127.0.0.1:50051")
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        raise NotAllowed(
            f"cannot listen on {listen}: {error.strerror}; choose another with --listen HOST:PORT"
        ) from None
