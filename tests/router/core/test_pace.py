"""The pace of the copy: bounds for any input, and convergence under simulated loads."""

import math
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.pace import (
    BUSY_APPLY_SECONDS,
    FIRST_CHUNK_RECORDS,
    IDLE_APPLY_SECONDS,
    MAX_CHUNK_RECORDS,
    MAX_PAUSE_SECONDS,
    MIN_CHUNK_RECORDS,
    MIN_RECORDS_PER_SECOND,
    SUFFERS_ABOVE,
    Pace,
)

SECONDS = st.floats(0, 5) | st.just(0.0)
LATENCIES = st.none() | st.floats(0.0005, 3)


@given(
    st.integers(0, 5_000),
    st.lists(st.tuples(st.integers(0, 1_200), SECONDS, SECONDS, LATENCIES, LATENCIES), max_size=60),
)
def test_bounds_hold_whatever_is_observed(
    cap: int, chunks: list[tuple[int, float, float, float | None, float | None]]
) -> None:
    pace = Pace(cap)
    for items, read, applied, p95, baseline in chunks:
        pace.observe(
            items=items, read_seconds=read, apply_seconds=applied, p95=p95, baseline=baseline
        )
        assert 1 <= pace.chunk_records <= MAX_CHUNK_RECORDS
        assert pace.chunk_records >= MIN_CHUNK_RECORDS or pace.chunk_records == cap
        if cap:
            assert pace.chunk_records <= cap
            assert items <= cap * (read + applied + pace.pause_seconds) * (1 + 1e-9)
        if p95 is None and not cap:
            assert pace.pause_seconds == 0
        # It never starves: either it copies fast enough, or what slows it down is not the pause.
        lowest = min(cap or MIN_RECORDS_PER_SECOND, MIN_RECORDS_PER_SECOND)
        spent = read + applied
        assert pace.pause_seconds <= max(items / lowest - spent, 0) + 1e-9
        assert pace.pause_seconds <= max(MAX_PAUSE_SECONDS, items / cap if cap else 0)


@dataclass
class Cluster:
    """A target of which an apply takes `fixed + items * per_record` seconds, and a foreground that
    slows down by `harm` times the share of time that the copy is at work."""

    fixed: float = 0.0075
    per_record: float = 0.0004
    harm: float = 0.0
    calm: float = 0.010
    traffic: bool = True
    knows_calm: bool = True
    window: float = 5.0
    now: float = 0.0
    copied: int = 0
    work: deque[tuple[float, float]] = field(default_factory=deque)

    def p95(self) -> float:
        """Of the last seconds, as a LatencyWindow gives it: late."""
        while self.work and self.work[0][0] < self.now - self.window:
            self.work.popleft()
        working = sum(seconds for _, seconds in self.work)
        return self.calm * (1 + self.harm * working / self.window)

    def run(self, pace: Pace, seconds: float) -> float:
        """Copies for so long; the records copied in a second."""
        begin, copied = self.now, self.copied
        while self.now < begin + seconds:
            items = pace.chunk_records
            read = self.fixed / 2 + items * self.per_record / 8
            applied = self.fixed + items * self.per_record
            self.now += read + applied
            self.copied += items
            self.work.append((self.now, read + applied))
            pace.observe(
                items=items,
                read_seconds=read,
                apply_seconds=applied,
                p95=self.p95() if self.traffic else None,
                baseline=self.calm if self.knows_calm else None,
            )
            self.now += pace.pause_seconds
        return (self.copied - copied) / (self.now - begin)

    def applied(self, pace: Pace) -> float:
        return self.fixed + pace.chunk_records * self.per_record


@pytest.mark.parametrize("per_record", [0.0001, 0.0004, 0.003])
def test_idle_it_copies_as_fast_as_it_can(per_record: float) -> None:
    cluster = Cluster(per_record=per_record, traffic=False)
    pace = Pace()
    cluster.run(pace, 10)
    assert pace.pause_seconds == 0
    assert cluster.applied(pace) <= IDLE_APPLY_SECONDS * 1.05
    assert (
        pace.chunk_records == MAX_CHUNK_RECORDS
        or cluster.applied(pace) >= IDLE_APPLY_SECONDS * 0.85
    )


def test_traffic_that_does_not_suffer_has_half_of_the_time_and_short_chunks() -> None:
    cluster = Cluster(harm=0.2)
    pace = Pace()
    cluster.run(pace, 10)
    read = cluster.fixed / 2 + pace.chunk_records * cluster.per_record / 8
    assert pace.pause_seconds == pytest.approx(read + cluster.applied(pace), rel=0.05)
    assert BUSY_APPLY_SECONDS / 2 <= cluster.applied(pace) <= BUSY_APPLY_SECONDS * 1.05


