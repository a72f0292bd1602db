"""How far two answers agree, and samples of queries within bounds."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.agreement import QuerySample, QuerySamples, agreement

NAN = float("nan")


@pytest.mark.parametrize(
    ("source", "target", "share"),
    [
        ([], [], 1.0),
        ([("a", 0.1)], [], 0.0),
        ([], [("a", 0.1)], 0.0),
        ([("a", 0.1), ("b", 0.2)], [("a", 0.1), ("b", 0.2)], 1.0),
        ([("a", 0.1), ("b", 0.2)], [("b", 0.2), ("a", 0.1)], 1.0),
        ([("a", 0.1), ("b", 0.2)], [("a", 0.1), ("c", 0.3)], 0.5),
        ([("a", 0.1), ("b", 0.2)], [("a", 0.1)], 0.5),
        ([("a", 0.1)], [("a", 0.1), ("b", 0.2)], 0.5),
        # Equal at the cut: arbitrary which of them is a hit.
        ([("a", 0.1), ("b", 0.2)], [("a", 0.1), ("c", 0.2)], 1.0),
        ([("a", 0.1), ("b", 0.2)], [("a", 0.1), ("c", 0.2 * (1 + 5e-6))], 1.0),
        ([("a", 0.1), ("b", 0.2)], [("a", 0.1), ("c", 0.2 * (1 + 5e-5))], 0.5),
        ([("b", 0.2), ("c", 0.2)], [("d", 0.2), ("e", 0.2)], 1.0),
        ([("a", 0.0)], [("b", 1e-7)], 1.0),
        ([("a", -4.0)], [("b", -4.0)], 1.0),
        # Nearer than the cut: one side has missed it.
        ([("a", 0.1), ("b", 0.2)], [("x", 0.1), ("b", 0.2)], 0.5),
        # One of two at the cut has no partner there.
        ([("a", 0.1), ("b", 0.2), ("c", 0.2)], [("a", 0.1), ("x", 0.15), ("d", 0.2)], 2 / 3),
        # NaN comes last, and is equal to NaN only.
        ([("a", 0.1), ("b", NAN)], [("a", 0.1), ("c", NAN)], 1.0),
        ([("a", 0.1), ("b", NAN)], [("a", 0.1), ("c", 0.2)], 0.5),
    ],
)
def test_examples(
    source: list[tuple[str, float]], target: list[tuple[str, float]], share: float
) -> None:
    assert agreement(source, target) == pytest.approx(share)
    assert agreement(target, source) == pytest.approx(share)


@given(
    st.dictionaries(st.text(max_size=2), st.sampled_from([0.0, 0.5, 1.0, 2.0]), max_size=12),
    st.integers(1, 8),
    st.integers(0, 2**32),
)
def test_exact_answers_agree_however_ties_are_broken(
    distances: dict[str, float], k: int, seed: int
) -> None:
    generator = random.Random(seed)

    def nearest() -> list[tuple[str, float]]:
        rows = list(distances.items())
        generator.shuffle(rows)
        return sorted(rows, key=lambda row: row[1])[:k]

    assert agreement(nearest(), nearest()) == 1.0


HITS = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 2), max_size=8).map(
    lambda rows: sorted(rows.items(), key=lambda row: row[1])
)


@given(HITS, HITS)
def test_it_is_a_share_and_symmetric(
    one: list[tuple[str, float]], other: list[tuple[str, float]]
) -> None:
    assert 0.0 <= agreement(one, other) <= 1.0
    assert agreement(one, other) == agreement(other, one)
    assert agreement(one, one) == 1.0


# ------------------------------------------------------------------------------------------ samples


def sample(n: int, size: int = 8) -> QuerySample:
    return QuerySample(bytes([n % 256]) * size, 10, b"")


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3_000)), max_size=200),
    st.integers(1, 5),
)
def test_samples_are_the_newest_within_the_bounds(
    queries: list[tuple[str, int]], per_collection: int
) -> None:
    samples = QuerySamples(per_collection=per_collection, max_bytes=10_000, max_sample_bytes=3_000)
    asked: dict[str, list[QuerySample]] = {}
    for n, (name, size) in enumerate(queries):
        query = sample(n, size)
        samples.add(name, query)
        if query.size <= 3_000:
            asked.setdefault(name, []).append(query)
            assert samples.of(name)[-1] == query
        kept = [samples.of(collection) for collection in "abcd"]
        assert samples.size == sum(query.size for ring in kept for query in ring) <= 10_000
        for collection, ring in zip("abcd", kept, strict=True):
            assert len(ring) <= per_collection
            newest_first = asked.get(collection, [])[::-1]
            assert list(ring)[::-1] == newest_first[: len(ring)]


def test_the_collection_that_was_queried_longest_ago_makes_room() -> None:
    samples = QuerySamples(per_collection=10, max_bytes=1_000, max_sample_bytes=1_000)
    for name in "abac":  # 300 bytes each
        samples.add(name, sample(1, 100))
    assert samples.of("b") == ()
    assert len(samples.of("a")) == 2
    assert len(samples.of("c")) == 1
    samples.forget("a")
    samples.forget("nobody")
    assert samples.of("a") == ()
    assert samples.size == 300


def test_one_collection_may_fill_it_alone() -> None:
    samples = QuerySamples(per_collection=10, max_bytes=1_000, max_sample_bytes=1_000)
    for n in range(7):
        samples.add("a", sample(n, 100))
    assert samples.of("a") == tuple(sample(n, 100) for n in (4, 5, 6))


def test_bounds_that_make_no_sense() -> None:
    for bounds in ({"per_collection": 0}, {"max_sample_bytes": 0}, {"max_bytes": 10}):
        with pytest.raises(ValueError, match="bounds"):
            QuerySamples(**bounds)
