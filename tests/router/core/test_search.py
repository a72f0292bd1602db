"""Searches: what is refused by name, and what comes out as values."""

import math
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from chroma_router.v1 import records_pb2, types_pb2
from chroma_router.wire.errors import InvalidRequest, Reason, Unsupported
from router.core.group_by import GroupBy
from router.core.limits import Limits
from router.core.rank import Applied, Constant, Fold, Folding, Function, Knn, Pair, Pairing
from router.core.search import Search, Selection, check_searches

ROW = np.ones(3, "<f4").tobytes()
KNN: Any = {"knn": {"embedding": ROW}}


def checked(*searches: dict[str, Any], **limits: int) -> tuple[Search, ...]:
    return check_searches([records_pb2.Search(**search) for search in searches], Limits(**limits))


def test_a_whole_search() -> None:
    (search,) = checked(
        {
            "filter": {"where": '{"$and": [{"#id": "r"}, {"a": 1}]}'},
            "rank": {
                "difference": {
                    "left": {"sum": {"parts": [KNN, {"value": 2}]}},
                    "right": {"logarithm": {"knn": {"embedding": ROW, "limit": 5,
                                                    "default_value": 0.5, "return_rank": True}}},
                }
            },
            "limit": 7,
            "offset": 3,
            "select": ["#document", "#score", "title"],
            "group_by": {"keys": ["k"], "order_by": ["n", "#score"], "keep": 2, "largest": True},
        }
    )  # fmt: skip
    near, other = Knn(ROW, 16, None, return_rank=False), Knn(ROW, 5, 0.5, return_rank=True)
    assert search.rank == Pair(
        Pairing.DIFFERENCE,
        Fold(Folding.SUM, (near, Constant(2.0))),
        Applied(Function.LOGARITHM, other),
    )
    assert search.knns == [near, other]
    assert search.filter == types_pb2.Filter(ids=["r"], by_ids=True, where='{"a": 1}')
    assert (search.limit, search.offset) == (7, 3)
    assert search.group_by == GroupBy(("k",), ("n", "#score"), 2, largest=True)
    assert search.selection == Selection(
        frozenset({types_pb2.INCLUDE_DOCUMENTS, types_pb2.INCLUDE_METADATAS}),
        frozenset({"title"}),
        score=True,
    )


def test_the_least_search() -> None:
    (search,) = checked({})
    assert (search.rank, search.limit, search.offset, search.knns) == (None, None, 0, [])
    assert search.selection == Selection(frozenset(), None, score=False)


def test_selecting_all_metadata_and_a_key_selects_all() -> None:
    (search,) = checked({"select": ["#metadata", "title", "#id", "#embedding"]})
    assert search.selection.keys is None
    assert search.selection.include == {
        types_pb2.INCLUDE_METADATAS,
        types_pb2.INCLUDE_EMBEDDINGS,
    }


def nested(depth: int) -> Any:
    rank = KNN
    for _ in range(depth - 1):
        rank = {"sum": {"parts": [rank]}}
    return rank


