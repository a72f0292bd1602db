"""The conversion between chromadb's values and messages, without a network."""

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import chromadb.errors as chroma
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_router import columns, requests
from chroma_router.requests import Call, Operation
from chroma_router.v1 import catalog_pb2, records_pb2, types_pb2
from chroma_router.wire.records import record_message

ID = UUID("0190a0b0-0000-7000-8000-000000000001")


def first(operation: Operation[Any]) -> Any:
    """The first request of an operation."""
    return next(operation).request


def talk(operation: Operation[Any], *answers: Any) -> tuple[list[Call], Any]:
    """All calls of an operation that gets these answers, and its result."""
    calls, result = [next(operation)], None
    for answer in answers:
        try:
            calls.append(operation.send(answer))
        except StopIteration as done:
            result = done.value
    return calls, result


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
integers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False)
scalars = text | st.booleans() | integers | floats
arrays = st.one_of(*(st.lists(kind, min_size=1, max_size=3) for kind in (text, integers, floats)))
metadata = st.dictionaries(text, scalars | arrays, min_size=1, max_size=4)
rows = st.lists(
    st.tuples(st.none() | metadata, st.none() | text, st.none() | text), min_size=1, max_size=5
)


def equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (
        all(map(equal, one, other)) and len(one) == len(other)
        if isinstance(one, list)
        else one == other
    )


@given(rows, st.integers(1, 5), st.data())
def test_records_come_back_as_they_went(
    parts: list[tuple[Any, str | None, str | None]], dimension: int, data: st.DataObject
) -> None:
    ids = [f"id{n}" for n in range(len(parts))]
    width32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
    vectors = data.draw(
        st.lists(
            st.lists(width32, min_size=dimension, max_size=dimension),
            min_size=len(ids),
            max_size=len(ids),
        )
    )
    metadatas, documents, uris = (list(column) for column in zip(*parts, strict=True))
    embeddings: Any = [np.array(v, dtype=np.float32) for v in vectors]
    request = first(requests.write(requests.ADD, ID, ids, embeddings, metadatas, documents, uris))
    parsed = records_pb2.AddRequest.FromString(request.SerializeToString())
    include: Any = ["embeddings", "metadatas", "documents", "uris"]
    result = columns.get_result(parsed.records, include)
    assert result["ids"] == ids
    assert (result["documents"], result["uris"]) == (documents, uris)
    assert np.array_equal(np.asarray(result["embeddings"]), np.array(vectors, np.float32))
    back: Sequence[Any] = result["metadatas"] or []
    for sent, got in zip(metadatas, back, strict=True):
        assert (sent is None) == (got is None)
        for key in sent or {}:
            assert equal(sent[key], got[key])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int32, ">f4"])
def test_embeddings_of_any_number_type_become_float32(kind: Any) -> None:
    expected = np.array([[1, 2], [3, 4]], "<f4")
    got = columns.embedding_rows([np.array([1, 2], kind), np.array([3, 4], kind)])
    assert got == [row.tobytes() for row in expected]
    strided: Any = np.asfortranarray(np.array([[1, 2], [3, 4]], kind))
    assert columns.embedding_rows(strided) == got
    lists: Any = [[1, 2], [3.0, 4.0]]
    assert columns.embedding_rows(lists) == got


def test_what_the_cluster_refuses_itself_goes_through() -> None:
    ragged: Any = [np.array([1.0, 2.0]), np.array([3.0])]
    assert [len(row) for row in columns.embedding_rows(ragged)] == [8, 4]
    huge: Any = [np.array([1e300])]
    assert np.isinf(np.frombuffer(columns.embedding_rows(huge)[0], "<f4"))
    assert columns.embedding_rows([np.array([])]) == [b""]


def test_what_is_no_embedding() -> None:
    bad: Any
    for bad in ([["a"]], [[[1.0]]], [1.0, 2.0], [[None]], [[True]]):
        with pytest.raises(chroma.InvalidArgumentError, match="rows of numbers"):
            columns.embedding_rows(bad)


def test_a_sparse_vector_is_not_implemented() -> None:
    from chromadb.base_types import SparseVector

    metadatas: Any = [{"s": SparseVector(indices=[1], values=[1.0])}]
    with pytest.raises(NotImplementedError, match="'s'"):
        first(requests.write(requests.ADD, ID, ["a"], None, metadatas, None, None))


