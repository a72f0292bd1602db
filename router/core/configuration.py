"""Changes of a collection's configuration: what the engine will take, what comes of it, and how one
is undone.

Source: rust/types/src/hnsw_configuration.rs, spann_configuration.rs and
collection_configuration.rs at tag 1.5.9. A change is judged here, whole, before the catalog takes
it: a definition that the engine cannot read would be refused to every node that begins anew.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from chroma_router.wire.errors import InvalidRequest

_EMBEDDING_FUNCTION = "embedding_function"
_FUNCTION_TYPES = ("known", "legacy", "unknown")
_MAX_FUNCTION_NESTING = 100
"""Objects and arrays inside one another. The engine's JSON parser refuses the 128th, and a schema
has the function some levels down."""

_BOUNDS: Mapping[str, Mapping[str, range]] = {
    "hnsw": {
        "ef_search": range(2**31),
        "num_threads": range(2**31),
        "sync_threshold": range(2, 2**31),
        "batch_size": range(2, 2**31),
    },
    "spann": {"search_nprobe": range(129), "ef_search": range(201)},
}
"""The whole numbers of an index that can be changed. Where the engine takes any number that fits a
word of the machine, it ends at 2**31 as at the node (shard_node/index_bounds.py)."""

_RESIZE_FACTOR = "resize_factor"
_CHANGEABLE: Mapping[str, frozenset[str]] = {
    "hnsw": frozenset({*_BOUNDS["hnsw"], _RESIZE_FACTOR}),
    "spann": frozenset(_BOUNDS["spann"]),
}


def effective(current_json: str, update: Mapping[str, Any]) -> dict[str, Any]:
    """What of an update changes anything: without what is null, and without settings of an index
    that cannot be changed but are named with the value that they have.

    Raises InvalidRequest for what cannot be changed and for what the engine would not take.
    """
    current = json.loads(current_json or "{}")
    found: dict[str, Any] = {}
    for part, value in update.items():
        if value is None:  # chromadb names every part, also those that stay
            continue
        if part not in {*_CHANGEABLE, _EMBEDDING_FUNCTION}:
            parts = ", ".join((*_CHANGEABLE, _EMBEDDING_FUNCTION))
            raise InvalidRequest(f"configuration {part!r} is not known; parts are {parts}")
        if not isinstance(value, dict):
            raise InvalidRequest(f"configuration {part} is not an object; send one such as {{}}")
        if part == _EMBEDDING_FUNCTION:
            _check_function(value)
            found[part] = value
        elif settings := _index_change(part, value, current.get(part)):
            found[part] = settings
    return found


def merged(current_json: str, update: Mapping[str, Any]) -> str:
    """The configuration after an update that `effective` has found good."""
    current = json.loads(current_json or "{}")
    for part, value in update.items():
        if part == _EMBEDDING_FUNCTION:
            current[part] = value
            continue
        # The engine reports every setting that it keeps; it takes num_threads and forgets it.
        current[part] |= {key: new for key, new in value.items() if key in current[part]}
    return json.dumps(current, separators=(",", ":"), sort_keys=True)


def undone(now: Any, mine: Any, before: Any) -> Any:
    """The value `now` without the change that made `mine` of `before`, JSON values all three.

    What another change has set since stays. An embedding function is one value.
    """
    if mine == before:
        return now
    if not (isinstance(now, dict) and isinstance(mine, dict) and isinstance(before, dict)):
        return before if now == mine else now
    found = dict(now)
    for key in {**mine, **before}:
        if mine.get(key) == before.get(key) and (key in mine) == (key in before):
            continue
        if key != _EMBEDDING_FUNCTION and all(key in each for each in (now, mine, before)):
            found[key] = undone(now[key], mine[key], before[key])
        elif (key in now) == (key in mine) and now.get(key) == mine.get(key):
            found.pop(key, None)
            if key in before:
                found[key] = before[key]
    return found


def undone_text(now: str, mine: str, before: str) -> str:
    """As `undone`, for JSON texts; an empty text is none. Its text stays where nothing changes."""
    if now == mine:
        return before
    if mine == before or not (now and mine and before):
        return now
    values = [json.loads(text) for text in (now, mine, before)]
    found = undone(*values)
    return now if found == values[0] else json.dumps(found, separators=(",", ":"))


def _index_change(part: str, wanted: Mapping[str, Any], current: object) -> dict[str, Any]:
    if not isinstance(current, dict):
        raise InvalidRequest(
            f"configuration {part}: the collection has no {part} index, and its kind cannot be "
            "changed; make another collection and copy the records"
        )
    found: dict[str, Any] = {}
    for key, value in wanted.items():
        name = f"configuration {part}.{key}"
        if value is None:
            continue
        if key in _CHANGEABLE[part]:
            _check_setting(name, value, _BOUNDS[part].get(key))
            found[key] = value
        elif key not in current:
            known = ", ".join(sorted(_CHANGEABLE[part]))
            raise InvalidRequest(f"{name} is not known; what can be changed is {known}")
        elif current[key] != value:
            raise InvalidRequest(
                f"{name} cannot be changed after a collection is created; make another "
                "collection and copy the records"
            )
    return found


def _check_setting(name: str, value: object, allowed: range | None) -> None:
    """A whole number in `allowed`; where that is None, any finite number."""
    if allowed is None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            raise InvalidRequest(f"{name} is not a finite number; send one such as 1.2")
    elif isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name} is not a whole number; send one without a fraction")
    elif value not in allowed:
        raise InvalidRequest(f"{name} is {value}, allowed are {allowed[0]} to {allowed[-1]}")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _check_function(function: Mapping[str, Any]) -> None:
    name = f"configuration {_EMBEDDING_FUNCTION}"
    kind = function.get("type")
    if kind not in _FUNCTION_TYPES:
        raise InvalidRequest(f"{name}.type is none of {', '.join(_FUNCTION_TYPES)}; send one")
    if kind == "known":
        if not isinstance(function.get("name"), str):
            raise InvalidRequest(f"{name}.name is not a text; send the function's name")
        if "config" not in function:
            raise InvalidRequest(f"{name}.config is not given; send an object such as {{}}")
    level: list[Any] = [function]
    for _ in range(_MAX_FUNCTION_NESTING):
        level = [
            child
            for value in level
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise InvalidRequest(
        f"{name} has more than {_MAX_FUNCTION_NESTING} objects and arrays inside one another; "
        "send a flatter one"
    )
