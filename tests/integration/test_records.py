"""The main job through chromadb's own client: order, paging, filters, writes, dimension."""

import contextlib
import random
import struct
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from chromadb.api import ClientAPI
from chromadb.errors import ChromaError, InvalidArgumentError, NotFoundError

import chroma_router
from chroma_router.v1 import records_pb2, records_pb2_grpc, types_pb2
from tests.support.cluster import RunningCluster, run_cli, running_cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

Fresh = Callable[..., Any]
SEED = 20261122


def vectors(count: int, dimension: int = 8, seed: int = SEED) -> Any:
    """Random rows."""
    return np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)


def fill(collection: Any, count: int, batch: int = 100) -> list[str]:
    """Upserts `count` records in batches; their ids in insertion order."""
    ids = [f"r{i:05}" for i in range(count)]
    random.Random(SEED).shuffle(ids)
    rows = vectors(count)
    for at in range(0, count, batch):
        part = slice(at, at + batch)
        collection.upsert(
            ids=ids[part],
            embeddings=rows[part],
            documents=[f"document {record_id}" for record_id in ids[part]],
            metadatas=[{"n": i, "even": i % 2 == 0} for i in range(at, min(at + batch, count))],
        )
    return ids


def test_insertion_order_and_paging(fresh: Fresh) -> None:
    collection = fresh()
    ids = fill(collection, 1200)
    assert collection.get(include=[])["ids"] == ids
    assert collection.count() == 1200
    paged: list[str] = []
    while page := collection.get(limit=170, offset=len(paged))["ids"]:
        paged += page
    assert paged == ids
    even = collection.get(where={"even": True}, limit=50, offset=100)
    assert even["ids"] == ids[200:300:2]
    assert even["documents"] == [f"document {i}" for i in ids[200:300:2]]
    assert collection.get(limit=10, offset=5000)["ids"] == []
    asked = [ids[700], "missing", ids[3], ids[5]]
    assert collection.get(ids=asked)["ids"] == [ids[3], ids[5], ids[700]]


def test_update_keeps_the_place_and_delete_then_add_renews_it(fresh: Fresh) -> None:
    collection = fresh()
    ids = fill(collection, 30)
    collection.upsert(ids=[ids[3]], embeddings=vectors(1))
    collection.update(ids=[ids[4], "missing"], metadatas=[{"n": -1}, {"n": -2}])
    assert collection.get(include=[])["ids"] == ids
    kept = collection.get(ids=[ids[3]])
    assert kept["documents"] == [f"document {ids[3]}"]
    assert kept["metadatas"] == [{"n": 3, "even": False}]
    collection.delete(ids=[ids[0], ids[10]])
    collection.add(ids=[ids[10], ids[0], ids[1]], embeddings=vectors(3))
    assert collection.get(include=[])["ids"] == [*ids[1:10], *ids[11:], ids[10], ids[0]]
    assert collection.get(ids=[ids[1]])["documents"] == [f"document {ids[1]}"]


def test_query_is_exact_on_small_sets(fresh: Fresh) -> None:
    collection = fresh(configuration={"hnsw": {"space": "l2"}})
    ids = fill(collection, 300)
    rows, queries = vectors(300), vectors(20, seed=7)
    answer = collection.query(query_embeddings=queries, n_results=10, include=["distances"])
    assert answer["distances"] is not None
    for query, found, distances in zip(queries, answer["ids"], answer["distances"], strict=True):
        exact = ((rows - query) ** 2).sum(axis=1)
        order = np.argsort(exact)[:10]
        assert found == [ids[i] for i in order]
        np.testing.assert_allclose(distances, exact[order], rtol=1e-5)
    some = ids[5:25]
    narrowed = collection.query(query_embeddings=queries[:1], n_results=50, ids=some)
    assert sorted(narrowed["ids"][0]) == sorted(some)
    assert len(collection.query(query_embeddings=queries[:1], n_results=5000)["ids"][0]) == 300


def test_deletes(fresh: Fresh) -> None:
    collection = fresh()
    ids = fill(collection, 400)
    assert collection.delete(ids=[ids[0], "missing"])["deleted"] == 2
    assert collection.delete(where={"even": True}, limit=10)["deleted"] == 10
    # The oldest ten even ones: the very first record was even, and is gone already.
    left = [i for n, i in enumerate(ids) if n not in {0, *range(2, 22, 2)}]
    assert collection.get(include=[])["ids"] == left
    assert collection.delete(where_document={"$contains": "document"})["deleted"] == len(left)
    assert collection.count() == 0


