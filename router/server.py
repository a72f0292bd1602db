"""The router process: builds its parts, serves until it is told to stop, and ends them in order.

The only module that knows how everything is put together.
"""

import asyncio
import os
import platform
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from chroma_router.v1 import catalog_pb2, cluster_pb2, records_pb2, views_pb2
from chroma_router.wire.errors import ClusterError, NotAllowed
from router.catalog import Catalog
from router.cluster import Cluster
from router.core.agreement import QuerySamples
from router.core.latency import Foreground
from router.core.limits import Limits
from router.core.rebalance import RebalanceKind
from router.core.sequence import SequenceClock
from router.directory import Directory
from router.loads import LastHeard
from router.mover.agreement import QueryComparison
from router.mover.mover import UNFENCE_SECONDS, Mover, MoverParts
from router.mover.spread import AutoSpread
from router.planning import Planning, new_rebalance
from router.reaper import Reaper
from router.record_reads import RecordReads
from router.scatter import ReadPath
from router.service.bulk import BulkUpserts
from router.service.catalog import CatalogService
from router.service.cluster import ClusterService
from router.service.gates import Gate, StreamBounds
from router.service.handlers import Observer, server_stream, unary
from router.service.records import RecordService
from router.service.scaling import ScalingService
from router.service.scan import ScanService
from router.service.search import SearchService
from router.service.streams import bidirectional
from router.settings import RouterSettings
from router.shard_client import MAX_MESSAGE_BYTES
from router.supervisor_client import SupervisorClient
from router.write_path import WritePath

log = structlog.get_logger(__name__)

MAX_CONCURRENT_CALLS = 4096
"""Calls under way at once; more are refused with RESOURCE_EXHAUSTED by gRPC itself. Only a
small part can be streams that stand (MAX_OPEN_STREAMS)."""

SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Two routers must not share a port by accident: the second would take half of the calls.
    ("grpc.so_reuseport", 0),
    # Clients may ping as often as our own does; a client that vanished is noticed.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)

Parse = Callable[[bytes], Message]


