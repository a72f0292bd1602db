"""A collection's schema: what its definition says, and which metadata keys its shards have met.

Chroma's engine notes in the schema each metadata key with each type that a record gave it
("discovers" it), with the index settings that the definition has for that type. A key may have
several types: none conflicts with another, no write is refused for it, and none is ever forgotten.
Each shard does this for its own records, so a sharded collection's schema is its definition and the
union of what its shards have discovered. The definition wins wherever it says something itself.
"""

import json
from collections.abc import Iterable, Set
from functools import lru_cache
from typing import Any, TypeAlias

MAX_KEYS = 1_000
"""Keys that a schema grows to by discovery. Who gives each record keys of its own would else have a
definition that grows with every write. Filters do not depend on it: what a schema does not name has
the defaults, and discovered keys have just these."""

MetadataType: TypeAlias = tuple[str, str]
"""A metadata key and the name that a schema gives to the type of its value."""

_TYPES = {
    "string_value": "string",
    "int_value": "int",
    "float_value": "float",
    "bool_value": "bool",
    # An array uses the index of its elements.
    "string_array": "string",
    "int_array": "int",
    "float_array": "float",
    "bool_array": "bool",
}
_UNDISCOVERED_PREFIX = "chroma:"


def metadata_types(fields: Iterable[tuple[str, str]]) -> frozenset[MetadataType]:
    """What an engine may discover in values, given as (key, set field of MetadataValue)."""
    return frozenset(
        (key, _TYPES[field])
        for key, field in fields
        if field in _TYPES and not key.startswith(_UNDISCOVERED_PREFIX)
    )


def may_grow(schema_json: str, written: Set[MetadataType]) -> bool:
    """Whether shards to which this was written may have discovered what the schema lacks."""
    if not schema_json or not written:
        return False
    known, keys = _known(schema_json)
    return not written <= known and keys < MAX_KEYS


def merged(schema_json: str, discovered: Iterable[str]) -> str:
    """The schema with what its shards' schemas have beyond it, at most MAX_KEYS keys in all.

    The same text if that is nothing. The order of the shards does not matter.
    """
    if not schema_json:
        return schema_json
    schema = json.loads(schema_json)
    present: dict[str, dict[str, Any]] = schema.setdefault("keys", {})
    found: dict[MetadataType, Any] = {}
    for text in discovered:
        for key, types in (json.loads(text).get("keys", {}) if text else {}).items():
            for name, settings in types.items():
                if name not in present.get(key, {}):
                    found[key, name] = settings
    grown = False
    for (key, name), settings in sorted(found.items(), key=lambda item: item[0]):
        if key in present or len(present) < MAX_KEYS:
            present.setdefault(key, {})[name] = settings
            grown = True
    return _text(schema) if grown else schema_json


def with_configuration(schema_json: str, update: dict[str, Any]) -> str:
    """The schema after a change of the collection's configuration, as Chroma changes it: settings
    of the vector index in the defaults and in "#embedding"."""
    if not schema_json:
        return schema_json
    schema = json.loads(schema_json)
    hnsw, function = update.get("hnsw"), update.get("embedding_function")
    for types in (schema.get("defaults", {}), schema.get("keys", {}).get("#embedding", {})):
        config = types.get("float_list", {}).get("vector_index", {}).get("config")
        if config is None:
            continue
        if isinstance(hnsw, dict) and isinstance(config.get("hnsw"), dict):
            config["hnsw"].update({key: new for key, new in hnsw.items() if new is not None})
        if function is not None:
            config["embedding_function"] = function
    return _text(schema)


@lru_cache(maxsize=256)
def _known(schema_json: str) -> tuple[frozenset[MetadataType], int]:
    """The types that a schema names, and how many keys. Cached: asked for at each write."""
    keys = json.loads(schema_json).get("keys", {})
    return frozenset((key, name) for key, types in keys.items() for name in types), len(keys)


def _text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, separators=(",", ":"))