def test_metadata_is_lossless(fresh: Fresh) -> None:
    collection = fresh()
    metadata = {
        "int": 2**63 - 1,
        "negative": -(2**63),
        "odd": 2**53 + 1,
        "float": 1.0,
        "bool": True,
        "text": "naïve \U0001f980",
        "ints": [1, 2**53 + 1],
        "floats": [0.5, 2.0],
        "texts": ["a", "b"],
        "bools": [True, False],
    }
    collection.add(ids=["one"], embeddings=vectors(1), metadatas=[metadata])
    got = collection.get(ids=["one"])["metadatas"]
    assert got == [metadata]
    assert got is not None
    assert {k: type(v) for k, v in got[0].items()} == {k: type(v) for k, v in metadata.items()}


def test_a_hundred_racing_first_writes_leave_one_dimension(
    cluster: RunningCluster, client: ClientAPI
) -> None:
    for round_ in range(3):
        collection = client.create_collection(f"race-{SEED}-{round_}")
        begin = threading.Barrier(100)
        outcome: list[str] = [""] * 100

        def write(
            n: int,
            name: str = collection.name,
            begin: threading.Barrier = begin,
            outcome: list[str] = outcome,
        ) -> None:
            mine = chroma_router.Client(host=cluster.host, port=cluster.port).get_collection(name)
            begin.wait()
            try:
                mine.add(ids=[f"id-{n}"], embeddings=vectors(1, 3 + n % 2))
                outcome[n] = "stored"
            except InvalidArgumentError:
                outcome[n] = "refused"

        threads = [threading.Thread(target=write, args=(n,)) for n in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(outcome) == ["refused"] * 50 + ["stored"] * 50
        assert len({n % 2 for n, what in enumerate(outcome) if what == "stored"}) == 1
        assert collection.count() == 50


def test_a_refused_first_write_fixes_nothing(fresh: Fresh) -> None:
    collection = fresh()
    with pytest.raises(ChromaError):
        collection.add(ids=["a", "b"], embeddings=[[1.0, float("nan")], [1.0, 2.0]])
    assert collection.count() == 0
    collection.add(ids=["a"], embeddings=[[1.0, 2.0, 3.0]])
    with pytest.raises(InvalidArgumentError, match="dimension of 3, got 2"):
        collection.add(ids=["b"], embeddings=[[1.0, 2.0]])
    with pytest.raises(InvalidArgumentError, match="dimension of 3, got 2"):
        collection.query(query_embeddings=[[1.0, 2.0]])


def test_collections_come_and_go(client: ClientAPI) -> None:
    made = client.create_collection("lifecycle", metadata={"topic": "life"})
    again = client.get_or_create_collection("lifecycle", metadata={"topic": "other"})
    assert again.id == made.id
    assert again.metadata == {"topic": "life"}
    with pytest.raises(ChromaError, match="already exists"):
        client.create_collection("lifecycle")
    assert "lifecycle" in [collection.name for collection in client.list_collections()]
    fill(made, 50)
    client.delete_collection("lifecycle")
    with pytest.raises(NotFoundError, match="does not exist"):
        client.get_collection("lifecycle")
    with pytest.raises(NotFoundError):
        made.count()
    fresh = client.create_collection("lifecycle")
    assert fresh.count() == 0
    assert fresh.id != made.id


def test_one_shard_placement_keeps_a_collection_on_one_shard(
    cluster: RunningCluster, client: ClientAPI
) -> None:
    collection = client.create_collection("placed", metadata={"placement:shards": 1})
    ids = fill(collection, 120)
    assert collection.get(include=[])["ids"] == ids
    status = run_cli("status", "--router", cluster.address)
    (placed,) = [c for c in status["collections"] if c["name"] == "placed"]
    assert [part["records"] for part in placed["shards"].values()] == [120]


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_cluster(data, 3) as running:
        client = chroma_router.Client(host=running.host, port=running.port)
        ids = fill(client.create_collection("kept"), 700)
        assert running.stop() == 0
    with running_cluster(data, 3) as running:
        collection = chroma_router.Client(host=running.host, port=running.port).get_collection(
            "kept"
        )
        assert collection.count() == 700
        assert collection.get(include=[])["ids"] == ids
        assert collection.get(limit=100, offset=300)["ids"] == ids[300:400]
        later = vectors(1)
        collection.add(ids=["last"], embeddings=later)
        assert collection.get(include=[])["ids"] == [*ids, "last"]
        assert collection.query(query_embeddings=later, n_results=1)["ids"] == [["last"]]


def test_a_limited_delete_takes_effect_once_under_its_request_id(
    cluster: RunningCluster, fresh: Fresh
) -> None:
    collection = fresh()
    ids = fill(collection, 60)
    request = records_pb2.DeleteRequest(
        collection=types_pb2.CollectionRef(id=str(collection.id)),
        filter=types_pb2.Filter(where='{"n": {"$gte": 0}}'),
        limit=7,
        request_id=str(uuid.uuid4()),
    )
    with grpc.insecure_channel(cluster.address) as channel:
        stub = records_pb2_grpc.RecordServiceStub(channel)
        assert [stub.Delete(request).deleted for _ in range(3)] == [7, 7, 7]
        assert collection.get(include=[])["ids"] == ids[7:]
    assert collection.count() == 53


def test_a_limited_delete_of_more_keys_than_a_page_has(fresh: Fresh) -> None:
    collection = fresh()
    ids = [f"{n:05}".rjust(3000, "x") for n in range(4000)]  # a page has 8 MiB of them
    for at in range(0, len(ids), 1000):
        part = ids[at : at + 1000]
        collection.upsert(ids=part, embeddings=vectors(1000, 2), metadatas=[{"a": 1}] * 1000)
    assert collection.delete(where={"a": 1}, limit=3500)["deleted"] == 3500
    assert collection.get(include=[])["ids"] == ids[3500:]


def test_one_request_id_is_one_request(cluster: RunningCluster, fresh: Fresh) -> None:
    collection = fresh()
    with grpc.insecure_channel(cluster.address) as channel:
        stub = records_pb2_grpc.RecordServiceStub(channel)

        def add(record_id: str, value: float) -> None:
            stub.Add(
                records_pb2.AddRequest(
                    collection=types_pb2.CollectionRef(id=str(collection.id)),
                    records=[
                        types_pb2.Record(id=record_id, embedding=struct.pack("<2f", value, 0))
                    ],
                    request_id="the-same",
                )
            )

        add("a", 1)
        add("a", 1)
        with pytest.raises(grpc.RpcError, match="request id"):
            add("a", 2)
    assert collection.count() == 1


def test_deletes_of_more_than_the_engine_takes_at_once(fresh: Fresh) -> None:
    collection = fresh(metadata={"placement:shards": 1})
    count = 12_000
    rows = vectors(count, 2)
    for at in range(0, count, 4000):
        collection.upsert(
            ids=[f"r{i}" for i in range(at, at + 4000)],
            embeddings=rows[at : at + 4000],
            metadatas=[{"n": i} for i in range(at, at + 4000)],
        )
    assert collection.delete(where={"n": {"$lt": 6000}}, limit=5800)["deleted"] == 5800
    assert collection.delete(ids=[f"r{i}" for i in range(5700, 11_500)])["deleted"] == 5800
    assert collection.count() == 500


def test_a_changed_collection(fresh: Fresh, client: ClientAPI) -> None:
    collection = fresh(metadata={"a": 1})
    collection.modify(metadata={"b": 2}, name=f"{collection.name}-renamed")
    again = client.get_collection(collection.name)
    assert again.id == collection.id
    assert again.metadata == {"b": 2}
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda n: again.modify(metadata={"n": n}), range(10)))
    assert set(client.get_collection(collection.name).metadata) == {"n"}


def test_long_names_get_clear_errors(client: ClientAPI) -> None:
    with pytest.raises(NotFoundError):
        client.get_collection("n" * 30_000)


def test_get_or_create_never_fails_beside_deletes(client: ClientAPI) -> None:
    name = f"coming-and-going-{SEED}"

    def come_and_go(n: int) -> None:
        assert client.get_or_create_collection(name).name == name
        if n % 2:
            with contextlib.suppress(NotFoundError):
                client.delete_collection(name)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(come_and_go, range(48)))
