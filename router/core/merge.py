"""Puts the answers of several shards together into the answer of one Chroma.

The shards' parts are concatenated and sorted by a total order: each part is sorted already, and
Python's sort finds such runs and merges them in C, which no heap in Python comes near.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isnan
from typing import NamedTuple


class ShardHits(NamedTuple):
    """One shard's hits for one query embedding, nearest first."""

    distances: Sequence[float]
    ids: Sequence[str]
    hits: Sequence[bytes]
    """Each a serialized Hit."""


class RankedHit(NamedTuple):
    """One hit of the merged answer."""

    distance: float
    id: str
    hit: bytes
    """The serialized Hit, as the shard sent it."""


class ShardRows(NamedTuple):
    """One page of one shard's records in the order of (sequence, id) or (slot, id)."""

    sequences: Sequence[int]
    """The sequences or the slots."""
    ids: Sequence[str]
    records: Sequence[bytes]
    """Each a serialized Record; empty if only the keys were asked for."""
    more: bool
    """There may be more on the shard after the last row."""


@dataclass(frozen=True, slots=True)
class MergedRows:
    """The next rows of the whole collection."""

    keys: list[tuple[int, str]]
    """(sequence, id) of each row, ascending."""
    records: list[bytes]
    """The records of these keys; empty if only the keys were asked for."""
    more: bool
    """There is, or may be, more after the last row."""


def merge_hits(per_shard: Sequence[ShardHits], limit: int) -> list[RankedHit]:
    """The nearest `limit` hits of all shards, by distance and then by id; NaN comes last.

    (Chroma gives NaN for the cosine distance of a zero vector: such hits are kept, behind all
    others.) `limit` is at least 1. Raises ValueError if a shard's columns differ in length.
    """
    ranked = [
        ((isnan(distance), 0.0 if isnan(distance) else distance, record_id), distance, hit)
        for part in per_shard
        for distance, record_id, hit in zip(part.distances, part.ids, part.hits, strict=True)
    ]
    _assert_distinct([rank[2] for rank, _, _ in ranked])
    ranked.sort()
    return [RankedHit(distance, rank[2], hit) for rank, distance, hit in ranked[:limit]]


def merge_rows(pages: Sequence[ShardRows], limit: int) -> MergedRows:
    """At most `limit` (at least 1) next rows of all shards, in the order of (sequence, id).

    All pages must begin at the same place in that order. Rows are given out only as far as every
    shard has told: up to the smallest last key among the pages that say `more`, since that shard
    may hold a row right behind it. At least one row comes out if any page has one.

    Raises ValueError if a node broke its promise: columns of different lengths, a page out of
    order, or an empty page that says `more`, after which reading on would never end.
    """
    with_records = any(page.records for page in pages)
    rows: list[tuple[tuple[int, str], bytes]] = []
    horizon: tuple[int, str] | None = None
    for page in pages:
        keys = _checked_keys(page, with_records)
        rows.extend(zip(keys, page.records if with_records else [b""] * len(keys), strict=True))
        if page.more:
            horizon = keys[-1] if horizon is None else min(horizon, keys[-1])
    _assert_distinct([key[1] for key, _ in rows])
    rows.sort()
    chosen = [row for row in rows if horizon is None or row[0] <= horizon][:limit]
    return MergedRows(
        keys=[key for key, _ in chosen],
        records=[record for _, record in chosen] if with_records else [],
        more=horizon is not None or len(chosen) < len(rows),
    )


def _checked_keys(page: ShardRows, with_records: bool) -> list[tuple[int, str]]:
    """The keys of a page that keeps what a node promises; ValueError for one that does not."""
    keys = list(zip(page.sequences, page.ids, strict=True))
    if with_records and len(page.records) != len(keys):
        raise ValueError(f"a node sent {len(page.records)} records for {len(keys)} ids")
    if page.more and not keys:
        raise ValueError("a node sent an empty page and says that there is more")
    if any(before >= after for before, after in pairwise(keys)):
        raise ValueError("a node sent a page that is not in the order of (sequence, id)")
    return keys


def _assert_distinct(ids: list[str]) -> None:
    """Invariants 2 and 7: shards answer only for what they own, so no record comes twice."""
    assert len(set(ids)) == len(ids), "invariant 2: two shards answered for one record"
