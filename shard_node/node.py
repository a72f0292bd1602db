"""A shard's node, apart from gRPC: its directory, its state, and one engine after the other.

Everything that must not outlive the engine (boot_id, grants, the write queue) is in one
Incarnation, so that a lost engine forgets it by construction; another is started with back-off.
"""

import asyncio
import contextlib
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import structlog

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import InvalidRequest, NotAllowed, Reason, Stale, Unavailable
from chroma_router.wire.version import PROTOCOL_VERSION, VERSION
from shard_node import memory_limit
from shard_node.applier import Applier
from shard_node.committer import Committer
from shard_node.directory import FORMAT_VERSION, DataDirectory, DirectoryRefused
from shard_node.engine import RETRY_AFTER_SECONDS, Engine, EngineLost
from shard_node.grouping import GroupLimits
from shard_node.holdings import Holdings
from shard_node.move_source import MoveSource
from shard_node.move_stream import MoveStream
from shard_node.move_target import MoveTarget
from shard_node.move_token import MoveToken
from shard_node.ownership import Ownership, load_holdings
from shard_node.queries import Queries
from shard_node.reads import Reads
from shard_node.record_index import RecordIndex
from shard_node.settings import NodeSettings
from shard_node.slot_counts import SlotCounts
from shard_node.state import State
from shard_node.state_thread import in_writer
from shard_node.suspects import drop_suspects

_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 0.1, 2.0
_STEADY_SECONDS = 30.0  # an engine that lived so long starts the back-off afresh

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Incarnation:
    """What lives exactly as long as one engine."""

    engine: Engine
    holdings: Holdings
    applier: Applier
    ownership: Ownership
    reads: Reads
    queries: Queries
    source: MoveSource
    target: MoveTarget
    slot_counts: SlotCounts

    @property
    def boot_id(self) -> str:
        """The name of this incarnation."""
        return self.holdings.boot_id


