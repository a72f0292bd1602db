"""Merging shards' hits and rows, against naive twins."""

import math
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.merge import MergedRows, ShardHits, ShardRows, merge_hits, merge_rows

NAN = float("nan")
# Few values, so that ties are common.
DISTANCES = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0, math.inf, -math.inf, NAN])


def hit(distance: float, record_id: str) -> bytes:
    return f"{record_id}@{distance}".encode()


def order(row: tuple[float, str]) -> tuple[bool, float, str]:
    distance, record_id = row
    return (math.isnan(distance), 0 if math.isnan(distance) else distance, record_id)


def shard_hits(rows: list[tuple[float, str]]) -> ShardHits:
    rows = sorted(rows, key=order)
    return ShardHits([d for d, _ in rows], [i for _, i in rows], [hit(*row) for row in rows])


@given(
    st.dictionaries(st.text(max_size=3), st.tuples(DISTANCES, st.integers(0, 3)), max_size=30),
    st.integers(1, 35),
)
def test_hits_equal_the_naive_twin(rows: dict[str, tuple[float, int]], limit: int) -> None:
    parts = [
        shard_hits([(d, record_id) for record_id, (d, on) in rows.items() if on == shard])
        for shard in range(4)
    ]
    # Each shard sends its own nearest `limit` only: that must be enough.
    parts = [ShardHits(p.distances[:limit], p.ids[:limit], p.hits[:limit]) for p in parts]
    everything = sorted(((d, record_id) for record_id, (d, _) in rows.items()), key=order)
    merged = merge_hits(parts, limit)
    assert [h.hit for h in merged] == [hit(*row) for row in everything[:limit]]
    assert [repr(h.distance) for h in merged] == [repr(d) for d, _ in everything[:limit]]
    assert [h.id for h in merged] == [record_id for _, record_id in everything[:limit]]


def test_nan_comes_last_in_the_order_of_ids() -> None:
    # Distinct NaN objects: a comparison that leans on identity would pass with one object.
    left = ShardHits([1.0, float("nan")], ["x", "c"], [b"x", b"c"])
    right = ShardHits([math.inf, float("nan"), float("nan")], ["y", "a", "b"], [b"y", b"a", b"b"])
    assert [h.hit for h in merge_hits([left, right], 9)] == [b"x", b"y", b"a", b"b", b"c"]


def test_hits_of_no_shard() -> None:
    assert merge_hits([], 10) == []


def test_one_record_from_two_shards_breaks_invariant_2() -> None:
    part = ShardHits([1.0], ["a"], [b"a"])
    with pytest.raises(AssertionError, match="invariant 2"):
        merge_hits([part, part], 1)


def test_hits_with_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        merge_hits([ShardHits([1.0, 2.0], ["a", "b"], [b"a"])], 1)


Row = tuple[int, str]


def page(rows: list[Row], after: Row | None, size: int, keys_only: bool) -> ShardRows:
    """What a node answers: its next `size` rows after a place."""
    left = [row for row in sorted(rows) if after is None or row > after]
    taken = left[:size]
    return ShardRows(
        [sequence for sequence, _ in taken],
        [record_id for _, record_id in taken],
        [] if keys_only else [hit(*row) for row in taken],
        len(left) > len(taken),
    )


@given(
    st.dictionaries(st.text(max_size=3), st.tuples(st.integers(0, 12), st.integers(0, 3))),
    st.booleans(),
    st.data(),
)
def test_paging_gives_the_sorted_whole(
    rows: dict[str, tuple[int, int]], keys_only: bool, data: st.DataObject
) -> None:
    shards: list[list[Row]] = [[] for _ in range(4)]
    for record_id, (sequence, shard) in rows.items():
        shards[shard].append((sequence, record_id))
    sizes = st.integers(1, 5)
    got: list[Row] = []
    records: list[bytes] = []
    after: Row | None = None
    while True:
        pages = [page(shard, after, data.draw(sizes), keys_only) for shard in shards]
        limit = data.draw(sizes)
        merged = merge_rows(pages, limit)
        assert len(merged.keys) <= limit
        got += merged.keys
        records += merged.records
        if not merged.more:
            break
        assert merged.keys, "no progress"
        after = merged.keys[-1]
    everything = sorted(row for shard in shards for row in shard)
    assert got == everything
    assert records == ([] if keys_only else [hit(*row) for row in everything])


def test_nothing_passes_the_horizon_of_a_shard_that_has_more() -> None:
    merged = merge_rows(
        [
            ShardRows([1, 5], ["a", "e"], [b"a", b"e"], True),
            ShardRows([2, 9], ["b", "i"], [b"b", b"i"], False),
        ],
        10,
    )
    assert merged == MergedRows([(1, "a"), (2, "b"), (5, "e")], [b"a", b"b", b"e"], True)


def test_rows_beyond_the_limit_are_more() -> None:
    merged = merge_rows([ShardRows([1, 2], ["a", "b"], [], False)], 1)
    assert merged == MergedRows([(1, "a")], [], True)


def test_exactly_the_limit_is_not_more() -> None:
    merged = merge_rows([ShardRows([1, 2], ["a", "b"], [], False)], 2)
    assert merged == MergedRows([(1, "a"), (2, "b")], [], False)


def test_rows_of_no_shard() -> None:
    assert merge_rows([], 10) == MergedRows([], [], False)


@pytest.mark.parametrize(
    ("pages", "problem"),
    [
        ([ShardRows([], [], [], True)], "empty page"),
        ([ShardRows([1, 2], ["a", "b"], [b"a"], False)], "1 records for 2 ids"),
        (
            [ShardRows([1], ["a"], [b"a"], False), ShardRows([2], ["b"], [], False)],
            "0 records for 1 ids",
        ),
        ([ShardRows([1], ["a", "b"], [], False)], "longer"),
        ([ShardRows([2, 1], ["a", "b"], [], False)], "order"),
        ([ShardRows([1, 1], ["b", "a"], [], False)], "order"),
        ([ShardRows([1, 1], ["a", "a"], [], False)], "order"),
    ],
)
def test_a_broken_promise_of_a_node_is_told(pages: list[ShardRows], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        merge_rows(pages, 10)


@given(st.integers(0, 5), st.integers(0, 5))
def test_one_row_from_two_shards_breaks_invariant_2(first: int, second: int) -> None:
    pages = [ShardRows([first], ["a"], [], False), ShardRows([second], ["a"], [], False)]
    with pytest.raises(AssertionError, match="invariant 2"):
        merge_rows(pages, 10)


def test_groups_of_one_sequence_are_in_the_order_of_ids() -> None:
    pages = [ShardRows([3, 3], ["b", "d"], [], False), ShardRows([3, 3], ["a", "c"], [], False)]
    merged = merge_rows(pages, 10)
    assert {s: [i for _, i in group] for s, group in groupby(merged.keys, lambda key: key[0])} == {
        3: ["a", "b", "c", "d"]
    }
