"""Movers over scripted shards: nodes that play a move by the book, and what waits for its end."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import NotAllowed, Reason, Stale
from chroma_router.wire.slots import slots_from_bitmap
from router.catalog import Catalog
from router.core.agreement import QuerySamples
from router.core.latency import Foreground
from router.core.lease import Lease
from router.core.model import CollectionEntry
from router.core.move import Move
from router.core.pace import Pace
from router.core.rebalance import MoveProgress, Rebalance
from router.loads import LastHeard
from router.mover.agreement import QueryComparison
from router.mover.carrier import Carrier
from router.mover.mover import Mover, MoverParts
from router.planning import Planning
from tests.router.catalog.helpers import a_move, a_rebalance
from tests.router.scripted import Rig, ScriptedShard, rig

OUT_OF_STEP = NotAllowed("scripted: out of step", Reason.MOVE_OUT_OF_STEP)


class MovingNode:
    """Plays source and target of moves on a scripted shard, as strict as a real node about tokens,
    cursors and boots. Its records have no contents: a move has `records` of them, and a cursor says
    how many have been copied."""

    def __init__(self, shard: ScriptedShard, records: int) -> None:
        self.shard = shard
        self.records = records
        self.token = 0
        self.differences = 0
        self.fenced: dict[str, int] = {}
        """The epoch that each fenced move is to make."""
        self.ended: list[str] = []
        """The moves whose capture was ended: their fences are lifted."""
        self.arrived: dict[str, int] = {}
        """How many records each move has brought here."""
        self.cursors: dict[str, shard_pb2.MoveCursor] = {}
        for method in ("Capture", "Arrival"):
            shard.usual[f"Begin{method}"] = self._guarded(getattr(self, f"_begin_{method.lower()}"))
            end = getattr(self, f"_end_{method.lower()}")
            shard.usual[f"End{method}"] = self._guarded(end, owned=False)
        shard.usual["ReadMove"] = self._guarded(self._read)
        shard.usual["FenceSlots"] = self._guarded(self._fence)
        shard.usual["FenceReads"] = self._guarded(self._fence_reads)
        shard.usual["ApplyMove"] = self._guarded(self._apply)
        shard.usual["DropSlots"] = self._guarded(self._drop)

    def _guarded(self, answer: Callable[[Any], Any], *, owned: bool = True) -> Callable[[Any], Any]:
        def guarded(request: Any) -> Any:
            if request.move.token < self.token:
                raise Stale("scripted: a higher token was seen", Reason.STALE_TOKEN)
            self.token = request.move.token
            if owned and not self.shard.epochs.get(request.move.collection_id):
                raise self.shard.stale(0)
            return answer(request)

        return guarded

    # ----------------------------------------------------------------------------------- source

    def _begin_capture(self, _request: Any) -> Any:
        return shard_pb2.BeginCaptureResponse(capture_id="capture", records=self.records)

    def _end_capture(self, request: Any) -> Any:
        self.fenced.pop(request.move.move_id, None)
        self.ended.append(request.move.move_id)
        return shard_pb2.EndCaptureResponse()

    def _read(self, request: Any) -> shard_pb2.ReadMoveResponse:
        begin, most = request.begin, request.max_records
        copied = begin.copied.sequence
        upto = min(self.records, copied + most)
        end = shard_pb2.MoveCursor(capture_id="capture", copy_done=upto == self.records)
        end.copied.sequence = upto
        chunk = shard_pb2.MoveChunk(begin=begin, end=end, sequences=range(copied, upto))
        answer = shard_pb2.ReadMoveResponse(
            end=end, items=upto - copied, caught_up=end.copy_done, compare_done=request.compare
        )
        if request.compare:
            after = request.compared.sequence
            place = min(self.records, after + most)
            chunk.comparison.sequences.extend(range(after, place))
            answer.compare_done = place == self.records
            answer.compared.sequence = place
        answer.chunk = chunk.SerializeToString()
        return answer

    def _fence(self, request: Any) -> Any:
        self.fenced[request.move.move_id] = request.next_epoch
        reading = shard_pb2.ReadMoveRequest(begin=request.begin, max_records=request.max_records)
        return shard_pb2.FenceSlotsResponse(tail=self._read(reading), records=self.records)

    def _fence_reads(self, request: Any) -> Any:
        if request.move.move_id not in self.fenced:
            raise OUT_OF_STEP
        return shard_pb2.FenceReadsResponse()

    # ----------------------------------------------------------------------------------- target

    def _begin_arrival(self, request: Any) -> Any:
        move = request.move.move_id
        if move not in self.cursors or request.afresh:
            self.cursors.pop(move, None)
            return shard_pb2.BeginArrivalResponse(ready=False)
        return shard_pb2.BeginArrivalResponse(applied=self.cursors[move], ready=True)

    def _end_arrival(self, request: Any) -> Any:
        self.cursors.pop(request.move.move_id, None)
        return shard_pb2.EndArrivalResponse()

    def _apply(self, request: Any) -> Any:
        move = request.move.move_id
        chunk = shard_pb2.MoveChunk.FromString(request.chunk)
        if self.cursors.get(move) != chunk.begin:
            raise OUT_OF_STEP
        self.cursors[move] = chunk.end
        self.arrived[move] = self.arrived.get(move, 0) + len(chunk.sequences)
        differences = self.differences if chunk.HasField("comparison") else 0
        return shard_pb2.ApplyMoveResponse(
            records=self.arrived[move],
            differences=differences,
            differing=["id-7: other documents"] * bool(differences),
        )

    def all_here(self, move: Move) -> shard_pb2.MoveCursor:
        """As if the move had brought everything; the cursor."""
        cursor = shard_pb2.MoveCursor(capture_id="capture", copy_done=True)
        cursor.copied.sequence = self.records
        self.cursors[move.id], self.arrived[move.id] = cursor, self.records
        return cursor

    # --------------------------------------------------------------------------------- either one

    def _drop(self, request: Any) -> Any:
        move = request.move.move_id
        left = max(0, self.arrived.get(move, 0) - request.limit)
        dropped = self.arrived.get(move, 0) - left
        self.arrived[move] = left
        self.cursors[move] = shard_pb2.MoveCursor()
        return shard_pb2.DropSlotsResponse(dropped=dropped, done=not left, left=left)


class Held:
    """Holds the next call of a method at a shard until `let_go`; `came` says that it is there."""

    def __init__(self, shard: ScriptedShard, method: str) -> None:
        self.came, self._go = asyncio.Event(), asyncio.Event()
        shard.then(method, self._step)

    async def _step(self, _request: Any) -> None:
        self.came.set()
        await self._go.wait()

    def let_go(self) -> None:
        """The call goes on, and so do those after it."""
        self._go.set()


@dataclass
class Moving:
    """A cluster whose shards move things, and its movers."""

    router: Rig
    nodes: dict[str, MovingNode]
    samples: QuerySamples = field(default_factory=QuerySamples)
    foreground: Foreground = field(default_factory=Foreground)

    @property
    def catalog(self) -> Catalog:
        return self.router.catalog

    @property
    def source(self) -> MovingNode:
        """Where the moves of `begun` come from."""
        return self.nodes["shard-1"]

    @property
    def target(self) -> MovingNode:
        """Where they go to."""
        return self.nodes["shard-2"]

    async def begun(
        self, entry: CollectionEntry, count: int = 1, **options: Any
    ) -> tuple[Rebalance, list[Move]]:
        """A rebalance of so many moves of three slots each, from shard-1 to shard-2."""
        asked = replace(a_rebalance(), **options)
        owned = sorted(entry.slot_map.slots_of("shard-1"))
        moves = [
            a_move(asked, entry, owned[3 * n : 3 * n + 3], "shard-1", "shard-2")
            for n in range(count)
        ]
        await self.catalog.moves.begin(asked, moves, {entry.id: entry.slot_map.epoch})
        return await self.newest()

    async def newest(self) -> tuple[Rebalance, list[Move]]:
        """The rebalance with its moves, as the catalog has them."""
        found = await self.catalog.moves.newest()
        assert found is not None
        return found[0], [move for move, _ in found[1]]

    async def progress(self) -> list[MoveProgress]:
        """How far its moves have come."""
        found = await self.catalog.moves.newest()
        assert found is not None
        return [progress for _, progress in found[1]]

    async def until(
        self, condition: Callable[[Rebalance, list[Move]], bool]
    ) -> tuple[Rebalance, list[Move]]:
        """Waits for something in the catalog; each look is a turn of its thread."""
        while not condition(*(now := await self.newest())):
            pass
        return now

    async def ended(self) -> tuple[Rebalance, list[Move]]:
        """Waits for the end of the rebalance."""
        return await self.until(lambda rebalance, _: rebalance.ended)

    async def lease(self, holder: str = "router-1") -> Lease:
        """The lease, which must be free, for an hour."""
        lease = await self.catalog.moves.acquire(holder, now_us(), 3_600_000_000)
        assert lease is not None
        return lease

    @asynccontextmanager
    async def carrier(self, lease: Lease, move: Move, **more: Any) -> AsyncIterator[Carrier]:
        """One run of a move."""

        async def agree(*_: object) -> str:
            return ""

        async with asyncio.TaskGroup() as tasks:
            fields: dict[str, Any] = {
                "lease": lease,
                "move": move,
                "progress": MoveProgress(),
                "catalog": self.catalog,
                "cluster": self.router.cluster,
                "directory": self.router.directory,
                "pace": Pace(),
                "foreground": self.foreground,
                "compare_queries": agree,
                "tasks": tasks,
            }
            one = Carrier(**{**fields, **more})
            try:
                yield one
            finally:
                one.close()

    def mover(
        self,
        name: str = "router-1",
        *,
        catalog: Catalog | None = None,
        idle: Callable[[], Awaitable[None]] | None = None,
    ) -> Mover:
        """The mover of a router; with a catalog of its own, of another router."""

        async def nothing() -> None:
            pass

        return Mover(
            name,
            MoverParts(
                catalog=catalog or self.catalog,
                cluster=self.router.cluster,
                directory=self.router.directory,
                planning=Planning(self.catalog, self.router.cluster, LastHeard()),
                foreground=self.foreground,
                compare_queries=QueryComparison(self.samples).compare,
                idle=idle or nothing,
            ),
        )

    @asynccontextmanager
    async def at_work(self, mover: Mover | None = None) -> AsyncIterator[Mover]:
        """A mover at work, as long as the block."""
        mover = mover or self.mover()
        task = asyncio.create_task(mover.run())
        try:
            yield mover
        finally:
            await stopped(task)

    def calls(self, *methods: str) -> list[tuple[str, str]]:
        """The calls of these methods that each shard was sent: (shard, method), shard by shard."""
        return [
            (name, method)
            for name, node in self.nodes.items()
            for method, _ in node.shard.seen
            if method in methods
        ]

    def tokens(self) -> list[int]:
        """The tokens that the source has seen, each once, in the order in which they came."""
        seen = (r.move.token for _, r in self.source.shard.seen if hasattr(r, "move"))
        return list(dict.fromkeys(seen))


@asynccontextmanager
async def moving(path: Path, number: int = 2, *, records: int = 250) -> AsyncIterator[Moving]:
    """Shards of which each move has so many records."""
    async with rig(path, number) as router:
        yield Moving(router, {n: MovingNode(s, records) for n, s in router.shards.items()})


async def stopped(task: "asyncio.Task[None]") -> None:
    """Ends a mover's task as the router does at its shutdown."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def count_records(
    shards: Iterable[ScriptedShard], entry: CollectionEntry, per_slot: int = 1
) -> None:
    """From here on the planner is told of so many records in each slot of the collection."""
    for shard in shards:
        shard.slot_counts.append(
            shard_pb2.ListSlotCountsResponse(
                collection_id=entry.id,
                epoch=entry.slot_map.epoch,
                counts=[per_slot * (owner == shard.name) for owner in entry.slot_map.owners],
                record_bytes=100,
            )
        )


def now_us() -> int:
    """Microseconds since the Unix epoch."""
    return time.time_ns() // 1000


def slots_of(request: Any) -> frozenset[int]:
    """The slots that a call of a move is about."""
    return slots_from_bitmap(request.move.slots)
