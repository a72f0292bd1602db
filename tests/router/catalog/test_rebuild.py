"""A lost catalog comes back from its nodes; one that is behind them is told."""

import dataclasses
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chroma_router.v1.shard_pb2 import CollectionDefinition, ListHoldingsResponse
from chroma_router.v1.types_pb2 import Collection
from chroma_router.wire.errors import NotAllowed
from chroma_router.wire.records import metadata_to_wire
from router.catalog import (
    Catalog,
    NodeHoldings,
    RebuiltCatalog,
    behind,
    check,
    rebuild,
    write_rebuilt,
)
from router.core.model import CollectionEntry, CollectionState, DimensionState, ShardRole
from router.core.slot_map import SlotMap
from tests.router.catalog.helpers import SHARDS, new

CLUSTER = "0b1f9a54-7a52-4f0f-9a39-0c5a6f1b8a11"


def _entry(name: str = "papers", *, created_at: int = 1_000) -> CollectionEntry:
    return new(name, created_at=created_at).entry("00000000-0000-0000-0000-000000000000")


def _holding(entry: CollectionEntry, shard: str) -> ListHoldingsResponse:
    collection = Collection(
        id=entry.id,
        name=entry.name,
        tenant=entry.tenant,
        database=entry.database,
        configuration_json=entry.configuration_json,
        schema_json=entry.schema_json,
        dimension=entry.dimension or 0,
        epoch=entry.slot_map.epoch,
        placement_shards=entry.placement_shards,
    )
    metadata_to_wire(entry.metadata or {}, collection.metadata)
    return ListHoldingsResponse(
        definition=CollectionDefinition(
            collection=collection,
            database_id=entry.database_id,
            created_at=entry.created_at,
            version=entry.version,
        ),
        owned_slots=entry.slot_map.bitmap_of(shard),
    )


def _dropped(entry: CollectionEntry, epoch: int) -> ListHoldingsResponse:
    collection = Collection(id=entry.id, epoch=epoch)
    return ListHoldingsResponse(
        definition=CollectionDefinition(collection=collection), dropped=True
    )


def _nodes(entries: Sequence[CollectionEntry]) -> dict[str, NodeHoldings]:
    return {
        shard: NodeHoldings(
            f"127.0.0.1:{7000 + number}", CLUSTER, [_holding(entry, shard) for entry in entries]
        )
        for number, shard in enumerate(SHARDS)
    }


def _with(
    nodes: dict[str, NodeHoldings], shard: str, *holdings: ListHoldingsResponse
) -> dict[str, NodeHoldings]:
    return nodes | {shard: nodes[shard]._replace(holdings=list(holdings))}


def _begun_again(entry: CollectionEntry) -> CollectionEntry:
    """An entry as it is rebuilt: one epoch above the highest that a node knows."""
    return dataclasses.replace(entry, slot_map=entry.slot_map.reassigned([], ""))


def _rebuilt(nodes: dict[str, NodeHoldings]) -> RebuiltCatalog:
    result = rebuild(nodes)
    assert isinstance(result, RebuiltCatalog), result
    return result


def _problem(nodes: dict[str, NodeHoldings]) -> str:
    result = rebuild(nodes)
    assert isinstance(result, list)
    (problem,) = result
    return problem


@st.composite
def _entries(draw: st.DrawFn) -> list[CollectionEntry]:
    entries = []
    for number in range(draw(st.integers(0, 4))):
        epoch = draw(st.integers(1, 2**40))
        seed = random.Random(draw(st.integers(0, 2**32)))
        shards = draw(st.lists(st.sampled_from(SHARDS), min_size=1, unique=True))
        dimension = draw(st.none() | st.integers(1, 65_535))
        entries.append(
            dataclasses.replace(
                _entry(f"name-{number}", created_at=draw(st.integers(0, 2**53))),
                tenant=f"tenant-{number % 2}",
                database=f"database-{number % 3}",
                database_id=f"id-{number % 2}-{number % 3}",
                metadata=draw(
                    st.none()
                    | st.dictionaries(
                        st.text(st.characters(codec="utf-8"), max_size=5),
                        st.integers(-(2**63), 2**63 - 1)
                        | st.floats(allow_nan=False, allow_infinity=False)
                        | st.booleans()
                        | st.text(st.characters(codec="utf-8"), max_size=5),
                        min_size=1,
                    )
                ),
                dimension=dimension,
                dimension_state=DimensionState.FIXED if dimension else DimensionState.NONE,
                placement_shards=draw(st.integers(0, 3)),
                slot_map=SlotMap(epoch, tuple(seed.choices(shards, k=1024))),
                version=draw(st.integers(1, 2**40)),
            )
        )
    return sorted(entries, key=lambda entry: entry.id)


