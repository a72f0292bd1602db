"""The sequence clock: always above everything taken or witnessed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_router.wire.errors import InternalFailure
from chroma_router.wire.sequences import MAX_SEQUENCE
from router.core.sequence import SequenceClock

TAKES = st.tuples(st.just("take"), st.integers(0, 1_000), st.integers(1, 50))
WITNESSES = st.tuples(st.just("witness"), st.integers(0, 2_000), st.just(0))


@given(st.lists(TAKES | WITNESSES))
def test_rises_above_all_that_was_seen(steps: list[tuple[str, int, int]]) -> None:
    clock = SequenceClock()
    seen = 0
    for what, value, count in steps:
        if what == "witness":
            clock.witness(value)
            seen = max(seen, value)
        else:
            first = clock.take(value, count)
            assert first == max(value, seen + 1)
            seen = first + count - 1


def test_follows_the_clock_when_it_is_ahead() -> None:
    clock = SequenceClock()
    assert clock.take(1_000, 10) == 1_000
    assert clock.take(1_000, 1) == 1_010
    assert clock.take(5_000, 1) == 5_000
    assert clock.take(4_000, 1) == 5_001


def test_the_bound() -> None:
    clock = SequenceClock()
    clock.witness(MAX_SEQUENCE - 2)
    with pytest.raises(InternalFailure, match="clocks"):
        clock.take(0, 3)
    assert clock.take(0, 2) == MAX_SEQUENCE - 1
    with pytest.raises(InternalFailure):
        clock.take(0, 1)


def test_a_sequence_past_the_bound_leaves_the_clock_alone() -> None:
    clock = SequenceClock()
    with pytest.raises(InternalFailure):
        clock.witness(MAX_SEQUENCE + 1)
    assert clock.take(7, 1) == 7


@pytest.mark.parametrize("count", [0, -1])
def test_nothing_cannot_be_taken(count: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        SequenceClock().take(1, count)
