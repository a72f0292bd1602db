"""A shard that is dead for good: its slots go on empty, and nothing old comes back with them."""

import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chroma_router.wire.errors import NotAllowed, NotFound, Reason
from router.catalog import Catalog, check
from router.core.model import CollectionEntry, ShardRole
from router.core.move import Move, Stage
from router.core.rebalance import RebalanceKind, RebalanceState
from router.core.slot_map import SlotMap
from tests.router.catalog.helpers import SHARDS, a_move, a_rebalance, leased, new, opened

STAGES = (Stage.COPYING, Stage.CATCHING_UP, Stage.VERIFIED, Stage.FENCED, Stage.SWITCHED)


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    catalog = await opened(tmp_path / "catalog.db")
    yield catalog
    await catalog.close()
    assert check(tmp_path / "catalog.db") == []


async def _made(catalog: Catalog, name: str, *shards: str) -> CollectionEntry:
    return (await catalog.create_collection(new(name, shards=shards), False))[0]


async def _move_at(catalog: Catalog, entry: CollectionEntry, stage: Stage) -> Move:
    """The move of all slots of shard-1 to shard-2, at a stage."""
    rebalance = a_rebalance()
    slots = entry.slot_map.slots_of("shard-1")
    move = a_move(rebalance, entry, slots, "shard-1", "shard-2")
    await catalog.moves.begin(rebalance, [move], {entry.id: entry.slot_map.epoch})
    lease = await leased(catalog)
    for step in STAGES if stage in STAGES else ():
        if step is Stage.SWITCHED:
            _, move = await catalog.moves.switch(lease, move)
        else:
            move = await catalog.moves.enter(lease, move, step)
        if step is stage:
            break
    return move


async def _only_move(catalog: Catalog) -> Move:
    newest = await catalog.moves.newest()
    assert newest is not None
    ((move, _),) = newest[1]
    return move


async def test_its_slots_are_dealt_to_the_homes_that_are_left(catalog: Catalog) -> None:
    everywhere = await _made(catalog, "everywhere", *SHARDS)
    alone = await _made(catalog, "alone", "shard-3")
    placed = await catalog.set_placement(alone, 1)
    elsewhere = await _made(catalog, "elsewhere", "shard-1")
    doomed = await _made(catalog, "doomed", "shard-3")
    await catalog.begin_delete(doomed.id)
    losses = await catalog.remove_lost_shard("shard-3")
    lost = len(everywhere.slot_map.slots_of("shard-3"))
    assert {entry.id: slots for entry, slots in losses} == {everywhere.id: lost, alone.id: 1024}
    assert [shard.name for shard in await catalog.shards()] == ["shard-1", "shard-2"]
    for entry, _ in losses:
        assert entry == await catalog.collection(entry.id)
        assert entry.slot_map.epoch == 2
    now = (await catalog.collection(everywhere.id)).slot_map
    assert set(Counter(now.owners).values()) == {512}
    for slot, owner in enumerate(everywhere.slot_map.owners):
        assert owner == "shard-3" or now.owner(slot) == owner
    assert len((await catalog.collection(placed.id)).slot_map.shards) == 1
    assert await catalog.collection(elsewhere.id) == elsewhere
    with pytest.raises(NotFound):
        await catalog.remove_lost_shard("shard-3")


async def test_the_only_one_stays(catalog: Catalog) -> None:
    await catalog.remove_lost_shard("shard-1")
    (second, _) = await catalog.shards()
    await catalog.set_shard_role(second, ShardRole.DRAINING)
    # One that takes no new data is better than none.
    entry = await _made(catalog, "papers", "shard-3")
    ((changed, lost),) = await catalog.remove_lost_shard("shard-3")
    assert (changed.slot_map, lost) == (SlotMap(2, ("shard-2",) * 1024), 1024)
    with pytest.raises(NotAllowed, match="the only one") as refused:
        await catalog.remove_lost_shard("shard-2")
    assert refused.value.reason is Reason.LAST_SHARD
    assert await catalog.collection(entry.id) == changed


