"""Shard nodes for the router's tests: real gRPC servers in this process that follow a script.

Without a script a node is as strict as a real one about boots and epochs, and takes every write.
"""

import asyncio
import inspect
import uuid
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import grpc
import pytest

from chroma_router.v1 import shard_pb2, shard_pb2_grpc, types_pb2
from chroma_router.wire.errors import ClusterError, Reason, Stale, Unavailable
from chroma_router.wire.slots import slot_of
from chroma_router.wire.status import grpc_status, status_metadata
from chroma_router.wire.version import PROTOCOL_VERSION
from router.catalog import Catalog
from router.cluster import Cluster
from router.core.model import CollectionEntry
from router.core.sequence import SequenceClock
from router.core.slot_map import SlotMap
from router.directory import Directory
from router.settings import RouterSettings
from router.write_course import Write
from router.write_path import WritePath
from tests.router.catalog.helpers import new

Step = ClusterError | Callable[[Any], Awaitable[Any]]
"""What to do at a call: refuse it, or a coroutine whose None means: now the usual answer."""


def away() -> Unavailable:
    """How a node that went away looks."""
    return Unavailable("scripted: away", retry_after=1.0)


@dataclass(frozen=True)
class Fence:
    """Slots of a collection that are about to move away."""

    slots: frozenset[int]
    next_epoch: int
    reads: bool = False


