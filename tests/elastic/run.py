"""The live proof: 2 -> 3 -> 4 shards and back to 3, under clients that check every answer.

    python -m tests.elastic.run [--seconds 240] [--records N] [--corpus DIR] [--seed S]
        [--json FILE] [--kills] [--functional]

Exits 1 with the list of the bars that were missed. `--corpus` names a folder with packages.jsonl.gz
and packages.f16.npy; without it the records are generated.
"""

import argparse
import asyncio
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.elastic.corpus import Corpus, generated, packages
from tests.elastic.kills import kill_rounds, plans
from tests.elastic.operators import NotInTime
from tests.elastic.steps import Step, bulk_rate, grow, shrink
from tests.elastic.verdicts import (
    Verdict,
    correctness,
    faults_text,
    latency_table,
    of_copy,
    of_latency,
    of_steps,
)
from tests.elastic.workload import Load
from tests.elastic.world import World, loaded_world, run_to_the_end

BEFORE = "before"
_WARM_UP_SECONDS = 3.0
_KILL_ROUNDS = 6


@dataclass(frozen=True, slots=True)
class Options:
    """Of a run. `seconds` is for how long the load runs at least."""

    seconds: float
    records: int | None
    corpus: Path | None
    seed: int
    rate: float
    shared_rate: float
    idle_copy: bool

    def read(self) -> Corpus:
        """The records."""
        if self.corpus is not None:
            return packages(self.corpus, self.records)
        return generated(self.records or 20_000, self.seed)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    verdicts: list[Verdict]
    report: str


async def prove(options: Options) -> Outcome:
    """One run."""
    load = Load(options.rate, options.shared_rate)
    async with loaded_world(options.read(), load, options.seed) as world:
        try:
            steps, stuck = await _under_load(world, options)
        except asyncio.CancelledError:
            print(faults_text(world.record), flush=True)
            raise
        records = await world.check_whole()
        operations = world.shared.check()
        verdicts = [
            *correctness(world.record),
            *of_steps(steps),
            *stuck,
            *of_latency(world.record, BEFORE, [step.name for step in steps]),
        ]
        idle = None
        if options.idle_copy and not stuck:
            idle, verdict = await _idle_copy(world, options)
            verdicts.append(verdict)
        logged = world.errors_logged()
    record = world.record
    counts = (
        f"{records:,} records at the end; {record.exact:,} reads with one right answer, "
        f"{record.ambiguous:,} beside a write; {operations:,} operations in histories; clients at "
        f"most {record.late * 1000:.0f} ms behind their schedule"
    )
    told = [_told(step) for step in [*steps, *([idle] if idle else [])]]
    report = "\n".join([latency_table(record), *told, counts, faults_text(record), *logged])
    return Outcome(verdicts, report)


async def _under_load(world: World, options: Options) -> tuple[list[Step], list[Verdict]]:
    """The steps that were done, and the one that was not, which ends them."""
    workload, record = world.workload, world.record
    begun = time.monotonic()
    record.phase = "warm-up"
    await workload.start()
    await asyncio.sleep(_WARM_UP_SECONDS)
    record.phase = BEFORE
    await asyncio.sleep(max(8.0, options.seconds / 6))
    workload.check_alive()
    steps: list[Step] = []
    stuck: list[Verdict] = []
    for phase, change, shard in (
        ("2 -> 3", grow, "shard-3"),
        ("3 -> 4", grow, "shard-4"),
        ("drain shard-2", shrink, "shard-2"),
    ):
        record.phase = phase
        try:
            steps.append(await change(world, shard))
        except (AssertionError, NotInTime, subprocess.TimeoutExpired) as failure:
            stuck.append(Verdict(f"{phase}: done", False, str(failure)))
            break
        finally:
            workload.check_alive()
        print(_told(steps[-1]), flush=True)
    record.phase = "after"
    await asyncio.sleep(max(3.0, options.seconds - (time.monotonic() - begun)))
    record.phase = "end"
    await workload.stop()
    return steps, stuck


async def _idle_copy(world: World, options: Options) -> tuple[Step, Verdict]:
    """The rate of a rebalance that nobody disturbs, and the engine's own for as many records."""
    step = replace(await grow(world, "shard-5"), name="idle, 3 -> 4")
    corpus = None if options.corpus is None else str(options.corpus)
    bulk = await bulk_rate(max(1000, step.moved), corpus)
    return step, of_copy(step.copy_rate, bulk)


def _told(step: Step) -> str:
    pauses = ", ".join(
        f"{m.write_pause_microseconds / 1000:.0f}/{m.read_pause_microseconds / 1000:.0f}"
        for m in step.moves
    )
    return (
        f"{step.name}: {step.moved:,} records in {len(step.moves)} moves, {step.seconds:.1f} s, "
        f"copied at {step.copy_rate:,.0f} records/s; write/read pauses {pauses} ms; "
        f"then {step.after}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.elastic.run",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=240, help="the load runs at least so long")
    parser.add_argument("--records", type=int, help="generated ones, or the first of the corpus")
    parser.add_argument("--corpus", type=Path, help="folder of the corpus")
    parser.add_argument("--seed", type=int, help="else a new one")
    parser.add_argument("--rate", type=float, default=20, help="operations a second")
    parser.add_argument("--shared-rate", type=float, default=6, help="those on shared records")
    parser.add_argument("--no-idle-copy", action="store_true", help="do not measure the copy rate")
    parser.add_argument("--functional", action="store_true", help="speed is told, and no bar")
    parser.add_argument("--json", type=Path, help="where the verdicts go")
    parser.add_argument("--kills", action="store_true", help="then kill processes, at other seeds")
    args = parser.parse_args(arguments)
    seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    options = Options(
        args.seconds,
        args.records,
        args.corpus,
        seed,
        args.rate,
        args.shared_rate,
        not args.no_idle_copy,
    )
    begun = time.monotonic()
    outcome = run_to_the_end(prove(options))
    verdicts, report = list(outcome.verdicts), outcome.report
    if args.kills:
        killed = run_to_the_end(kill_rounds(seed, plans(seed, _KILL_ROUNDS)))
        verdicts += killed.verdicts
        report += "\n" + killed.report
    print(report)
    failed = []
    for verdict in verdicts:
        spared = verdict.speed and args.functional
        word = "pass" if verdict.passed else "slow" if spared else "FAIL"
        print(f"{word}  {verdict.bar}: {verdict.figure}")
        if word == "FAIL":
            failed.append(verdict.bar)
    if args.json is not None:
        args.json.write_text(json.dumps(_as_json(seed, verdicts), indent=2) + "\n")
    took = time.monotonic() - begun
    ending = f"MISSED {'; '.join(failed)}" if failed else "all bars held"
    print(f"seed {seed}, {took:.0f} s: {ending}")
    return 1 if failed else 0


def _as_json(seed: int, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {"seed": seed, "verdicts": [asdict(verdict) for verdict in verdicts]}


if __name__ == "__main__":
    sys.exit(main())