@pytest.mark.parametrize("stage", [Stage.PLANNED, *STAGES])
@pytest.mark.parametrize("lost", ["shard-1", "shard-2"])
async def test_the_moves_from_and_to_it_end(catalog: Catalog, stage: Stage, lost: str) -> None:
    entry = await _made(catalog, "papers", "shard-1", "shard-3")
    move = await _move_at(catalog, entry, stage)
    losses = await catalog.remove_lost_shard(lost)
    ended = await _only_move(catalog)
    done = stage is Stage.SWITCHED and lost == "shard-1"
    assert ended.stage is (Stage.TRIMMED if done else Stage.CANCELLED)
    assert ended.problem.startswith(f"shard {lost} was removed as lost")
    owner = "shard-2" if stage is Stage.SWITCHED else "shard-1"
    assert [slots for _, slots in losses] == ([len(move.slots)] if owner == lost else [])
    now = (await catalog.collection(entry.id)).slot_map
    # A source that lives may be fenced for this epoch, which lifts the fence.
    assert now.epoch == (3 if stage is Stage.SWITCHED else 2)
    if owner == lost:
        # The other side may hold what is old or deleted.
        assert {now.owner(slot) for slot in move.slots} == {"shard-3"}
    else:
        assert {now.owner(slot) for slot in move.slots} == {owner}
    running = await catalog.moves.running()
    assert running is not None
    assert running[0].state is RebalanceState.CANCELLING
    finished = await catalog.moves.finish(await leased(catalog), running[0], 2_000)
    assert finished.state is RebalanceState.FAILED
    assert finished.problem == f"shard {lost} was removed as lost; plan again"


async def test_other_moves_of_the_rebalance_are_undone(catalog: Catalog) -> None:
    entry = await _made(catalog, "papers", *SHARDS)
    fenced = await _move_at(catalog, entry, Stage.FENCED)
    await catalog.remove_lost_shard("shard-3")
    # The slots of shard-3 took the epoch that this one was fenced for.
    assert (await catalog.collection(entry.id)).slot_map.epoch == fenced.next_epoch
    assert (await _only_move(catalog)).stage is Stage.CANCELLING


async def test_a_drain_ends_with_its_shard_and_without_another(catalog: Catalog) -> None:
    entry = await _made(catalog, "papers", *SHARDS)
    drain = a_rebalance(RebalanceKind.DRAIN, "shard-1")
    move = a_move(drain, entry, entry.slot_map.slots_of("shard-1"), "shard-1", "shard-2")
    await catalog.moves.begin(drain, [move], {entry.id: 1})
    await catalog.remove_lost_shard("shard-2")
    assert {shard.role for shard in await catalog.shards()} == {ShardRole.ACTIVE}
    now = (await catalog.collection(entry.id)).slot_map
    assert set(Counter(now.owners).values()) == {512}


async def test_when_only_the_other_side_is_left_it_gets_the_slots(catalog: Catalog) -> None:
    await catalog.remove_shard("shard-3")
    entry = await _made(catalog, "papers", "shard-1")
    await _move_at(catalog, entry, Stage.COPYING)
    ((changed, lost),) = await catalog.remove_lost_shard("shard-1")
    assert (changed.slot_map.shards, lost) == (("shard-2",), 1024)


async def test_slots_are_dealt_evenly_from_any_map(catalog: Catalog) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    owners = tuple(chosen.choices(SHARDS, weights=(3, 1, 6), k=1024))
    entry = await _made(catalog, "papers", *SHARDS)
    entry = await catalog.replace_slot_map(entry, SlotMap(2, owners))
    ((changed, lost),) = await catalog.remove_lost_shard("shard-3")
    assert lost == owners.count("shard-3")
    assert set(Counter(changed.slot_map.owners).values()) == {512}
