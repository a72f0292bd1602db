"""How often the engine persists a vector index: oftener than users ask, and they are not told.

Before each write the engine reads the queue rows that its persisted index does not have yet, up to
`sync_threshold` of them (Chroma's default: 1,000). With single writes that is most of their cost:
at 384 d a write of 1 row took 3.2 ms with a threshold of 100 and 7.6 with 1,000; of 5 rows into
40,000 records, 9.4 ms with 250, 10.5 with 100 and 12.9 with 1,000, since persisting costs with the
size of the index. So a collection's physical threshold is 250, or more for a large one, but never
above what its configuration asks for; what the node reports keeps the number asked for. Durability
does not depend on it: the queue has every row.

The engine takes a threshold up when it loads an index, so it is set before.
"""

import json
from typing import Any

CHROMA_DEFAULT = 1000
# What a configuration may repeat of Chroma's defaults and still leave the word to the metadata.
_CHROMA_DEFAULTS = {
    "space": "l2", "ef_construction": 100, "ef_search": 100, "max_neighbors": 16,
    "batch_size": 100, "sync_threshold": CHROMA_DEFAULT, "resize_factor": 1.2,
}  # fmt: skip
_LEAST = 250
_RECORDS_PER_ROW = 160


def asked_for(configuration_json: str, schema_json: str, metadata: dict[str, Any] | None) -> int:
    """The threshold that a definition asks for, in queue rows; Chroma's default if none.

    As in Chroma the metadata is listened to only where the configuration says nothing of its own
    about the index, not even about another of its settings.
    """
    configuration = json.loads(configuration_json or "{}")
    hnsw: dict[str, Any] = configuration.get("hnsw") or {}
    own = configuration.get("spann") is not None or any(
        value is not None and value != _CHROMA_DEFAULTS.get(key) for key, value in hnsw.items()
    )
    found = [
        None if own else (metadata or {}).get("hnsw:sync_threshold"),
        hnsw.get("sync_threshold"),
        *_thresholds(json.loads(schema_json or "{}")),
    ]
    return next((number for number in found if isinstance(number, int)), CHROMA_DEFAULT)


def physical(asked: int, records: int) -> int:
    """The threshold for the engine, for an index of so many records."""
    return min(asked, max(_LEAST, records // _RECORDS_PER_ROW))


def reported(text: str, asked: int) -> str:
    """The engine's configuration or schema as users see it: with the threshold asked for."""
    return json.dumps(_with_threshold(json.loads(text), asked)) if text else text


def _with_threshold(value: Any, asked: int) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: asked if key == "sync_threshold" else _with_threshold(inner, asked)
        for key, inner in value.items()
    }


def _thresholds(value: Any) -> list[Any]:
    """Every `sync_threshold` of a schema; that of a key counts before that of the defaults."""
    if not isinstance(value, dict):
        return []
    inner = sorted(value.items(), key=lambda item: item[0] != "keys")
    return [
        number
        for key, each in inner
        for number in ([each] if key == "sync_threshold" else _thresholds(each))
    ]
