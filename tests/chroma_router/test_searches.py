"""chromadb's Search objects as messages, and a SearchResult of the answers, without a network."""

import json
from typing import Any
from uuid import UUID

import chromadb.errors as chroma
import numpy as np
import pytest
from chromadb.base_types import SparseVector
from chromadb.execution.expression import (
    And,
    Eq,
    GroupBy,
    K,
    Knn,
    Limit,
    MaxK,
    MinK,
    Or,
    Rrf,
    Search,
    Select,
    Val,
)

from chroma_router import requests
from chroma_router.v1 import records_pb2
from router.core.limits import Limits
from router.core.search import DEFAULT_KNN_LIMIT, check_searches

ID = UUID("0190a0b0-0000-7000-8000-000000000001")
ROW = np.array([1.0, 2.0], "<f4")
KNN: Any = {"knn": {"embedding": ROW.tobytes(), "limit": 16}}


def message(search: Search) -> records_pb2.Search:
    """The one message of a search; the router finds it good."""
    call = next(requests.search(ID, [search]))
    assert call.method is requests.SEARCH
    request: Any = call.request
    assert request.collection.id == str(ID)
    (found,) = request.searches
    check_searches([found], Limits())
    return records_pb2.Search.FromString(found.SerializeToString())


def rank(expression: Any) -> records_pb2.Rank:
    return message(Search(rank=expression)).rank


def test_every_part_of_a_search() -> None:
    search = Search(
        where=And([K("year") > 2000, Or([Eq("a", np.int64(1)), K.DOCUMENT.contains("x")])]),
        rank=Knn(query=[1.0, 2.0]),
        group_by=GroupBy(keys=[K("kind"), "tag"], aggregate=MaxK(keys=[K.SCORE, K("n")], k=3)),
        limit=Limit(offset=5, limit=7),
        select=Select(keys={K.DOCUMENT, "title"}),
    )
    found = message(search)
    assert json.loads(found.filter.where) == {
        "$and": [
            {"year": {"$gt": 2000}},
            {"$or": [{"a": {"$eq": 1}}, {"#document": {"$contains": "x"}}]},
        ]
    }
    assert found.rank == records_pb2.Rank(**KNN)
    assert (found.limit, found.offset) == (7, 5)
    assert set(found.select) == {"#document", "title"}
    assert found.group_by == records_pb2.GroupBy(
        keys=["kind", "tag"], order_by=["#score", "n"], keep=3, largest=True
    )
    lowest = message(Search(rank=Val(1), group_by=GroupBy("k", MinK(K.SCORE, 2)))).group_by
    assert lowest == records_pb2.GroupBy(keys=["k"], order_by=["#score"], keep=2)


def test_an_empty_search_leaves_everything_out() -> None:
    assert message(Search()) == records_pb2.Search()
    assert message(Search(limit=Limit(limit=0))).limit == 0


def test_and_and_or_of_one_condition_are_that_condition() -> None:
    where = And([Or([And([Eq("a", 1)])])])
    assert json.loads(message(Search(where=where)).filter.where) == {"a": {"$eq": 1}}


def test_every_operator() -> None:
    near = Knn(query=ROW)
    assert rank(near + 1 + 2) == records_pb2.Rank(sum={"parts": [KNN, {"value": 1}, {"value": 2}]})
    assert rank(near * 2) == records_pb2.Rank(product={"parts": [KNN, {"value": 2}]})
    assert rank(near.max(0.5)) == records_pb2.Rank(maximum={"parts": [KNN, {"value": 0.5}]})
    assert rank(near.min(0.5)) == records_pb2.Rank(minimum={"parts": [KNN, {"value": 0.5}]})
    assert rank(near - 1) == records_pb2.Rank(difference={"left": KNN, "right": {"value": 1}})
    assert rank(1 / near) == records_pb2.Rank(quotient={"left": {"value": 1}, "right": KNN})
    assert rank(abs(near)) == records_pb2.Rank(absolute=KNN)
    assert rank(near.exp()) == records_pb2.Rank(exponential=KNN)
    assert rank(near.log()) == records_pb2.Rank(logarithm=KNN)
    assert rank(-near) == records_pb2.Rank(product={"parts": [{"value": -1}, KNN]})
    assert rank({"$val": 3}) == records_pb2.Rank(value=3)


def test_rrf_is_the_sum_that_it_is() -> None:
    def term(weight: float) -> Any:
        place = {"knn": {**KNN["knn"], "return_rank": True, "default_value": 100}}
        parts = [{"value": 60}, place]
        return {"quotient": {"left": {"value": weight}, "right": {"sum": {"parts": parts}}}}

    near = Knn(query=ROW, return_rank=True, default=100)
    assert rank(Rrf([near, near], weights=[0.75, 0.25])) == records_pb2.Rank(
        product={"parts": [{"value": -1}, {"sum": {"parts": [term(0.75), term(0.25)]}}]}
    )


