"""Grouping against a naive twin: the groups do what the operations would have done one by one."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from chroma_router.wire.records import RecordColumns
from shard_node.grouping import GroupLimits, take
from shard_node.operations import Kind, Write

LIMITS = GroupLimits(rows=6, floats=24)

ids = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5, unique=True)


@st.composite
def writes(draw: st.DrawFn) -> Write:
    names = draw(ids)
    kind = draw(st.sampled_from(Kind))
    vector = bytes(4 * draw(st.sampled_from([4, 8])))
    records = [RecordColumns(i, vector, None, None, None) for i in names]
    return Write(
        collection_id=draw(st.sampled_from(["c1", "c1", "c2"])),
        epoch=draw(st.sampled_from([1, 1, 1, 2])),
        kind=kind,
        request_id=draw(st.sampled_from(["q1", "q2", "q3", "q4"])),
        index=draw(st.integers(0, 3)),
        ids=names,
        slots=[0] * len(names),
        records=[] if kind is Kind.DELETE else records,
        where="{}" if kind is Kind.DELETE and draw(st.booleans()) else "",
    )


def groups_of(waiting: list[Write]) -> list[list[Write]]:
    groups: list[list[Write]] = []
    while waiting:
        group = take(waiting, LIMITS)
        groups.append(group)
        waiting = waiting[len(group) :]
    return groups


def fits(group: list[Write]) -> bool:
    """The rules, said once more and without regard to cost."""
    names = [i for write in group for i in write.ids]
    floats = max(write.dimension for write in group) * len(names)
    return len(group) == 1 or (
        len({(w.kind, w.collection_id, w.epoch) for w in group}) == 1
        and not any(w.conditional for w in group)
        and len({(w.request_id, w.index) for w in group}) == len(group)
        and len(set(names)) == len(names)
        and len(names) <= LIMITS.rows
        and floats <= LIMITS.floats
    )


@given(st.lists(writes(), max_size=12))
def test_groups_are_whole_in_order_right_and_as_large_as_can_be(waiting: list[Write]) -> None:
    groups = groups_of(waiting)
    assert [write for group in groups for write in group] == waiting
    assert all(fits(group) for group in groups)
    assert not any(fits([*group, following[0]]) for group, following in pairwise(groups))


def test_the_first_is_taken_whatever_its_size() -> None:
    names = [f"r{n}" for n in range(100)]
    large = Write("c", 1, Kind.DELETE, "q", 0, names, [0] * 100)
    assert take([large], LIMITS) == [large]


def test_nothing_waits() -> None:
    assert take([], LIMITS) == []


def test_rows_scale_with_the_dimension() -> None:
    limits = GroupLimits(rows=1000, floats=100 * 384)
    assert [limits.rows_for(d) for d in (0, 1, 384, 1536, 65535)] == [1000, 1000, 100, 25, 1]
