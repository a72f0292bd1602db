"""Rendezvous placement: against a naive twin, and that adding a shard disturbs little."""

from collections import Counter
from itertools import pairwise

import mmh3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_router.wire.errors import InvalidRequest
from chroma_router.wire.placement import ALL_SHARDS, PLACEMENT_KEY
from router.core.placement import home_shards, placement

SHARDS = st.lists(st.text(min_size=1, max_size=8), max_size=8, unique=True)
IDS = st.uuids().map(str)


def naive(collection_id: str, shards: list[str], count: int) -> list[str]:
    def weight(shard: str) -> int:
        digest = mmh3.mmh3_x64_128_digest(f"{collection_id}/{shard}".encode())
        return int.from_bytes(digest[:8], "little")

    chosen: list[str] = []
    while len(chosen) < (count or len(shards)) and len(chosen) < len(shards):
        left = sorted(set(shards) - set(chosen))
        chosen.append(max(left, key=weight))
    return sorted(chosen)


@given(IDS, SHARDS, st.integers(0, 10))
def test_equals_the_naive_twin(collection_id: str, shards: list[str], count: int) -> None:
    homes = home_shards(collection_id, iter(shards), count)
    assert list(homes) == naive(collection_id, shards, count)


@given(IDS, SHARDS)
def test_a_ranking_only_grows_with_the_count(collection_id: str, shards: list[str]) -> None:
    homes = [set(home_shards(collection_id, shards, count)) for count in range(1, len(shards) + 1)]
    assert [len(chosen) for chosen in homes] == list(range(1, len(shards) + 1))
    assert all(small < large for small, large in pairwise(homes))


@given(IDS, SHARDS, st.text(min_size=1, max_size=8), st.integers(1, 4))
def test_a_new_shard_displaces_at_most_one(
    collection_id: str, shards: list[str], new: str, count: int
) -> None:
    before = set(home_shards(collection_id, shards, count))
    after = set(home_shards(collection_id, {*shards, new}, count))
    assert after - before <= {new}
    assert len(before - after) <= 1


def test_collections_spread_evenly_and_few_move() -> None:
    shards = [f"shard-{n}" for n in range(1, 5)]
    before = {f"c{n}": home_shards(f"c{n}", shards, 1) for n in range(4_000)}
    counts = Counter(before.values())
    # Binomial, mean 1,000, standard deviation 27.
    assert all(850 < count < 1_150 for count in counts.values())
    moved = {c for c, home in before.items() if home_shards(c, [*shards, "shard-5"], 1) != home}
    assert 650 < len(moved) < 950  # a fifth of them is 800
    assert all(home_shards(c, [*shards, "shard-5"], 1) == ("shard-5",) for c in moved)


def test_equal_weights_go_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.core.placement._weight", lambda collection_id, shard: 1)
    assert home_shards("c", ["c", "a", "b"], 2) == ("a", "b")


def test_golden() -> None:
    # Where a collection lives must not change between versions.
    shards = [f"shard-{n}" for n in range(1, 9)]
    collection_id = "00000000-0000-0000-0000-000000000001"
    assert home_shards(collection_id, shards, 3) == ("shard-1", "shard-5", "shard-6")


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        home_shards("c", ["a"], -1)


@pytest.mark.parametrize(
    ("asked", "said", "default", "placed"),
    [
        (0, None, 0, 0),
        (0, None, 1, 1),
        (2, None, 1, 2),
        (ALL_SHARDS, None, 1, 0),
        (ALL_SHARDS, None, 0, 0),
        (0, 2, 1, 2),
        (0, "all", 1, 0),
        (0, 2**40, 1, 0),
        (3, 2, 1, 3),
        (3, "senseless", 1, 3),
    ],
)
def test_the_request_says_it_then_the_metadata_then_the_default(
    asked: int, said: object, default: int, placed: int
) -> None:
    metadata = None if said is None else {PLACEMENT_KEY: said, "a": 1}
    assert placement(asked, metadata, default) == placed


@pytest.mark.parametrize("said", [0, -1, True, 1.0, "two", "x" * 100_000])
def test_metadata_that_is_no_placement(said: object) -> None:
    with pytest.raises(InvalidRequest, match=PLACEMENT_KEY) as refused:
        placement(0, {PLACEMENT_KEY: said}, 1)
    assert len(refused.value.message) < 300