@pytest.mark.parametrize(
    "query", [[1, 2], (1.0, 2.0), np.array([1, 2], np.float64), [np.float32(1), np.float32(2)]]
)
def test_query_vectors_of_any_kind(query: Any) -> None:
    assert rank(Knn(query=query)).knn.embedding == ROW.tobytes()
    assert rank(Knn(query=query, key=K.EMBEDDING)).knn.limit == DEFAULT_KNN_LIMIT


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        (Knn(query=SparseVector(indices=[1], values=[1.0])), "sparse vectors is not implemented"),
        (Knn(query=[1.0], key="sparse"), "'sparse'.* is not implemented"),
        (Knn(query=[1.0], key=K("sparse")), "'sparse'.* is not implemented"),
    ],
)
def test_what_only_chroma_cloud_has(expression: Any, words: str) -> None:
    for nested in (expression, Rrf([Knn(query=[1.0]), expression])):
        with pytest.raises(NotImplementedError, match=words) as refused:
            rank(nested)
        assert isinstance(refused.value, chroma.ChromaError)


@pytest.mark.parametrize(
    ("search", "words"),
    [
        (Search(rank=Knn(query="text")), "a Knn's query is a text"),
        (Search(rank=Knn(query=["a"])), "rows of numbers"),  # type: ignore[list-item]
        (Search(rank=Knn(query=[1.0], limit=-1)), "Knn's limit must be a number from 0"),
        (Search(rank=Knn(query=[1.0], limit=1.5)), "Knn's limit must be a whole number"),  # type: ignore[arg-type]
        (Search(rank=Knn(query=[1.0], default="a")), "Knn's default must be a number"),  # type: ignore[arg-type]
        (Search(rank=Val("a")), r"\$val must be a number"),  # type: ignore[arg-type]
        (Search(limit=Limit(offset=-1)), "offset must be a number from 0"),
        (Search(where=Eq("a", object())), "where cannot be written as JSON"),
    ],
)
def test_what_cannot_be_sent(search: Search, words: str) -> None:
    with pytest.raises(chroma.InvalidArgumentError, match=words):
        message(search)


def test_deep_expressions() -> None:
    deep: Any = Knn(query=ROW)
    for _ in range(39):
        deep = deep - 1
    assert rank(deep).WhichOneof("expression") == "difference"
    with pytest.raises(chroma.InvalidArgumentError, match="more than 40 expressions"):
        rank(deep - 1)


def test_numbers_beyond_float32_are_left_to_the_cluster() -> None:
    for value in (1e300, 10**400):
        request: Any = next(requests.search(ID, [Search(rank=Val(value))])).request
        assert request.searches[0].rank.value == float("inf")


def test_columns_are_none_where_they_were_not_selected() -> None:
    hits = [
        {"record": {"id": "a", "document": "x", "embedding": ROW.tobytes()}, "score": 0.5},
        {"record": {"id": "b", "metadata": {"n": {"int_value": 1}}}, "score": 0.25},
    ]
    searches = [
        Search().select_all(),
        Search().select("title", K.SCORE, "author"),
        Search(),
        Search().select(K.ID),
    ]
    operation = requests.search(ID, searches)
    next(operation)
    with pytest.raises(StopIteration) as done:
        operation.send(records_pb2.SearchResponse(results=[{"hits": hits}] * 3 + [{}]))
    result = done.value.value
    assert result == {
        "ids": [["a", "b"]] * 3 + [[]],
        "documents": [["x", None], None, None, None],
        "embeddings": [[[1.0, 2.0], []], None, None, None],
        "metadatas": [[None, {"n": 1}], [None, {"n": 1}], None, []],
        "scores": [[0.5, 0.25], [0.5, 0.25], None, None],
        "select": [
            ["#document", "#embedding", "#metadata", "#score"],
            ["#score", "author", "title"],
            [],
            ["#id"],
        ],
    }
    assert result.rows()[1][1] == {"id": "b", "metadata": {"n": 1}, "score": 0.25}


def test_many_searches_go_in_several_requests_and_none_in_none() -> None:
    operation, sizes, found = requests.search(ID, [Search()] * 250), [], None
    call = next(operation)
    while found is None:
        request: Any = call.request
        sizes.append(len(request.searches))
        try:
            call = operation.send(records_pb2.SearchResponse(results=[{}] * sizes[-1]))
        except StopIteration as done:
            found = done.value["ids"]
    assert sizes == [100, 100, 50]
    assert found == [[]] * 250
    with pytest.raises(StopIteration) as ended:
        next(requests.search(ID, []))
    assert ended.value.value["ids"] == []
