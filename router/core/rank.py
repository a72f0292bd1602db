"""Rank expressions: what gives a record its score in a search. Pure; arithmetic is in float32.

The rules are those of Chroma Cloud (rust/worker/src/execution/operators/rank.rs at tag 1.5.9). Each
part of an expression has a domain: the values of the records that its nearest-neighbour parts
brought, and perhaps a default for all other records. Where domains meet, a record that one of them
brought stays if each has a value for it, its own or the default. What comes out are the records
that were brought: a default alone makes no record a hit, so an expression without a
nearest-neighbour part has none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Scored: TypeAlias = tuple[float, str]
"""A distance or a score, and the id of the record that has it."""

_Floats: TypeAlias = npt.NDArray[np.float32]
_Flags: TypeAlias = npt.NDArray[np.bool_]
_Operation: TypeAlias = Callable[..., Any]

_LARGEST = float(np.finfo(np.float32).max)


class Folding(StrEnum):
    """What is made of one or more parts."""

    SUM = "sum"
    PRODUCT = "product"
    MAXIMUM = "maximum"
    MINIMUM = "minimum"


class Pairing(StrEnum):
    """What is made of two parts."""

    DIFFERENCE = "difference"
    QUOTIENT = "quotient"


class Function(StrEnum):
    """What is made of one part."""

    ABSOLUTE = "absolute"
    EXPONENTIAL = "exponential"
    LOGARITHM = "logarithm"


@dataclass(frozen=True, slots=True)
class Knn:
    """The `limit` records nearest to an embedding: their distance, or their place from 0."""

    embedding: bytes
    limit: int
    default: float | None
    """The value of every other record; None: it has none."""
    return_rank: bool


@dataclass(frozen=True, slots=True)
class Constant:
    """One value for every record."""

    value: float


@dataclass(frozen=True, slots=True)
class Fold:
    """One or more parts made one."""

    folding: Folding
    parts: "tuple[Expression, ...]"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two parts made one."""

    pairing: Pairing
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True, slots=True)
class Applied:
    """A function of one part."""

    function: Function
    part: "Expression"


Expression: TypeAlias = Knn | Constant | Fold | Pair | Applied


def knn_parts(expression: Expression) -> list[Knn]:
    """The nearest-neighbour parts, in the order in which `evaluate` takes their candidates."""
    match expression:
        case Knn():
            return [expression]
        case Constant():
            return []
        case Fold(_, parts):
            return [knn for part in parts for knn in knn_parts(part)]
        case Pair(_, left, right):
            return knn_parts(left) + knn_parts(right)
        case Applied(_, part):
            return knn_parts(part)


def evaluate(expression: Expression, candidates: Sequence[Sequence[Scored]]) -> list[Scored]:
    """The records that get a score, with it; best (lowest) first.

    `candidates` are those of each of `knn_parts(expression)`, nearest first. Equal scores come in
    the order of ids, -0.0 before 0.0; a score that is not a number (0 / 0, the logarithm of a
    negative number) comes last. Raises ValueError for another number of candidate lists.
    """
    # In the order of ids, so that a stable sort by score alone settles ties.
    ids = sorted({record_id for part in candidates for _, record_id in part})
    places = {record_id: place for place, record_id in enumerate(ids)}
    parts = iter(candidates)
    with np.errstate(all="ignore"):  # infinities and NaN are values here, as in Rust
        domain = _evaluate(expression, places, parts)
    if next(parts, None) is not None:
        raise ValueError("more lists of candidates than nearest-neighbour parts")
    (brought,) = np.nonzero(domain.brought)
    order = brought[np.argsort(_total_order(domain.values[brought]), kind="stable")]
    return [(float(domain.values[place]), ids[place]) for place in order.tolist()]


