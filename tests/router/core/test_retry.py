"""Back-off, and which reasons may be repeated."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_router.wire.errors import (
    CLASS_BY_REASON,
    ClusterError,
    Overloaded,
    Reason,
    Stale,
    Unavailable,
)
from router.core.retry import backoff, retryable

SECONDS = st.floats(1e-3, 100)
JITTER = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 5_000), SECONDS, SECONDS, JITTER)
def test_stays_between_half_and_the_whole_of_the_ceiling(
    attempt: int, base: float, cap: float, jitter: float
) -> None:
    ceiling = cap if attempt > 40 else min(cap, base * 2**attempt)
    assert ceiling / 2 <= backoff(attempt, base, cap, jitter) <= ceiling


@given(st.integers(0, 60), SECONDS, SECONDS, JITTER)
def test_never_shrinks_with_the_attempts(
    attempt: int, base: float, cap: float, jitter: float
) -> None:
    assert backoff(attempt, base, cap, jitter) <= backoff(attempt + 1, base, cap, jitter)


def test_figures() -> None:
    waits = [backoff(attempt, 0.1, 1.0, 0.5) for attempt in range(6)]
    assert waits == pytest.approx([0.075, 0.15, 0.3, 0.6, 0.75, 0.75])


@pytest.mark.parametrize("reason", Reason)
def test_just_these_classes_may_be_repeated(reason: Reason) -> None:
    kind = CLASS_BY_REASON[reason]
    expected = (
        issubclass(kind, Stale | Unavailable | Overloaded) and reason != Reason.ANSWER_TOO_LARGE
    )
    assert retryable(kind("whatever the text says: retry, UNAVAILABLE", reason)) is expected


@pytest.mark.parametrize("kind", [Unavailable, Stale, Overloaded])
def test_a_bare_status_may_be_repeated(kind: type[ClusterError]) -> None:
    assert retryable(kind("connection refused"))
