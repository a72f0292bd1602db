"""A collection's definition as it travels: from another Chroma, or in the head of an exported file.

Pure values; nothing here reads or sends.
"""

import json
from dataclasses import dataclass
from typing import Any

from chroma_router.v1 import catalog_pb2, types_pb2
from chroma_router.wire.placement import ALL_SHARDS
from chroma_router.wire.records import metadata_from_wire, metadata_to_wire

FORMAT = 1
"""The version of the head of an exported file."""

FORMAT_KEY = "chroma_router_export"
"""The key by which the head of an exported file is known."""

INDEX_METADATA = "hnsw:"
"""How the keys of metadata begin that an engine reads when it makes a collection."""

_PLAIN_SWITCHES = {
    "defaults.string.fts_index": False,
    "defaults.string.string_inverted_index": True,
    "defaults.float_list.vector_index": False,
    "defaults.sparse_vector.sparse_vector_index": False,
    "defaults.int.int_inverted_index": True,
    "defaults.float.float_inverted_index": True,
    "defaults.bool.bool_inverted_index": True,
    "keys.#embedding.float_list.vector_index": True,
    "keys.#document.string.fts_index": True,
    "keys.#document.string.string_inverted_index": False,
}
"""What is indexed in a collection that was made without a schema."""


class BadDefinition(Exception):
    """The head of a file is none, or one of a version that is not known; it says why."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What a collection is besides its name and its records."""

    metadata: dict[str, Any]
    configuration: dict[str, Any]
    schema: dict[str, Any] | None
    placement_shards: int = 0
    """As in CreateCollectionRequest: 0 leaves it to the metadata and the cluster."""

    @property
    def early_metadata(self) -> dict[str, Any]:
        """The metadata with which the collection is made; the others are set when it exists.

        Those that speak of the index are later: they may have been changed after the collection was
        made, which changed no index, but the engine would take them for its parameters, or refuse
        them beside a schema.
        """
        if not (self.configuration or self.schema):
            return self.metadata
        return {k: v for k, v in self.metadata.items() if not k.startswith(INDEX_METADATA)}

    def fill(self, request: catalog_pb2.CreateCollectionRequest) -> None:
        """Asks for a collection of this definition, with its early metadata.

        Either the schema or the configuration is sent: the engine refuses both together. The schema
        only if it says more, about which values are indexed: of one that is made of defaults
        alone the engine forgets the embedding function.
        """
        schema = _undiscovered(self.schema)
        if schema and _switches(schema) != _PLAIN_SWITCHES:
            request.schema_json = json.dumps(schema)
        elif self.configuration:
            request.configuration_json = json.dumps(self.configuration)
        metadata_to_wire(self.early_metadata, request.metadata)
        request.placement_shards = self.placement_shards

    def same_index(self, other: "Definition") -> bool:
        """Whether both ask for the same index, embedding function and inverted indexes."""
        mine, theirs = self.configuration, other.configuration
        if mine and theirs and mine != theirs:
            return False
        return not (
            self.schema and other.schema and _portable(self.schema) != _portable(other.schema)
        )

    def to_json(self, name: str) -> dict[str, Any]:
        """The head of an exported file of the collection of that name, which is there to be read:
        `ingest` is told one."""
        return {
            FORMAT_KEY: FORMAT,
            "collection": name,
            "metadata": self.metadata,
            "configuration": self.configuration,
            "schema": self.schema,
            "placement_shards": self.placement_shards,
        }


def definition_of(collection: types_pb2.Collection) -> Definition:
    """The definition of a collection of the cluster.

    One on all shards asks for all: another cluster's default may be fewer.
    """
    return Definition(
        metadata=dict(metadata_from_wire(collection.metadata)),
        configuration=json.loads(collection.configuration_json or "{}"),
        schema=json.loads(collection.schema_json or "null"),
        placement_shards=collection.placement_shards or ALL_SHARDS,
    )


def definition_from_json(head: dict[str, Any]) -> Definition:
    """The definition in the head of an exported file. Raises BadDefinition."""
    if head.get(FORMAT_KEY) != FORMAT:
        raise BadDefinition(
            f"it is an export of format {head.get(FORMAT_KEY)!r}, and this version knows "
            f"{FORMAT}; read it with the version of chroma-router that wrote it, or a newer one"
        )
    metadata = head.get("metadata") or {}
    configuration = head.get("configuration") or {}
    schema = head.get("schema")
    placement = head.get("placement_shards", 0)
    shapes = (
        ("metadata", isinstance(metadata, dict)),
        ("configuration", isinstance(configuration, dict)),
        ("schema", isinstance(schema, dict | None)),
        ("placement_shards", isinstance(placement, int) and 0 <= placement < 1 << 32),
    )
    for name, good in shapes:
        if not good:
            raise BadDefinition(f"the {name} in its first line is not what an export writes there")
    return Definition(metadata, configuration, schema, placement)


def space_of(configuration: dict[str, Any]) -> str:
    """The distance that a configuration asks for."""
    for index in ("hnsw", "spann"):
        space = (configuration.get(index) or {}).get("space")
        if space:
            return str(space)
    return "l2"


def _portable(schema: dict[str, Any]) -> Any:
    """A schema without what a Chroma takes from its machine and from the records it has met."""
    return _without_threads(_undiscovered(schema))


def _without_threads(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {k: _without_threads(value) for k, value in schema.items() if k != "num_threads"}
    return schema


def _undiscovered(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    """A schema without the keys that say of a type just what the defaults say: a Chroma adds such
    for the metadata that it meets, and so it will again."""
    if not schema:
        return schema
    defaults, keys = schema.get("defaults", {}), {}
    for key, types in schema.get("keys", {}).items():
        said = {name: said for name, said in types.items() if said != defaults.get(name)}
        if said:
            keys[key] = said
    return {**schema, "keys": keys}


def _switches(schema: Any, path: str = "") -> dict[str, bool]:
    """Which indexes a schema turns on or off, by their path in it."""
    if not isinstance(schema, dict):
        return {}
    if "enabled" in schema:
        return {path: bool(schema["enabled"])}
    found: dict[str, bool] = {}
    for key, value in schema.items():
        found |= _switches(value, f"{path}.{key}" if path else key)
    return found
