"""The group-commit policy: bounds for any input, and convergence on simulated engines."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.batching import AdaptiveBatch, BatchLimits

SIZES = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 500)), max_size=40)


@st.composite
def limits(draw: st.DrawFn) -> BatchLimits:
    low = draw(st.integers(1, 50))
    return BatchLimits(
        target_apply_seconds=draw(st.floats(0.001, 1)),
        min_rows=low,
        max_rows=draw(st.integers(low, 1_000)),
        max_bytes=draw(st.integers(1, 2_000)),
        max_operations=draw(st.integers(1, 20)),
    )


@given(limits(), SIZES)
def test_take_is_the_longest_prefix_within_the_limits(
    bounds: BatchLimits, sizes: list[tuple[int, int]]
) -> None:
    batch = AdaptiveBatch(bounds)

    def fits(count: int) -> bool:
        head = sizes[:count]
        return (
            count <= bounds.max_operations
            and sum(rows for rows, _ in head) <= batch.rows
            and sum(size for _, size in head) <= bounds.max_bytes
        )

    longest = max((count for count in range(len(sizes) + 1) if fits(count)), default=0)
    assert batch.take(iter(sizes)) == max(longest, min(1, len(sizes)))


def test_take_reads_no_further_than_it_must() -> None:
    waiting = iter([(1, 1)] * 10)
    assert AdaptiveBatch(BatchLimits(max_operations=4)).take(waiting) == 4
    assert len(list(waiting)) == 6


@given(
    limits(),
    st.lists(st.tuples(st.integers(1, 2_000), st.floats(0, 100) | st.just(0.0)), max_size=60),
)
def test_rows_stay_in_bounds_and_change_gradually(
    bounds: BatchLimits, applies: list[tuple[int, float]]
) -> None:
    batch = AdaptiveBatch(bounds)
    for rows, seconds in applies:
        before = batch.rows
        batch.observe(rows, seconds)
        assert bounds.min_rows <= batch.rows <= bounds.max_rows
        # A row more or less for rounding.
        assert before / 2 - 1 <= batch.rows <= before * 2 + 1


def _run(
    batch: AdaptiveBatch, cost: Callable[[int], float], rounds: int, load: Callable[[], float]
) -> None:
    for _ in range(rounds):
        rows = max(1, round(batch.rows * load()))
        batch.observe(rows, cost(rows))


@pytest.mark.parametrize("per_row", [0.0001, 0.0003, 0.0012])
@pytest.mark.parametrize("fixed", [0.003, 0.0075, 0.02])
@pytest.mark.parametrize("saturated", [True, False])
def test_an_apply_comes_near_the_target(fixed: float, per_row: float, saturated: bool) -> None:
    generator = random.Random(20240607)

    def cost(rows: int) -> float:
        return (fixed + per_row * rows) * generator.uniform(0.85, 1.15)

    batch = AdaptiveBatch(BatchLimits())
    _run(batch, cost, 200, (lambda: 1.0) if saturated else generator.random)
    assert 0.025 <= fixed + per_row * batch.rows <= 0.085


def test_follows_an_engine_that_changes() -> None:
    batch = AdaptiveBatch(BatchLimits())
    _run(batch, lambda rows: 0.0075 + 0.0003 * rows, 100, lambda: 1.0)
    fast = batch.rows
    _run(batch, lambda rows: 0.0075 + 0.0030 * rows, 100, lambda: 1.0)
    slow = batch.rows
    _run(batch, lambda rows: 0.0075 + 0.0003 * rows, 100, lambda: 1.0)
    assert fast == pytest.approx(142, abs=15)
    assert slow == pytest.approx(14, abs=4)
    assert batch.rows == pytest.approx(fast, rel=0.3)


def test_a_disk_slower_than_the_target_does_not_shrink_groups_to_nothing() -> None:
    batch = AdaptiveBatch(BatchLimits())
    generator = random.Random(20240607)
    _run(batch, lambda rows: 0.080 + 0.0003 * rows, 300, generator.random)
    assert batch.rows >= 150


def test_one_stall_moves_the_size_little() -> None:
    batch = AdaptiveBatch(BatchLimits())
    _run(batch, lambda rows: 0.0075 + 0.0003 * rows, 50, lambda: 1.0)
    before = batch.rows
    batch.observe(before, 5.0)
    assert batch.rows >= before * 0.6


@pytest.mark.parametrize(("rows", "seconds"), [(0, 1.0), (1, -0.1), (1, float("nan"))])
def test_impossible_observations_are_refused(rows: int, seconds: float) -> None:
    with pytest.raises(ValueError, match="an apply"):
        AdaptiveBatch(BatchLimits()).observe(rows, seconds)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"target_apply_seconds": 0.0}, "target_apply_seconds"),
        ({"target_apply_seconds": float("nan")}, "target_apply_seconds"),
        ({"min_rows": 0}, "min_rows"),
        ({"min_rows": 11, "max_rows": 10}, "min_rows"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_operations": 0}, "max_operations"),
    ],
)
def test_limits_that_contradict_are_refused(settings: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        BatchLimits(**settings)  # type: ignore[arg-type]
