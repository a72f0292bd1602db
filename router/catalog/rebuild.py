"""Makes a lost catalog again from what the nodes hold, and tells when a catalog is behind them.

`rebuild` and `behind` are pure. What no node knows is not rebuilt: tenants and databases without
collections, changes that had reached no node, and moves: those that were under way are begun anew.

Who owns a slot. A switch reaches the nodes one after the other, so when the catalog is lost some
know the newest epoch and some an older one. Of each slot the claim at the highest epoch counts:

  * The target has learnt the switch, the source has not: the target's claim is the higher one. The
    source, fenced since before the switch, has answered nothing for these slots meanwhile.
  * Neither has learnt it, a third shard has: nobody claims the slots at the new epoch, and the
    source keeps them. A node stores its ownership durably before it answers anything by it, so the
    target has acknowledged nothing at the new epoch; and the source still has every record, since
    it is trimmed only after both have learnt the switch.
  * The source alone has learnt it: nobody claims the slots at any epoch, which is a problem here.
    (The mover tells both at one moment, so the target must have died in that moment and the catalog
    been lost before it was back: restore a backup.)

Holdings do not tell of fences. So every collection begins again one epoch above the highest that a
node knows: each fence was for an epoch at most that high, and the new ownership lifts it. Nor can
the lost catalog have had another map at that epoch which a node has heard of.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from chroma_router.v1.shard_pb2 import ListHoldingsResponse
from chroma_router.v1.types_pb2 import Collection
from chroma_router.wire.records import metadata_from_wire
from chroma_router.wire.slots import SLOT_BITMAP_BYTES, SLOT_COUNT, slots_from_bitmap
from router.catalog import codec, schema, shard_rows
from router.catalog.maintenance import overwrites
from router.core.model import (
    CollectionEntry,
    CollectionState,
    DatabaseEntry,
    DimensionState,
    ShardEntry,
)
from router.core.slot_map import SlotMap

_MAX_NAME = 512


class NodeHoldings(NamedTuple):
    """What one node says of itself."""

    address: str
    cluster_id: str
    """Empty for a node that belongs to no cluster yet."""
    holdings: Sequence[ListHoldingsResponse]


@dataclass(frozen=True, slots=True)
class RebuiltCatalog:
    """A whole catalog, not yet written. A collection that some node has dropped is DELETING."""

    cluster_id: str
    shards: list[ShardEntry]
    databases: list[DatabaseEntry]
    collections: list[CollectionEntry]
    notes: list[str] = field(default_factory=list)
    """What the operator should know about the result."""


def rebuild(nodes: Mapping[str, NodeHoldings]) -> RebuiltCatalog | list[str]:
    """The catalog that the nodes, by shard name, hold together; or why there is none.

    Of each slot the claim at the highest epoch counts, and every slot must be claimed, at no epoch
    by two; of the definitions the newest counts.
    """
    problems = list(_node_problems(nodes))
    # Shard by shard in the order of names, so that the result depends on nothing else.
    told: dict[str, dict[str, ListHoldingsResponse]] = {}
    for shard in sorted(nodes):
        for holding in nodes[shard].holdings:
            told.setdefault(holding.definition.collection.id, {})[shard] = holding
    collections: list[CollectionEntry] = []
    notes: list[str] = []
    for collection_id in sorted(told):
        try:
            entry = _collection(told[collection_id], notes)
        except _Problem as problem:
            problems.append(f"collection {collection_id}: {problem}")
        else:
            collections += [entry] if entry is not None else []
    databases = _databases(collections, problems)
    if problems:
        return problems
    return RebuiltCatalog(
        cluster_id=next(node.cluster_id for node in nodes.values() if node.cluster_id),
        shards=[ShardEntry(name, nodes[name].address, version=1) for name in sorted(nodes)],
        databases=databases,
        collections=_with_names_of_their_own(collections, notes),
        notes=notes,
    )


def write_rebuilt(path: Path, rebuilt: RebuiltCatalog) -> None:
    """Writes a rebuilt catalog as a new file, as it is. Raises NotAllowed if the file exists."""

    def fill(db: sqlite3.Connection) -> None:
        tenants = sorted({database.tenant for database in rebuilt.databases})
        db.executemany("INSERT INTO tenants VALUES (?)", [(tenant,) for tenant in tenants])
        db.executemany(
            "INSERT INTO databases (id, name, tenant) VALUES (?, ?, ?)",
            [(database.id, database.name, database.tenant) for database in rebuilt.databases],
        )
        for shard in rebuilt.shards:
            shard_rows.insert_shard(db, shard)
        for entry in rebuilt.collections:
            codec.insert_collection(db, entry)

    try:
        schema.create(path, rebuilt.cluster_id, fill)
    except FileExistsError:
        raise overwrites(path) from None


def behind(
    entries: Mapping[str, CollectionEntry], shard: str, holdings: Sequence[ListHoldingsResponse]
) -> str | None:
    """Why a catalog with these entries (DELETING ones included) is behind a node, or None.

    The node's holdings are to be read before the entries: read the other way round, what another
    router changes in between looks like a catalog that is behind. A collection that is deleted in
    between may still look so: who gets a reason reads both once more before believing it.
    """
    for holding in holdings:
        definition = holding.definition
        told = definition.collection
        entry = entries.get(told.id)
        if holding.dropped:
            if entry is not None and entry.state is CollectionState.ACTIVE:
                return (
                    f"it has dropped collection [{entry.name}] ({told.id}), which the catalog has"
                )
            continue
        name = f"collection [{told.name}] ({told.id})"
        if entry is None:
            return f"it holds {name}, which the catalog does not know"
        epoch = entry.slot_map.epoch
        if told.epoch > epoch:
            return f"it holds epoch {told.epoch} of {name}, the catalog only epoch {epoch}"
        if definition.version > entry.version:
            return (
                f"it holds version {definition.version} of {name}, the catalog only version"
                f" {entry.version}"
            )
        if told.epoch == epoch and holding.owned_slots != entry.slot_map.bitmap_of(shard):
            return f"it owns other slots of {name} at epoch {epoch} than the catalog says"
    return None


class _Problem(Exception):
    """Why a collection cannot be rebuilt."""


def _node_problems(nodes: Mapping[str, NodeHoldings]) -> Iterator[str]:
    clusters = {node.cluster_id for node in nodes.values() if node.cluster_id}
    if not clusters:
        yield "no node belongs to a cluster; name the nodes of the cluster whose catalog is lost"
    if len(clusters) > 1:
        members = [f"{name} to {nodes[name].cluster_id}" for name in sorted(nodes)]
        yield f"the nodes belong to several clusters ({', '.join(members)}); name those of one"
    for address, count in Counter(node.address for node in nodes.values()).items():
        if count > 1:
            yield f"{count} shards are given with the address {address}"


def _collection(
    told: Mapping[str, ListHoldingsResponse], notes: list[str]
) -> CollectionEntry | None:
    """One collection, from what each shard tells of it; None if all who knew it have dropped it."""
    held = {shard: holding for shard, holding in told.items() if not holding.dropped}
    if not held:
        return None
    newest = max(held.values(), key=lambda holding: holding.definition.version).definition
    for shard, holding in held.items():
        if len(holding.owned_slots) != SLOT_BITMAP_BYTES:
            raise _Problem(f"shard {shard} tells its slots in {len(holding.owned_slots)} bytes")
    deleting = len(held) < len(told)
    dimension = _dimension(held)
    collection = newest.collection
    return CollectionEntry(
        id=collection.id,
        name=collection.name,
        tenant=collection.tenant,
        database=collection.database,
        database_id=newest.database_id,
        metadata=codec.as_metadata(_metadata(collection)),
        configuration_json=collection.configuration_json,
        schema_json=collection.schema_json,
        dimension=dimension,
        dimension_state=DimensionState.NONE if dimension is None else DimensionState.FIXED,
        dimension_joiners=0,
        placement_shards=collection.placement_shards,
        created_at=newest.created_at,
        slot_map=_slot_map_to_drop(told) if deleting else _slot_map(held, notes),
        state=CollectionState.DELETING if deleting else CollectionState.ACTIVE,
        version=newest.version,
    )


def _metadata(collection: Collection) -> codec.Metadata:
    try:
        found = metadata_from_wire(collection.metadata)
    except ValueError as error:
        raise _Problem(str(error)) from error
    scalars = {k: v for k, v in found.items() if isinstance(v, str | int | float | bool)}
    if len(scalars) != len(found):
        raise _Problem("its metadata holds what only the metadata of records can hold")
    return scalars


def _dimension(held: Mapping[str, ListHoldingsResponse]) -> int | None:
    found = {holding.definition.collection.dimension for holding in held.values()} - {0}
    if len(found) > 1:
        raise _Problem(f"its shards store embeddings of several dimensions: {sorted(found)}")
    return found.pop() if found else None


def _slot_map(held: Mapping[str, ListHoldingsResponse], notes: list[str]) -> SlotMap:
    newest = max(holding.definition.collection.epoch for holding in held.values())
    claims: dict[tuple[int, int], str] = {}
    owners, epochs = [""] * SLOT_COUNT, [0] * SLOT_COUNT
    for shard, holding in held.items():
        epoch = holding.definition.collection.epoch
        for slot in slots_from_bitmap(holding.owned_slots):
            # Invariant 1: in each epoch one owner for every slot.
            other = claims.setdefault((epoch, slot), shard)
            if other != shard:
                raise _Problem(f"slot {slot} is owned by both {other} and {shard} at epoch {epoch}")
            if epoch > epochs[slot]:
                owners[slot], epochs[slot] = shard, epoch
    if missing := owners.count(""):
        raise _Problem(
            f"{missing} of {SLOT_COUNT} slots have no owner among {sorted(held)}, whose newest"
            f" epoch is {newest}; is a shard missing?"
        )
    older = Counter(owner for owner, epoch in zip(owners, epochs, strict=True) if epoch < newest)
    if older:
        name = next(iter(held.values())).definition.collection.name
        parts = ", ".join(f"{shard} {count} slots" for shard, count in sorted(older.items()))
        notes.append(
            f"of collection [{name}] these keep slots of an epoch before {newest}, the newest one:"
            f" {parts}; that is right if every shard of the cluster was named"
        )
    return SlotMap(newest + 1, tuple(owners))


def _slot_map_to_drop(told: Mapping[str, ListHoldingsResponse]) -> SlotMap:
    """A map for a collection that nobody will read again: only its epoch and its shards matter."""
    epoch = max(holding.definition.collection.epoch for holding in told.values())
    return SlotMap.deal(epoch, [shard for shard in told if not told[shard].dropped])


def _databases(entries: Sequence[CollectionEntry], problems: list[str]) -> list[DatabaseEntry]:
    """The databases in which the collections are; those of DELETING ones may be gone for good."""
    by_id: dict[str, DatabaseEntry] = {}
    for entry in entries:
        if entry.state is CollectionState.ACTIVE:
            database = DatabaseEntry(entry.database_id, entry.database, entry.tenant)
            if by_id.setdefault(database.id, database) != database:
                problems.append(
                    f"collection {entry.id}: database {database.id} is named {database.name!r} here"
                    f" and {by_id[database.id].name!r} elsewhere"
                )
    for (tenant, name), count in Counter((d.tenant, d.name) for d in by_id.values()).items():
        if count > 1:
            problems.append(f"{count} databases of tenant {tenant!r} have the name {name!r}")
    return sorted(by_id.values(), key=lambda database: database.id)


def _with_names_of_their_own(
    entries: Sequence[CollectionEntry], notes: list[str]
) -> list[CollectionEntry]:
    """Of two collections with one name the newer keeps it.

    They are found where the older one's new name, or its deletion, had not reached any node yet.
    Nothing is thrown away: the older one gets its id into its name.
    """
    taken: set[tuple[str, str]] = set()
    result: list[CollectionEntry] = []
    for entry in sorted(entries, key=lambda entry: (-entry.created_at, entry.id)):
        own = entry
        if entry.state is CollectionState.ACTIVE:
            if (entry.database_id, entry.name) in taken:
                name = f"{entry.name[: _MAX_NAME - len(entry.id) - 1]}-{entry.id}"
                own = replace(entry, name=name, version=entry.version + 1)
                notes.append(
                    f"two collections were named [{entry.name}] in database [{entry.database}]; the"
                    f" older one is now named [{name}]"
                )
            taken.add((own.database_id, own.name))
        result.append(own)
    return sorted(result, key=lambda entry: entry.id)
