"""The catalog's promises one by one; all of them together in test_against_twin.py."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chroma_router.wire.errors import AlreadyExists, ClusterError, NotFound, Reason, Stale
from router.catalog import DEFAULT_DATABASE, DEFAULT_TENANT, Catalog
from router.catalog.codec import Metadata
from router.core.model import CollectionEntry, CollectionState
from router.core.slot_map import SlotMap
from tests.router.catalog.helpers import SHARDS, new, opened

HOME = (DEFAULT_TENANT, DEFAULT_DATABASE)


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Catalog]:
    catalog = await opened(tmp_path / "catalog.db")
    yield catalog
    await catalog.close()


@pytest.fixture
async def two(one: Catalog, tmp_path: Path) -> AsyncIterator[Catalog]:
    """Another router's view of the same file."""
    catalog = await Catalog.open(tmp_path / "catalog.db", create=False)
    yield catalog
    await catalog.close()


async def test_errors_speak_chromas_words(one: Catalog) -> None:
    taken, _ = await one.create_collection(new("taken"), False)
    other, _ = await one.create_collection(new("other"), False)
    cases = [
        (one.get_tenant("nope"), "Tenant [nope] not found", Reason.TENANT_NOT_FOUND),
        (
            one.create_tenant("default_tenant"),
            "Tenant [default_tenant] already exists",
            Reason.TENANT_EXISTS,
        ),
        (
            one.get_database("nope", DEFAULT_TENANT),
            "Database [nope] not found. Are you sure it exists?",
            Reason.DATABASE_NOT_FOUND,
        ),
        (
            one.remove_database("nope", DEFAULT_TENANT),
            "Database [nope] not found",
            Reason.DATABASE_NOT_FOUND,
        ),
        (
            one.create_database("default_database", DEFAULT_TENANT),
            "Database [default_database] already exists",
            Reason.DATABASE_EXISTS,
        ),
        (
            one.create_collection(new(database="nope"), True),
            "Database [nope] does not exist",
            Reason.DATABASE_NOT_FOUND,
        ),
        (
            one.create_collection(new("taken"), False),
            "Collection [taken] already exists",
            Reason.COLLECTION_EXISTS,
        ),
        (
            one.update_collection(other, name="taken"),
            "Collection [taken] already exists",
            Reason.COLLECTION_EXISTS,
        ),
        (
            one.find_collection(*HOME, "nope"),
            "Collection [nope] does not exist",
            Reason.COLLECTION_NOT_FOUND,
        ),
        (
            one.collection("some-id"),
            "Collection [some-id] does not exist",
            Reason.COLLECTION_NOT_FOUND,
        ),
    ]
    for call, message, reason in cases:
        with pytest.raises(ClusterError) as refused:
            await call
        assert (refused.value.message, refused.value.reason) == (message, reason)
    assert await one.collection(taken.id) == taken


async def test_entries_keep_every_value(one: Catalog, two: Catalog) -> None:
    metadata: Metadata = {"i": 2**60, "f": 0.1, "whole": 3.0, "b": True, "s": 'ä "\x00', "": -1}
    made, created = await one.create_collection(new(metadata=metadata), False)
    read = await two.collection(made.id)
    assert created
    assert read == made
    assert read.metadata is not None
    kinds = {key: type(value) for key, value in read.metadata.items()}
    assert kinds == {key: type(value) for key, value in metadata.items()}


async def test_one_winner_when_routers_race_for_a_name(one: Catalog, two: Catalog) -> None:
    answers = await asyncio.gather(
        *((one, two)[i % 2].create_collection(new(), get_or_create=True) for i in range(20))
    )
    assert sum(created for _, created in answers) == 1
    assert len({entry.id for entry, _ in answers}) == 1
    refusals = await asyncio.gather(
        *(catalog.create_collection(new(), get_or_create=False) for catalog in (one, two)),
        return_exceptions=True,
    )
    assert all(isinstance(refusal, AlreadyExists) for refusal in refusals)


async def test_one_winner_of_each_compare_and_swap(one: Catalog, two: Catalog) -> None:
    entry, _ = await one.create_collection(new(), False)
    answers = await asyncio.gather(
        *((one, two)[i % 2].update_collection(entry, name=f"name-{i}") for i in range(10)),
        return_exceptions=True,
    )
    won = [answer for answer in answers if isinstance(answer, CollectionEntry)]
    lost = [answer for answer in answers if isinstance(answer, Stale)]
    assert (len(won), len(lost)) == (1, 9)
    assert {error.reason for error in lost} == {Reason.CONFLICT}
    assert await two.find_collection(*HOME, won[0].name) == won[0]


async def test_slot_maps_rise_by_one_epoch_each(one: Catalog, two: Catalog) -> None:
    entry, _ = await one.create_collection(new(), False)
    moved = entry.slot_map.reassigned([1, 2, 3], "shard-1")
    changed = await one.replace_slot_map(entry, moved)
    assert (await two.collection(entry.id)).slot_map == moved
    with pytest.raises(Stale):
        await two.replace_slot_map(entry, entry.slot_map.reassigned([9], "shard-2"))
    with pytest.raises(AssertionError, match="invariant 1"):
        await one.replace_slot_map(changed, moved)
    with pytest.raises(Stale, match="shard-9"):
        await one.replace_slot_map(changed, moved.reassigned([5], "shard-9"))
    with pytest.raises(Stale, match="shard-9"):
        await one.create_collection(new("other", shards=["shard-9"]), False)
    assert await one.collection(entry.id) == changed


