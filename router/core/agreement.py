"""Whether the target of a move answers queries as the source does: samples of recent queries, and
how far two answers agree."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose, isnan
from typing import TypeAlias

Hits: TypeAlias = Sequence[tuple[str, float]]
"""The ids and distances of one answer, nearest first."""

_RELATIVE = 1e-5
# Float32 distances of about 0, such as of a vector to itself by cosine, are noise of this size.
_ABSOLUTE = 1e-6


def agreement(source_hits: Hits, target_hits: Hits) -> float:
    """Which share of the hits of one query agrees, from 0 to 1; 1 if neither side has any.

    A hit agrees if both sides have its id. Where more records are equally far than there is room
    for, it is arbitrary which of them are hits: so of those that only one side has, each agrees
    with one of the other side, if both are as far (to 1e-5 relative) as the last hit of both. A
    side with fewer hits than the other lacks them.
    """
    most = max(len(source_hits), len(target_hits))
    if not most:
        return 1.0
    if not (source_hits and target_hits):
        return 0.0
    source_ids = {record_id for record_id, _ in source_hits}
    target_ids = {record_id for record_id, _ in target_hits}
    agreeing = len(source_ids & target_ids)
    if _equal(source_hits[-1][1], target_hits[-1][1]):
        agreeing += min(_at_cut(source_hits, target_ids), _at_cut(target_hits, source_ids))
    return agreeing / most


def _at_cut(hits: Hits, others: set[str]) -> int:
    """How many hits are as far as the last one, and not among the others."""
    cut = hits[-1][1]
    return sum(record_id not in others and _equal(distance, cut) for record_id, distance in hits)


def _equal(one: float, other: float) -> bool:
    if isnan(one) or isnan(other):  # the cosine distance of a zero vector
        return isnan(one) and isnan(other)
    return isclose(one, other, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)


@dataclass(frozen=True, slots=True)
class QuerySample:
    """A query of one embedding, as it may be replayed."""

    embedding: bytes
    """Little-endian float32."""
    n_results: int
    filter: bytes
    """The serialized filter; empty: none."""

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes."""
        return len(self.embedding) + len(self.filter) + _SAMPLE_BYTES


_SAMPLE_BYTES = 200
"""What a sample takes besides its embedding and its filter."""


class QuerySamples:
    """The newest queries of each collection, within bounds.

    Where there is no more room, the samples of those collections go that were queried longest ago.
    """

    def __init__(
        self,
        *,
        per_collection: int = 50,
        max_bytes: int = 16 * 2**20,
        max_sample_bytes: int = 64 * 2**10,
    ) -> None:
        if not (per_collection >= 1 and 1 <= max_sample_bytes <= max_bytes):
            raise ValueError(
                "bounds of samples are 1 or more, and one sample's within all of them, got "
                f"{per_collection} of {max_sample_bytes} bytes within {max_bytes}"
            )
        self._per_collection = per_collection
        self._max_bytes = max_bytes
        self._max_sample_bytes = max_sample_bytes
        # The collection that was queried last is last.
        self._samples: dict[str, deque[QuerySample]] = {}
        self._size = 0

    @property
    def size(self) -> int:
        """About how many bytes of memory all samples take."""
        return self._size

    def add(self, collection_id: str, sample: QuerySample) -> None:
        """Keeps a query, in the place of the oldest; not one larger than a sample may be."""
        if sample.size > self._max_sample_bytes:
            return
        ring = self._samples.pop(collection_id, None) or deque()
        self._samples[collection_id] = ring
        ring.append(sample)
        self._size += sample.size
        if len(ring) > self._per_collection:
            self._size -= ring.popleft().size
        while self._size > self._max_bytes:
            stalest = next(iter(self._samples))
            if stalest == collection_id:  # it alone has filled it
                self._size -= ring.popleft().size
            else:
                self.forget(stalest)

    def of(self, collection_id: str) -> tuple[QuerySample, ...]:
        """The samples of a collection, the oldest first."""
        return tuple(self._samples.get(collection_id, ()))

    def forget(self, collection_id: str) -> None:
        """Drops the samples of a collection."""
        self._size -= sum(sample.size for sample in self._samples.pop(collection_id, ()))
