"""Checks filters against the grammar of Chroma's `where` and `where_document` languages.

The engine refuses a bad filter with "Invalid where clause" and no more. Here the same is refused
(rust/types/src/where_parsing.rs at tag 1.5.9, and the Python client's rules that $and and $or join
at least two and that a document's pattern is not empty), before any shard is asked, with the place
and the mend. Only a $regex's own syntax is left to the engine.
"""

import json
import math
from collections.abc import Callable
from typing import NoReturn

from chroma_router.wire.errors import InvalidRequest
from router.core.limits import Limits

_JOINERS = ("$and", "$or")
_ORDERINGS = ("$gt", "$gte", "$lt", "$lte")
_SETS = ("$in", "$nin")
_CONTAINS = ("$contains", "$not_contains")
_REGEXES = ("$regex", "$not_regex")
_FIELD_OPERATORS = ("$eq", "$ne", *_ORDERINGS, *_SETS, *_CONTAINS)
_DOCUMENT_OPERATORS = (*_CONTAINS, *_REGEXES)
_DOCUMENT_KEY = "#document"

_INT64 = range(-(2**63), 2**63)
_SHOWN_CHARACTERS = 80

# A clause's own check, given the one key, its value and the place of the clause.
_Leaf = Callable[[str, object, str], None]


def check_where(text: str, limits: Limits) -> None:
    """Raises InvalidRequest unless `text` is JSON of Chroma's `where` language."""
    _check_clause(_parse(text, "where", limits), "where", _check_field)


def check_where_document(text: str, limits: Limits) -> None:
    """Raises InvalidRequest unless `text` is JSON of Chroma's `where_document` language."""
    _check_clause(_parse(text, "where_document", limits), "where_document", _check_document)


def _parse(text: str, place: str, limits: Limits) -> object:
    size = len(text.encode())
    if size > limits.max_where_bytes:
        _refuse(place, f"{size} bytes, at most {limits.max_where_bytes} are allowed")
    try:
        value: object = json.loads(text, parse_constant=_refuse_constant)
        # A lone surrogate can be written as an escape but not stored or compared.
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        _refuse(place, f'not JSON ({error}); send an object such as {{"year": {{"$gte": 2001}}}}')
    except RecursionError:
        _refuse_nesting(place, limits)
    if _nesting(value) > limits.max_where_nesting:
        _refuse_nesting(place, limits)
    return value


def _check_clause(clause: object, place: str, check_leaf: _Leaf) -> None:
    """One clause and those it joins. Recursive: _parse has bounded the nesting."""
    if not isinstance(clause, dict) or len(clause) != 1:
        _refuse(
            place,
            f"expected an object with exactly one key, got {_shown(clause)}; join several "
            'conditions as {"$and": [..., ...]}',
        )
    ((key, value),) = clause.items()
    if key not in _JOINERS:
        check_leaf(key, value, place)
        return
    if not isinstance(value, list) or len(value) < 2:
        _refuse(place, f"{key} joins a list of at least two conditions, got {_shown(value)}")
    for index, child in enumerate(value):
        _check_clause(child, f"{place}.{key}[{index}]", check_leaf)


def _check_field(key: str, value: object, place: str) -> None:
    """{"key": value} or {"key": {"$operator": operand}}."""
    if key.startswith("$"):
        _refuse(
            place,
            f"{_shown(key)} is neither a metadata key nor one of {', '.join(_JOINERS)}; operators "
            'stand inside a key\'s condition: {"key": {"$eq": 1}}',
        )
    place = f"{place}[{_shown(key)}]"
    if not isinstance(value, dict):
        _check_scalar(value, place)
        return
    if len(value) != 1:
        _refuse(place, f"expected exactly one operator, got {_shown(value)}")
    ((operator, operand),) = value.items()
    if operator in _REGEXES and key == _DOCUMENT_KEY:
        _check_pattern(operator, operand, place)
    elif operator not in _FIELD_OPERATORS:
        _refuse(
            place, f"unknown operator {_shown(operator)}; use one of {', '.join(_FIELD_OPERATORS)}"
        )
    elif operator in _SETS:
        _check_set(operator, operand, place)
    elif operator in _CONTAINS and key == _DOCUMENT_KEY:
        _check_pattern(operator, operand, place)
    else:
        _check_scalar(operand, f"{place}.{operator}")
        if operator in _ORDERINGS and isinstance(operand, str | bool):
            _refuse(place, f"{operator} compares with a number, got {_shown(operand)}")


def _check_document(operator: str, operand: object, place: str) -> None:
    """{"$operator": "pattern"}."""
    if operator not in _DOCUMENT_OPERATORS:
        _refuse(
            place,
            f"unknown operator {_shown(operator)}; use one of "
            f"{', '.join(_DOCUMENT_OPERATORS + _JOINERS)}",
        )
    _check_pattern(operator, operand, place)
    if not operand:
        _refuse(place, f"{operator} takes a text that is not empty")


def _check_pattern(operator: str, operand: object, place: str) -> None:
    if not isinstance(operand, str):
        _refuse(place, f"{operator} takes a text, got {_shown(operand)}")


def _check_set(operator: str, operand: object, place: str) -> None:
    if not isinstance(operand, list) or not operand:
        _refuse(place, f"{operator} takes a non-empty list, got {_shown(operand)}")
    for value in operand:
        _check_scalar(value, f"{place}.{operator}")
    # The first element says what the list is of; a list of floats may hold integers.
    kind: type | tuple[type, ...] = type(operand[0])
    allowed = (float, int) if kind is float else (kind,)
    if any(type(value) not in allowed for value in operand):
        _refuse(place, f"{operator} takes values of one type, got {_shown(operand)}")


def _check_scalar(value: object, place: str) -> None:
    if isinstance(value, str | bool):
        return
    if isinstance(value, int):
        if value not in _INT64:
            _refuse(place, f"{_shown(value)} is no 64-bit signed integer")
    elif not isinstance(value, float) or not math.isfinite(value):
        _refuse(place, f"expected a text, a finite number, true or false, got {_shown(value)}")


def _nesting(value: object) -> int:
    """How many objects and arrays stand inside one another at most. Not recursive."""
    depth = 0
    level = [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [
            child for item in level for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _refuse_nesting(place: str, limits: Limits) -> NoReturn:
    _refuse(
        place,
        f"more than {limits.max_where_nesting} objects and arrays inside one another; write "
        '{"$and": [a, b, c]} instead of nesting',
    )


def _refuse(place: str, what: str) -> NoReturn:
    raise InvalidRequest(f"{place}: {what}")