def test_columns_of_different_length() -> None:
    with pytest.raises(chroma.InvalidArgumentError, match="2 ids and 1 documents"):
        first(requests.write(requests.UPDATE, ID, ["a", "b"], None, None, ["x"], None))


def test_an_update_leaves_out_what_stays_and_none_deletes_a_key() -> None:
    (record,) = first(
        requests.write(requests.UPDATE, ID, ["a"], None, [{"k": None, "n": 1}], None, None)
    ).records
    assert not record.HasField("embedding")
    assert not record.HasField("document")
    assert record.metadata["k"].absent
    assert record.metadata["n"].int_value == 1


def test_get_reads_all_pages_and_gives_only_what_was_asked() -> None:
    page = records_pb2.GetResponse(records=[{"id": "a", "document": "x"}], next_page_token="t")
    last = records_pb2.GetResponse(records=[{"id": "b"}])
    tokens = []

    def answers() -> Any:
        operation = requests.get(ID, None, None, 2, None, None, ["documents", "data"])
        call = next(operation)
        for answer in (page, last):
            tokens.append(call.request.page_token)  # type: ignore[attr-defined]
            try:
                call = operation.send(answer)
            except StopIteration as done:
                return done.value
        return None

    assert answers() == {
        "ids": ["a", "b"],
        "documents": ["x", None],
        "embeddings": None,
        "metadatas": None,
        "uris": None,
        "data": None,
        "included": ["documents", "data"],
    }
    assert tokens == ["", "t"]


def test_an_empty_answer_has_chromas_shape() -> None:
    include: Any = ["embeddings", "metadatas", "documents", "uris", "distances"]
    got = columns.get_result([], include)
    assert [got[key] for key in ("ids", "embeddings", "documents", "metadatas", "uris")] == [[]] * 5
    found = columns.query_result([records_pb2.QueryResult()], include)
    assert (found["ids"], found["embeddings"], found["distances"]) == ([[]], [[]], [[]])


def test_metadata_that_is_empty_and_none_at_all_are_told_apart() -> None:
    with_uri = record_message("a", uri="file:///a", metadata={})
    bare = record_message("b")
    assert columns.get_result([with_uri, bare], ["metadatas"])["metadatas"] == [{}, None]


def test_embeddings_are_float64_that_json_can_write() -> None:
    record = types_pb2.Record(id="a", embedding=np.array([0.1, 2], "<f4").tobytes())
    got: Any = columns.get_result([record], ["embeddings"])["embeddings"]
    assert got.dtype == np.float64
    assert json.dumps(list(got[0])) == json.dumps([float(np.float32(0.1)), 2.0])


def test_query_distances_are_float32_widened() -> None:
    hit = types_pb2.Hit(record={"id": "a"}, distance=0.1)
    found = columns.query_result([records_pb2.QueryResult(hits=[hit])], ["distances"])
    assert found["distances"] == [[float(np.float32(0.1))]]
    assert found["documents"] is None


@pytest.mark.parametrize(
    ("embeddings", "n_results", "expected"),
    [(2_500, 1, [1_000, 1_000, 500]), (5, 100_000, [2, 2, 1]), (2, 300_000, [1, 1])],
)
def test_wide_queries_go_in_several_requests(
    embeddings: int, n_results: int, expected: list[int]
) -> None:
    vectors: Any = list(np.ones((embeddings, 2)))
    sizes, found = [], []
    operation = requests.query(ID, vectors, ["a", "a"], n_results, None, None, [])
    call = next(operation)
    while True:
        request: Any = call.request
        assert request.filter.ids == ["a"]
        sizes.append(len(request.embeddings))
        answer = records_pb2.QueryResponse(results=[{}] * sizes[-1])
        try:
            call = operation.send(answer)
        except StopIteration as done:
            found = done.value["ids"]
            break
    assert sizes == expected
    assert len(found) == embeddings


def test_filters() -> None:
    where: Any = {"$and": [{"a": {"$in": [np.int64(3), np.float32(0.5)]}}, {"b": np.bool_(True)}]}
    request = first(requests.get(ID, [], where, None, None, {"$contains": "x"}, []))
    assert json.loads(request.filter.where) == {"$and": [{"a": {"$in": [3, 0.5]}}, {"b": True}]}
    assert json.loads(request.filter.where_document) == {"$contains": "x"}
    assert request.filter.by_ids
    assert not request.filter.ids
    plain = first(requests.get(ID, None, None, None, None, None, []))
    assert plain == records_pb2.GetRequest(collection={"id": str(ID)}, filter={})


