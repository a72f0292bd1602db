"""Rank expressions: against a naive twin of Chroma's RankDomain, and by hand."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.rank import (
    Applied,
    Constant,
    Expression,
    Fold,
    Folding,
    Function,
    Knn,
    Pair,
    Pairing,
    Scored,
    evaluate,
    knn_parts,
)

F32 = np.float32


def knn(default: float | None = None, *, return_rank: bool = False) -> Knn:
    return Knn(b"", 16, default, return_rank)


# --- the naive twin: dictionaries of scalars, as the Rust has them --------------------------------

Naive = tuple[dict[str, F32], F32 | None]


def naive_merge(left: Naive, right: Naive, of: Callable[[Any, Any], Any]) -> Naive:
    (lefts, left_default), (rights, right_default) = left, right
    if left_default is not None and right_default is not None:
        ids = set(lefts) | set(rights)
        default = of(left_default, right_default)
    elif left_default is not None:
        ids, default = set(rights), None
    elif right_default is not None:
        ids, default = set(lefts), None
    else:
        ids, default = set(lefts) & set(rights), None
    values = {i: of(lefts.get(i, left_default), rights.get(i, right_default)) for i in ids}
    return values, default


def naive_larger(a: Any, b: Any) -> Any:
    return b if math.isnan(a) or b > a else a


def naive_smaller(a: Any, b: Any) -> Any:
    return b if math.isnan(a) or b < a else a


BEGIN = {
    Folding.SUM: (F32(0), lambda a, b: a + b),
    Folding.PRODUCT: (F32(1), lambda a, b: a * b),
    Folding.MAXIMUM: (F32(-3.4028235e38), naive_larger),
    Folding.MINIMUM: (F32(3.4028235e38), naive_smaller),
}


def naive(expression: Expression, lists: list[Sequence[Scored]]) -> Naive:
    match expression:
        case Knn(_, _, fallback, return_rank):
            found = lists.pop(0)
            values = {i: F32(n if return_rank else d) for n, (d, i) in enumerate(found)}
            return values, None if fallback is None else F32(fallback)
        case Constant(value):
            return {}, F32(value)
        case Fold(folding, parts):
            begin, of = BEGIN[folding]
            result: Naive = ({}, begin)
            for part in parts:
                result = naive_merge(result, naive(part, lists), of)
            return result
        case Pair(pairing, left, right):
            sides = naive(left, lists), naive(right, lists)
            if pairing is Pairing.DIFFERENCE:
                return naive_merge(*sides, lambda a, b: a - b)
            return naive_merge(*sides, lambda a, b: a / b)
        case Applied(function, part):
            values, default = naive(part, lists)
            call: Any = {"absolute": abs, "exponential": np.exp, "logarithm": np.log}[function]
            mapped = {i: call(v) for i, v in values.items()}
            return mapped, None if default is None else call(default)
    raise AssertionError(expression)


def total(score: float) -> tuple[bool, float, float]:
    return (math.isnan(score), 0.0 if math.isnan(score) else score, math.copysign(1, score))


numbers = st.floats(-4, 4, width=32) | st.sampled_from([0.0, -0.0, 1.0, 1e30, -1e30])
knns = st.builds(Knn, st.just(b""), st.just(16), st.none() | numbers, return_rank=st.booleans())
expressions = st.recursive(
    knns | st.builds(Constant, numbers),
    lambda inner: st.one_of(
        st.builds(
            Fold,
            st.sampled_from(list(Folding)),
            st.lists(inner, min_size=1, max_size=3).map(tuple),
        ),
        st.builds(Pair, st.sampled_from(list(Pairing)), inner, inner),
        st.builds(Applied, st.sampled_from(list(Function)), inner),
    ),
    max_leaves=8,
)
candidate_lists = st.lists(
    st.tuples(numbers, st.sampled_from("abcdefgh")), max_size=6, unique_by=lambda found: found[1]
).map(sorted)


@settings(max_examples=500)
@given(expressions, st.data())
def test_as_the_naive_twin(expression: Expression, data: st.DataObject) -> None:
    lists = [data.draw(candidate_lists) for _ in knn_parts(expression)]
    with np.errstate(all="ignore"):
        values, _ = naive(expression, list(lists))
    got = evaluate(expression, lists)
    assert {i for _, i in got} == set(values)
    for score, record_id in got:
        expected = float(values[record_id])
        # exp and log of whole arrays may differ from those of scalars in the last bit.
        np.testing.assert_allclose(score, expected, rtol=1e-5)
    order = [(*total(score)[:2], math.isnan(score) or total(score)[2], i) for score, i in got]
    assert order == sorted(order)


def test_what_a_part_without_default_does_not_bring_is_left_out() -> None:
    both = Fold(Folding.SUM, (knn(), knn()))
    near, far = [(1.0, "a"), (2.0, "b")], [(3.0, "b"), (4.0, "c")]
    assert evaluate(both, [near, far]) == [(5.0, "b")]
    left = Fold(Folding.SUM, (knn(10.0), knn()))
    assert evaluate(left, [near, far]) == [(5.0, "b"), (14.0, "c")]
    either = Fold(Folding.SUM, (knn(10.0), knn(20.0)))
    assert evaluate(either, [near, far]) == [(5.0, "b"), (14.0, "c"), (21.0, "a")]


def test_a_rank_that_brings_no_record_has_no_hits() -> None:
    assert evaluate(Constant(1.0), []) == []
    assert evaluate(Fold(Folding.SUM, (Constant(1.0), Constant(2.0))), []) == []
    assert evaluate(knn(5.0), [[]]) == []


def rrf(weights: Sequence[float], k: float, defaults: Sequence[float | None]) -> Expression:
    """What chromadb's Rrf.to_dict makes: -sum(weight / (k + rank))."""
    terms = [
        Pair(
            Pairing.QUOTIENT,
            Constant(weight),
            Fold(Folding.SUM, (Constant(k), knn(default, return_rank=True))),
        )
        for weight, default in zip(weights, defaults, strict=True)
    ]
    inner = terms[0] if len(terms) == 1 else Fold(Folding.SUM, tuple(terms))
    return Fold(Folding.PRODUCT, (Constant(-1), inner))


