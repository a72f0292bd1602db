"""The order of batches that share ids, against a twin that looks at every batch before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.batch_order import BatchOrder


class Naive:
    """A batch may start when no earlier one that is not done has an id of its own."""

    def __init__(self) -> None:
        self.left: dict[int, set[str]] = {}

    def may_start(self, batch: int) -> bool:
        earlier = (ids for number, ids in self.left.items() if number < batch)
        return all(self.left[batch].isdisjoint(ids) for ids in earlier)

    def free(self) -> set[int]:
        return {batch for batch in self.left if self.may_start(batch)}


@given(st.lists(st.sets(st.sampled_from("abcdefg"), max_size=4), max_size=30), st.data())
def test_as_the_naive_twin(batches: list[set[str]], data: st.DataObject) -> None:
    order, twin = BatchOrder(), Naive()
    started: set[int] = set()
    coming = list(enumerate(batches))
    while coming or started:
        if coming and (not started or data.draw(st.booleans(), "arrives")):
            number, ids = coming.pop(0)
            twin.left[number] = ids
            if order.arrive(number, iter(ids)):
                started.add(number)
        else:
            number = data.draw(st.sampled_from(sorted(started)), "done")
            started.remove(number)
            del twin.left[number]
            freed = order.done(number)
            assert freed == sorted(freed)
            assert started.isdisjoint(freed)
            started.update(freed)
        assert started == twin.free()
    assert not twin.left, "every batch had its turn"


@given(st.lists(st.sets(st.sampled_from("abc"), max_size=2), max_size=20))
def test_nothing_is_kept_of_what_is_done(batches: list[set[str]]) -> None:
    order = BatchOrder()
    started = [number for number, ids in enumerate(batches) if order.arrive(number, ids)]
    while started:
        started += order.done(started.pop(0))
    assert not any(vars(order).values())


def test_misuse_is_told() -> None:
    order = BatchOrder()
    assert order.arrive(1, "a")
    assert not order.arrive(2, "a")
    with pytest.raises(ValueError, match="arrives after"):
        order.arrive(2, "b")
    with pytest.raises(ValueError, match="before it may start"):
        order.done(2)
    assert order.done(1) == [2]
