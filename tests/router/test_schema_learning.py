"""What shards discover of a schema comes into the catalog with the write that taught it to them."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from router.core.model import CollectionEntry
from router.core.schema import MAX_KEYS
from tests.router.scripted import Rig, an_add, away, ids_on, rig, wait_for
from tests.router.test_write_path import soon

pytestmark = pytest.mark.timeout(15)


def schema(*keys: tuple[str, str]) -> str:
    found: dict[str, Any] = {}
    for key, name in keys:
        found.setdefault(key, {})[name] = {"enabled": True}
    return json.dumps({"defaults": {}, "keys": {"#embedding": {"float_list": {}}, **found}})


async def described(router: Rig) -> CollectionEntry:
    """A collection of which the shards have told a schema."""
    for shard in router.shards.values():
        shard.schema_json = schema()
    return await router.collection()


async def write(router: Rig, entry: CollectionEntry, shard: str, *types: tuple[str, str]) -> None:
    """A write of records with such metadata to one shard, by the entry that the router knows."""
    known = router.directory.remember(entry)
    an = an_add(ids_on(entry.slot_map, shard, 1), metadata_types=frozenset(types))
    await router.writes.write(known, an, None, soon())


def grants(router: Rig) -> list[int]:
    return [len(shard.requests("SetOwnership")) for shard in router.shards.values()]


async def keys_of(router: Rig, entry: CollectionEntry) -> dict[str, set[str]]:
    keys = json.loads((await router.catalog.collection(entry.id)).schema_json)["keys"]
    return {key: set(types) for key, types in keys.items() if key != "#embedding"}


async def test_the_shards_that_were_written_to_are_asked_once(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await described(router)
        one, two = router.shards.values()
        before = grants(router)
        one.schema_json = schema(("a", "string"), ("b", "int"))
        two.schema_json = schema(("c", "bool"))
        await write(router, entry, "shard-1", ("a", "string"))
        # All that the shard has, not only what this write had.
        assert await keys_of(router, entry) == {"a": {"string"}, "b": {"int"}}
        await write(router, entry, "shard-1", ("a", "string"), ("b", "int"))
        await write(router, entry, "shard-1")
        assert grants(router) == [before[0] + 1, before[1]]
        await write(router, entry, "shard-2", ("c", "bool"))
        assert await keys_of(router, entry) == {"a": {"string"}, "b": {"int"}, "c": {"bool"}}
        assert grants(router) == [before[0] + 1, before[1] + 1]


async def test_what_a_shard_did_not_store_is_not_learnt(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await described(router)
        version = (await router.catalog.collection(entry.id)).version
        await write(router, entry, "shard-1", ("ignored", "string"))
        assert (await router.catalog.collection(entry.id)).version == version


async def test_a_shard_that_does_not_tell_fails_no_write_and_is_asked_again(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await described(router)
        shard = router.shards["shard-1"]
        shard.schema_json = schema(("a", "string"))
        shard.then("SetOwnership", away())
        await write(router, entry, "shard-1", ("a", "string"))
        assert await keys_of(router, entry) == {}
        await write(router, entry, "shard-1", ("a", "string"))
        assert await keys_of(router, entry) == {"a": {"string"}}


async def test_a_shard_that_hangs_does_not_hold_a_write_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.directory.LEARN_TIMEOUT", 0.1)
    async with rig(tmp_path) as router:
        entry = await described(router)
        gate = asyncio.Event()
        router.shards["shard-1"].then("SetOwnership", wait_for(gate))
        await write(router, entry, "shard-1", ("a", "string"))
        gate.set()


async def test_writes_at_the_same_time_share_one_question(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await described(router)
        shard = router.shards["shard-1"]
        shard.schema_json = schema(("a", "string"))
        before = grants(router)[0]
        shard.forget_arrivals()
        gate = asyncio.Event()
        shard.then("SetOwnership", wait_for(gate))
        writes = [
            asyncio.create_task(write(router, entry, "shard-1", ("a", "string"))) for _ in range(10)
        ]
        await shard.arrival("SetOwnership")
        gate.set()
        await asyncio.gather(*writes)
        assert grants(router)[0] == before + 1
        assert await keys_of(router, entry) == {"a": {"string"}}


async def test_another_change_meanwhile_is_not_undone(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await described(router)
        real = router.catalog.update_collection
        renamed: list[str] = []

        async def late(expected: CollectionEntry, **changes: Any) -> CollectionEntry:
            if not renamed:
                renamed.append((await real(expected, name="renamed")).name)
            return await real(expected, **changes)

        router.catalog.update_collection = late  # type: ignore[method-assign]
        router.shards["shard-1"].schema_json = schema(("a", "string"))
        await write(router, entry, "shard-1", ("a", "string"))
        assert (await router.catalog.collection(entry.id)).name == "renamed"
        assert await keys_of(router, entry) == {"a": {"string"}}


async def test_a_full_schema_asks_nobody(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await described(router)
        shard = router.shards["shard-1"]
        shard.schema_json = schema(*((f"key-{n}", "int") for n in range(MAX_KEYS)))
        await write(router, entry, "shard-1", ("key-1", "int"))
        before = grants(router)
        await write(router, entry, "shard-1", ("one-more", "int"))
        assert grants(router) == before
