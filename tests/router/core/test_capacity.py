"""The memory model, and what it says of plans."""

import pytest

from chroma_router.wire.slots import SLOT_COUNT
from router.core.capacity import SAFETY, bytes_per_record, fits
from router.core.model import ShardRole
from router.core.planner import CollectionLoad, Plan, PlannedMove, ShardLoad, plan
from router.core.slot_map import SlotMap

MIB = 2**20


def collection(name: str, dimension: int | None, records: int = 100) -> CollectionLoad:
    slot_map = SlotMap(1, ("a",) * SLOT_COUNT)
    return CollectionLoad(name, name, slot_map, 0, (records,) * SLOT_COUNT, 500, dimension)


def shard(name: str, memory: int = 0, limit: int = 0) -> ShardLoad:
    return ShardLoad(name, ShardRole.ACTIVE, memory, limit)


def test_the_measured_upper_figure() -> None:
    assert bytes_per_record(1_536) == pytest.approx(7_900, abs=10)
    assert bytes_per_record(None) == bytes_per_record(0) == 1_024
    assert bytes_per_record(3) > 12
    assert bytes_per_record(768) > 768 * 4


@pytest.mark.parametrize("dimension", [3, 384, 1_536])
def test_the_limit_is_kept_with_something_to_spare(dimension: int) -> None:
    loads = [collection("c", dimension), collection("d", 8, records=10)]
    clusters = [shard("a"), shard("b", 50 * MIB)]
    planned = plan(loads, clusters)
    arriving = sum(
        move.records * bytes_per_record(dimension if move.collection_id == "c" else 8)
        for move in planned.moves
    )
    least = round((50 * MIB + arriving) * SAFETY)
    assert not fits(planned, loads, [shard("a"), shard("b", 50 * MIB, least + 1)])
    problem = fits(planned, loads, [shard("a"), shard("b", 50 * MIB, least - 1)])
    assert problem.startswith("b has no room for 56,320 more records: it holds 50.0 MiB")


def test_every_shard_without_room_is_named_with_its_figures() -> None:
    loads = [collection("c", 1_536)]
    clusters = [
        shard("a", 9 * MIB, MIB),  # full, but nothing comes
        shard("d", 3 * 1_024 * MIB, 3 * 1_024 * MIB),
        shard("b", 100 * MIB, 200 * MIB),
        shard("c", 100 * MIB, 0),  # not known
    ]
    assert fits(plan(loads, clusters), loads, clusters) == (
        "b has no room for 25,600 more records: it holds 100.0 MiB of memory, about 193.0 MiB "
        "would come, and with 20% to spare that passes its limit of 200.0 MiB; "
        "d has no room for 25,600 more records: it holds 3.00 GiB of memory, about 193.0 MiB "
        "would come, and with 20% to spare that passes its limit of 3.00 GiB; "
        "add a shard, or raise the limit"
    )


def test_what_leaves_makes_no_room() -> None:
    loads = [collection("c", 64), collection("d", 64)]
    slots = frozenset(range(512))
    both_ways = Plan(
        (
            PlannedMove("c", "a", "b", slots, 51_200, 0),
            PlannedMove("d", "b", "a", slots, 51_200, 0),
        ),
        (),
    )
    clusters = [shard("a", 100 * MIB, 110 * MIB), shard("b", 100 * MIB)]
    assert fits(both_ways, loads, clusters).startswith("a has no room")


def test_a_plan_of_nothing_fits() -> None:
    loads = [collection("c", 1_536)]
    clusters = [shard("a", 2 * MIB, MIB)]
    assert not fits(plan(loads, clusters), loads, clusters)