GROUP: Any = {"keys": ["k"], "order_by": ["#score"], "keep": 1}


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"rank": {}}, r"searches\[1\].rank: no expression"),
        ({"rank": {"sum": {}}}, r"searches\[1\].rank.sum.parts: none"),
        ({"rank": {"maximum": {"parts": [KNN, {}]}}}, r"rank.maximum.parts\[1\]: no expression"),
        ({"rank": {"quotient": {"left": KNN}}}, r"rank.quotient.right: no expression"),
        ({"rank": {"absolute": {}}}, r"rank.absolute: no expression"),
        ({"rank": {"value": float("nan")}}, r"rank.value: nan"),
        ({"rank": {"value": float("inf")}}, r"rank.value: inf"),
        ({"rank": nested(41)}, r"searches\[1\].rank.sum.parts\[0\].sum.*more than 40"),
        ({"rank": {"sum": {"parts": [KNN] * 1_000}}}, r"more than 1000 expressions"),
        ({"rank": {"knn": {"embedding": ROW, "limit": 0}}}, r"rank.knn.limit: 0"),
        ({"rank": {"knn": {"embedding": ROW, "limit": 100_001}}}, r"rank.knn.limit: 100001"),
        ({"rank": {"knn": {"embedding": ROW, "default_value": math.nan}}}, "default_value: nan"),
        ({"rank": {"knn": {}}}, r"searches\[1\].rank.knn.embedding: the embedding has 0 bytes"),
        ({"rank": {"knn": {"embedding": ROW[:-1]}}}, r"rank.knn.embedding: the embedding has 11"),
        ({"rank": {"knn": {"embedding": ROW[:8]}}}, r"rank.knn.embedding: Inconsistent dim"),
        ({"rank": {"knn": {"embedding": b"\x00\x00\xc0\x7f" * 3}}}, "knn.embedding: .* NaN"),
        ({"limit": 100_001}, r"searches\[1\].limit: 100001"),
        ({"select": ["#documents"]}, r"searches\[1\].select: '#documents' is unknown"),
        ({"select": ["a", ""]}, r"searches\[1\].select: a key is empty"),
        ({"select": ["a"] * 101}, r"searches\[1\].select: 101 keys"),
        ({"filter": {"where": "{"}}, r"searches\[1\].filter: where: not JSON"),
        ({"filter": {"ids": ["a", "a"]}}, r"searches\[1\].filter: Expected IDs to be unique"),
        ({"group_by": GROUP}, r"searches\[1\].group_by: it needs a rank"),
        ({"rank": KNN, "group_by": {**GROUP, "keys": []}}, r"group_by.keys: none"),
        ({"rank": KNN, "group_by": {**GROUP, "keys": ["#score"]}}, r"keys: '#score' is not"),
        ({"rank": KNN, "group_by": {**GROUP, "order_by": []}}, r"group_by.order_by: none"),
        ({"rank": KNN, "group_by": {**GROUP, "order_by": ["#document"]}}, r"order_by: '#doc"),
        ({"rank": KNN, "group_by": {**GROUP, "keep": 0}}, r"group_by.keep: 0"),
    ],
)  # fmt: skip
def test_what_is_refused_by_name(search: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        checked({"rank": KNN}, search)
    assert len(refused.value.message) < 1_000


def test_the_bounds_themselves_are_good() -> None:
    assert checked({"rank": nested(40), "limit": 100_000, "select": ["a"] * 100})
    assert checked({"rank": {"sum": {"parts": [KNN] * 999}}})
    with pytest.raises(InvalidRequest, match="embeddings: 1001 given"):
        checked({"rank": {"sum": {"parts": [KNN] * 999}}}, {"rank": {"sum": {"parts": [KNN] * 2}}})


def test_a_rank_at_the_bound_of_nesting_fits_a_message_of_the_wire() -> None:
    request = records_pb2.SearchRequest(searches=[{"rank": nested(40)}])
    assert records_pb2.SearchRequest.FromString(request.SerializeToString()) == request
    assert json_format.MessageToJson(request)


def test_how_many_searches_and_candidates() -> None:
    for count in (0, 101):
        with pytest.raises(InvalidRequest, match=f"searches: {count} given"):
            checked(*[{}] * count)
    wide: Any = {"rank": {"knn": {"embedding": ROW, "limit": 100_000}}}
    assert checked(wide, wide)
    with pytest.raises(InvalidRequest, match="add up to 200016, at most 200000"):
        checked(wide, wide, {"rank": KNN})


def test_a_refusal_keeps_its_reason() -> None:
    with pytest.raises(InvalidRequest) as refused:
        checked({"filter": {"ids": ["a", "a"], "by_ids": True}})
    assert refused.value.reason is Reason.DUPLICATE_IDS
    with pytest.raises(Unsupported, match=r"searches\[0\].filter: where: .*#id"):
        checked({"filter": {"where": '{"#id": {"$ne": "a"}}'}})