@dataclass(frozen=True, slots=True)
class _Domain:
    """A part's value for each record that any part of the whole expression brought."""

    values: _Floats
    """Those that were not brought here have the default; without one, the value means nothing."""
    brought: _Flags
    default: np.float32 | None

    @property
    def defined(self) -> _Flags:
        """Which records have a value."""
        return self.brought if self.default is None else np.ones_like(self.brought)


def _larger(left: Any, right: Any) -> Any:
    """As Rust's f32::max: NaN only if both are. Of zeros, which np.fmax gives by their place in the
    array, the left one."""
    return np.where(np.isnan(left) | (right > left), right, left)


def _smaller(left: Any, right: Any) -> Any:
    """As Rust's f32::min, and as _larger."""
    return np.where(np.isnan(left) | (right < left), right, left)


_FOLDINGS: Mapping[Folding, tuple[_Operation, float]] = {
    # With what each begins, as in Rust: a maximum is never below the least finite number.
    Folding.SUM: (np.add, 0.0),
    Folding.PRODUCT: (np.multiply, 1.0),
    Folding.MAXIMUM: (_larger, -_LARGEST),
    Folding.MINIMUM: (_smaller, _LARGEST),
}
_PAIRINGS: Mapping[Pairing, _Operation] = {
    Pairing.DIFFERENCE: np.subtract,
    Pairing.QUOTIENT: np.divide,
}
_FUNCTIONS: Mapping[Function, _Operation] = {
    Function.ABSOLUTE: np.abs,
    Function.EXPONENTIAL: np.exp,
    Function.LOGARITHM: np.log,
}


def _evaluate(
    expression: Expression, places: Mapping[str, int], candidates: Iterator[Sequence[Scored]]
) -> _Domain:
    """Recursive: whoever builds expressions bounds their nesting."""
    match expression:
        case Knn():
            found = next(candidates, None)
            if found is None:
                raise ValueError("fewer lists of candidates than nearest-neighbour parts")
            return _found(expression, places, found)
        case Constant(value):
            return _flat(value, len(places))
        case Fold(folding, parts):
            operation, begin = _FOLDINGS[folding]
            return reduce(
                lambda left, right: _merged(left, right, operation),
                [_evaluate(part, places, candidates) for part in parts],
                _flat(begin, len(places)),
            )
        case Pair(pairing, left, right):
            return _merged(
                _evaluate(left, places, candidates),
                _evaluate(right, places, candidates),
                _PAIRINGS[pairing],
            )
        case Applied(function, part):
            domain, of = _evaluate(part, places, candidates), _FUNCTIONS[function]
            default = None if domain.default is None else of(domain.default)
            return _Domain(of(domain.values), domain.brought, default)


def _found(knn: Knn, places: Mapping[str, int], found: Sequence[Scored]) -> _Domain:
    default = None if knn.default is None else np.float32(knn.default)
    values = np.full(len(places), np.float32(0) if default is None else default, np.float32)
    brought = np.zeros(len(places), np.bool_)
    at = [places[record_id] for _, record_id in found]
    brought[at] = True
    values[at] = range(len(at)) if knn.return_rank else [distance for distance, _ in found]
    return _Domain(values, brought, default)


def _flat(value: float, size: int) -> _Domain:
    number = np.float32(value)
    return _Domain(np.full(size, number, np.float32), np.zeros(size, np.bool_), number)


def _merged(left: _Domain, right: _Domain, operation: _Operation) -> _Domain:
    default = None
    if left.default is not None and right.default is not None:
        default = operation(left.default, right.default)
    return _Domain(
        operation(left.values, right.values),
        (left.brought | right.brought) & left.defined & right.defined,
        default,
    )


def _total_order(scores: _Floats) -> npt.NDArray[np.int32]:
    """Integers in the order of the scores, NaN last.

    It is IEEE 754's total order, as Chroma sorts, but for the sign of a NaN: which one an invalid
    operation gives depends on the processor.
    """
    bits = np.where(np.isnan(scores), np.float32(np.nan), scores).view(np.int32)
    order: npt.NDArray[np.int32] = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return order
