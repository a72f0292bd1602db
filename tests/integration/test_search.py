"""search() through chromadb's own collections, against a brute force over the same records."""

import os
import signal
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from chromadb.api import ClientAPI
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings
from chromadb.errors import InvalidArgumentError
from chromadb.execution.expression import (
    And,
    GroupBy,
    K,
    Key,
    Knn,
    MaxK,
    MinK,
    Or,
    Rank,
    Rrf,
    Search,
    Val,
)

import chroma_router
from chroma_router.v1 import records_pb2, records_pb2_grpc
from tests.support.cluster import RunningCluster, running_cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

SEED = 20261124
RECORDS = 300
DIMENSION = 8
KINDS = ("paper", "book", "talk")

Row = dict[str, Any]


def made() -> list[Row]:
    """The records, in insertion order."""
    vectors = np.random.default_rng(SEED).standard_normal((RECORDS, DIMENSION), dtype=np.float32)
    return [
        {
            "id": f"r{n:03}",
            "embedding": vectors[n],
            "document": f"about {KINDS[n % 3]} {n}",
            "metadata": {"n": n, "kind": KINDS[n % 3], "half": n / 2},
        }
        for n in range(RECORDS)
    ]


ROWS = made()
A, B, C = np.random.default_rng(7).standard_normal((3, DIMENSION), dtype=np.float32)


def fill(collection: Any, rows: Sequence[Row] = ROWS) -> Any:
    collection.add(
        ids=[row["id"] for row in rows],
        embeddings=[row["embedding"] for row in rows],
        documents=[row["document"] for row in rows],
        metadatas=[row["metadata"] for row in rows],
    )
    return collection


@pytest.fixture(scope="module")
def library(cluster: RunningCluster) -> Any:
    """The records in one collection, for tests that only read."""
    client = chroma_router.Client(host=cluster.host, port=cluster.port)
    configuration: Any = {"hnsw": {"space": "l2"}}
    return fill(client.create_collection(f"search-{uuid.uuid4()}", configuration=configuration))


# --- the brute force: exact neighbours, and the expression record by record in float64 -----------


def brute(rank: Rank, chosen: Sequence[Row]) -> list[tuple[float, str]]:
    """The scored records, best first."""
    brought: set[str] = set()
    value_of = evaluator(rank.to_dict(), chosen, brought)
    scored = [(value_of(record_id), record_id) for record_id in brought]
    return sorted((score, record_id) for score, record_id in scored if score is not None)


def evaluator(
    rank: Mapping[str, Any], chosen: Sequence[Row], brought: set[str]
) -> Callable[[str], float | None]:
    """What gives a record its value; None: it has none."""
    ((operator, operand),) = rank.items()
    if operator == "$val":
        return lambda _: float(operand)
    if operator == "$knn":
        query = np.asarray(operand["query"], np.float64)
        distances = sorted(
            (float(((row["embedding"].astype(np.float64) - query) ** 2).sum()), row["id"])
            for row in chosen
        )[: operand["limit"]]
        values = {
            record_id: float(place) if operand.get("return_rank") else distance
            for place, (distance, record_id) in enumerate(distances)
        }
        brought |= set(values)
        default = operand.get("default")
        return lambda record_id: values.get(record_id, default)
    if operator in ("$sub", "$div"):
        parts = [operand["left"], operand["right"]]
    else:
        parts = operand if isinstance(operand, list) else [operand]
    of = [evaluator(part, chosen, brought) for part in parts]
    call: Any = {
        "$sum": sum,
        "$mul": np.prod,
        "$max": max,
        "$min": min,
        "$sub": lambda pair: pair[0] - pair[1],
        "$div": lambda pair: pair[0] / pair[1],
        "$abs": lambda part: abs(part[0]),
        "$exp": lambda part: np.exp(part[0]),
        "$log": lambda part: np.log(part[0]),
    }[operator]

    def value(record_id: str) -> float | None:
        values = [part(record_id) for part in of]
        return None if any(v is None for v in values) else float(call(values))

    return value


def assert_as_brute_force(
    collection: Any, rank: Rank, where: Any = None, chosen: Sequence[Row] = ROWS
) -> None:
    result = collection.search(Search(where=where, rank=rank).select(K.SCORE))
    expected = brute(rank, chosen)
    assert result["ids"] == [[record_id for _, record_id in expected]]
    np.testing.assert_allclose(result["scores"][0], [score for score, _ in expected], rtol=1e-4)