@pytest.mark.parametrize("where", [{"a": object()}, {"a": float("nan")}])
def test_a_condition_that_is_not_json(where: Any) -> None:
    with pytest.raises(chroma.InvalidArgumentError, match="where cannot be written"):
        first(requests.get(ID, None, where, None, None, None, []))


@pytest.mark.parametrize("limit", [-1, 2**32])
def test_a_limit_out_of_range(limit: int) -> None:
    with pytest.raises(chroma.InvalidArgumentError, match="limit must be"):
        first(requests.get(ID, None, None, limit, None, None, []))


def create(metadata: Any) -> Any:
    return first(requests.create_collection("docs", None, None, metadata, False, "t", "d"))


@pytest.mark.parametrize(("wanted", "shards"), [(1, 1), (3, 3), ("all", 2**32 - 1)])
def test_placement_is_read_from_the_metadata_and_kept_in_it(wanted: Any, shards: int) -> None:
    request = create({"placement:shards": wanted, "hnsw:space": "cosine"})
    assert request.placement_shards == shards
    assert set(request.metadata) == {"placement:shards", "hnsw:space"}


@pytest.mark.parametrize("wanted", [0, -1, True, 1.5, "two"])
def test_senseless_placement(wanted: Any) -> None:
    with pytest.raises(chroma.InvalidArgumentError, match="placement:shards"):
        create({"placement:shards": wanted})


def test_empty_collection_metadata_is_refused_as_chroma_does() -> None:
    with pytest.raises(chroma.InvalidArgumentError, match="Metadata cannot be empty"):
        create({})
    assert create(None).placement_shards == 0  # left to the cluster


def test_a_collection_comes_back() -> None:
    made = types_pb2.Collection(
        id=str(ID), name="docs", tenant="t", database="d", configuration_json='{"hnsw": {}}'
    )
    answer = catalog_pb2.GetCollectionResponse(collection=made)
    (call,), model = talk(requests.get_collection(ID, "t", "d"), answer)
    assert call.request.collection.id == str(ID)  # type: ignore[attr-defined]
    assert (model.id, model.metadata, model.dimension) == (ID, None, None)
    assert model.configuration_json == {"hnsw": {}}
    made.dimension = 3
    made.metadata["n"].int_value = 7
    _, model = talk(requests.get_collection("docs", "t", "d"), answer.__class__(collection=made))
    assert (model.metadata, model.dimension) == ({"n": 7}, 3)


def test_modify_tells_what_stays() -> None:
    stays = first(requests.modify_collection(uuid4(), None, None, None, "t", "d"))
    assert not stays.HasField("new_name")
    assert not stays.replace_metadata
    changed = first(
        requests.modify_collection(uuid4(), "n", {"a": 1}, {"hnsw": {"ef_search": 9}}, "t", "d")
    )
    assert (changed.new_name, changed.replace_metadata) == ("n", True)
    assert json.loads(changed.new_configuration_json)["hnsw"]["ef_search"] == 9


def test_every_method_is_one_of_the_contract() -> None:
    files = [records_pb2.DESCRIPTOR, catalog_pb2.DESCRIPTOR]
    contract = {
        (service.name, method.name)
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
    }
    # Chroma's interface has nothing of the kind: these are for gRPC clients.
    others = {("RecordService", "Scan"), ("RecordService", "BulkUpsert")}
    used = {(m.service, m.name) for m in vars(requests).values() if isinstance(m, requests.Method)}
    assert others <= contract
    assert contract - others <= used
    assert not others & used


def test_rows_of_float32_are_sent_as_they_are() -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    forms: list[Any] = [matrix, matrix.astype(">f4"), np.asfortranarray(matrix)]
    for rows in map(list, forms):
        assert columns.embedding_rows(rows) == [row.tobytes() for row in matrix]
    ragged = [matrix[0], matrix[1, :2], np.empty(0, np.float32)]
    assert [len(row) for row in columns.embedding_rows(ragged)] == [16, 8, 0]
