"""What is remembered of broad conditions is never wrong, and bounded."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chroma_router.v1 import types_pb2
from shard_node.holdings import Grant, Holding
from shard_node.selectivity import MAX_SCANNED, Selectivity
from shard_node.state import CollectionRow

ALL = Grant(1, bytes([1] * 1024))


def holding(number: int = 1) -> Holding:
    row = CollectionRow(number, f"c{number}", "p", 1, bytes(128), b"", 1, dropped=False)
    return Holding(row, "p", [0] * 1024)


def where(text: str = '{"a": 1}') -> types_pb2.Filter:
    return types_pb2.Filter(where=text)


@given(
    matching=st.integers(MAX_SCANNED + 1, 2000),
    changes=st.lists(st.integers(0, 400), max_size=12),
    data=st.data(),
)
def test_a_condition_is_called_broad_only_while_it_surely_is(
    matching: int, changes: list[int], data: Any
) -> None:
    docs, known = holding(), Selectivity()
    known.note(docs, ALL, where(), docs.changed, matching)
    least = matching
    for rows in changes:
        docs.changed += rows
        least -= rows  # at worst, each change takes one of them away
        if known.is_broad(docs, ALL, where()):
            assert least > MAX_SCANNED
        elif data.draw(st.booleans()):
            known.note(docs, ALL, where(), docs.changed, matching)
            least = matching


def test_it_is_of_one_condition_one_collection_and_one_grant() -> None:
    docs, known = holding(), Selectivity()
    known.note(docs, ALL, where(), 0, 5000)
    assert known.is_broad(docs, ALL, where())
    assert not known.is_broad(docs, ALL, where('{"a": 2}'))
    assert not known.is_broad(docs, ALL, types_pb2.Filter(where_document='{"a": 1}'))
    assert not known.is_broad(holding(2), ALL, where())
    assert not known.is_broad(docs, Grant(2, ALL.owned), where())
    assert not known.is_broad(docs, ALL, where())  # the old grant will not come back


def test_only_the_last_ones_are_remembered() -> None:
    docs, known = holding(), Selectivity()
    for n in range(600):
        known.note(docs, ALL, where(f'{{"a": {n}}}'), 0, 5000)
    remembered = [known.is_broad(docs, ALL, where(f'{{"a": {n}}}')) for n in range(600)]
    assert remembered == [False] * 88 + [True] * 512
    known.note(docs, ALL, where("x" * 5000), 0, 5000)
    assert not known.is_broad(docs, ALL, where("x" * 5000))