class Node:
    """See the head of this file. It owns the state's writer thread and the reader threads."""

    def __init__(self, directory: DataDirectory, settings: NodeSettings) -> None:
        self.shard = directory.shard
        self.directory = directory
        self.cluster_id = ""
        self.holdings: Holdings | None = None  # the last known, for stats while the engine starts
        self.serving, self.not_serving = asyncio.Event(), asyncio.Event()
        self._settings = settings
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._state: State
        self._index: RecordIndex
        self._starting: Engine | None = None
        self._incarnation: Incarnation | None = None
        self._agreed = False
        self._stopping = asyncio.Event()
        self._say(serving=False)
        self._why = Unavailable(
            "the engine is being started", Reason.ENGINE_STARTING, retry_after=RETRY_AFTER_SECONDS
        )

    # ------------------------------------------------------------------------------ for services

    @property
    def engine_pid(self) -> int | None:
        """The process id of the engine, while it serves."""
        return self._incarnation.engine.pid if self._incarnation else None

    @property
    def queued_operations(self) -> int:
        """How many operations the writer has before it."""
        return self._incarnation.applier.queued_operations if self._incarnation else 0

    @property
    def memory_limit_bytes(self) -> int:
        """What node and engine may hold; 0: not known."""
        return self._settings.memory_bytes or memory_limit.of_this_process()

    def incarnation(self) -> Incarnation:
        """The present one, once a cluster is agreed. Raises Unavailable, Stale."""
        incarnation = self.present()
        if not self._agreed:
            # As for any ownership not given since the engine began: a router that meets a node
            # which began anew says Hello, reads the catalog, and gives the ownership again.
            raise Stale(
                "no router has said Hello since the node began: say Hello first",
                metadata={"boot_id": incarnation.boot_id, "epoch": "0"},
            )
        return incarnation

    def present(self) -> Incarnation:
        """The present one. Raises Unavailable."""
        if self._incarnation is None:
            raise Unavailable(
                self._why.message, self._why.reason, retry_after=self._why.retry_after
            )
        return self._incarnation

    async def hello(self, request: shard_pb2.HelloRequest) -> shard_pb2.HelloResponse:
        """Agrees on protocol, shard and cluster; a fresh directory takes the router's cluster."""
        incarnation = self.present()
        _check_hello(request, self.shard)
        if not self.cluster_id:
            await incarnation.applier.turn(lambda: self._adopt(request.cluster_id))
        if request.cluster_id != self.cluster_id:
            raise NotAllowed(
                f"shard {self.shard} belongs to cluster {self.cluster_id}, the router to"
                f" {request.cluster_id}. Start the node with the data directory of this cluster, or"
                " with an empty one",
                Reason.WRONG_CLUSTER,
            )
        self._agreed = True
        return shard_pb2.HelloResponse(
            boot_id=incarnation.boot_id,
            protocol_version=PROTOCOL_VERSION,
            node_version=VERSION,
            format_version=FORMAT_VERSION,
            high_sequence=incarnation.holdings.high_sequence,
        )

    async def dimensions(self) -> dict[str, int]:
        """The dimension of each physical collection that has had a record."""
        return await self._index.dimensions()

    # ------------------------------------------------------------------------------ life

    async def open(self) -> None:
        """Makes or verifies the directory. Raises DirectoryRefused."""
        try:
            await self.directory.prepare(self._run_engine_once)
        except* (EngineLost, OSError, sqlite3.Error) as failed:
            raise DirectoryRefused(
                f"cannot make or read {self.directory.path}: {failed.exceptions[0]}"
            ) from None
        self._state = await self._in_writer_open(self.directory.database)
        self._index = RecordIndex(self.directory.database, self._settings.reader_threads)
        self.cluster_id = await self._in_writer_cluster()

    async def run(self) -> None:
        """Serves until `stop`; starts the engine anew whenever it is lost."""
        delay = _FIRST_DELAY_SECONDS
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                await self._live()
            except* Unavailable as lost:  # EngineLost, or a state that cannot be used now
                reason = str(lost.exceptions[0])
                if time.monotonic() - began > _STEADY_SECONDS:
                    delay = _FIRST_DELAY_SECONDS
                self._why = Unavailable(
                    f"the engine was lost and is started again: {reason}",
                    Reason.ENGINE_FAILED,
                    retry_after=max(delay, RETRY_AFTER_SECONDS),
                )
                _log.error("engine lost", reason=reason, restart_in_seconds=delay)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), delay)
                delay = min(delay * 2, _LONGEST_DELAY_SECONDS)

    def stop(self) -> None:
        """Makes `run` drain the queue, close the engine and return."""
        self._stopping.set()
        if self._starting is not None:  # it has nothing to drain, and may hang
            self._starting.kill()

    async def close(self) -> None:
        """After `run`: the readers and the state, with a last checkpoint; then the lock."""
        await asyncio.to_thread(self._index.close)
        await asyncio.get_running_loop().run_in_executor(self._writer, self._state.close)
        self._writer.shutdown()
        self.directory.release()

    async def _live(self) -> None:
        """One incarnation, from its engine's start to its end."""
        database = self.directory.database
        for collection in await in_writer(self._writer, drop_suspects, database):
            _log.warning("vector index may be torn and is rebuilt", physical_collection=collection)
        engine = await self._start_engine(self.directory.persist_path)
        incarnation: Incarnation | None = None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(engine.run(), name="engine")
                self._starting = engine
                incarnation = await self._begin(engine)
                self._starting = None
                writer = group.create_task(incarnation.applier.run(), name="writer")
                self._incarnation = incarnation
                self._say(serving=True)
                _log.info("engine serves", boot_id=incarnation.boot_id, pid=engine.pid)
                await self._stopping.wait()
                self._why = Unavailable("the node is stopping", Reason.DRAINING, retry_after=1.0)
                drained = await incarnation.applier.drain(self._settings.drain_seconds)
                _log.info("stopping", drained=drained)
                writer.cancel()
                await engine.close()
        finally:
            self._say(serving=False)
            self._starting = self._incarnation = None
            await engine.end()
            if incarnation is not None:
                incarnation.applier.end(EngineLost("the engine was lost or closed"))

    async def _begin(self, engine: Engine) -> Incarnation:
        """Brings state and engine into agreement; then nothing is granted, all else is known."""
        await engine.ping()
        if not await in_writer(self._writer, self._state.settle):
            _log.info("the last group of writes never landed; its outcomes are forgotten")
        boot_id = str(uuid4())
        holdings = await in_writer(self._writer, load_holdings, self._state, boot_id)
        ownership = Ownership(engine, self._state, self._writer, holdings)
        await ownership.resume_drops()
        settings = self._settings
        committer = Committer(
            engine, self._state, self._writer, holdings, settings.retry_window_seconds
        )
        limits = GroupLimits(settings.group_rows, settings.group_floats)
        applier = Applier(committer, limits, settings.queue_operations, settings.queue_bytes)
        reads = Reads(engine, self._index, holdings)
        queries = Queries(self.shard, engine, self._index, holdings, reads)
        token = await MoveToken.load(self._state, self._writer)
        stream = MoveStream(engine, self._state, self._writer)
        source = MoveSource(
            self._state, self._writer, holdings, token, stream, committer.batches.settle
        )
        target = MoveTarget(
            engine, self._state, self._writer, holdings, self._index, queries, applier,
            committer.batches, token, limits,
        )  # fmt: skip
        slot_counts = SlotCounts(holdings, self._index, reads)
        self.holdings = holdings
        return Incarnation(
            engine, holdings, applier, ownership, reads, queries, source, target, slot_counts
        )

    def _say(self, *, serving: bool) -> None:
        (self.serving if serving else self.not_serving).set()
        (self.not_serving if serving else self.serving).clear()

    async def _start_engine(self, persist_path: Path) -> Engine:
        return await Engine.start(persist_path, self._settings, [self.directory.lock_fd])

    async def _run_engine_once(self, persist_path: Path) -> None:
        """Lets the engine make its tables and end."""
        engine = await self._start_engine(persist_path)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(engine.run(), name="engine")
                await engine.ping()
                await engine.close()
        finally:
            await engine.end()

    async def _adopt(self, cluster_id: str) -> None:
        if self.cluster_id:  # another Hello was first
            return
        await in_writer(self._writer, self._state.adopt_cluster, cluster_id)
        self.cluster_id = cluster_id
        _log.info("cluster adopted", cluster=cluster_id)

    async def _in_writer_open(self, database: Path) -> State:
        return await asyncio.get_running_loop().run_in_executor(self._writer, State, database)

    async def _in_writer_cluster(self) -> str:
        return await asyncio.get_running_loop().run_in_executor(
            self._writer, self._state.cluster_id
        )


def _check_hello(request: shard_pb2.HelloRequest, shard: str) -> None:
    if request.protocol_version != PROTOCOL_VERSION:
        raise NotAllowed(
            f"the router speaks version {request.protocol_version} of the shard protocol, this node"
            f" {PROTOCOL_VERSION}. Run router and nodes of one release",
            Reason.PROTOCOL_MISMATCH,
        )
    if request.shard != shard:
        raise NotAllowed(
            f"this is shard {shard!r}, the router asks for {request.shard!r}. Correct the address"
            f" of {request.shard!r} in the router's catalog",
            Reason.WRONG_SHARD,
        )
    try:
        UUID(request.cluster_id)
    except ValueError:
        raise InvalidRequest(f"cluster_id {request.cluster_id!r} is no UUID") from None
