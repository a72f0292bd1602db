"""Coverage and patience of partial reads, against a naive twin."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.coverage import STRAGGLER_SECONDS, ToldCounts, coverage, straggler_patience

SHARDS = st.sampled_from(["a", "b", "c", "d", "e"])


@st.composite
def cases(
    draw: st.DrawFn,
) -> tuple[dict[str, int], set[str], dict[str, int]]:
    """Slots of the asked shards, the missing ones, and what was told: by every answering one."""
    asked = draw(st.dictionaries(SHARDS, st.integers(1, 1024), max_size=5))
    missing = draw(st.sets(SHARDS)) & set(asked)
    told = draw(st.dictionaries(SHARDS, st.integers(0, 10**6)))
    for shard in asked:
        if shard not in missing:
            told.setdefault(shard, draw(st.integers(0, 10**6)))
    return asked, missing, told


def naive_share(asked: dict[str, int], missing: set[str], told: dict[str, int]) -> Fraction:
    """In exact arithmetic, shard by shard."""
    sure = {shard: Fraction(told[shard]) for shard in asked if shard in told}
    slots = sum(asked[shard] for shard in sure)
    guess: dict[str, Fraction] = {
        shard: sum(sure.values(), Fraction(0)) * asked[shard] / slots if slots else Fraction(0)
        for shard in asked
        if shard not in told
    }
    held: dict[str, Fraction] = {**sure, **guess}
    if not any(held.values()):
        held = {shard: Fraction(number) for shard, number in asked.items()}
    total = sum(held.values(), Fraction(0))
    if not total:
        return Fraction(1)
    return sum((held[s] for s in asked if s not in missing), Fraction(0)) / total


@given(cases())
def test_coverage_equals_the_naive_twin(
    case: tuple[dict[str, int], set[str], dict[str, int]],
) -> None:
    asked, missing, told = case
    found = coverage(asked, missing, told)
    assert list(found.asked_shards) == list(asked)
    assert set(found.answered_shards) == set(asked) - missing
    assert set(found.missing_shards) == missing
    assert found.record_share == pytest.approx(float(naive_share(asked, missing, told)))
    assert 0.0 <= found.record_share <= 1.0 + 1e-12
    if not missing:
        assert found.record_share == pytest.approx(1.0)


def test_a_missing_shard_counts_by_what_it_last_told() -> None:
    assert coverage({"a": 512, "b": 512}, {"b"}, {"a": 30, "b": 10}).record_share == 0.75


def test_a_missing_shard_that_never_told_counts_by_its_slots() -> None:
    assert coverage({"a": 768, "b": 256}, {"b"}, {"a": 30}).record_share == 0.75
    assert coverage({"a": 768, "b": 256}, {"b"}, {"a": 0}).record_share == 0.75


@given(st.floats(0, 1e4), st.floats(0.001, 1e4))
def test_patience_never_takes_more_than_half_of_what_is_left(
    elapsed: float, remaining: float
) -> None:
    patience = straggler_patience(elapsed, remaining)
    assert 0 < patience <= remaining / 2
    if remaining >= 2 * max(STRAGGLER_SECONDS, 2 * elapsed):
        assert patience == max(STRAGGLER_SECONDS, 2 * elapsed)


def test_what_was_told_is_kept_of_the_owners_and_of_the_newest_collections() -> None:
    told = ToldCounts(2)
    told.learn("one", ["a", "b"], {"a": 1, "b": 2})
    told.learn("two", ["a"], {"a": 5})
    told.learn("one", ["a", "c"], {"c": 3})
    assert told.of("one") == {"a": 1, "c": 3}
    told.learn("three", ["a"], {"a": 7})
    assert told.of("two") == {}
    assert told.of("one") == {"a": 1, "c": 3}
    assert told.of("never") == {}
