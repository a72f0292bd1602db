"""chromadb's Search objects as messages of the contract. Pure.

They are read through their own `to_dict`, the form in which Chroma Cloud gets them: it checks them,
embeds nothing, and has made an Rrf the sum that it is.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from chroma_router.columns import embedding_rows
from chroma_router.errors import InvalidArgumentError, unsupported
from chroma_router.v1 import records_pb2

MAX_NESTING = 40
"""Expressions inside one another that the contract allows."""

EMBEDDING_KEY = "#embedding"

_MAX_UINT32 = 2**32 - 1
_FOLDS = {"$sum": "sum", "$mul": "product", "$max": "maximum", "$min": "minimum"}
_PAIRS = {"$sub": "difference", "$div": "quotient"}
_FUNCTIONS = {"$abs": "absolute", "$exp": "exponential", "$log": "logarithm"}


def fill_search(
    into: records_pb2.Search, payload: Mapping[str, Any], to_json: Callable[[str, Any], str]
) -> None:
    """Writes what Search.to_dict() gave into a message. `to_json` writes a condition by its name.

    Raises InvalidArgumentError, and UnsupportedError for what only Chroma Cloud has: sparse
    vectors, and vectors under other keys than "#embedding".
    """
    if payload["filter"]:
        into.filter.where = to_json("where", _joined(payload["filter"]))
    if payload["rank"] is not None:
        _fill_rank(into.rank, payload["rank"], 1)
    if payload["group_by"]:
        _fill_group_by(into.group_by, payload["group_by"])
    limit = payload["limit"].get("limit")
    if limit is not None:
        into.limit = _number("limit", limit)
    into.offset = _number("offset", payload["limit"]["offset"])
    into.select.extend(payload["select"]["keys"])


def _joined(where: dict[str, Any]) -> dict[str, Any]:
    """The condition without $and and $or of one: the contract's grammar joins at least two."""
    for joiner in ("$and", "$or"):
        if joiner in where:
            children = [_joined(child) for child in where[joiner]]
            return children[0] if len(children) == 1 else {joiner: children}
    return where


def _fill_rank(into: records_pb2.Rank, rank: Mapping[str, Any], depth: int) -> None:
    if depth > MAX_NESTING:
        raise InvalidArgumentError(
            f"rank: more than {MAX_NESTING} expressions inside one another; add, multiply or "
            "compare many in one step instead of nesting them"
        )
    ((operator, operand),) = rank.items()
    if operator == "$knn":
        _fill_knn(into.knn, operand)
    elif operator == "$val":
        into.value = _real("$val", operand)
    elif operator in _FOLDS:
        parts = getattr(into, _FOLDS[operator]).parts
        getattr(into, _FOLDS[operator]).SetInParent()
        for part in operand:
            _fill_rank(parts.add(), part, depth + 1)
    elif operator in _PAIRS:
        pair = getattr(into, _PAIRS[operator])
        _fill_rank(pair.left, operand["left"], depth + 1)
        _fill_rank(pair.right, operand["right"], depth + 1)
    elif operator in _FUNCTIONS:
        _fill_rank(getattr(into, _FUNCTIONS[operator]), operand, depth + 1)
    else:
        raise unsupported(f"The rank operator {operator!r}")


def _fill_knn(into: records_pb2.KnnRank, knn: Mapping[str, Any]) -> None:
    query, key = knn["query"], knn["key"]
    if isinstance(query, dict):
        raise unsupported("Searching sparse vectors")
    if key != EMBEDDING_KEY:
        raise unsupported(f"Knn over the key {key!r} (only {EMBEDDING_KEY!r} is)")
    if isinstance(query, str):
        raise InvalidArgumentError(
            "a Knn's query is a text; search through a Collection, which embeds it, or give a "
            "vector"
        )
    (into.embedding,) = embedding_rows(cast("Any", [query]))
    into.limit = _number("Knn's limit", knn["limit"])
    if knn.get("default") is not None:
        into.default_value = _real("Knn's default", knn["default"])
    into.return_rank = bool(knn.get("return_rank"))


def _fill_group_by(into: records_pb2.GroupBy, group_by: Mapping[str, Any]) -> None:
    ((operator, aggregate),) = group_by["aggregate"].items()
    if operator not in ("$min_k", "$max_k"):
        raise unsupported(f"The aggregate {operator!r}")
    into.keys.extend(group_by["keys"])
    into.order_by.extend(aggregate["keys"])
    into.keep = _number("group_by's k", aggregate["k"])
    into.largest = operator == "$max_k"


def _number(name: str, value: object) -> int:
    """A number that fits the contract's uint32."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InvalidArgumentError(f"{name} must be a whole number, got {value!r}")
    if not 0 <= value <= _MAX_UINT32:
        raise InvalidArgumentError(f"{name} must be a number from 0 to {_MAX_UINT32}, got {value}")
    return int(value)


def _real(name: str, value: object) -> float:
    """A number as a float; one beyond float32 becomes infinite, which the cluster refuses."""
    if not isinstance(value, int | float | np.integer | np.floating):
        raise InvalidArgumentError(f"{name} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        return float("inf")
