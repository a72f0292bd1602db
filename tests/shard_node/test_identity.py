"""The identity of an operation: a repeat takes effect once, and what a node tells of it."""

import pytest

from chroma_router.wire.slots import slot_of
from tests.shard_node.running import (
    ADD,
    ALL_SLOTS,
    DELETE,
    CollectionCalls,
    Node,
    Row,
    floats,
    uuid7,
)
from tests.shard_node.test_calls import rows

pytestmark = pytest.mark.integration


def test_a_repeat_takes_effect_once(docs: CollectionCalls) -> None:
    add = docs.operation(ADD, [Row("a", floats(1), sequence=1)], uuid7())
    delete = docs.operation(DELETE, ["a"], uuid7())
    docs.apply(add)
    docs.apply(delete)
    docs.apply(add)  # a late repeat of the first
    assert docs.count() == 0
    docs.write(ADD, Row("a", floats(2), sequence=3))
    docs.apply(delete, delete)
    assert docs.ids() == ["a"]


def test_a_repeated_conditional_delete_counts_what_it_deleted(docs: CollectionCalls) -> None:
    docs.write(ADD, *rows(6))
    everything = [f"r{n}" for n in range(6)]
    operation = docs.operation(DELETE, everything, uuid7(), where='{"even":true}')
    assert docs.apply(operation)[0].deleted == 3
    docs.write(ADD, Row("r0", floats(1, 1), metadata={"even": True}, sequence=9))
    assert docs.apply(operation)[0].deleted == 3
    assert docs.count() == 4


def test_operations_of_one_request_are_told_apart_by_index(docs: CollectionCalls) -> None:
    request_id = uuid7()
    results = docs.apply(
        *(docs.operation(ADD, [Row(f"r{n}", floats(1))], request_id, n) for n in range(3))
    )
    assert [r.refused_reason for r in results] == ["", "", ""]
    assert docs.count() == 3


def test_past_the_retry_window_the_outcome_is_unknown(docs: CollectionCalls) -> None:
    old = docs.operation(ADD, [Row("a", floats(1))], uuid7(age_seconds=901))
    assert docs.apply(old)[0].refused_reason == "UNKNOWN_OUTCOME"
    young = docs.operation(ADD, [Row("a", floats(1))], uuid7(age_seconds=890))
    assert docs.apply(young)[0].refused_reason == ""


def test_a_repeat_whose_ids_are_all_remembered_matches_nothing_else(
    docs: CollectionCalls,
) -> None:
    everything = rows(40)
    docs.write(ADD, *everything)
    mine = everything[0]
    docs.own(frozenset({slot_of(mine.id)}), epoch=2)
    delete = docs.operation(DELETE, [mine.id], uuid7(), where='{"n":{"$gte":0}}')
    assert docs.apply(delete)[0].deleted == 1
    docs.own(ALL_SLOTS, epoch=3)  # now other slots are owned, and not remembered
    delete.epoch = 3
    assert docs.apply(delete)[0].deleted == 1
    assert docs.count() == 39


@pytest.mark.parametrize("digest", [0, 1, 2**63, 2**64 - 1])
def test_a_request_id_is_for_one_request_only(node: Node, digest: int) -> None:
    docs, other = node.collection(), node.collection()
    request_id = uuid7()
    add = docs.operation(ADD, [Row("a", floats(1))], request_id, digest=digest)
    assert docs.apply(add)[0].refused_reason == ""
    for foreign in (
        docs.operation(ADD, [Row("b", floats(1))], request_id, digest=digest ^ 1),
        docs.operation(DELETE, ["a"], request_id, digest=digest ^ (1 << 63)),
        other.operation(ADD, [Row("c", floats(1))], request_id, digest=digest ^ 1),
    ):
        (result,) = docs.apply(foreign)
        assert result.refused_reason == "INVALID_ARGUMENT"
        assert result.message == (
            f"request id {request_id} was used for another request; use a new one"
        )
    assert docs.apply(add)[0].refused_reason == ""
    assert (docs.ids(), other.ids()) == (["a"], [])


def test_two_requests_with_one_id_in_one_call(docs: CollectionCalls) -> None:
    request_id = uuid7()
    results = docs.apply(
        docs.operation(ADD, [Row("a", floats(1))], request_id, digest=1),
        docs.operation(ADD, [Row("b", floats(1))], request_id, digest=2),
        docs.operation(ADD, [Row("c", floats(1))], request_id, index=1, digest=1),
    )
    assert [r.refused_reason for r in results] == ["", "INVALID_ARGUMENT", ""]
    assert docs.ids() == ["a", "c"]


def test_a_request_from_the_future_is_refused(docs: CollectionCalls) -> None:
    """Else its outcome could be forgotten before a repeat of it is judged too old."""
    (result,) = docs.apply(docs.operation(ADD, [Row("a", floats(1))], uuid7(age_seconds=-62)))
    assert result.refused_reason == "INVALID_ARGUMENT"
    assert "clock" in result.message
    docs.write(ADD, Row("b", floats(1)), request_id=uuid7(age_seconds=-55))
    assert docs.ids() == ["b"]


def told(docs: CollectionCalls, request_id: str) -> tuple[int, bool]:
    page = docs.page(keys_only=True, deleted_by=request_id)
    return page.deleted_before, page.delete_complete


def test_a_get_tells_what_a_delete_has_done(node: Node) -> None:
    docs, other = node.collection(), node.collection()
    docs.write(ADD, *rows(40))
    request_id = uuid7()
    assert told(docs, request_id) == (0, False)
    docs.write(DELETE, *(f"r{n}" for n in range(9)), where='{"even":true}', request_id=request_id)
    assert told(docs, request_id) == (5, True)
    docs.write(DELETE, "r10", "r12", where='{"even":true}', request_id=request_id, index=1)
    assert told(docs, request_id) == (7, True)
    assert told(docs, uuid7()) == (0, False)
    assert told(other, request_id) == (0, False)
    plain = docs.page(keys_only=True)
    assert (plain.deleted_before, plain.delete_complete) == (0, False)


def test_a_delete_is_complete_for_the_slots_owned_now(docs: CollectionCalls) -> None:
    docs.write(ADD, *rows(40))
    few = frozenset(slot_of(f"r{n}") for n in range(10))
    docs.own(few, epoch=2)
    request_id = uuid7()
    deleted = docs.write(DELETE, where='{"n":{"$gte":0}}', request_id=request_id).deleted
    assert told(docs, request_id) == (deleted, True)
    docs.own(ALL_SLOTS, epoch=3)
    assert told(docs, request_id) == (deleted, False)
    docs.write(DELETE, where='{"n":{"$gte":0}}', request_id=request_id)
    assert told(docs, request_id) == (40, True)
    # What it has deleted of other slots is told by the shard that owns them now.
    docs.own(few, epoch=4)
    assert told(docs, request_id) == (deleted, True)
    again = docs.write(DELETE, where='{"n":{"$gte":0}}', request_id=request_id)
    assert again.deleted == deleted
    docs.own(frozenset(), epoch=5)
    assert told(docs, request_id) == (0, True)


def test_a_delete_that_matched_nothing_is_complete(docs: CollectionCalls) -> None:
    request_id = uuid7()
    docs.write(DELETE, where='{"n":{"$gte":0}}', request_id=request_id)
    assert told(docs, request_id) == (0, True)
