"""Splitting ids by shard, against a naive twin."""

from hypothesis import given
from hypothesis import strategies as st

from chroma_router.wire.slots import slot_of
from router.core.plan import ids_by_shard, split_by_shard
from router.core.slot_map import SlotMap

SHARD_COUNTS = st.integers(1, 6)
IDS = st.lists(st.text(), max_size=40)


@given(SHARD_COUNTS, IDS)
def test_split_equals_the_naive_twin(count: int, ids: list[str]) -> None:
    slot_map = SlotMap.deal(1, [f"s{n}" for n in range(count)])
    expected = {
        shard: [p for p, record_id in enumerate(ids) if slot_map.owner(slot_of(record_id)) == shard]
        for shard in slot_map.shards
    }
    assert split_by_shard(slot_map, ids) == {s: part for s, part in expected.items() if part}


@given(SHARD_COUNTS, IDS)
def test_ids_are_those_of_the_positions(count: int, ids: list[str]) -> None:
    slot_map = SlotMap.deal(1, [f"s{n}" for n in range(count)])
    split = split_by_shard(slot_map, ids)
    assert ids_by_shard(slot_map, ids) == {s: [ids[p] for p in part] for s, part in split.items()}
    assert sorted(p for part in split.values() for p in part) == list(range(len(ids)))
