"""Grouping of ranked records by metadata: of each group only the first few stay. Pure.

The rules are those of Chroma Cloud (rust/worker/src/execution/operators/ranked_group_by.rs and the
order of MetadataValue in rust/types/src/metadata.rs at tag 1.5.9).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

from chroma_router.v1 import types_pb2
from router.core.rank import Scored

SCORE_KEY = "#score"

Metadata = Mapping[str, types_pb2.MetadataValue]

_ORDER_OF_KINDS = (
    "bool_value", "int_value", "float_value", "string_value", "bool_array", "int_array",
    "float_array", "string_array",
)  # fmt: skip
_KIND_PLACES = {kind: place for place, kind in enumerate(_ORDER_OF_KINDS)}
_ABSENT = (-1, 0)


@dataclass(frozen=True, slots=True)
class GroupBy:
    """Which records are a group, and which of a group stay."""

    keys: tuple[str, ...]
    """Metadata keys. Records that have equal values under all of them, or none, are a group."""
    order_by: tuple[str, ...]
    """Metadata keys or SCORE_KEY: by what the records of a group are ordered."""
    keep: int
    """How many of each group stay, at least 1."""
    largest: bool
    """The last of that order stay, not the first."""


def grouped(
    ranked: Sequence[Scored], metadata: Mapping[str, Metadata], rule: GroupBy
) -> list[Scored]:
    """The records that stay, in the order in which they were ranked.

    `metadata` is by record id. Within a group, records that are equal in `order_by` keep their
    order. Values of different kinds differ, and are ordered by kind (1 is not 1.0, and before it);
    a record without a value comes before all others.
    """
    groups: dict[tuple[object, ...], list[Scored]] = {}
    for scored in ranked:
        key = tuple(_sortable(metadata[scored[1]], name) for name in rule.keys)
        groups.setdefault(key, []).append(scored)

    def order(scored: Scored) -> tuple[object, ...]:
        return tuple(
            (isnan(scored[0]), scored[0])
            if name == SCORE_KEY
            else _sortable(metadata[scored[1]], name)
            for name in rule.order_by
        )

    stay: set[str] = set()
    for group in groups.values():
        best = sorted(group, key=order, reverse=rule.largest)
        stay.update(record_id for _, record_id in best[: rule.keep])
    return [scored for scored in ranked if scored[1] in stay]


def _sortable(metadata: Metadata, key: str) -> tuple[int, object]:
    """A value as what Python compares in Chroma's order."""
    if key not in metadata:
        return _ABSENT
    value = metadata[key]
    kind = value.WhichOneof("kind")
    assert kind in _KIND_PLACES, "a node sent a metadata value that no record can hold"
    held = getattr(value, kind)
    return _KIND_PLACES[kind], tuple(held.values) if kind.endswith("_array") else held