@settings(max_examples=40, deadline=None)
@given(_entries())
def test_a_catalog_whose_nodes_know_it_comes_back_as_it_was(
    entries: list[CollectionEntry],
) -> None:
    rebuilt = _rebuilt(_nodes(entries))
    assert rebuilt.collections == [_begun_again(entry) for entry in entries]
    assert [shard.name for shard in rebuilt.shards] == list(SHARDS)
    assert rebuilt.notes == []
    by_id = {entry.id: entry for entry in rebuilt.collections}
    for shard, node in _nodes(entries).items():
        assert behind(by_id, shard, node.holdings) is None
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "catalog.db"
        write_rebuilt(path, rebuilt)
        assert check(path) == []


async def test_the_written_catalog_serves_and_is_never_written_over(tmp_path: Path) -> None:
    path, entry = tmp_path / "catalog.db", _entry()
    rebuilt = _rebuilt(_nodes([entry]))
    write_rebuilt(path, rebuilt)
    with pytest.raises(NotAllowed, match="exists already"):
        write_rebuilt(path, dataclasses.replace(rebuilt, collections=[]))
    catalog = await Catalog.open(path, create=False)
    assert catalog.cluster_id == CLUSTER
    assert await catalog.collection(entry.id) == _begun_again(entry)
    assert await catalog.shards() == rebuilt.shards
    assert {shard.role for shard in rebuilt.shards} == {ShardRole.ACTIVE}
    assert await catalog.moves.newest() is None
    assert await catalog.moves.holder(0) == ""
    assert await catalog.get_tenant("default_tenant")
    await catalog.close()


def test_the_newest_definition_and_the_highest_epoch_win() -> None:
    old = _entry()
    renamed = dataclasses.replace(old, name="newer", version=2)
    moved = dataclasses.replace(
        renamed, slot_map=old.slot_map.reassigned(old.slot_map.slots_of("shard-3"), "shard-1")
    )
    nodes = _nodes([old])
    nodes = _with(nodes, "shard-1", _holding(dataclasses.replace(moved, version=1), "shard-1"))
    nodes = _with(nodes, "shard-2", _holding(moved, "shard-2"))
    assert _rebuilt(nodes).collections == [_begun_again(moved)]


def test_a_missing_shard_is_a_problem() -> None:
    nodes = _nodes([_entry()])
    del nodes["shard-2"]
    problem = _problem(nodes)
    assert "341 of 1024 slots have no owner" in problem
    assert "is a shard missing?" in problem


@pytest.mark.parametrize("learnt", [(), ("shard-2",), ("shard-3",), SHARDS[:2], SHARDS[1:]])
def test_a_switch_that_reached_some_shards(learnt: tuple[str, ...]) -> None:
    old = _entry()
    slots = [0, 3, 999]  # of shard-1, to shard-2
    moved = dataclasses.replace(old, slot_map=old.slot_map.reassigned(slots, "shard-2"), version=2)
    nodes = _nodes([old])
    for shard in learnt:
        nodes = _with(nodes, shard, _holding(moved, shard))
    rebuilt = _rebuilt(nodes)
    (entry,) = rebuilt.collections
    # The target has the slots once it has learnt it, the source until then.
    assert entry.slot_map.epoch == (3 if learnt else 2)
    assert entry.slot_map.owner(0) == ("shard-2" if "shard-2" in learnt else "shard-1")
    assert entry.slot_map.owner(1) == "shard-2"
    late = set(SHARDS) - set(learnt) if learnt else set()
    assert len(rebuilt.notes) == bool(late)
    for shard in late:
        assert f" {shard} " in rebuilt.notes[0]


def test_a_switch_that_reached_the_source_alone_is_a_problem() -> None:
    old = _entry()
    moved = dataclasses.replace(old, slot_map=old.slot_map.reassigned([0, 3], "shard-2"))
    nodes = _with(_nodes([old]), "shard-1", _holding(moved, "shard-1"))
    assert "2 of 1024 slots have no owner" in _problem(nodes)


