"""Shards come, change and go. (A dead one goes in test_lost_shard.py.)"""

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chroma_router.wire.errors import AlreadyExists, NotAllowed, NotFound, Reason, Stale
from router.catalog import Catalog, check
from router.core.model import ShardRole
from router.core.rebalance import RebalanceKind
from tests.router.catalog.helpers import a_move, a_rebalance, new, opened


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    catalog = await opened(tmp_path / "catalog.db")
    yield catalog
    await catalog.close()
    assert check(tmp_path / "catalog.db") == []


async def _in_use(catalog: Catalog, name: str) -> str:
    with pytest.raises(NotAllowed) as refused:
        await catalog.remove_shard(name)
    assert refused.value.reason is Reason.SHARD_IN_USE
    assert f"shards drain {name}" in refused.value.message
    return refused.value.message


async def test_roles_change_by_compare_and_swap(catalog: Catalog) -> None:
    shard = (await catalog.shards())[0]
    assert shard.role is ShardRole.ACTIVE
    draining = await catalog.set_shard_role(shard, ShardRole.DRAINING)
    assert draining == dataclasses.replace(shard, role=ShardRole.DRAINING, version=2)
    assert await catalog.set_shard_role(draining, ShardRole.DRAINING) == draining
    with pytest.raises(Stale):
        await catalog.set_shard_role(shard, ShardRole.DRAINING)
    with pytest.raises(Stale):
        await catalog.set_shard_address(shard, "127.0.0.1:9999")
    moved = await catalog.set_shard_address(draining, "127.0.0.1:9999")
    assert moved == dataclasses.replace(draining, address="127.0.0.1:9999", version=3)
    assert (await catalog.shards())[0] == moved


async def test_a_shard_goes_when_nothing_is_on_it(catalog: Catalog) -> None:
    entry, _ = await catalog.create_collection(new(shards=["shard-1"]), False)
    assert "it owns 1024 slots of 1 collections" in await _in_use(catalog, "shard-1")
    rebalance = a_rebalance()
    move = a_move(rebalance, entry, [0], "shard-1", "shard-2")
    await catalog.moves.begin(rebalance, [move], {entry.id: 1})
    assert f"move {move.id} from shard-1 to shard-2" in await _in_use(catalog, "shard-2")
    await catalog.remove_shard("shard-3")
    await catalog.moves.cancel(2_000)
    await catalog.remove_shard("shard-2")
    with pytest.raises(NotFound) as gone:
        await catalog.remove_shard("shard-2")
    assert gone.value.reason is Reason.SHARD_NOT_FOUND
    assert [shard.name for shard in await catalog.shards()] == ["shard-1"]
    # What is being deleted is still to be dropped there.
    await catalog.add_shard("shard-2", "127.0.0.1:7009")
    await catalog.begin_delete(entry.id)
    await _in_use(catalog, "shard-1")
    await catalog.finish_delete(entry.id)
    await catalog.remove_shard("shard-1")


async def test_a_shard_that_is_being_drained_stays_until_that_has_ended(catalog: Catalog) -> None:
    entry, _ = await catalog.create_collection(new(shards=["shard-1"]), False)
    drain = a_rebalance(RebalanceKind.DRAIN, "shard-3")
    # (So far; its mover may find more.)
    move = a_move(drain, entry, [0], "shard-1", "shard-2")
    await catalog.moves.begin(drain, [move], {entry.id: 1})
    assert f"rebalance {drain.id}, which empties it" in await _in_use(catalog, "shard-3")
    await catalog.moves.cancel(2_000)
    await catalog.remove_shard("shard-3")


async def test_the_last_one_that_takes_data_stays(catalog: Catalog) -> None:
    for shard in (await catalog.shards())[1:]:
        await catalog.set_shard_role(shard, ShardRole.DRAINING)
    with pytest.raises(NotAllowed, match="no other shard takes new data") as refused:
        await catalog.remove_shard("shard-1")
    assert refused.value.reason is Reason.LAST_SHARD
    await catalog.remove_shard("shard-2")
    await catalog.remove_shard("shard-3")
    with pytest.raises(NotAllowed):
        await catalog.remove_shard("shard-1")


async def test_the_first_shards_come_together_or_not_at_all(tmp_path: Path) -> None:
    catalog = await Catalog.open(tmp_path / "catalog.sqlite3")
    with pytest.raises(AlreadyExists):
        await catalog.add_first_shards([("a", "h:1"), ("b", "h:1")])
    assert await catalog.shards() == []
    assert await catalog.add_first_shards([("b", "h:2"), ("a", "h:1")])
    assert not await catalog.add_first_shards([("c", "h:3")])
    assert [shard.name for shard in await catalog.shards()] == ["a", "b"]
    await catalog.close()
