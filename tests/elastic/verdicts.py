"""The bars of the proof, and whether a run is above them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chroma_router.v1 import cluster_pb2
from tests.elastic.answers import Fault
from tests.elastic.measure import Record
from tests.elastic.steps import Step
from tests.elastic.workload import QUERIES, READS, WRITES

PAUSE_MS = 150.0
BALANCE = 0.05
MOVED = 1.1
SLOWER = 2.0
COPY = 0.5

_ENOUGH_CALLS = 100
"""Fewer have no 99th percentile worth the name."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One bar. `figure` is what was measured, in words. `speed`: it depends on what else the
    machine does."""

    bar: str
    passed: bool
    figure: str
    speed: bool = False


def correctness(record: Record) -> list[Verdict]:
    """No fault of any kind."""
    words = {
        Fault.ERROR: "client-visible errors",
        Fault.MISMATCH: "answers that differ from brute force",
        Fault.ORDER: "histories that are not linearizable",
        Fault.COUNT: "wrong counts",
        Fault.WRONG: "wrong records",
    }
    return [
        Verdict(
            f"0 {words.get(fault, f'{fault} records')}",
            not record.faults[fault],
            str(record.faults[fault]),
        )
        for fault in Fault
    ]


def of_steps(steps: Sequence[Step]) -> list[Verdict]:
    """Each rebalance was done, moved little, and left even shares; its pauses were short."""
    verdicts = []
    for step in steps:
        done = step.rebalance.state == cluster_pb2.REBALANCE_STATE_DONE
        state = cluster_pb2.RebalanceState.Name(step.rebalance.state)
        verdicts += [
            Verdict(f"{step.name}: done", done, f"{state} {step.rebalance.problem}".strip()),
            Verdict(
                f"{step.name}: moved records <= {MOVED} x minimum",
                step.moved <= MOVED * step.minimum,
                f"{step.moved:,} / {step.minimum:,}",
            ),
            Verdict(
                f"{step.name}: records per shard within {BALANCE:.0%} of even",
                step.skew <= BALANCE,
                f"{step.skew:.1%} {step.after}",
            ),
        ]
    moves = [move for step in steps for move in step.moves]
    writes = [move.write_pause_microseconds / 1000 for move in moves]
    reads = [move.read_pause_microseconds / 1000 for move in moves]
    return [*verdicts, _pause("write", writes), _pause("read", reads)]


def _pause(kind: str, milliseconds: Sequence[float]) -> Verdict:
    p99 = float(np.quantile(milliseconds, 0.99)) if milliseconds else float("inf")
    most = max(milliseconds, default=float("inf"))
    figure = f"{p99:.0f} ms, max {most:.0f} ms of {len(milliseconds)} switches"
    bar = f"{kind} pause p99 <= {PAUSE_MS:.0f} ms"
    return Verdict(bar, p99 <= PAUSE_MS, figure, speed=True)


def of_latency(record: Record, before: str, during: Sequence[str]) -> list[Verdict]:
    """Queries are at most twice as slow while slots move."""
    verdicts = []
    for kind in QUERIES:
        was, then = record.summary([before], [kind]), record.summary(during, [kind])
        if was is None or then is None or min(was.calls, then.calls) < _ENOUGH_CALLS:
            continue
        verdicts.append(
            Verdict(
                f"{kind} p99 during moves <= {SLOWER:.0f} x before",
                then.p99 <= SLOWER * was.p99,
                f"{then.p99:.0f} ms / {was.p99:.0f} ms = {then.p99 / was.p99:.1f}",
                speed=True,
            )
        )
    return verdicts


def of_copy(copy: float, bulk: float) -> Verdict:
    """Copying is not much slower than loading."""
    figure = f"{copy:,.0f} / {bulk:,.0f} records/s = {copy / bulk:.0%}"
    bar = f"copy rate on an idle cluster >= {COPY:.0%} of the engine's bulk rate"
    return Verdict(bar, copy >= COPY * bulk, figure, speed=True)


def latency_table(record: Record, *, brief: bool = False) -> str:
    """Times by phase and kind, in milliseconds; `brief`: of all reads and all writes."""
    lines = [f"{'phase':<14}{'kind':<18}{'calls':>7} {'p50':>8} {'p99':>8} {'max':>8}"]
    groups = [("all queries", QUERIES), ("all reads", READS), ("all writes", WRITES)]
    for phase in record.phases():
        alone = [] if brief else [(kind, (kind,)) for kind in record.kinds()]
        for name, kinds in [*alone, *groups]:
            s = record.summary([phase], kinds)
            if s is not None:
                lines.append(
                    f"{phase:<14}{name:<18}{s.calls:>7} {s.p50:>8.1f} {s.p99:>8.1f} {s.most:>8.1f}"
                )
    return "\n".join(lines)


def faults_text(record: Record) -> str:
    """What was wrong, the first of each kind."""
    lines = []
    for fault, texts in record.shown.items():
        lines.append(f"{fault}: {record.faults[fault]}")
        lines += [f"  {text}" for text in texts]
    return "\n".join(lines)