@pytest.mark.parametrize(
    "rank",
    [
        Knn(query=A),
        Knn(query=A, limit=RECORDS),
        Knn(query=A, limit=40, return_rank=True),
        Knn(query=A, limit=50) + Knn(query=B, limit=60),
        Knn(query=A, limit=50, default=99.0) * 0.7 + Knn(query=B, limit=60) * 0.3,
        Knn(query=A, default=30.0) + Knn(query=B, default=20.0) * Knn(query=C, default=2.0),
        Knn(query=A, limit=RECORDS).max(Knn(query=B, limit=RECORDS)).min(12.5) + Knn(query=A),
        (Knn(query=A, limit=100) / Knn(query=B, limit=100)).exp().log() - abs(Val(-3)),
        Rrf([Knn(query=A, return_rank=True), Knn(query=B, limit=200, return_rank=True)]),
        Rrf(
            [
                Knn(query=A, limit=30, default=1000, return_rank=True),
                Knn(query=B, limit=30, default=1000, return_rank=True),
            ],
            k=20,
            weights=[3.0, 1.0],
            normalize=True,
        ),
    ],
    ids=lambda rank: type(rank).__name__,
)
def test_scores_are_those_of_the_brute_force(library: Any, rank: Rank) -> None:
    assert_as_brute_force(library, rank)


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        (K("kind") == "book", lambda row: row["metadata"]["kind"] == "book"),
        (
            (K("kind") == "book") & (K("n") > 50),
            lambda row: row["metadata"]["kind"] == "book" and row["metadata"]["n"] > 50,
        ),
        (K.DOCUMENT.contains("talk"), lambda row: "talk" in row["document"]),
        (K.DOCUMENT.regex("about .*7$"), lambda row: row["document"].endswith("7")),
        (K.ID.is_in(["r003", "r100", "nobody"]), lambda row: row["id"] in ("r003", "r100")),
        (
            And([K.ID.is_in(["r003", "r005", "r100"]), K.DOCUMENT.contains("talk")]),
            lambda row: row["id"] in ("r005",),
        ),
        (
            Or([K.DOCUMENT.contains("talk"), K("half") < 10.0]),
            lambda row: "talk" in row["document"] or row["metadata"]["half"] < 10,
        ),
        (K("n") > 10_000, lambda row: False),
    ],
)
def test_where_narrows_what_is_ranked(
    library: Any, where: Any, holds: Callable[[Row], bool]
) -> None:
    chosen = [row for row in ROWS if holds(row)]
    rank = Rrf([Knn(query=A, limit=80, return_rank=True), Knn(query=B, limit=80, return_rank=True)])
    assert_as_brute_force(library, rank, where, chosen)
    unranked = library.search(Search(where=where))
    assert unranked["ids"] == [[row["id"] for row in chosen]]


def test_without_a_rank_in_insertion_order_and_with_a_constant_none(library: Any) -> None:
    ids = [row["id"] for row in ROWS]
    assert library.search(Search())["ids"] == [ids]
    page = library.search(Search().limit(5, offset=10).select(K.SCORE, "n"))
    assert page["ids"] == [ids[10:15]]
    assert page["scores"] == [[0.0, 1.0, 2.0, 3.0, 4.0]]
    assert page["metadatas"] == [[{"n": n} for n in range(10, 15)]]
    assert library.search(Search().limit(7, offset=RECORDS - 3))["ids"] == [ids[-3:]]
    assert library.search(Search().limit(7, offset=RECORDS))["ids"] == [[]]
    assert library.search(Search(rank=Val(1.0)))["ids"] == [[]]


def test_limit_and_offset_cut_the_ranked(library: Any) -> None:
    rank = Knn(query=A, limit=50)
    ids = [record_id for _, record_id in brute(rank, ROWS)]
    results = library.search(
        [
            Search(rank=rank).limit(10),
            Search(rank=rank).limit(10, offset=10),
            Search(rank=rank).limit(10, offset=45),
            Search(rank=rank).limit(10, offset=50),
            Search(rank=rank, limit={"offset": 48}),
        ]
    )
    assert results["ids"] == [ids[:10], ids[10:20], ids[45:], [], ids[48:]]


def test_what_is_selected(library: Any) -> None:
    search = Search(rank=Knn(query=A)).limit(4)
    rows = {row["id"]: row for row in ROWS}
    everything = search.select_all()
    result = library.search([search, everything, search.select("kind", "absent", K.DOCUMENT)])
    ids = result["ids"][0]
    found = [rows[record_id] for record_id in ids]
    assert result["ids"] == [ids] * 3
    documents, metadatas = ([row[part] for row in found] for part in ("document", "metadata"))
    assert result["documents"] == [None, documents, documents]
    kinds = [{"kind": metadata["kind"]} for metadata in metadatas]
    assert result["metadatas"] == [None, metadatas, kinds]
    assert result["embeddings"] == [None, [row["embedding"].tolist() for row in found], None]
    assert (result["scores"][0], result["scores"][2]) == (None, None)
    np.testing.assert_allclose(
        result["scores"][1], [score for score, _ in brute(Knn(query=A), ROWS)[:4]], rtol=1e-5
    )
    assert result["select"] == [
        [],
        ["#document", "#embedding", "#metadata", "#score"],
        ["#document", "absent", "kind"],
    ]
    (row, *_) = library.search(search.select("absent")).rows()[0]
    assert row == {"id": ids[0]}, "as Chroma's rows() leaves out what is None"


