"""Whether what clients saw of one record can have happened one after another (linearizability).

Knows nothing of nodes and moves: only what was asked when, and what was answered when. Model: Wing
and Gong's search, with the states that were reached remembered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from tests.sim.records import Request, State, after


@dataclass(frozen=True, slots=True)
class Seen:
    """One operation on the record, as its client saw it."""

    began: float
    ended: float
    """Infinite: its outcome is not known; it takes effect some time after it began, or never."""
    request: Request | None = None
    """None: a read."""
    read: State = None


def linearizable(first: State, operations: Sequence[Seen]) -> bool:
    """Whether there is an order that respects the times, from what the record is at first."""
    seen = sorted(operations, key=lambda s: s.began)
    required = sum(1 << n for n, one in enumerate(seen) if one.ended < inf)
    stack: list[tuple[int, State]] = [(0, first)]
    reached: set[tuple[int, State]] = set()
    while stack:
        done, state = stack.pop()
        if done & required == required:
            return True
        if (done, state) in reached:
            continue
        reached.add((done, state))
        for n in _next(seen, done):
            one = seen[n]
            if one.request is not None:
                stack.append((done | 1 << n, after(one.request, state)))
            elif one.read == state:
                # A read that fits may as well come now: it changes nothing.
                stack.append((done | 1 << n, state))
                break
    return False


def _next(seen: Sequence[Seen], done: int) -> list[int]:
    """Which operations may come next: none that is left has ended before they began."""
    earliest, found = inf, []
    for n, one in enumerate(seen):
        if one.began > earliest:
            break
        if not done >> n & 1:
            found.append(n)
            earliest = min(earliest, one.ended)
    # Reads first on the stack's top: found is in order of beginning, the last is tried first.
    return [n for n in found if seen[n].began <= earliest]
