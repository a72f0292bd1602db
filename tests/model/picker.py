"""Where the generators of operations get their choices from: a seed, or hypothesis.

The generators are written once, against `Picker`. From a seed they give a long stream that is the
same every time; from hypothesis they give operations that shrink, since every choice shrinks to its
first option.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Picker(Protocol):
    """A source of choices."""

    def integer(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both included."""

    def one_of(self, options: Sequence[T]) -> T:
        """One of the options; the first is the simplest."""


class SeededPicker:
    """Choices that a seed decides."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        """See Picker."""
        return self._random.randint(low, high)

    def one_of(self, options: Sequence[T]) -> T:
        """See Picker."""
        return self._random.choice(options)


class HypothesisPicker:
    """Choices that hypothesis makes, records and shrinks."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        """See Picker."""
        return int(self._draw(st.integers(low, high)))

    def one_of(self, options: Sequence[T]) -> T:
        """See Picker."""
        chosen: T = self._draw(st.sampled_from(options))
        return chosen


def chance(pick: Picker, percent: int) -> bool:
    """True so often; False is the simpler answer."""
    return pick.integer(0, 99) >= 100 - percent


def some(pick: Picker, options: Sequence[T], low: int, high: int) -> list[T]:
    """From `low` to `high` of the options, each at most once."""
    left = list(options)
    return [left.pop(pick.integer(0, len(left) - 1)) for _ in range(pick.integer(low, high))]