@pytest.mark.parametrize("largest", [False, True])
def test_groups(library: Any, largest: bool) -> None:
    rank = Knn(query=A, limit=60)
    aggregate = MaxK(keys=Key("n"), k=2) if largest else MinK(keys=K.SCORE, k=2)
    search = Search(rank=rank, group_by=GroupBy(keys=K("kind"), aggregate=aggregate), limit=5)
    ranked = [record_id for _, record_id in brute(rank, ROWS)]
    stay: set[str] = set()
    for kind in KINDS:
        group = [i for i in ranked if ROWS[int(i[1:])]["metadata"]["kind"] == kind]
        stay.update(sorted(group)[-2:] if largest else group[:2])
    assert library.search(search)["ids"] == [[i for i in ranked if i in stay][:5]]


@pytest.mark.parametrize("space", ["cosine", "ip"])
def test_distances_of_other_spaces(
    client: ClientAPI, fresh: Callable[..., Any], space: Any
) -> None:
    collection = fill(fresh(configuration={"hnsw": {"space": space}}), ROWS[:60])
    result = collection.search(Search(rank=Knn(query=A)).select(K.SCORE))

    def unit(vector: Any) -> Any:
        return vector / np.linalg.norm(vector) if space == "cosine" else vector

    exact = sorted((float(1 - unit(row["embedding"]) @ unit(A)), row["id"]) for row in ROWS[:60])[
        :16
    ]
    assert result["ids"] == [[record_id for _, record_id in exact]]
    np.testing.assert_allclose(result["scores"][0], [d for d, _ in exact], atol=1e-5)


def test_empty_and_emptied_collections(fresh: Callable[..., Any]) -> None:
    collection = fresh()
    searches = [Search(rank=Knn(query=A)).select_all(), Search()]
    empty = collection.search(searches)
    assert (empty["ids"], empty["documents"], empty["scores"]) == ([[], []], [[], None], [[], None])
    fill(collection, ROWS[:3])
    assert collection.search(searches)["ids"][1] == ["r000", "r001", "r002"]
    collection.delete(ids=["r000", "r001", "r002"])
    assert collection.search(searches)["ids"] == [[], []]
    assert collection.search([])["ids"] == []


def test_another_dimension(library: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="dimension of 8, got 3"):
        library.search(Search(rank=Knn(query=[1.0, 2.0, 3.0])))


def test_what_is_not_implemented(library: Any) -> None:
    for where in (K.ID != "r001", Or([K.ID == "r001", K("n") == 1])):
        with pytest.raises(NotImplementedError, match="#id"):
            library.search(Search(where=where))
    with pytest.raises(NotImplementedError, match="'sparse'"):
        library.search(Search(rank=Knn(query=A, key="sparse")))


