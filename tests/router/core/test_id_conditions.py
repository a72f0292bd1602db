"""Conditions on "#id": lifted into the ids of a filter, or refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_router.v1 import types_pb2
from chroma_router.wire.errors import Unsupported
from router.core.id_conditions import with_ids_lifted

A: Any = {"a": {"$eq": 1}}
B: Any = {"#document": {"$contains": "x"}}


def lifted(where: Any, ids: list[str] | None = None) -> tuple[list[str] | None, Any]:
    chosen = types_pb2.Filter(
        where=json.dumps(where), where_document="d", ids=ids or [], by_ids=ids is not None
    )
    result = with_ids_lifted(chosen)
    assert result.where_document == "d"
    rest = json.loads(result.where) if result.where else None
    return (list(result.ids) if result.by_ids else None), rest


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (A, (None, A)),
        ({"#id": "r1"}, (["r1"], None)),
        ({"#id": {"$eq": "r1"}}, (["r1"], None)),
        ({"#id": {"$in": ["r2", "r1", "r2"]}}, (["r2", "r1"], None)),
        ({"$and": [{"#id": "r1"}, A]}, (["r1"], A)),
        ({"$and": [A, {"#id": "r1"}, B]}, (["r1"], {"$and": [A, B]})),
        ({"$and": [{"#id": {"$in": ["r1", "r2"]}}, {"#id": "r2"}]}, (["r2"], None)),
        ({"$and": [{"#id": "r1"}, {"#id": "r2"}]}, ([], None)),
        ({"$and": [A, {"$and": [{"#id": "r1"}, B]}]}, (["r1"], {"$and": [A, B]})),
        ({"$or": [A, B]}, (None, {"$or": [A, B]})),
        ({"$and": [{"$or": [A, B]}, A]}, (None, {"$and": [{"$or": [A, B]}, A]})),
        # What is no text is never an id: the engine's answer, which knows no such key, is right.
        ({"#id": 5}, (None, {"#id": 5})),
        ({"#id": {"$ne": 5}}, (None, {"#id": {"$ne": 5}})),
    ],
)
def test_lifted(where: Any, expected: Any) -> None:
    assert lifted(where) == expected


def test_both_ways_of_naming_ids_must_hold() -> None:
    assert lifted({"#id": {"$in": ["a", "b"]}}, ["b", "c"]) == (["b"], None)
    assert lifted({"#id": "a"}, []) == ([], None)
    assert lifted(A, ["a"]) == (["a"], A)
    empty = types_pb2.Filter()
    assert with_ids_lifted(empty) is empty


@pytest.mark.parametrize(
    "where",
    [
        {"#id": {"$ne": "r1"}},
        {"#id": {"$nin": ["r1"]}},
        {"#id": {"$gt": 5}},
        {"#id": {"$contains": "r1"}},
        {"$or": [A, {"#id": "r1"}]},
        {"$or": [A, {"$and": [{"#id": "r1"}, A]}]},
        {"$and": [A, {"$or": [A, {"#id": "r1"}]}]},
        {"$or": [A, {"#id": {"$ne": "r1"}}]},
    ],
)
def test_what_the_shards_cannot_be_told(where: Any) -> None:
    with pytest.raises(Unsupported, match="#id"):
        lifted(where)


# A record is its id and the value of "a"; conditions are evaluated naively.
ids_ = st.sampled_from("pqr")
leaves = (
    st.builds(lambda i: {"#id": i}, ids_)
    | st.builds(lambda i: {"#id": {"$in": i}}, st.lists(ids_, min_size=1, max_size=3))
    | st.builds(lambda n: {"a": {"$eq": n}}, st.integers(0, 2))
)
clauses = st.recursive(
    leaves, lambda c: st.builds(lambda p: {"$and": p}, st.lists(c, min_size=2, max_size=3))
)


def holds(clause: Any, record_id: str, a: int) -> bool:
    ((key, value),) = clause.items()
    if key == "$and":
        return all(holds(child, record_id, a) for child in value)
    if key == "#id":
        return record_id in (value["$in"] if isinstance(value, dict) else [value])
    return bool(value["$eq"] == a)


@given(clauses, st.sampled_from("pqr"), st.integers(0, 2))
def test_lifting_changes_nothing_that_is_chosen(where: Any, record_id: str, a: int) -> None:
    ids, rest = lifted(where)
    chosen = (ids is None or record_id in ids) and (rest is None or holds(rest, record_id, a))
    assert chosen == holds(where, record_id, a)
    assert rest is None or "#id" not in json.dumps(rest)
