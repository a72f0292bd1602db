"""Kills of every process in every stage of a move, under clients that check every answer.

    python -m tests.elastic.kills [--seed S] [--rounds N] [--records N]

Each round begins a rebalance (a shard is filled, or emptied) and kills -9 one process when the move
under way is in a chosen stage, or after a random time. The rebalance must then end by itself, or by
`rebalance cancel`; what it left undone another one does. What was acknowledged holds all the time.
"""

import argparse
import asyncio
import random
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil

from chroma_router.retry import RetryPolicy
from chroma_router.v1 import cluster_pb2
from tests.elastic.corpus import generated
from tests.elastic.operators import ENDED, NotInTime, current
from tests.elastic.verdicts import Verdict, correctness, faults_text, latency_table
from tests.elastic.victims import Victim, strike
from tests.elastic.workload import Load
from tests.elastic.world import World, loaded_world, run_to_the_end

RECORDS = 3000

STAGES = (
    cluster_pb2.MOVE_STAGE_PLANNED,
    cluster_pb2.MOVE_STAGE_COPYING,
    cluster_pb2.MOVE_STAGE_CATCHING_UP,
    cluster_pb2.MOVE_STAGE_VERIFIED,
    cluster_pb2.MOVE_STAGE_FENCED,
    cluster_pb2.MOVE_STAGE_SWITCHED,
)
_END_SECONDS = 60.0
_CANCEL_SECONDS = 45.0
_POLL_SECONDS = 0.004
_LONGEST_DELAY = 2.5
_SETTLE_SECONDS = 1.0

_PATIENCE = RetryPolicy(max_attempts=12)


@dataclass(frozen=True, slots=True)
class Plan:
    """Of one round. `stage`: None for after `delay` seconds."""

    victim: Victim
    stage: "cluster_pb2.MoveStage | None"
    delay: float

    def __str__(self) -> str:
        if self.stage is None:
            return f"{self.victim} after {self.delay:.2f} s"
        return f"{self.victim} at {_word(self.stage)}"


@dataclass(slots=True)
class Killed:
    """What some rounds came to."""

    verdicts: list[Verdict] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    report: str = ""


def plans(seed: int, rounds: int) -> list[Plan]:
    """Of so many rounds: victims and stages in a random order, each pair once before any twice."""
    dice = random.Random(f"{seed}/kills")
    pairs: list[tuple[Victim, cluster_pb2.MoveStage | None]] = []
    while len(pairs) < rounds:
        every = [(victim, stage) for victim in Victim for stage in (*STAGES, None)]
        pairs += dice.sample(every, len(every))
    return [Plan(victim, stage, dice.random() * _LONGEST_DELAY) for victim, stage in pairs[:rounds]]


async def kill_rounds(seed: int, rounds: Sequence[Plan], records: int = RECORDS) -> Killed:
    """Rounds in a world of their own."""
    killed = Killed()
    async with loaded_world(
        generated(records, seed), Load(rate=24, shared_rate=16), seed, retry=_PATIENCE
    ) as world:
        world.record.tolerant = True
        world.record.phase = "calm"
        await world.workload.start()
        await asyncio.sleep(_SETTLE_SECONDS)
        turns = Rounds(world)
        for number, plan in enumerate(rounds):
            world.record.phase = f"round {number}"
            verdict = await turns.run(plan, number)
            killed.verdicts.append(verdict)
            print(f"{'pass' if verdict.passed else 'FAIL'}  {verdict.bar}: {verdict.figure}")
            sys.stdout.flush()
            world.workload.check_alive()
            if not verdict.passed:
                break  # what comes after would fail for the same reason
        world.record.phase = "end"
        await world.workload.stop()
        world.record.tolerant = False  # nothing is killed any more
        await world.check_whole()
        operations = world.shared.check()
        logged = world.errors_logged()
    killed.verdicts += correctness(world.record)
    record = world.record
    counts = (
        f"{record.exact:,} reads with one right answer, {record.ambiguous:,} beside a write or an "
        f"unknown outcome; {operations:,} operations in histories; told of unavailability: "
        f"{dict(record.refused)}"
    )
    table = latency_table(record, brief=True)
    killed.report = "\n".join([table, counts, faults_text(record), *logged])
    return killed


