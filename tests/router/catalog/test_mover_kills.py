"""Movers in processes that race or are killed: no switch is lost, halved or doubled."""

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest

from router.catalog import Catalog, check
from router.core.move import Stage
from router.core.rebalance import RebalanceState
from tests.router.catalog.helpers import a_move, a_rebalance, new, opened

MOVES = 12
SWITCHED = (Stage.SWITCHED, Stage.TRIMMED)

# Carries the moves on one stage at a time, for as long as it has the lease, and says on stdout what
# its calls have returned.
MOVER = """
import asyncio, sys, time
from pathlib import Path
from chroma_router.wire.errors import Stale
from router.catalog import Catalog
from router.core.move import Stage

STAGES = [Stage.PLANNED, Stage.COPYING, Stage.CATCHING_UP, Stage.VERIFIED, Stage.FENCED]

async def carry_on(moves, lease, running) -> None:
    rebalance, rows = running
    move = next((move for move, _ in rows if not move.ended), None)
    if move is None:
        await moves.finish(lease, rebalance, 1)
    elif move.stage is Stage.FENCED:
        await moves.switch(lease, move)
        print("switched", move.id, flush=True)
    elif move.stage is Stage.SWITCHED:
        await moves.enter(lease, move, Stage.TRIMMED)
        print("trimmed", move.id, flush=True)
    else:
        await moves.enter(lease, move, STAGES[STAGES.index(move.stage) + 1])

async def main(path: Path, name: str, ttl_us: int) -> None:
    catalog = await Catalog.open(path)
    while (running := await catalog.moves.running()) is not None:
        lease = await catalog.moves.acquire(name, time.time_ns() // 1000, ttl_us)
        while lease is not None and running is not None:
            try:
                await carry_on(catalog.moves, lease, running)
            except Stale as error:
                print("stale", error.reason, flush=True)
                break
            running = await catalog.moves.running()
    await catalog.close()

asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
"""


def _mover(path: Path, name: str, ttl_us: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", MOVER, str(path), name, str(ttl_us)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def _begun(path: Path) -> Catalog:
    catalog = await opened(path)
    entry, _ = await catalog.create_collection(new(), False)
    rebalance = a_rebalance()
    moves = [a_move(rebalance, entry, [3 * n], "shard-1", "shard-2") for n in range(MOVES)]
    await catalog.moves.begin(rebalance, moves, {entry.id: 1})
    return catalog


async def _assert_in_step(catalog: Catalog) -> None:
    """The slot map has what the stages say, and each switch took one epoch."""
    newest = await catalog.moves.newest()
    assert newest is not None
    (entry,) = await catalog.all_collections()
    switched = 0
    for move, _ in newest[1]:
        done = move.stage in SWITCHED
        switched += done
        for slot in move.slots:
            assert entry.slot_map.owner(slot) == (move.target if done else move.source)
    assert entry.slot_map.epoch == 1 + switched


async def _assert_done(catalog: Catalog, lines: list[str]) -> None:
    await _assert_in_step(catalog)
    newest = await catalog.moves.newest()
    assert newest is not None
    assert newest[0].state is RebalanceState.DONE
    assert {move.stage for move, _ in newest[1]} == {Stage.TRIMMED}
    said = [line for line in lines if line.startswith(("switched", "trimmed"))]
    assert len(said) == len(set(said)), "a stage was entered twice"


@pytest.mark.integration
async def test_movers_that_take_over_from_each_other_all_the_time(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    catalog = await _begun(path)
    # The lease lasts about as long as two stages take.
    movers = [_mover(path, name, 2_000) for name in ("a", "b")]
    outputs = await asyncio.gather(*(asyncio.to_thread(m.communicate) for m in movers))
    assert [mover.returncode for mover in movers] == [0, 0]
    lines = [line for output, _ in outputs for line in output.splitlines()]
    assert len([line for line in lines if line.startswith("switched")]) == MOVES
    await _assert_done(catalog, lines)
    await catalog.close()
    assert check(path) == []


@pytest.mark.integration
async def test_movers_that_are_killed(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    catalog = await _begun(path)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    lines: list[str] = []
    life = 0
    while await catalog.moves.running() is not None:
        life += 1
        assert life < 100, "no mover gets on"
        lines += await asyncio.to_thread(_run_and_kill, path, life, chosen.randint(1, 4))
        await _assert_in_step(catalog)
    await _assert_done(catalog, lines)
    await catalog.close()
    assert check(path) == []


def _run_and_kill(path: Path, life: int, after: int) -> list[str]:
    with _mover(path, f"mover-{life}", 1) as mover:
        assert mover.stdout is not None
        lines = [mover.stdout.readline() for _ in range(after)]
        mover.kill()
        lines += mover.stdout.readlines()
    return [line.strip() for line in lines if line.endswith("\n")]
