"""Conditions on the key "#id" in a search's `where` become the filter's list of ids. Pure.

Chroma Cloud takes "#id" for the record's id; the engine takes it for a metadata key, which no
record has. So what can be said as a list of ids is taken out of the condition before a shard sees
it, and what cannot is refused: answering it by the engine would be silently wrong.
"""

import json
from typing import NoReturn

from chroma_router.v1 import types_pb2
from chroma_router.wire.errors import Unsupported

ID_KEY = "#id"

_Ids = dict[str, None]  # a set that keeps its order


def with_ids_lifted(chosen: types_pb2.Filter) -> types_pb2.Filter:
    """The same choice without conditions on "#id". `chosen` has passed check_filter.

    Raises Unsupported for a condition on "#id" with another operator than $eq and $in, or inside
    $or.
    """
    if not chosen.where:
        return chosen
    ids, rest = _split(json.loads(chosen.where))
    if ids is None:
        return chosen
    if chosen.by_ids:
        ids = {record_id: None for record_id in chosen.ids if record_id in ids}
    return types_pb2.Filter(
        ids=ids,
        by_ids=True,
        where="" if rest is None else json.dumps(rest),
        where_document=chosen.where_document,
    )


def _split(clause: dict[str, object]) -> tuple[_Ids | None, dict[str, object] | None]:
    """The ids that a clause allows (None: all) and what remains of it (None: nothing).

    Recursive: check_filter has bounded the nesting.
    """
    ((key, value),) = clause.items()
    if key == ID_KEY:
        ids = _ids_of(value)
        return (None, clause) if ids is None else (ids, None)
    if key == "$or":
        assert isinstance(value, list)
        if any(_split(child)[0] is not None for child in value):
            _refuse("inside $or")
        return None, clause
    if key != "$and":
        return None, clause
    assert isinstance(value, list)
    allowed: _Ids | None = None
    rest: list[object] = []
    for child in value:
        ids, remains = _split(child)
        if ids is not None:
            allowed = ids if allowed is None else {i: None for i in allowed if i in ids}
        if remains is not None:
            rest.append(remains)
    if allowed is None:
        return None, clause
    if len(rest) < 2:
        return allowed, rest[0] if rest else None  # type: ignore[return-value]
    return allowed, {"$and": rest}


def _ids_of(condition: object) -> _Ids | None:
    """The ids that a condition on "#id" allows; None: the engine's answer to it is right.

    It is where ids are compared with what is no text: a key that no record has is never equal.
    """
    operator, operand = "$eq", condition
    if isinstance(condition, dict):
        ((operator, operand),) = condition.items()
    texts = operand if isinstance(operand, list) else [operand]
    if operator in ("$eq", "$in", "$ne", "$nin") and not isinstance(texts[0], str):
        return None
    if operator not in ("$eq", "$in"):
        _refuse(f"as {operator}")
    return dict.fromkeys(texts)


def _refuse(where: str) -> NoReturn:
    raise Unsupported(
        f'where: a condition on "{ID_KEY}" {where} is not implemented; use $eq or $in, alone or '
        "joined with the rest by $and"
    )