class Rounds:
    """Rounds that fill a further shard and empty it in turn."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._further = ""
        """The further shard, while there is one. Each has a new name."""

    async def run(self, plan: Plan, number: int) -> Verdict:
        """One round."""
        bar = f"round {number}: {plan}"
        begun = time.monotonic()
        filling = not self._further
        try:
            rebalance_id = await self._begin(filling=filling)
            struck = await _strike(self._world, plan, rebalance_id)
            how = await _end(self._world)
            if self._world.second.down:
                self._world.second.start()
            await self._finish(filling=filling)
        except (NotInTime, AssertionError) as failure:
            return Verdict(bar, False, str(failure))
        return Verdict(bar, True, f"{struck}; {how}, {time.monotonic() - begun:.1f} s in all")

    async def _begin(self, *, filling: bool) -> str:
        """Begins to fill a new shard, or to empty it; the id of the rebalance."""
        run = self._world.operator.run
        if filling:
            self._further = (await run("shards", "add"))["shard"]["name"]
            answer = await run("rebalance", "start")
        else:
            answer = await run("shards", "drain", self._further)
        return str(answer["rebalance"]["id"])

    async def _finish(self, *, filling: bool) -> None:
        """Brings the cluster where the next round begins, should the rebalance not have: all shards
        full, or the further one gone."""
        run = self._world.operator.run
        rebalance = await self._world.operator.rebalance()
        done = rebalance is not None and rebalance.state == cluster_pb2.REBALANCE_STATE_DONE
        if filling:
            if not done:
                await run("rebalance", "start", "--wait", timeout=_END_SECONDS)
            return
        if not done:
            await run("shards", "drain", self._further, "--wait", timeout=_END_SECONDS)
        await run("shards", "remove", self._further)
        self._further = ""


async def _strike(world: World, plan: Plan, rebalance_id: str) -> str:
    """Kills when the time has come; in words, what was killed and in which stage it was."""
    begun = time.monotonic()
    while time.monotonic() < begun + _END_SECONDS:
        rebalance = await world.operator.rebalance()
        assert rebalance is not None
        assert rebalance.id == rebalance_id
        move = current(rebalance)
        if move is None or rebalance.state in ENDED:
            return "it was over before"
        waited = time.monotonic() - begun >= plan.delay
        if waited if plan.stage is None else move.stage >= plan.stage:
            try:
                return f"{strike(world, plan.victim, rebalance, move)} at {_word(move.stage)}"
            except (LookupError, psutil.NoSuchProcess):
                pass  # it is being started; the next look finds it
        await asyncio.sleep(_POLL_SECONDS)
    raise NotInTime(f"{plan} did not come within {_END_SECONDS:.0f} s")


async def _end(world: World) -> str:
    """Waits until the rebalance has ended by itself; else cancels it. In words, how it ended."""
    begun = time.monotonic()
    try:
        rebalance = await world.operator.ended(_END_SECONDS)
        word = cluster_pb2.RebalanceState.Name(rebalance.state).rpartition("_")[2].lower()
        problem = f" ({rebalance.problem})" if rebalance.problem else ""
        return f"{word}{problem} after {time.monotonic() - begun:.1f} s"
    except NotInTime:
        await world.operator.run("rebalance", "cancel")
        await world.operator.ended(_CANCEL_SECONDS)
        return "cancelled by the command"


async def take_over(world: World) -> tuple[float, cluster_pb2.Rebalance, cluster_pb2.Rebalance]:
    """Kills the mover of the rebalance under way. How many seconds it took until another router
    carried it out, and the rebalance before and then. Raises NotInTime after 10 s."""
    before = await world.operator.until(_is_copying, _END_SECONDS)
    move = current(before)
    assert move is not None
    strike(world, Victim.MOVER, before, move)
    killed = time.monotonic()
    after = await world.operator.until(
        lambda r: bool(r.mover) and r.mover != before.mover, 10, _POLL_SECONDS
    )
    return time.monotonic() - killed, before, after


def _is_copying(rebalance: cluster_pb2.Rebalance) -> bool:
    move = current(rebalance)
    return bool(rebalance.mover) and move is not None and move.copied_records > 0


def _word(stage: "cluster_pb2.MoveStage") -> str:
    return cluster_pb2.MoveStage.Name(stage).removeprefix("MOVE_STAGE_").lower()


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.elastic.kills",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--seed", type=int, help="else a new one")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--records", type=int, default=RECORDS)
    args = parser.parse_args(arguments)
    seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    killed = run_to_the_end(kill_rounds(seed, plans(seed, args.rounds), args.records))
    print(killed.report)
    failed = [verdict for verdict in killed.verdicts if not verdict.passed]
    for verdict in failed:
        print(f"FAIL  {verdict.bar}: {verdict.figure}")
    print(f"seed {seed}: {'all held' if not failed else f'{len(failed)} FAILED'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
