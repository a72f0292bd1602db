"""Definitions of collections: configuration, schema and placement, as one Chroma has them."""

import json
import uuid
from pathlib import Path
from typing import Any

import chromadb
import grpc
import numpy as np
import pytest
from chromadb.api import ClientAPI
from chromadb.api.types import (
    Documents,
    EmbeddingFunction,
    Embeddings,
    Schema,
    StringInvertedIndexConfig,
    VectorIndexConfig,
)
from chromadb.errors import InternalError, NotFoundError
from chromadb.utils.embedding_functions import register_embedding_function

import chroma_router
from chroma_router.v1 import catalog_pb2, catalog_pb2_grpc, types_pb2
from tests.support.cluster import RunningCluster, run_cli, running_cluster

pytestmark = pytest.mark.integration


@register_embedding_function
class Lengths(EmbeddingFunction[Documents]):
    """An embedding function that a definition can name and build again."""

    def __init__(self, dimension: int = 3) -> None:
        self._dimension = dimension

    def __call__(self, input: Documents) -> Embeddings:
        return [np.full(self._dimension, len(text), np.float32) for text in input]

    @staticmethod
    def name() -> str:
        return "lengths"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "Lengths":
        return Lengths(config["dimension"])

    def get_config(self) -> dict[str, Any]:
        return {"dimension": self._dimension}


@pytest.fixture
def reference() -> ClientAPI:
    """One Chroma in this process, which the whole session shares."""
    return chromadb.EphemeralClient()


def definition(client: ClientAPI, name: str) -> tuple[Any, Any]:
    """Configuration and schema as the server tells them."""
    model = client.get_collection(name, embedding_function=None)._model
    return model.configuration_json, model.serialized_schema


def rows(count: int, **metadata: Any) -> dict[str, Any]:
    return {
        "ids": [f"id-{i}" for i in range(count)],
        "embeddings": np.random.default_rng(7).random((count, 3), np.float32),
        "metadatas": [metadata for _ in range(count)],
    }


def test_a_definition_is_at_every_step_what_one_chroma_has(
    client: ClientAPI, reference: ClientAPI
) -> None:
    name = f"definition-{uuid.uuid4()}"
    options: dict[str, Any] = {
        "metadata": {"hnsw:space": "cosine"},
        "embedding_function": Lengths(3),
    }
    pairs = [(each, each.create_collection(name, **options)) for each in (client, reference)]

    def same() -> Any:
        ours, theirs = (definition(each, name) for each, _ in pairs)
        assert ours == theirs
        return ours[1]["keys"]

    steps: list[Any] = [
        lambda c: None,
        lambda c: c.add(**rows(40, text="a", number=1, share=0.5, yes=True)),
        lambda c: c.upsert(**rows(40, number=1.5, tags=["x", "y"], counts=[1, 2])),
        lambda c: c.add(**rows(40, ignored="all of these exist")),
        lambda c: c.update(ids=["nobody"], metadatas=[{"unseen": 1}]),
        lambda c: c.update(ids=["id-1"], metadatas=[{"seen": 1, "text": None}]),
        lambda c: c.modify(configuration={"hnsw": {"ef_search": 77}}),
        lambda c: c.upsert(**rows(1, late=True)),
        lambda c: c.delete(ids=[f"id-{i}" for i in range(40)]),
        lambda c: c.modify(configuration={"embedding_function": Lengths(4)}),
    ]
    keys: dict[str, Any] = {}
    for step in steps:
        for _, collection in pairs:
            step(collection)
        keys = same()
    assert set(keys["number"]) == {"int", "float"}
    assert {"ignored", "unseen"}.isdisjoint(keys)
    assert {"seen", "late", "tags"} <= keys.keys()
    told: dict[str, Any] = {c.name: c._model.serialized_schema for c in client.list_collections()}
    assert told[name]["keys"] == keys


def test_a_schema_has_the_last_word_on_its_embedding_function(client: ClientAPI) -> None:
    schema = Schema().create_index(config=VectorIndexConfig(embedding_function=Lengths(5)))
    made = client.create_collection(f"schema-{uuid.uuid4()}", schema=schema)
    made.add(ids=["a"], documents=["four"])
    for collection in (made, client.get_collection(made.name)):
        found = collection.get(ids=["a"], include=["embeddings"])["embeddings"]
        assert np.array_equal(np.asarray(found), [[4, 4, 4, 4, 4]])