def test_reciprocal_rank_fusion_by_hand() -> None:
    # By place: a is 0th and 2nd, b is 1st and 0th; c and d stand in one list alone, at place 100
    # in the other.
    first = [(0.1, "a"), (0.2, "b"), (0.3, "c")]
    second = [(0.5, "b"), (0.6, "d"), (0.7, "a")]
    got = evaluate(rrf([1, 1], 60, [100, 100]), [first, second])
    by_hand = {
        "a": -(1 / 60 + 1 / 62),  # 0.032796
        "b": -(1 / 61 + 1 / 60),  # 0.033060
        "c": -(1 / 62 + 1 / 160),  # 0.022379
        "d": -(1 / 160 + 1 / 61),  # 0.022643
    }
    assert [i for _, i in got] == ["b", "a", "d", "c"]
    assert [score for score, _ in got] == pytest.approx([by_hand[i] for _, i in got], rel=1e-6)
    # Without defaults only what both bring; a weight of 3 on the first list turns a and b round.
    got = evaluate(rrf([3, 1], 60, [None, None]), [first, second])
    assert [i for _, i in got] == ["a", "b"]
    assert got[0][0] == pytest.approx(-(3 / 60 + 1 / 62), rel=1e-6)


def test_arithmetic_is_in_float32() -> None:
    tiny = Fold(Folding.SUM, (knn(), Constant(16_777_216.0)))
    assert evaluate(tiny, [[(1.0, "a")]]) == [(16_777_216.0, "a")]
    tenth = evaluate(knn(), [[(0.1, "a")]])
    assert tenth == [(float(F32(0.1)), "a")]


def test_ties_signed_zeros_infinities_and_what_is_no_number() -> None:
    inverse = Pair(Pairing.QUOTIENT, Constant(1.0), knn())
    got = evaluate(inverse, [[(-0.0, "n"), (0.0, "p"), (1.0, "z"), (1.0, "y")]])
    assert got == [(-math.inf, "n"), (1.0, "y"), (1.0, "z"), (math.inf, "p")]
    logarithm = Applied(Function.LOGARITHM, knn())
    got = evaluate(logarithm, [[(-1.0, "b"), (-2.0, "a"), (0.0, "c"), (1.0, "d")]])
    assert [i for _, i in got] == ["c", "d", "a", "b"]
    assert math.isnan(got[-1][0])
    zeros = evaluate(knn(), [[(0.0, "a"), (-0.0, "b")]])
    assert [i for _, i in zeros] == ["b", "a"]
    clamped = Fold(Folding.MAXIMUM, (logarithm, Constant(-5.0)))
    assert evaluate(clamped, [[(-1.0, "a")]]) == [(-5.0, "a")]


@pytest.mark.parametrize("lists", [[], [[], []]])
def test_another_number_of_candidate_lists(lists: list[list[Scored]]) -> None:
    with pytest.raises(ValueError, match="lists of candidates"):
        evaluate(knn(), lists)
