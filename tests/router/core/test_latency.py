"""Quantiles over a sliding window, against sorted lists; and the calm before."""

import random
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.latency import MIN_OBSERVATIONS, Foreground, LatencyWindow

DURATIONS = st.floats(2e-5, 900)
STEPS = st.lists(st.tuples(st.floats(0, 4), DURATIONS), max_size=80)


@given(STEPS, st.floats(0, 1), st.integers(1, 12), st.floats(-1e6, 1e6))
def test_quantiles_equal_the_naive_twin(
    steps: list[tuple[float, float]], q: float, slices: int, begin: float
) -> None:
    window = LatencyWindow(10, slices=slices, min_observations=1)
    seen: list[tuple[float, float]] = []
    now = begin
    for step, seconds in steps:
        now += step
        window.add(now, seconds)
        seen.append((now, seconds))
        part = 10 / slices
        alive = sorted(s for at, s in seen if at // part > now // part - slices)
        expected = alive[max(ceil(q * len(alive)), 1) - 1]
        assert window.quantile(now, q) == pytest.approx(expected, rel=0.05)


@given(STEPS)
def test_nothing_older_than_the_window_and_nothing_younger_than_nine_tenths_is_wrong(
    steps: list[tuple[float, float]],
) -> None:
    window = LatencyWindow(10, min_observations=1)
    now, times = 0.0, []
    for step, seconds in steps:
        now += step
        times.append(now)
        window.add(now, seconds)
    for later in (0, 5, 8.99, 10.01, 1e9):
        answer = window.quantile(now + later, 0.5)
        if any(at > now + later - 9 for at in times):
            assert answer is not None
        if not any(at > now + later - 10 for at in times):
            assert answer is None


def test_too_few_say_nothing() -> None:
    window = LatencyWindow(10)
    for _ in range(MIN_OBSERVATIONS - 1):
        window.add(1.0, 0.1)
    assert window.quantile(1.0, 0.95) is None
    window.add(1.0, 0.1)
    assert window.quantile(1.0, 0.95) == pytest.approx(0.1, rel=0.05)
    assert window.quantile(11.5, 0.95) is None


def test_late_and_extreme_observations() -> None:
    window = LatencyWindow(10, min_observations=1)
    window.add(100.0, 0.2)
    window.add(89.0, 5.0)  # before the window
    assert window.quantile(100.0, 1) == pytest.approx(0.2, rel=0.05)
    window.add(95.0, 5.0)  # late, but within it
    assert window.quantile(100.0, 1) == pytest.approx(5, rel=0.05)
    for seconds, counted in ((0.0, 1e-5), (1e9, 1e3), (float("inf"), 1e3)):
        extreme = LatencyWindow(10, min_observations=1)
        extreme.add(1.0, seconds)
        assert extreme.quantile(1.0, 0.5) == pytest.approx(counted, rel=0.08)


def test_memory_is_bounded() -> None:
    window = LatencyWindow(10)
    for n in range(10_000):
        window.add(n * 0.7, 0.01)
        assert len(window._counts) <= 10


def test_senseless_arguments() -> None:
    window = LatencyWindow(10)
    for seconds in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="duration"):
            window.add(1.0, seconds)
    for q in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="quantile"):
            window.quantile(1.0, q)
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="window"):
            LatencyWindow(bad)
    with pytest.raises(ValueError, match="window"):
        LatencyWindow(1, slices=0)


def _traffic(foreground: Foreground, begin: float, end: float, seconds: float) -> None:
    generator = random.Random(int(begin))
    for n in range(round((end - begin) * 20)):
        foreground.add(begin + n / 20, seconds * generator.uniform(0.5, 1))


def test_the_baseline_is_of_the_calm_and_does_not_age_while_busy() -> None:
    foreground = Foreground(recent_seconds=5, calm_seconds=60)
    assert foreground.baseline(0) is None
    assert foreground.recent(0) is None
    _traffic(foreground, 0, 100, 0.010)
    assert foreground.baseline(100) == pytest.approx(0.00975, rel=0.06)
    foreground.begin_busy(100)
    foreground.begin_busy(150)  # without effect
    _traffic(foreground, 100, 500, 0.050)
    assert foreground.recent(500) == pytest.approx(0.04875, rel=0.06)
    assert foreground.baseline(500) == pytest.approx(0.00975, rel=0.06)
    # Afterwards the calm goes on where it was, and forgets what it was before.
    foreground.end_busy(500)
    foreground.end_busy(600)
    assert foreground.baseline(501) == pytest.approx(0.00975, rel=0.06)
    _traffic(foreground, 500, 570, 0.020)
    assert foreground.baseline(570) == pytest.approx(0.0195, rel=0.06)


def test_without_traffic_there_is_no_recent_quantile() -> None:
    foreground = Foreground()
    _traffic(foreground, 0, 10, 0.01)
    assert foreground.recent(10) is not None
    assert foreground.recent(16) is None
    assert foreground.baseline(16) is not None