class Letters(EmbeddingFunction[Documents]):
    """How often a text has each of eight letters; queries are told apart from documents."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    def __call__(self, input: Documents) -> Embeddings:
        return [np.array([text.count(c) for c in "abcdefgh"], np.float32) for text in input]

    def embed_query(self, input: Documents) -> Embeddings:
        self.queries += input
        return self(input)

    @staticmethod
    def name() -> str:
        return "letters"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "EmbeddingFunction[Documents]":
        return Letters()

    def get_config(self) -> dict[str, Any]:
        return {}


def test_texts_are_embedded_by_the_collections_function(fresh: Callable[..., Any]) -> None:
    letters = Letters()
    collection = fresh(embedding_function=letters)
    texts = ["aaaa", "aabb", "bbbb", "cccc", "abcd"]
    collection.add(ids=texts, documents=texts)
    near = collection.search(Search(rank=Knn(query="aaab")).limit(2))
    assert near["ids"] == [["aaaa", "aabb"]]
    fused = Rrf([Knn(query="bbbb", return_rank=True), Knn(query="abbbb", return_rank=True)])
    assert collection.search(Search(rank=fused).limit(1))["ids"] == [["bbbb"]]
    assert letters.queries == ["aaab", "bbbb", "abbbb"]


async def test_the_async_client(cluster: RunningCluster, library: Any) -> None:
    client = await chroma_router.AsyncClient(host=cluster.host, port=cluster.port)
    collection = await client.get_collection(library.name)
    search = Search(where=K("kind") == "talk", rank=Knn(query=A) + 1, limit=5).select_all()
    result = await collection.search([search, Search(limit=3)])
    assert result == library.search([search, Search(limit=3)])
    assert len(result["ids"][0]) == 5
    with pytest.raises(NotImplementedError, match="'sparse'"):
        await collection.search(Search(rank=Knn(query=A, key="sparse")))


# --- over raw gRPC --------------------------------------------------------------------------------


@pytest.fixture
def stub(cluster: RunningCluster) -> Iterator[records_pb2_grpc.RecordServiceStub]:
    with grpc.insecure_channel(cluster.address) as channel:
        yield records_pb2_grpc.RecordServiceStub(channel)


KNN: Any = {"knn": {"embedding": A.tobytes()}}


def nested(depth: int) -> Any:
    rank = KNN
    for _ in range(depth - 1):
        rank = {"absolute": rank}
    return rank


@pytest.mark.parametrize(
    ("search", "field"),
    [
        ({"rank": {}}, "searches[0].rank:"),
        ({"rank": {"sum": {}}}, "searches[0].rank.sum.parts:"),
        ({"rank": nested(41)}, "expressions inside one another"),
        ({"rank": {"product": {"parts": [KNN] * 1_000}}}, "more than 1000 expressions"),
        ({"rank": {"knn": {"embedding": A.tobytes()[:-1]}}}, "searches[0].rank.knn.embedding:"),
        ({"rank": {"knn": {"embedding": b""}}}, "searches[0].rank.knn.embedding:"),
        ({"rank": {"knn": {**KNN["knn"], "limit": 2**32 - 1}}}, "searches[0].rank.knn.limit:"),
        ({"rank": {"value": float("nan")}}, "searches[0].rank.value:"),
        ({"limit": 100_001}, "searches[0].limit:"),
        ({"select": ["#score", "#scores"]}, "searches[0].select:"),
        ({"filter": {"where": '{"a": {"$gt": "b"}}'}}, "searches[0].filter: where"),
        ({"rank": KNN, "group_by": {"keys": ["k"]}}, "searches[0].group_by.order_by:"),
    ],
)
def test_bad_searches_are_refused_by_name(
    stub: records_pb2_grpc.RecordServiceStub, library: Any, search: Any, field: str
) -> None:
    request = records_pb2.SearchRequest(searches=[search])
    request.collection.id = str(library.id)
    with pytest.raises(grpc.RpcError) as refused:
        stub.Search(request)
    error: Any = refused.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in error.details()


def test_a_regex_that_only_the_engine_can_judge(library: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        library.search(Search(where=K.DOCUMENT.regex("("), rank=Knn(query=A)))


def test_a_silent_shard_is_an_error_or_left_out(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "data", 3) as cluster:
        client = chroma_router.Client(host=cluster.host, port=cluster.port)
        collection = fill(
            client.create_collection("silent", configuration={"hnsw": {"space": "l2"}})
        )
        near = {"embedding": A.tobytes(), "default_value": 1}
        all_near = {"embedding": B.tobytes(), "limit": RECORDS, "default_value": 1}
        rank = {"sum": {"parts": [{"knn": near}, {"knn": all_near}]}}
        request = records_pb2.SearchRequest(
            searches=[{"rank": rank, "select": ["#document"]}, {"select": ["n"]}]
        )
        request.collection.id = str(collection.id)
        pid = cluster.node_pids()["shard-2"]
        with grpc.insecure_channel(cluster.address) as channel:
            stub = records_pb2_grpc.RecordServiceStub(channel)
            whole = stub.Search(request, timeout=30)
            assert not whole.HasField("coverage")
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(grpc.RpcError) as failed:
                    stub.Search(request, timeout=3)
                error: Any = failed.value
                assert error.code() in (
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    grpc.StatusCode.UNAVAILABLE,
                )
                request.allow_partial = True
                partial = stub.Search(request, timeout=30)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert list(partial.coverage.missing_shards) == ["shard-2"]
            assert 0.4 < partial.coverage.record_share < 0.9
            everyone, some = ({h.record.id for h in a.results[1].hits} for a in (whole, partial))
            assert len(everyone) == RECORDS
            assert some < everyone
            ranked = {hit.record.id for hit in partial.results[0].hits}
            assert ranked == some, "all that the others hold are candidates of the second part"
            assert stub.Search(request, timeout=30).results == whole.results
