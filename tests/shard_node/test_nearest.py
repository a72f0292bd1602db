"""The exact scan against brute force in float64."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_node.nearest import ExactScan

Doubles: TypeAlias = npt.NDArray[np.float64]


@given(
    space=st.sampled_from(["l2", "cosine", "ip"]),
    dimension=st.integers(1, 9),
    count=st.integers(1, 40),
    n=st.integers(1, 12),
    chunk=st.integers(1, 13),
    seed=st.integers(0, 2**32 - 1),
)
def test_as_brute_force(
    space: str, dimension: int, count: int, n: int, chunk: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, dimension)).astype("<f4")
    queries = rng.normal(size=(3, dimension)).astype("<f4")
    scan = ExactScan([q.tobytes() for q in queries], n, space)
    ids = [f"r{i:03}" for i in range(count)]
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        scan.add(ids[part], [v.tobytes() for v in vectors[part]])
    for query, hits in zip(queries.astype(float), scan.best(), strict=True):
        want = np.sort(distances(vectors.astype(float), query, space))[:n]
        assert [d for d, _ in hits] == pytest.approx(want, rel=1e-4, abs=1e-5)
        assert hits == sorted(hits)
        assert len({i for _, i in hits}) == min(n, count)


def distances(vectors: Doubles, query: Doubles, space: str) -> Doubles:
    if space == "l2":
        return np.asarray(((vectors - query) ** 2).sum(axis=1))
    dots = (vectors * query).sum(axis=1)
    if space == "cosine":
        dots /= np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    return np.asarray(1 - dots)


def test_a_zero_vector_is_at_distance_one_by_cosine() -> None:
    scan = ExactScan([np.ones(3, "<f4").tobytes()], 1, "cosine")
    scan.add(["zero"], [bytes(12)])
    assert scan.best() == [[(1.0, "zero")]]


def test_ties_are_in_the_order_of_ids() -> None:
    scan = ExactScan([bytes(4)], 3, "l2")
    scan.add(["d", "b"], [bytes(4)] * 2)
    scan.add(["c", "a"], [bytes(4)] * 2)
    assert scan.best() == [[(0.0, "a"), (0.0, "b"), (0.0, "c")]]