def test_what_a_schema_disables_is_disabled_on_every_shard(
    client: ClientAPI, reference: ClientAPI
) -> None:
    for each in (client, reference):
        schema = Schema().delete_index(config=StringInvertedIndexConfig())
        schema.create_index(key="open", config=StringInvertedIndexConfig())
        collection = each.create_collection(f"disabled-{uuid.uuid4()}", schema=schema)
        collection.add(**rows(60, open="a", closed="b"))
        assert len(collection.get(where={"open": "a"})["ids"]) == 60
        with pytest.raises(chromadb.errors.ChromaError, match="closed"):
            collection.get(where={"closed": "b"})


def test_get_or_create_changes_nothing(client: ClientAPI) -> None:
    name = f"kept-{uuid.uuid4()}"
    client.create_collection(name, metadata={"a": 1}, configuration={"hnsw": {"space": "ip"}})
    before = definition(client, name)
    again = client.get_or_create_collection(
        name, metadata={"b": 2}, configuration={"hnsw": {"space": "l2", "ef_search": 9}}
    )
    assert again.metadata == {"a": 1}
    assert definition(client, name) == before


def test_ids_of_a_query_must_exist_unless_there_is_a_condition(
    client: ClientAPI, reference: ClientAPI
) -> None:
    for each in (client, reference):
        collection = each.create_collection(f"ids-{uuid.uuid4()}")
        query: dict[str, Any] = {"query_embeddings": [[0.0, 0.0, 0.0]]}
        assert collection.query(**query, ids=["nobody"])["ids"] == [[]]
        collection.add(**rows(30, n=1))
        for asked in (["nobody"], ["id-1", "nobody"]):
            with pytest.raises(InternalError, match="Error finding id") as refused:
                collection.query(**query, ids=asked)
            assert each is reference or isinstance(refused.value, NotFoundError)
        some: dict[str, Any] = {
            "n_results": 30,
            "ids": ["nobody", "id-1", "id-7"],
            "where": {"n": 1},
        }
        assert set(collection.query(**query, **some)["ids"][0]) == {"id-1", "id-7"}


def placed(cluster: RunningCluster, client: ClientAPI, metadata: Any) -> int:
    """On how many shards such a collection has its records."""
    collection = client.create_collection(f"placed-{uuid.uuid4()}", metadata=metadata)
    collection.add(**rows(200, n=1))
    status = run_cli("status", "--router", cluster.address)
    (found,) = [c for c in status["collections"] if c["name"] == collection.name]
    return sum(part["records"] > 0 for part in found["shards"].values())


def test_the_default_placement_is_for_who_does_not_say(tmp_path: Path) -> None:
    setting = {"CHROMA_ROUTER_DEFAULT_PLACEMENT_SHARDS": "1"}
    with running_cluster(tmp_path / "data", 3, setting) as running:
        client = chroma_router.Client(host=running.host, port=running.port)
        assert placed(running, client, None) == 1
        assert placed(running, client, {"placement:shards": 2}) == 2
        assert placed(running, client, {"placement:shards": "all"}) == 3
        with grpc.insecure_channel(running.address) as channel:
            raw = catalog_pb2_grpc.CatalogServiceStub(channel)
            said = types_pb2.MetadataValue
            for value, shards in ((said(int_value=2), 2), (said(string_value="all"), 0)):
                request = catalog_pb2.CreateCollectionRequest(
                    name=f"raw-{shards}", metadata={"placement:shards": value}
                )
                assert raw.CreateCollection(request).collection.placement_shards == shards
            request = catalog_pb2.CreateCollectionRequest(name="senseless")
            request.metadata["placement:shards"].string_value = "two"
            with pytest.raises(grpc.RpcError, match="placement:shards") as refused:
                raw.CreateCollection(request)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_learnt_schema_outlives_a_restart(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "data", 2) as running:
        client = chroma_router.Client(host=running.host, port=running.port)
        client.create_collection("docs").add(**rows(20, word="a"))
        before = definition(client, "docs")
        assert "word" in before[1]["keys"]
    with running_cluster(tmp_path / "data", 2) as running:
        client = chroma_router.Client(host=running.host, port=running.port)
        client.get_collection("docs").upsert(**rows(5, word="b"))
        assert json.dumps(definition(client, "docs")) == json.dumps(before)
