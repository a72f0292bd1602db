"""Grouping: which of each group stay, and in which order."""

from typing import Any

import pytest

from chroma_router.v1 import types_pb2
from chroma_router.wire.records import metadata_to_wire
from router.core.group_by import GroupBy, grouped


def wire(metadata: dict[str, Any]) -> Any:
    record = types_pb2.Record()
    metadata_to_wire(metadata, record.metadata)
    return record.metadata


RANKED = [(0.1, "a"), (0.2, "b"), (0.3, "c"), (0.4, "d"), (0.5, "e")]
METADATA = {
    "a": wire({"kind": "x", "n": 3}),
    "b": wire({"kind": "y", "n": 1}),
    "c": wire({"kind": "x", "n": 1}),
    "d": wire({"kind": "x", "n": 2}),
    "e": wire({}),
}


@pytest.mark.parametrize(
    ("rule", "stay"),
    [
        (GroupBy(("kind",), ("#score",), 1, largest=False), "abe"),
        (GroupBy(("kind",), ("#score",), 2, largest=False), "abce"),
        (GroupBy(("kind",), ("#score",), 1, largest=True), "bde"),
        (GroupBy(("kind",), ("n",), 1, largest=False), "bce"),
        (GroupBy(("kind",), ("n",), 2, largest=True), "abde"),
        (GroupBy(("n",), ("#score",), 1, largest=False), "abde"),
        (GroupBy(("kind", "n"), ("#score",), 1, largest=False), "abcde"),
        (GroupBy(("missing",), ("kind", "#score"), 2, largest=False), "ae"),
    ],
)
def test_what_stays(rule: GroupBy, stay: str) -> None:
    assert "".join(record_id for _, record_id in grouped(RANKED, METADATA, rule)) == stay


def test_values_of_different_kinds_are_apart_and_in_chromas_order() -> None:
    scalars: list[Any] = [None, False, True, -5, 7, 0.5, "", "a"]
    values = [*scalars, [True], [1, 2], [1, 3], [0.1], [""]]
    metadata = {
        f"r{n:02}": wire({} if value is None else {"v": value}) for n, value in enumerate(values)
    }
    ranked = [(float(-n), f"r{n:02}") for n in range(len(values))]
    ids = list(metadata)
    for keep in range(1, len(ids) + 1):
        least = GroupBy(("none",), ("v",), keep, largest=False)
        assert {i for _, i in grouped(ranked, metadata, least)} == set(ids[:keep])
        most = GroupBy(("none",), ("v",), keep, largest=True)
        assert {i for _, i in grouped(ranked, metadata, most)} == set(ids[-keep:])
    apart = GroupBy(("v",), ("#score",), 1, largest=False)
    assert grouped(ranked, metadata, apart) == ranked
    mixed = {"i": wire({"v": 1}), "f": wire({"v": 1.0}), "b": wire({"v": True})}
    scores = [(0.0, "i"), (0.0, "f"), (0.0, "b")]
    assert grouped(scores, mixed, apart) == scores


def test_equal_records_of_a_group_keep_their_rank() -> None:
    metadata = {i: wire({"v": 1}) for i in "abc"}
    ranked = [(2.0, "a"), (2.0, "b"), (3.0, "c")]
    for largest in (False, True):
        rule = GroupBy(("v",), ("v",), 2, largest=largest)
        assert grouped(ranked, metadata, rule) == ranked[:2]
