"""A definition sent to a real engine makes the same collection again; heads are checked."""

import json
from collections.abc import Callable
from typing import Any

import chromadb
import pytest
from chromadb.api import ClientAPI
from chromadb.api.types import Schema, StringInvertedIndexConfig

from chroma_router.v1 import catalog_pb2, types_pb2
from chroma_router.wire.records import metadata_from_wire
from router.cli.definition import (
    FORMAT_KEY,
    BadDefinition,
    Definition,
    definition_from_json,
    definition_of,
    space_of,
)

SCOPE = ("default_tenant", "default_database")


@pytest.fixture(scope="module")
def engine() -> ClientAPI:
    return chromadb.EphemeralClient()


def plain_schema() -> Schema:
    return Schema()


def schema_without_index_of_a_key() -> Schema:
    return Schema().delete_index(config=StringInvertedIndexConfig(), key="note")


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"metadata": {"a": 1}},
        {"embedding_function": None},
        {"metadata": {"hnsw:space": "ip", "hnsw:M": 7, "hnsw:search_ef": 33}},
        {"configuration": {"hnsw": {"space": "cosine", "ef_construction": 77}}},
        {"configuration": {"hnsw": {"sync_threshold": 500}, "embedding_function": None}},
        {"schema": plain_schema},
        {"schema": schema_without_index_of_a_key},
    ],
    ids=[
        "plain", "metadata", "no embedding function", "hnsw in metadata", "hnsw", "sync threshold",
        "plain schema", "a schema",
    ],
)  # fmt: skip
def test_the_engine_makes_the_same_again(engine: ClientAPI, made: dict[str, Any]) -> None:
    options = {k: v() if isinstance(v, Callable) else v for k, v in made.items()}  # type: ignore[arg-type]
    engine.get_or_create_collection("original", **options)
    model = engine._server.get_collection("original", *SCOPE)  # type: ignore[attr-defined]
    wanted = Definition(model.metadata or {}, model.configuration_json, model.serialized_schema)
    request = catalog_pb2.CreateCollectionRequest()
    wanted.fill(request)
    assert not (request.configuration_json and request.schema_json)
    copy = engine._server.bindings.create_collection(  # type: ignore[attr-defined]
        "copy",
        request.configuration_json or None,
        request.schema_json or None,
        metadata_from_wire(request.metadata) or None,
        False,
        *SCOPE,
    )
    try:
        found = Definition(copy.metadata or {}, copy.configuration, copy.schema)
        assert found.same_index(wanted)
        assert found.metadata == wanted.early_metadata
    finally:
        for name in ("original", "copy"):
            engine.delete_collection(name)


@pytest.mark.parametrize("schema", [None, schema_without_index_of_a_key], ids=["plain", "a schema"])
def test_metadata_changed_later_are_not_taken_for_the_index(
    engine: ClientAPI, schema: Callable[[], Schema] | None
) -> None:
    options: dict[str, Any] = {} if schema is None else {"schema": schema()}
    engine.create_collection("changed", **options).modify(metadata={"hnsw:M": 5, "a": 1})
    model = engine._server.get_collection("changed", *SCOPE)  # type: ignore[attr-defined]
    wanted = Definition(model.metadata or {}, model.configuration_json, model.serialized_schema)
    assert wanted.metadata == {"hnsw:M": 5, "a": 1}
    request = catalog_pb2.CreateCollectionRequest()
    wanted.fill(request)
    copy = engine._server.bindings.create_collection(  # type: ignore[attr-defined]
        "changed-copy",
        request.configuration_json or None,
        request.schema_json or None,
        metadata_from_wire(request.metadata),
        False,
        *SCOPE,
    )
    for name in ("changed", "changed-copy"):
        engine.delete_collection(name)
    assert copy.metadata == {"a": 1}
    assert Definition({}, copy.configuration, copy.schema).same_index(wanted)


def test_a_difference_is_seen_but_not_the_machine() -> None:
    def one(**change: Any) -> Definition:
        hnsw = {"space": "l2", "ef_search": 100}
        schema = {"keys": {"#embedding": {"hnsw": {"num_threads": 2, "ef_search": 100}}}}
        return Definition(
            {}, {"hnsw": hnsw | change.pop("hnsw", {})}, change.pop("schema", schema), **change
        )

    assert one().same_index(one())
    assert not one().same_index(one(hnsw={"ef_search": 7}))
    other = {"keys": {"#embedding": {"hnsw": {"num_threads": 64, "ef_search": 100}}}}
    assert one().same_index(one(schema=other))
    other["keys"]["#embedding"]["hnsw"]["ef_search"] = 5
    assert not one().same_index(one(schema=other))


@pytest.mark.parametrize(("placed", "asked"), [(0, 2**32 - 1), (2, 2)])
def test_all_shards_are_asked_for_by_name(placed: int, asked: int) -> None:
    """0 would leave it to the default of another cluster."""
    found = definition_of(types_pb2.Collection(name="docs", placement_shards=placed))
    request = catalog_pb2.CreateCollectionRequest()
    definition_from_json(found.to_json("docs")).fill(request)
    assert request.placement_shards == asked


def test_a_head_survives_json() -> None:
    wanted = Definition({"a": 1, "b": 1.0}, {"hnsw": {"space": "ip"}}, {"keys": {}}, 2)
    found = definition_from_json(json.loads(json.dumps(wanted.to_json("c"))))
    assert found == wanted
    assert type(found.metadata["b"]) is float
    assert space_of(found.configuration) == "ip"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({FORMAT_KEY: 2}, "format 2"),
        ({"metadata": ["a"]}, "metadata"),
        ({"configuration": "x"}, "configuration"),
        ({"schema": 1}, "schema"),
        ({"placement_shards": -1}, "placement_shards"),
    ],
)
def test_a_head_of_another_kind_is_refused(change: dict[str, Any], says: str) -> None:
    head = Definition({}, {}, None).to_json("c") | change
    with pytest.raises(BadDefinition, match=says):
        definition_from_json(head)


@pytest.mark.parametrize("schema", [None, schema_without_index_of_a_key], ids=["plain", "of a key"])
def test_what_a_chroma_discovers_in_records_is_no_part_of_a_definition(
    engine: ClientAPI, schema: Callable[[], Schema] | None
) -> None:
    name = f"discovering-{schema is None}"
    options: dict[str, Any] = {} if schema is None else {"schema": schema()}
    collection = engine.create_collection(name, **options)
    before = engine._server.get_collection(name, *SCOPE)  # type: ignore[attr-defined]
    collection.add(ids=["a"], embeddings=[1.0], metadatas=[{"a": 1, "note": "x", "b": True}])
    after = engine._server.get_collection(name, *SCOPE)  # type: ignore[attr-defined]
    assert before.serialized_schema != after.serialized_schema
    was, now = (
        Definition({}, model.configuration_json, model.serialized_schema)
        for model in (before, after)
    )
    assert was.same_index(now)
    requests = [catalog_pb2.CreateCollectionRequest() for _ in (was, now)]
    for definition, request in zip((was, now), requests, strict=True):
        definition.fill(request)
    assert requests[0].configuration_json == requests[1].configuration_json
    assert bool(requests[0].schema_json) == bool(requests[1].schema_json) == (schema is not None)
    other = schema_without_index_of_a_key() if schema is None else Schema()
    engine.create_collection(f"{name}-other", schema=other)
    different = engine._server.get_collection(f"{name}-other", *SCOPE)  # type: ignore[attr-defined]
    assert not now.same_index(
        Definition({}, different.configuration_json, different.serialized_schema)
    )
