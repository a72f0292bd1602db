"""The steps of the proof: shards are added, filled, emptied and removed, and what each came to."""

import asyncio
import sys
import time
from dataclasses import dataclass

from chroma_router.v1 import cluster_pb2
from tests.elastic.world import World

_STEP_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Step:
    """What one rebalance came to. Counts are of records."""

    name: str
    rebalance: cluster_pb2.Rebalance
    minimum: int
    """The fewest that must move for even shares."""
    after: dict[str, int]
    """On each shard afterwards."""
    seconds: float

    @property
    def moves(self) -> list[cluster_pb2.Move]:
        """Those that were done."""
        return [m for m in self.rebalance.moves if m.stage == cluster_pb2.MOVE_STAGE_TRIMMED]

    @property
    def moved(self) -> int:
        """How many moved."""
        return sum(move.records for move in self.moves)

    @property
    def skew(self) -> float:
        """By what part the shard that is farthest from the even share is off it."""
        even = sum(self.after.values()) / len(self.after)
        return max(abs(count - even) / even for count in self.after.values()) if even else 0.0

    @property
    def copy_rate(self) -> float:
        """Records a second while they were copied."""
        copied = sum(move.copied_records for move in self.moves)
        seconds = sum(move.copy_microseconds for move in self.moves) / 1e6
        return copied / seconds if seconds else 0.0


async def grow(world: World, name: str) -> Step:
    """Adds a shard, and moves its share to it."""
    await world.operator.run("shards", "add", name)
    before = await _records(world)
    total, count = sum(before.values()), len(before)
    minimum = sum(max(0, round(records - total / count)) for records in before.values())
    begun = time.monotonic()
    await world.operator.run("rebalance", "start", "--wait", timeout=_STEP_SECONDS)
    return await _step(world, f"{count - 1} -> {count}", minimum, begun)


async def shrink(world: World, name: str) -> Step:
    """Empties a shard and removes it."""
    before = await _records(world)
    begun = time.monotonic()
    await world.operator.run("shards", "drain", name, "--wait", timeout=_STEP_SECONDS)
    step = await _step(world, f"drain {name}", before[name], begun, without=name)
    await world.operator.run("shards", "remove", name)
    assert name not in await world.operator.shards(), f"{name} is still a shard"
    return step


async def _step(
    world: World, name: str, minimum: int, begun: float, without: str | None = None
) -> Step:
    rebalance = await world.operator.ended(_STEP_SECONDS)
    seconds = time.monotonic() - begun
    after = await _records(world)
    if without is not None:
        after.pop(without)
    return Step(name, rebalance, minimum, after, seconds)


async def _records(world: World) -> dict[str, int]:
    return {name: shard.records for name, shard in (await world.operator.shards()).items()}


async def bulk_rate(records: int, corpus: str | None) -> float:
    """The engine's own rate for so many records, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.elastic.bulk", str(records)),
        *([corpus] if corpus else []),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, "the bulk load failed"
    return float(output)