class ScriptedShard(shard_pb2_grpc.ShardServiceServicer):
    """One shard node."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = ""
        self.boot_id = str(uuid.uuid4())
        self.epochs: dict[str, int] = {}
        self.applied: list[shard_pb2.Operation] = []
        self.holdings: list[shard_pb2.ListHoldingsResponse] = []
        self.slot_counts: list[shard_pb2.ListSlotCountsResponse] = []
        self.schema_json = ""
        self.seen: list[tuple[str, Any]] = []
        self.steps: dict[str, deque[Step]] = defaultdict(deque)
        self.usual: dict[str, Callable[[Any], Any]] = {}
        """What takes the place of a method's usual answer; may be a coroutine function."""
        self.fences: dict[str, Fence] = {}
        self._arrivals: dict[str, asyncio.Queue[Any]] = defaultdict(asyncio.Queue)

    def then(self, method: str, *steps: Step) -> None:
        """Appends steps to a method's script."""
        self.steps[method].extend(steps)

    def requests(self, method: str) -> list[Any]:
        """The requests that a method was sent."""
        return [request for name, request in self.seen if name == method]

    async def arrival(self, method: str) -> Any:
        """The next request to a method; waits for it."""
        return await self._arrivals[method].get()

    def forget_arrivals(self) -> None:
        """What has come so far is not waited for: the next `arrival` is a new one."""
        self._arrivals.clear()

    def restart(self) -> str:
        """Begins anew as a killed node does: another boot, nothing owned. The old boot id."""
        old, self.boot_id = self.boot_id, str(uuid.uuid4())
        self.epochs.clear()
        return old

    def fence(self, entry: CollectionEntry, *, reads: bool = False) -> None:
        """Fences all slots that it owns, as for a move of them all."""
        slot_map = entry.slot_map
        self.fences[entry.id] = Fence(slot_map.slots_of(self.name), slot_map.epoch + 1, reads)

    async def _play(
        self, method: str, request: Any, context: Any, usual: Callable[[Any], Any]
    ) -> Any:
        self.seen.append((method, request))
        self._arrivals[method].put_nowait(request)
        try:
            if self.steps[method]:
                step = self.steps[method].popleft()
                if isinstance(step, ClusterError):
                    raise step
                answer = await step(request)
                if answer is not None:
                    return answer
            answer = self.usual.get(method, usual)(request)
            return await answer if inspect.isawaitable(answer) else answer
        except ClusterError as error:
            await context.abort(grpc_status(error), error.message, status_metadata(error))

    def _check(self, collection_id: str, epoch: int) -> None:
        present = self.epochs.get(collection_id, 0)
        if present != epoch:
            raise self.stale(present)

    def _check_fence(self, collection_id: str, ids: Sequence[str], *, reads: bool = False) -> None:
        fence = self.fences.get(collection_id)
        if fence is None or (reads and not fence.reads):
            return
        if not ids or any(slot_of(record_id) in fence.slots for record_id in ids):
            raise self.stale(self.epochs[collection_id], Reason.SLOTS_FENCED)

    def stale(self, epoch: int, reason: Reason = Reason.STALE_EPOCH) -> Stale:
        """The refusal of a call at another epoch."""
        return Stale(
            f"scripted: at {epoch}",
            reason,
            metadata={"epoch": str(epoch), "boot_id": self.boot_id},
        )

    # ------------------------------------------------------------------------ the usual answers

    def _hello(self, _request: shard_pb2.HelloRequest) -> shard_pb2.HelloResponse:
        return shard_pb2.HelloResponse(boot_id=self.boot_id, protocol_version=PROTOCOL_VERSION)

    def _own(self, request: shard_pb2.SetOwnershipRequest) -> shard_pb2.SetOwnershipResponse:
        collection = request.definition.collection
        present = self.epochs.get(collection.id, 0)
        if request.boot_id != self.boot_id:
            raise self.stale(present, Reason.STALE_BOOT)
        if collection.epoch < present:
            raise self.stale(present)
        self.epochs[collection.id] = collection.epoch
        fence = self.fences.get(collection.id)
        if fence is not None and collection.epoch >= fence.next_epoch:
            del self.fences[collection.id]
        return shard_pb2.SetOwnershipResponse(
            configuration_json='{"hnsw": {"space": "l2"}, "described": true}',
            schema_json=self.schema_json,
        )

    def apply_now(self, request: shard_pb2.ApplyRequest) -> shard_pb2.ApplyResponse:
        """The usual answer to Apply."""
        results = []
        for operation in request.operations:
            try:
                self._check(operation.collection_id, operation.epoch)
                self._check_fence(operation.collection_id, operation.ids)
            except Stale as error:
                results.append(
                    shard_pb2.OperationResult(
                        refused_reason=error.reason.value,
                        message=error.message,
                        node_epoch=int(error.metadata["epoch"]),
                    )
                )
            else:
                self.applied.append(operation)
                results.append(shard_pb2.OperationResult(deleted=len(operation.ids)))
        return shard_pb2.ApplyResponse(results=results, apply_microseconds=1000)

    def _count(self, request: shard_pb2.ShardCountRequest) -> shard_pb2.ShardCountResponse:
        self._check(request.collection_id, request.epoch)
        self._check_fence(request.collection_id, (), reads=True)
        return shard_pb2.ShardCountResponse(count=10)

    async def Hello(self, request: Any, context: Any) -> Any:
        return await self._play("Hello", request, context, self._hello)

    async def SetOwnership(self, request: Any, context: Any) -> Any:
        return await self._play("SetOwnership", request, context, self._own)

    async def Apply(self, request: Any, context: Any) -> Any:
        return await self._play("Apply", request, context, self.apply_now)

    async def ShardCount(self, request: Any, context: Any) -> Any:
        return await self._play("ShardCount", request, context, self._count)

    async def DropCollection(self, request: Any, context: Any) -> Any:
        return await self._play(
            "DropCollection", request, context, lambda _: shard_pb2.DropCollectionResponse()
        )

    async def ShardQuery(self, request: Any, context: Any) -> Any:
        return await self._play(
            "ShardQuery", request, context, lambda _: shard_pb2.ShardQueryResponse()
        )

    async def ShardGet(self, request: Any, context: Any) -> Any:
        return await self._play(
            "ShardGet", request, context, lambda _: shard_pb2.ShardGetResponse()
        )

    async def GetShardStats(self, request: Any, context: Any) -> Any:
        return await self._play(
            "GetShardStats", request, context, lambda _: shard_pb2.GetShardStatsResponse()
        )

    async def ListHoldings(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        for holding in self.holdings:
            yield holding

    # ------------------------------------------------- moves: a script, or an empty answer

    async def ListSlotCounts(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        for counts in self.slot_counts:
            yield counts

    async def BeginCapture(self, request: Any, context: Any) -> Any:
        return await self._play(
            "BeginCapture", request, context, _empty(shard_pb2.BeginCaptureResponse)
        )

    async def ReadMove(self, request: Any, context: Any) -> Any:
        return await self._play("ReadMove", request, context, _empty(shard_pb2.ReadMoveResponse))

    async def FenceSlots(self, request: Any, context: Any) -> Any:
        return await self._play(
            "FenceSlots", request, context, _empty(shard_pb2.FenceSlotsResponse)
        )

    async def FenceReads(self, request: Any, context: Any) -> Any:
        return await self._play(
            "FenceReads", request, context, _empty(shard_pb2.FenceReadsResponse)
        )

    async def EndCapture(self, request: Any, context: Any) -> Any:
        return await self._play(
            "EndCapture", request, context, _empty(shard_pb2.EndCaptureResponse)
        )

    async def BeginArrival(self, request: Any, context: Any) -> Any:
        return await self._play(
            "BeginArrival", request, context, _empty(shard_pb2.BeginArrivalResponse)
        )

    async def ApplyMove(self, request: Any, context: Any) -> Any:
        return await self._play("ApplyMove", request, context, _empty(shard_pb2.ApplyMoveResponse))

    async def EndArrival(self, request: Any, context: Any) -> Any:
        return await self._play(
            "EndArrival", request, context, _empty(shard_pb2.EndArrivalResponse)
        )

    async def DropSlots(self, request: Any, context: Any) -> Any:
        return await self._play("DropSlots", request, context, _empty(shard_pb2.DropSlotsResponse))

    async def PreviewMove(self, request: Any, context: Any) -> Any:
        return await self._play(
            "PreviewMove", request, context, _empty(shard_pb2.PreviewMoveResponse)
        )


def _empty(kind: Callable[[], Any]) -> Callable[[Any], Any]:
    return lambda _request: kind()


def refuse(reason: Reason, epoch: int = 0) -> Step:
    """Apply: every operation of the group refused by itself."""

    async def step(request: shard_pb2.ApplyRequest) -> shard_pb2.ApplyResponse:
        result = shard_pb2.OperationResult(
            refused_reason=reason.value, message=f"scripted: {reason}", node_epoch=epoch
        )
        return shard_pb2.ApplyResponse(results=[result for _ in request.operations])

    return step


def wait_for(event: asyncio.Event) -> Step:
    """Holds the call until an event, then the usual answer."""

    async def step(_request: Any) -> None:
        await event.wait()

    return step


@dataclass
class Rig:
    """The parts of a router over scripted shards and a real catalog."""

    catalog: Catalog
    cluster: Cluster
    directory: Directory
    writes: WritePath
    shards: dict[str, ScriptedShard]

    async def collection(self, *shards: str, name: str = "papers") -> CollectionEntry:
        """A new collection, described and owned, placed on these shards (none named: on all)."""
        placed = shards or tuple(self.shards)
        entry, _ = await self.catalog.create_collection(new(name, shards=placed), False)
        for _ in range(20):
            try:
                return await self.directory.refresh(entry.id)
            except Unavailable:  # a first connection takes long on a machine that is busy
                continue
        raise AssertionError("none of the shards ever answers")

    async def forget_shard(self, name: str) -> None:
        """Takes a shard out of the catalog, as an operator may once it owns nothing."""
        await self.catalog._connection.write(
            lambda db: db.execute("DELETE FROM shards WHERE name = ?", (name,))
        )

    async def move(self, entry: CollectionEntry, to: str) -> CollectionEntry:
        """Another router gives every slot to one shard; this one has not heard of it."""
        present = await self.catalog.collection(entry.id)
        slot_map = present.slot_map.reassigned(range(1024), to)
        return await self.catalog.replace_slot_map(present, slot_map)


def ids_on(slot_map: SlotMap, shard: str, number: int) -> list[str]:
    """Record ids that a shard owns."""
    found = (f"id-{n}" for n in count() if slot_map.owner(slot_of(f"id-{n}")) == shard)
    return list(islice(found, number))


def an_add(ids: Sequence[str], **more: Any) -> Write:
    """A checked write of these ids."""
    fields: dict[str, Any] = {
        "kind": shard_pb2.OPERATION_KIND_ADD,
        "request_id": str(uuid.uuid4()),
        "ids": ids,
        "records": [types_pb2.Record(id=i).SerializeToString() for i in ids],
        "sequences": range(1, len(ids) + 1),
    }
    return Write(**{**fields, **more})


@asynccontextmanager
async def another_node(name: str) -> AsyncIterator[ScriptedShard]:
    """One more node, of which no catalog knows yet."""
    shard = ScriptedShard(name)
    server = await serving(shard)
    try:
        yield shard
    finally:
        await server.stop(None)


class Reads:
    """Counts how often a collection is read from the catalog."""

    def __init__(self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        read = catalog.collection

        async def counted(collection_id: str) -> CollectionEntry:
            self.number += 1
            return await read(collection_id)

        monkeypatch.setattr(catalog, "collection", counted)


@asynccontextmanager
async def rig(path: Path, number: int = 2, **settings: Any) -> AsyncIterator[Rig]:
    """A router's parts over so many scripted shards, named shard-1 and so on."""
    shards = {name: ScriptedShard(name) for name in (f"shard-{n + 1}" for n in range(number))}
    servers = [await serving(shard) for shard in shards.values()]
    catalog = await Catalog.open(path / "catalog.sqlite3")
    failure: Exception | None = None
    try:
        for shard in shards.values():
            await catalog.add_shard(shard.name, shard.address)
        async with asyncio.TaskGroup() as tasks:
            clock = SequenceClock()
            cluster = Cluster(catalog, RouterSettings(**settings), clock, tasks)
            cluster.connect(await catalog.shards())
            directory = Directory(catalog, cluster, tasks)
            writes = WritePath(catalog, cluster, directory, clock, tasks)
            try:
                yield Rig(catalog, cluster, directory, writes, shards)
            except Exception as error:  # raised below as it is, not in the group's wrapping
                failure = error
            finally:
                await cluster.drain(0.1)
        if failure is not None:
            raise failure
    finally:
        await asyncio.gather(*(server.stop(None) for server in servers))
        await catalog.close()


async def serving(shard: ScriptedShard) -> grpc.aio.Server:
    """Serves a shard node on a free port; its `address` says where."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    shard_pb2_grpc.add_ShardServiceServicer_to_server(shard, server)
    shard.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    return server
