"""Deletes with a condition while slots move: each record once, and the right count.

The nodes here are as the contract has them: an outcome is remembered by slot and travels with the
slot; an answer counts what was deleted under the identity in the slots that the node owns.
"""

import asyncio
import random
import time
import uuid
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chroma_router.v1 import records_pb2, shard_pb2
from chroma_router.wire.errors import DeadlineExpired, Reason, Stale, Unavailable
from chroma_router.wire.slots import slot_of
from router import fences, write_queue
from router.core.limits import Limits
from router.core.model import CollectionEntry
from router.core.slot_map import SlotMap
from router.record_reads import RecordReads
from router.scatter import ReadPath
from router.service.records import RecordService
from tests.router.scripted import Rig, ScriptedShard, away, rig

pytestmark = pytest.mark.timeout(30)

RECORDS = 60


class World:
    """The records of one collection on nodes that remember deletes, and moves between them."""

    def __init__(self, router: Rig, entry: CollectionEntry, rng: random.Random) -> None:
        self.router, self.rng = router, rng
        self.id = entry.id
        self.maps: dict[int, SlotMap] = {1: entry.slot_map}
        # id -> sequence. All match the condition but every fifth.
        self.records = {f"r{n}": n + 1 for n in range(RECORDS)}
        self.matching = {i for i, n in self.records.items() if n % 5}
        self.deleted: list[str] = []
        self.deleted_in: Counter[int] = Counter()
        self.complete: set[int] = set()
        self.moves_left = 6
        self.moving = asyncio.Lock()
        self.fenced_below: dict[str, int] = {}
        """The epoch that lifts the fence of each shard that gives slots away."""
        for shard in router.shards.values():
            shard.usual["Apply"] = partial(self.apply, shard)
            shard.usual["ShardGet"] = partial(self.get, shard)

    def owned(self, shard: ScriptedShard) -> frozenset[int]:
        return self.maps[shard.epochs[self.id]].slots_of(shard.name)

    def in_order(self, slots: frozenset[int]) -> list[tuple[int, str]]:
        """The records that match, in these slots."""
        found = self.matching & self.records.keys()
        return sorted((self.records[i], i) for i in found if slot_of(i) in slots)

    async def disturb(self) -> None:
        """Now and then slots move: the source is fenced, then the catalog switches, and nodes and
        router learn it in any order, at once or when they are asked."""
        if self.moving.locked() or not self.moves_left or self.rng.random() < 0.5:
            return
        # Whoever asked this node may go away meanwhile; the move goes on.
        await asyncio.shield(asyncio.create_task(self.move()))

    async def move(self) -> None:
        async with self.moving:
            if not self.moves_left:
                return
            self.moves_left -= 1
            shards = self.router.shards
            source, target = self.rng.sample(sorted(shards), 2)
            entry = await self.router.catalog.collection(self.id)
            owned = sorted(entry.slot_map.slots_of(source))
            if not owned:
                return
            slots = self.rng.sample(owned, self.rng.choice([1, len(owned) // 2 or 1, len(owned)]))
            slot_map = entry.slot_map.reassigned(slots, target)
            self.fenced_below[source] = slot_map.epoch
            self.maps[slot_map.epoch] = slot_map
            for _ in range(self.rng.choice([0, 0, 3])):
                await asyncio.sleep(0)
            moved = await self.router.catalog.replace_slot_map(entry, slot_map)
            if self.rng.random() < 0.3:
                self.router.directory.remember(moved)
            for shard in shards.values():
                if self.rng.random() < 0.3:
                    shard.epochs[self.id] = slot_map.epoch

    def refusal(self, shard: ScriptedShard, epoch: int) -> Stale | None:
        """Why it does not answer at this epoch, if it does not."""
        present = shard.epochs.get(self.id, 0)
        if present != epoch:
            return shard.stale(present)
        if present < self.fenced_below.get(shard.name, 0):
            return shard.stale(present, Reason.SLOTS_FENCED)
        if self.rng.random() < 0.05:  # a fence that a cancel lifts right after
            return shard.stale(present, Reason.SLOTS_FENCED)
        return None

    async def apply(
        self, shard: ScriptedShard, request: shard_pb2.ApplyRequest
    ) -> shard_pb2.ApplyResponse:
        await self.disturb()
        results = []
        for operation in request.operations:
            refused = self.refusal(shard, operation.epoch)
            results.append(
                shard_pb2.OperationResult(deleted=self.delete(shard, operation))
                if refused is None
                else shard_pb2.OperationResult(
                    refused_reason=refused.reason.value, node_epoch=int(refused.metadata["epoch"])
                )
            )
        await self.disturb()
        if self.rng.random() < 0.15:
            raise away()  # applied, and nobody hears of it
        return shard_pb2.ApplyResponse(results=results, apply_microseconds=100)

    def delete(self, shard: ScriptedShard, operation: shard_pb2.Operation) -> int:
        owned = self.owned(shard)
        covers = owned - self.complete
        assert all(slot_of(i) in owned for i in operation.ids), "routed wrongly"
        named = set(operation.ids) if operation.ids else set(self.records)
        gone = [i for _, i in self.in_order(covers) if i in named]
        # Also a node that dies between two steps of a delete: what it has deleted is remembered,
        # but not that it is complete. It is asked again.
        dies = bool(gone) and self.rng.random() < 0.1
        if dies:
            gone, covers = gone[: len(gone) // 2], frozenset()
        for record_id in gone:
            del self.records[record_id]
            self.deleted.append(record_id)
            self.deleted_in[slot_of(record_id)] += 1
        self.complete |= covers
        if dies:
            raise away()
        return sum(self.deleted_in[slot] for slot in owned)

    async def get(
        self, shard: ScriptedShard, request: shard_pb2.ShardGetRequest
    ) -> shard_pb2.ShardGetResponse:
        await self.disturb()
        refused = self.refusal(shard, request.epoch)
        if refused is not None:
            raise refused
        owned = self.owned(shard)
        after = (request.after.sequence, request.after.id)
        asked = set(request.filter.ids) if request.filter.by_ids else set(self.records)
        rows = [
            row
            for row in self.in_order(owned)
            if row[1] in asked and (not request.HasField("after") or row > after)
        ]
        limit = min(request.limit, self.rng.choice([3, 1000]))
        page = rows[:limit]
        return shard_pb2.ShardGetResponse(
            ids=[i for _, i in page],
            sequences=[n for n, _ in page],
            more=len(rows) > limit,
            deleted_before=sum(self.deleted_in[slot] for slot in owned),
            delete_complete=bool(owned & self.complete) and owned <= self.complete,
        )


async def _deleted(router: Rig, request: records_pb2.DeleteRequest, rng: random.Random) -> int:
    """What a client is told that is impatient at first, and repeats its request under its id."""
    limits = Limits()
    reads = RecordReads(router.directory, ReadPath(router.cluster, router.directory), limits)
    service = RecordService(router.directory, router.writes, reads, limits)
    for attempt in range(20):
        patience = rng.choice([0.004, 0.008, 0.016, 20.0]) if attempt < 4 else 20.0
        try:
            return (await service.delete(request, time.monotonic() + patience)).deleted
        except (Unavailable, DeadlineExpired):
            continue  # also: so many moves within so few milliseconds wear its rounds out
    raise AssertionError("it never ends")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_queue, "RETRY_BASE", 0.001)
    monkeypatch.setattr(write_queue, "RETRY_CAP", 0.002)
    monkeypatch.setattr(fences, "PATIENCE_BASE", 0.003)


@pytest.mark.parametrize("kind", ["condition", "ids", "limit", "ids and limit"])
@pytest.mark.parametrize("seed", range(25))
async def test_each_record_is_deleted_once_and_counted_once(
    tmp_path: Path, kind: str, seed: int
) -> None:
    print(f"seed {seed}")
    rng = random.Random(f"{kind} {seed}")
    async with rig(tmp_path, 3) as router:
        entry = await router.collection(*rng.choice([["shard-1"], sorted(router.shards)]))
        for shard in router.shards.values():
            shard.epochs[entry.id] = 1
        world = World(router, entry, rng)
        ids = rng.sample(sorted(world.records), RECORDS // 2) if "ids" in kind else []
        limit = rng.choice([1, 7, 20, 1000]) if "limit" in kind else None
        wanted = [(world.records[i], i) for i in (ids or world.records) if i in world.matching]
        expected = [i for _, i in sorted(wanted)[:limit]]
        fields: dict[str, Any] = {"limit": limit} if limit is not None else {}
        request = records_pb2.DeleteRequest(
            collection={"id": entry.id},
            filter={"where": '{"a": 1}', "ids": ids, "by_ids": bool(ids)},
            request_id=str(uuid.UUID(int=seed)),
            **fields,
        )
        assert await _deleted(router, request, rng) == len(expected)
        assert sorted(world.deleted) == sorted(expected)
        # The client repeats it, through a router that may be behind, while slots go on moving: it
        # takes effect once and counts the same (invariant 8).
        world.moves_left = 4
        assert await _deleted(router, request, rng) == len(expected)
        assert sorted(world.deleted) == sorted(expected)