async def serve(
    settings: RouterSettings,
    shards: Sequence[tuple[str, str]],
    ready: Callable[[str, int], None],
) -> None:
    """Serves until SIGTERM or SIGINT, then drains and returns.

    `shards` are names and addresses, for a new catalog or to change there; `ready` is called with
    the address and the number of shards once calls are answered. Raises ClusterError when it cannot
    start: catalog unreadable or behind a node, port in use.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    catalog = await Catalog.open(settings.catalog)
    try:
        await _register(catalog, shards)
        async with asyncio.TaskGroup() as tasks:
            await _serve(settings, catalog, tasks, stop, ready)
    except* ClusterError as failures:
        raise failures.exceptions[0] from None
    finally:
        await catalog.close()


async def _register(catalog: Catalog, shards: Sequence[tuple[str, str]]) -> None:
    """Takes the shards that were named at start: all of them into a catalog that has none.

    Later only addresses are taken from here: what is started with the same words again must not
    bring back a shard that was removed, nor add one that nobody asked for.
    """
    if not shards or await catalog.add_first_shards(shards):
        return
    known = {entry.name: entry for entry in await catalog.shards()}
    for name, address in shards:
        if name not in known:
            log.warning(
                "shard_not_known", shard=name, mend=f"chroma-router shards add {name} {address}"
            )
        elif known[name].address != address:
            await catalog.set_shard_address(known[name], address)


async def _serve(
    settings: RouterSettings,
    catalog: Catalog,
    tasks: asyncio.TaskGroup,
    stop: asyncio.Event,
    ready: Callable[[str, int], None],
) -> None:
    clock = SequenceClock()
    cluster = Cluster(catalog, settings, clock, tasks)
    cluster.connect(await catalog.shards())
    reaper = Reaper(catalog, cluster, tasks)
    supervisor = SupervisorClient(settings.supervisor) if settings.supervisor else None
    try:
        await cluster.check_catalog()
        cluster.watch()
        directory = Directory(catalog, cluster, tasks)
        await reaper.resume()
        parts = _Parts(settings, catalog, tasks, clock, cluster, reaper, directory, supervisor)
        await _answer(parts, stop, ready)
    finally:
        reaper.stop()
        await cluster.drain(settings.shutdown_grace_seconds)
        if supervisor is not None:
            await supervisor.close()
    log.info("stopped")


@dataclass(frozen=True, slots=True)
class _Parts:
    """What lives as long as the router, and what its services are made of."""

    settings: RouterSettings
    catalog: Catalog
    tasks: asyncio.TaskGroup
    clock: SequenceClock
    cluster: Cluster
    reaper: Reaper
    directory: Directory
    supervisor: SupervisorClient | None


async def _answer(parts: _Parts, stop: asyncio.Event, ready: Callable[[str, int], None]) -> None:
    """Answers calls and moves slots until it is to stop; then both end in order."""
    settings, draining = parts.settings, asyncio.Event()
    server, health_servicer, mover = _services(parts, draining)
    address = _bind(server, settings.listen)
    await server.start()
    moving = parts.tasks.create_task(mover.run(), name="mover")
    ready(address, len(parts.cluster.names))
    log.info("serving", grpc=address, shards=len(parts.cluster.names))
    await stop.wait()
    log.info("draining", grace_seconds=settings.shutdown_grace_seconds)
    draining.set()
    await health_servicer.enter_graceful_shutdown()
    await server.stop(settings.shutdown_grace_seconds)
    mover.stop()
    await asyncio.wait([moving], timeout=UNFENCE_SECONDS)
    moving.cancel()
    await asyncio.wait([moving])


def _services(
    parts: _Parts, draining: asyncio.Event
) -> tuple[grpc.aio.Server, health.aio.HealthServicer, Mover]:
    """The server with all its services, its health, and the mover that they wake."""
    settings, catalog, cluster = parts.settings, parts.catalog, parts.cluster
    directory, limits, heard = parts.directory, Limits(), LastHeard()
    writes = WritePath(catalog, cluster, directory, parts.clock, parts.tasks)
    foreground, samples = Foreground(), QuerySamples()
    reads = RecordReads(directory, ReadPath(cluster, directory), limits, samples)
    planning = Planning(catalog, cluster, heard)
    mover = _mover(settings, catalog, cluster, directory, planning, foreground, samples)
    gate, timeout = Gate(settings.request_bytes), settings.request_timeout_seconds
    records = RecordService(directory, writes, reads, limits)
    server, health_servicer = _grpc_server(
        settings,
        gate,
        StreamBounds.of(settings.request_bytes, timeout, draining),
        (
            records,
            ScanService(directory, reads, limits),
            SearchService(directory, reads, limits),
            BulkUpserts(records, directory, writes, gate, timeout, draining),
        ),
        CatalogService(
            catalog,
            directory,
            parts.reaper,
            parts.tasks,
            default_placement_shards=settings.default_placement_shards,
        ),
        (
            ClusterService(
                catalog,
                cluster,
                directory,
                parts.reaper,
                limits,
                heard,
                allow_reset=settings.allow_reset,
            ),
            ScalingService(
                catalog, cluster, directory, heard, planning, parts.supervisor, mover.wake
            ),
        ),
        foreground.add,
    )
    return server, health_servicer, mover


def _mover(
    settings: RouterSettings,
    catalog: Catalog,
    cluster: Cluster,
    directory: Directory,
    planning: Planning,
    foreground: Foreground,
    samples: QuerySamples,
) -> Mover:
    """This router's mover; the lease in the catalog decides which router's is the one at work."""

    async def spread(collection_id: str) -> None:
        await planning.begin(new_rebalance(RebalanceKind.PLACE, collection_id), placement=0)

    grown = AutoSpread(catalog, cluster, settings.auto_spread_at, spread)
    compare = QueryComparison(samples).compare
    name = f"{settings.listen} {platform.node()} pid {os.getpid()}"
    return Mover(
        name,
        MoverParts(catalog, cluster, directory, planning, foreground, compare, grown.look),
    )


def _bind(server: grpc.aio.Server, listen: str) -> str:
    """Binds the server; the address with the real port."""
    host, _, _ = listen.rpartition(":")
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError:
        port = 0
    if port == 0:
        raise NotAllowed(
            f"cannot listen on {listen}: the port is in use or the address is not this machine's; "
            "choose another with --listen HOST:PORT"
        )
    return f"{host}:{port}"


def _grpc_server(
    settings: RouterSettings,
    gate: Gate,
    streams: StreamBounds,
    records: tuple[RecordService, ScanService, SearchService, BulkUpserts],
    catalog: CatalogService,
    cluster: tuple[ClusterService, ScalingService],
    observe: Observer | None = None,
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """The server and its health. `observe` is told of the calls that work on records."""
    # Each service of the contract, and the objects that have its calls between them.
    services: dict[ServiceDescriptor, tuple[object, ...]] = {
        records_pb2.DESCRIPTOR.services_by_name["RecordService"]: records,
        catalog_pb2.DESCRIPTOR.services_by_name["CatalogService"]: (catalog,),
        cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"]: cluster,
    }
    server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    for descriptor, parts in services.items():
        handlers = {}
        for method in descriptor.methods:
            name, parse = _snake(method.name), _parser(method.input_type)
            (handler,) = (getattr(part, name) for part in parts if hasattr(part, name))
            if method.client_streaming:
                handlers[method.name] = bidirectional(handler, streams)
            elif method.server_streaming:
                handlers[method.name] = server_stream(handler, parse, streams)
            else:
                handlers[method.name] = unary(
                    handler,
                    parse,
                    settings.request_timeout_seconds,
                    gate,
                    observe if parts is records else None,
                )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(descriptor.full_name, handlers),)
        )
    names = [descriptor.full_name for descriptor in services]
    reflection.enable_server_reflection(
        [
            *names,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        ],
        server,
    )
    return server, health_servicer


_VIEWS = {"AddRequest", "UpsertRequest", "UpdateRequest"}
"""Requests that are parsed by their view: their records stay bytes."""


def _parser(descriptor: object) -> Parse:
    name: str = descriptor.name  # type: ignore[attr-defined]
    if name in _VIEWS:
        return views_pb2.WriteRequestView.FromString
    parse: Parse = descriptor._concrete_class.FromString  # type: ignore[attr-defined]
    return parse


def _snake(name: str) -> str:
    """The Python name of a method: GetVersion is get_version."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