@pytest.mark.parametrize("harm", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("per_record", [0.0001, 0.0004, 0.001])
def test_it_gives_way_until_the_foreground_no_longer_suffers(
    harm: float, per_record: float
) -> None:
    cluster = Cluster(harm=harm, per_record=per_record)
    pace = Pace()
    cluster.run(pace, 60)
    worst = suffering = 0.0
    for _ in range(120):
        rate = cluster.run(pace, 1)
        assert rate >= MIN_RECORDS_PER_SECOND * 0.7
        worst = max(worst, cluster.p95())
        suffering += cluster.p95() > SUFFERS_ABOVE * cluster.calm
    assert worst <= 2 * cluster.calm, "p95 during moves is at most twice what it was before"
    assert suffering <= 60
    # And it makes use of what the foreground can spare: a fair part of what would just be borne.
    bearable = min((SUFFERS_ABOVE - 1) / harm, 1)
    most = bearable / (per_record * 9 / 8)
    assert cluster.run(pace, 60) >= 0.2 * most


def test_however_much_it_suffers_the_copy_goes_on() -> None:
    cluster = Cluster(harm=1_000)
    pace = Pace()
    cluster.run(pace, 60)
    assert cluster.run(pace, 60) == pytest.approx(MIN_RECORDS_PER_SECOND, rel=0.05)


def test_after_a_burst_of_traffic_it_speeds_up_again() -> None:
    cluster = Cluster(harm=4)
    pace = Pace()
    cluster.run(pace, 30)
    slow = cluster.run(pace, 10)
    cluster.harm = 0.1
    cluster.run(pace, 30)
    assert cluster.run(pace, 10) > 1.5 * slow
    cluster.traffic = False
    cluster.run(pace, 10)
    assert cluster.applied(pace) > IDLE_APPLY_SECONDS * 0.85


def test_traffic_of_which_the_calm_is_not_known_has_half_of_the_time() -> None:
    pace = Pace()
    pace.observe(items=100, read_seconds=0.01, apply_seconds=0.03, p95=0.02, baseline=None)
    assert pace.pause_seconds == pytest.approx(0.04)


@pytest.mark.parametrize("cap", [1, 10, 200, 1_000])
@pytest.mark.parametrize("traffic", [True, False])
def test_a_rate_is_kept(cap: int, traffic: bool) -> None:
    cluster = Cluster(traffic=traffic)
    pace = Pace(cap)
    assert cluster.run(pace, 100) <= cap * 1.02 + 1
    # Half of the time is the clients': so many a second it copies beside them, chunk by chunk.
    most = 700 if traffic else cap
    assert cluster.run(pace, 100) >= min(cap, most) * 0.9


def test_another_rate_counts_from_the_next_chunk_on() -> None:
    cluster = Cluster(traffic=False)
    pace = Pace(100)
    cluster.run(pace, 20)
    pace.cap(0)
    cluster.run(pace, 10)
    assert cluster.run(pace, 10) > 1_000
    pace.cap(50)
    assert pace.chunk_records == 50
    cluster.run(pace, 5)
    assert cluster.run(pace, 20) == pytest.approx(50, rel=0.1)


def test_one_stall_says_little() -> None:
    pace = Pace()
    assert pace.chunk_records == FIRST_CHUNK_RECORDS
    pace.observe(items=100, read_seconds=0, apply_seconds=30, p95=0.01, baseline=0.01)
    assert pace.chunk_records == FIRST_CHUNK_RECORDS / 2


def test_a_chunk_that_was_not_full_does_not_make_them_larger() -> None:
    pace = Pace()
    for items in (0, 1, 99):
        pace.observe(items=items, read_seconds=0, apply_seconds=0.001, p95=None, baseline=None)
        assert pace.chunk_records == FIRST_CHUNK_RECORDS


def test_senseless_observations() -> None:
    pace = Pace()
    for items, read, applied in ((-1, 0.1, 0.1), (1, -0.1, 0.1), (1, 0.1, math.nan)):
        with pytest.raises(ValueError, match="a chunk has items"):
            pace.observe(
                items=items, read_seconds=read, apply_seconds=applied, p95=None, baseline=None
            )
    with pytest.raises(ValueError, match="rate"):
        Pace(-1)
