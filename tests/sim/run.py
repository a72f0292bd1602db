"""`make sim`: many seeds in several processes; the first one that fails is told with its trace."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

from router.core.move import Stage
from tests.sim.world import simulate

SEEDS_AT_ONCE = 500
"""How many seeds a process takes in one go."""


def main(arguments: list[str] | None = None) -> int:
    """0: every seed holds; 1: one does not."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.run", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seed", type=int, default=None, help="only this one, with its trace")
    chosen = parser.parse_args(arguments)
    if chosen.seed is not None:
        return 1 if told(chosen.seed) else 0
    failing = run(chosen.first, chosen.seeds, chosen.workers)
    if failing is None:
        return 0
    told(failing)
    print(f"\nfailed: seed {failing}; again: python -m tests.sim.run --seed {failing}", flush=True)
    return 1


def told(seed: int) -> str:
    """Runs one seed and prints all that happens; what does not hold in it, empty if nothing."""
    outcome = simulate(seed, tracing=True)
    print(*outcome.trace, sep="\n")
    print(f"seed {seed}: {outcome.violation or 'every invariant holds'}", flush=True)
    return outcome.violation


def run(first: int, seeds: int, workers: int) -> int | None:
    """Runs seeds from `first` on; prints how it goes. The lowest seed known to fail, or None."""
    began, done, events = time.monotonic(), 0, 0
    stages: Counter[Stage] = Counter()
    with ProcessPoolExecutor(workers) as pool:
        parts = [pool.submit(_part, part) for part in _parts(first, seeds)]
        for part in as_completed(parts):
            failing, simulated, part_events, part_stages = part.result()
            done += simulated
            events += part_events
            stages += part_stages
            seconds = time.monotonic() - began
            print(
                f"\r{done} of {seeds} seeds, {done / seconds:.0f}/s, {events} events, "
                + ", ".join(
                    f"{stages[stage]} {stage}" for stage in (Stage.TRIMMED, Stage.CANCELLED)
                ),
                end="" if sys.stdout.isatty() else "\n",
                flush=True,
            )
            if failing is not None:
                pool.shutdown(cancel_futures=True)
                print()
                return failing
    print(f"\nevery invariant holds in {done} seeds from {first} on", flush=True)
    return None


def _parts(first: int, seeds: int) -> Iterator[range]:
    for start in range(first, first + seeds, SEEDS_AT_ONCE):
        yield range(start, min(start + SEEDS_AT_ONCE, first + seeds))


def _part(seeds: range) -> tuple[int | None, int, int, Counter[Stage]]:
    """(the first seed that fails, how many were simulated, events, stages entered)."""
    events = 0
    stages: Counter[Stage] = Counter()
    for done, seed in enumerate(seeds, 1):
        outcome = simulate(seed)
        events += outcome.events
        stages += outcome.stages
        if outcome.violation:
            return seed, done, events, stages
    return None, len(seeds), events, stages


if __name__ == "__main__":
    sys.exit(main())