@settings(max_examples=60)
@given(st.data())
def test_of_each_slot_the_claim_at_the_highest_epoch_counts(data: st.DataObject) -> None:
    """A history of switches, of which each shard has heard up to some epoch."""
    entry = _entry()
    maps = [entry.slot_map]
    for _ in range(data.draw(st.integers(0, 4))):
        slots = data.draw(st.sets(st.integers(0, 30), min_size=1))
        maps.append(maps[-1].reassigned(slots, data.draw(st.sampled_from(SHARDS))))
    heard = {shard: data.draw(st.sampled_from(maps)) for shard in SHARDS}
    nodes = _nodes([entry])
    for shard, slot_map in heard.items():
        known = dataclasses.replace(entry, slot_map=slot_map)
        nodes = _with(nodes, shard, _holding(known, shard))
    naive = []
    for slot in range(1024):
        claims = [(m.epoch, shard) for shard, m in heard.items() if m.owner(slot) == shard]
        naive.append(max(claims)[1] if claims else "")
    if "" in naive:
        assert f"{naive.count('')} of 1024 slots" in _problem(nodes)
    else:
        newest = max(slot_map.epoch for slot_map in heard.values())
        assert _rebuilt(nodes).collections[0].slot_map == SlotMap(newest + 1, tuple(naive))


def test_invariant_1_is_checked() -> None:
    entry = _entry()
    both = _holding(entry, "shard-1")
    both.owned_slots = b"\xff" * 128
    assert "owned by both shard-1 and shard-2" in _problem(_with(_nodes([entry]), "shard-1", both))
    both.owned_slots = b"\xff"
    assert "in 1 bytes" in _problem(_with(_nodes([entry]), "shard-1", both))


def test_dropped_collections_stay_dropped() -> None:
    entry = _entry()
    nodes = _with(_nodes([entry]), "shard-1", _dropped(entry, 2))
    (doomed,) = _rebuilt(nodes).collections
    assert doomed.state is CollectionState.DELETING
    assert doomed.slot_map.epoch == 2
    assert doomed.slot_map.shards == ("shard-2", "shard-3")
    for shard in ("shard-2", "shard-3"):
        nodes = _with(nodes, shard, _dropped(entry, 2))
    assert _rebuilt(nodes).collections == []


def test_nodes_of_several_clusters_or_none_are_a_problem() -> None:
    nodes = _nodes([])
    nodes["shard-3"] = nodes["shard-3"]._replace(cluster_id="other")
    assert "several clusters" in _problem(nodes)
    fresh = {shard: node._replace(cluster_id="") for shard, node in _nodes([]).items()}
    assert "no node belongs to a cluster" in _problem(fresh)
    fresh["shard-1"] = fresh["shard-1"]._replace(cluster_id=CLUSTER)
    assert _rebuilt(fresh).cluster_id == CLUSTER
    fresh["shard-2"] = fresh["shard-2"]._replace(address=fresh["shard-1"].address)
    assert "2 shards are given with the address" in _problem(fresh)


def test_contradicting_dimensions_and_databases_are_problems() -> None:
    entry = dataclasses.replace(_entry(), dimension=3, dimension_state=DimensionState.FIXED)
    other = _holding(dataclasses.replace(entry, dimension=4), "shard-2")
    assert "several dimensions" in _problem(_with(_nodes([entry]), "shard-2", other))
    homeless = dataclasses.replace(_entry("other"), database="elsewhere")
    assert "is named" in _problem(_nodes([entry, homeless]))
    twin_home = dataclasses.replace(_entry("other"), database_id="another-id")
    assert "2 databases" in _problem(_nodes([entry, twin_home]))


def test_of_two_collections_with_one_name_the_newer_keeps_it() -> None:
    older, newer = _entry(created_at=1), _entry(created_at=2)
    rebuilt = _rebuilt(_nodes([older, newer]))
    names = {entry.id: entry.name for entry in rebuilt.collections}
    assert names == {newer.id: "papers", older.id: f"papers-{older.id}"}
    assert "two collections were named [papers]" in rebuilt.notes[0]


def test_a_catalog_that_is_behind() -> None:
    entry = _entry()
    holdings = [_holding(entry, "shard-1")]
    at = dataclasses.replace
    ahead = at(entry, slot_map=entry.slot_map.reassigned([], "shard-1"))
    cases = [
        ({}, holdings, "does not know"),
        ({entry.id: entry}, [_holding(ahead, "shard-1")], "epoch 2"),
        ({entry.id: entry}, [_holding(at(entry, version=2), "shard-1")], "version 2"),
        ({entry.id: entry}, [_dropped(entry, 2)], "has dropped"),
        ({entry.id: entry}, [_holding(entry, "shard-2")], "other slots"),
    ]
    for entries, told, words in cases:
        assert words in (behind(entries, "shard-1", told) or "")
    doomed = at(ahead, state=CollectionState.DELETING, version=2)
    for entries, told in (
        ({entry.id: doomed}, holdings),
        ({entry.id: doomed}, [_dropped(entry, 2)]),
        ({}, [_dropped(entry, 2)]),
        ({entry.id: at(ahead, version=5)}, holdings),
    ):
        assert behind(entries, "shard-1", told) is None
