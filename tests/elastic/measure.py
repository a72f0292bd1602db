"""What a run records: how long calls took in each phase, and everything that was wrong."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.elastic.answers import Fault, Finding

_SHOWN = 20
"""Of each fault; all are counted."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The times of the calls of one kind in one phase, in milliseconds."""

    calls: int
    p50: float
    p99: float
    most: float


@dataclass(slots=True)
class Record:
    """Of one run. `phase` is the one that calls which begin now are counted to."""

    phase: str = "load"
    tolerant: bool = False
    """Whether a client may be told that a part of the cluster does not answer."""
    faults: Counter[Fault] = field(default_factory=Counter)
    shown: dict[Fault, list[str]] = field(default_factory=lambda: defaultdict(list))
    refused: Counter[str] = field(default_factory=Counter)
    """Tolerated failures, by the exception's class."""
    ambiguous: int = 0
    """Reads beside a write, of which more than one answer was right."""
    exact: int = 0
    """Reads of which one answer was right."""
    late: float = 0.0
    """By how many seconds the clients were behind their schedule at the most."""
    _times: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    _begun: float = field(default_factory=time.monotonic)

    def took(self, phase: str, kind: str, seconds: float) -> None:
        """A call that began in the phase was answered."""
        self._times[phase, kind].append(seconds)

    def found(self, findings: Iterable[Finding], context: str) -> None:
        """What is wrong with an answer; `context` says which call that was."""
        for finding in findings:
            self.faults[finding.fault] += 1
            if len(self.shown[finding.fault]) < _SHOWN:
                at = time.monotonic() - self._begun
                self.shown[finding.fault].append(
                    f"[{at:.3f} s, {self.phase}] {context}: {finding.text}"
                )

    def summary(self, phases: Sequence[str], kinds: Sequence[str]) -> Summary | None:
        """The times of these kinds in these phases; None without any."""
        times = [
            t for phase in phases for kind in kinds for t in self._times.get((phase, kind), ())
        ]
        if not times:
            return None
        p50, p99, most = 1000 * np.quantile(times, [0.5, 0.99, 1])
        return Summary(len(times), float(p50), float(p99), float(most))

    def phases(self) -> list[str]:
        """The phases in which calls were made, in their order."""
        return list(dict.fromkeys(phase for phase, _ in self._times))

    def kinds(self) -> list[str]:
        """The kinds of calls, by name."""
        return sorted({kind for _, kind in self._times})