async def test_a_deleted_collection_gives_its_name_up_before_it_is_gone(
    one: Catalog, two: Catalog
) -> None:
    entry, _ = await one.create_collection(new(), False)
    doomed = await one.begin_delete(entry.id)
    assert doomed.state is CollectionState.DELETING
    assert doomed.slot_map == SlotMap(entry.slot_map.epoch + 1, entry.slot_map.owners)
    assert await two.begin_delete(entry.id) == doomed
    for gone in (two.collection(entry.id), two.find_collection(*HOME, entry.name)):
        with pytest.raises(NotFound):
            await gone
    with pytest.raises(NotFound):
        await two.update_collection(doomed, name="again")
    assert await two.count_collections(*HOME) == 0
    successor, created = await two.create_collection(new(), True)
    assert created
    assert await one.deleting() == [doomed]
    assert await one.all_collections() == sorted([doomed, successor], key=lambda e: e.id)
    await one.finish_delete(entry.id)
    await one.finish_delete(entry.id)
    await one.finish_delete(successor.id)
    assert await two.deleting() == []
    assert await two.all_collections() == [successor]
    with pytest.raises(NotFound):
        await two.begin_delete(entry.id)


async def test_a_database_goes_once_nothing_lives_in_it(one: Catalog, two: Catalog) -> None:
    await one.create_tenant("acme")
    database = await one.create_database("books", "acme")
    entry, _ = await two.create_collection(new(tenant="acme", database="books"), False)
    with pytest.raises(Stale, match="holds collections"):
        await one.remove_database("books", "acme")
    await two.begin_delete(entry.id)
    await one.remove_database("books", "acme")
    again = await two.create_database("books", "acme")
    assert again.id != database.id
    assert await two.list_collections("acme", "books") == []
    with pytest.raises(NotFound, match="Tenant"):
        await two.create_database("books", "nobody")


async def test_pages(one: Catalog) -> None:
    made = [(await one.create_collection(new(f"name-{i}"), False))[0] for i in range(5)]
    made.sort(key=lambda entry: entry.id)
    assert await one.list_collections(*HOME) == made
    assert await one.list_collections(*HOME, limit=2, offset=1) == made[1:3]
    assert await one.list_collections(*HOME, limit=0) == []
    assert await one.list_collections(*HOME, offset=9) == []
    for name in ("zoo", "abc"):
        await one.create_database(name, DEFAULT_TENANT)
    names = [entry.name for entry in await one.list_databases(DEFAULT_TENANT)]
    assert names == ["abc", "default_database", "zoo"]
    assert (await one.list_databases(DEFAULT_TENANT, limit=1, offset=1))[0].name == names[1]


async def test_shards(one: Catalog, two: Catalog) -> None:
    assert [shard.name for shard in await two.shards()] == list(SHARDS)
    shard = (await one.shards())[0]
    for name, address in (("shard-1", "new:1"), ("shard-9", shard.address)):
        with pytest.raises(AlreadyExists):
            await two.add_shard(name, address)
    moved = await one.set_shard_address(shard, "127.0.0.1:9999")
    assert moved == dataclasses.replace(shard, address="127.0.0.1:9999", version=2)
    with pytest.raises(Stale):
        await two.set_shard_address(shard, "127.0.0.1:9998")
    with pytest.raises(AlreadyExists):
        await two.set_shard_address(moved, (await one.shards())[1].address)
    assert await two.set_shard_address(moved, moved.address) == moved


async def test_reset_keeps_the_cluster_and_what_the_nodes_must_drop(
    one: Catalog, two: Catalog
) -> None:
    await one.create_tenant("acme")
    await one.create_database("books", "acme")
    made = [
        (await one.create_collection(place, False))[0].id
        for place in (new("first"), new("other"), new("one", tenant="acme", database="books"))
    ]
    await one.begin_delete(made[0])
    doomed = await two.reset()
    assert [entry.id for entry in doomed] == sorted(made)
    assert {entry.slot_map.epoch for entry in doomed} == {2}
    assert await one.deleting() == doomed
    with pytest.raises(NotFound):
        await one.get_tenant("acme")
    assert [entry.name for entry in await one.list_databases(DEFAULT_TENANT)] == [DEFAULT_DATABASE]
    assert await one.list_databases("acme") == []
    assert len(await one.shards()) == len(SHARDS)


async def test_the_revision_rises_with_changes_only(one: Catalog, two: Catalog) -> None:
    before = await two.revision()
    entry, _ = await one.create_collection(new(), False)
    assert await two.revision() == before + 1
    await one.create_collection(new(), True)
    await one.collection(entry.id)
    assert await two.revision() == before + 1
