"""The catalog: tenants, databases, collections with their slot maps, shards. The only truth.

Moves, and who carries them out, are in move_store.py (`Catalog.moves`).

Several routers share one file. Each method is one transaction, and those that write are serialized
over all processes (BEGIN IMMEDIATE), so a method's reads hold until its writes are in. What was
decided before the call, on an entry read earlier, is guarded by compare-and-swap: the caller passes
that entry, and Stale (CONFLICT) says that its row has changed since. A change is on the disk when
its method returns.
"""

import dataclasses
import sqlite3
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from chroma_router.wire.errors import (
    AlreadyExists,
    NotFound,
    Reason,
    Stale,
)
from router.catalog import codec, lost_shard, move_changes, schema, shard_rows
from router.catalog import dimension as dimension_rules
from router.catalog.codec import Metadata, NewCollection
from router.catalog.connection import Connection
from router.catalog.move_store import MoveStore
from router.core.model import (
    CollectionEntry,
    CollectionState,
    DatabaseEntry,
    DimensionState,
    ShardEntry,
    ShardRole,
)
from router.core.slot_map import SlotMap

_NO_LIMIT = -1


class Catalog:
    """One router's view of the catalog file. `await Catalog.open(path)`, later `await close()`.

    Besides what each method names, any of them raises Unavailable (CATALOG_BUSY) with nothing done
    when the file stays locked for 5 s, and NotAllowed when the file is found unusable.
    """

    def __init__(self, connection: Connection, cluster_id: str) -> None:
        self._connection = connection
        self.cluster_id = cluster_id
        self.moves = MoveStore(connection)

    @classmethod
    async def open(cls, path: Path, *, create: bool = True) -> Self:
        """Opens the catalog at `path`; a missing one is made if `create` is set.

        Raises NotAllowed, naming the file and the mend, for anything but a sound catalog.
        """
        connection = await Connection.open(path, create=create)
        try:
            cluster_id: str = await connection.read(
                lambda db: db.execute("SELECT id FROM cluster").fetchone()[0]
            )
        except BaseException:
            await connection.close()
            raise
        return cls(connection, cluster_id)

    async def close(self) -> None:
        """Closes the file. Idempotent."""
        await self._connection.close()

    async def revision(self) -> int:
        """Rises with each change that any router makes; what was read at it still holds."""

        def read(db: sqlite3.Connection) -> int:
            revision: int = db.execute("SELECT revision FROM cluster").fetchone()[0]
            return revision

        return await self._connection.read(read)

    # --------------------------------------------------------------------- tenants, databases

    async def create_tenant(self, name: str) -> None:
        """Makes a tenant. Raises AlreadyExists."""

        def create(db: sqlite3.Connection) -> None:
            if _has_tenant(db, name):
                raise AlreadyExists(f"Tenant [{name}] already exists", Reason.TENANT_EXISTS)
            db.execute("INSERT INTO tenants VALUES (?)", (name,))

        await self._connection.write(create)

    async def get_tenant(self, name: str) -> str:
        """The name of a tenant that exists. Raises NotFound."""
        if not await self._connection.read(lambda db: _has_tenant(db, name)):
            raise _no_tenant(name)
        return name

    async def create_database(self, name: str, tenant: str) -> DatabaseEntry:
        """Makes a database. Raises AlreadyExists; NotFound for the tenant."""

        def create(db: sqlite3.Connection) -> DatabaseEntry:
            if not _has_tenant(db, tenant):
                raise _no_tenant(tenant)
            if _database(db, name, tenant) is not None:
                raise AlreadyExists(f"Database [{name}] already exists", Reason.DATABASE_EXISTS)
            entry = DatabaseEntry(id=str(uuid.uuid4()), name=name, tenant=tenant)
            db.execute(
                "INSERT INTO databases (id, name, tenant) VALUES (?, ?, ?)",
                (entry.id, entry.name, entry.tenant),
            )
            return entry

        return await self._connection.write(create)

    async def get_database(self, name: str, tenant: str) -> DatabaseEntry:
        """The database of that name. Raises NotFound."""
        entry = await self._connection.read(lambda db: _database(db, name, tenant))
        if entry is None:
            raise NotFound(
                f"Database [{name}] not found. Are you sure it exists?", Reason.DATABASE_NOT_FOUND
            )
        return entry

    async def list_databases(
        self, tenant: str, limit: int | None = None, offset: int = 0
    ) -> list[DatabaseEntry]:
        """The databases of a tenant by name; none if there is no such tenant."""

        def read(db: sqlite3.Connection) -> list[DatabaseEntry]:
            rows = db.execute(
                f"{_SELECT_DATABASE} WHERE tenant = ? ORDER BY name LIMIT ? OFFSET ?",
                (tenant, _NO_LIMIT if limit is None else limit, offset),
            )
            return [DatabaseEntry(*row) for row in rows]

        return await self._connection.read(read)

    async def remove_database(self, name: str, tenant: str) -> None:
        """Forgets a database. Raises NotFound; Stale (CONFLICT) while it holds a collection.

        The caller begins to delete the collections first; those being deleted are in nobody's way.
        """

        def remove(db: sqlite3.Connection) -> None:
            entry = _database(db, name, tenant)
            if entry is None:
                raise NotFound(f"Database [{name}] not found", Reason.DATABASE_NOT_FOUND)
            if db.execute("SELECT 1 FROM collections WHERE home = ?", (entry.id,)).fetchone():
                raise Stale(f"Database [{name}] holds collections", Reason.CONFLICT)
            db.execute("DELETE FROM databases WHERE id = ?", (entry.id,))

        await self._connection.write(remove)

    # ---------------------------------------------------------------------------- collections

    async def create_collection(
        self, new: NewCollection, get_or_create: bool
    ) -> tuple[CollectionEntry, bool]:
        """Makes a collection; with `get_or_create` one that exists is returned as it is, and False.

        Raises AlreadyExists; NotFound for the database; Stale (CONFLICT) if the slot map names a
        shard that the catalog does not know (any more), or that is being drained.
        """

        def create(db: sqlite3.Connection) -> tuple[CollectionEntry, bool]:
            database = _database(db, new.database, new.tenant)
            if database is None:
                raise NotFound(
                    f"Database [{new.database}] does not exist", Reason.DATABASE_NOT_FOUND
                )
            present = _named(db, database.id, new.name)
            if present is not None:
                if get_or_create:
                    return present, False
                raise _collection_exists(new.name)
            shard_rows.check_active(db, new.slot_map.shards)
            entry = new.entry(database.id)
            codec.insert_collection(db, entry)
            return entry, True

        return await self._connection.write(create)

    async def find_collection(self, tenant: str, database: str, name: str) -> CollectionEntry:
        """The collection of that name. Raises NotFound."""

        def find(db: sqlite3.Connection) -> CollectionEntry:
            home = _database(db, database, tenant)
            entry = _named(db, home.id, name) if home is not None else None
            if entry is None:
                raise _no_collection(name)
            return entry

        return await self._connection.read(find)

    async def collection(self, collection_id: str) -> CollectionEntry:
        """The collection of that UUID. Raises NotFound, also for one that is being deleted."""
        return await self._connection.read(lambda db: _active(db, collection_id))

    async def list_collections(
        self, tenant: str, database: str, limit: int | None = None, offset: int = 0
    ) -> list[CollectionEntry]:
        """The collections of a database by UUID; none if there is no such database."""

        def read(db: sqlite3.Connection) -> list[CollectionEntry]:
            home = _database(db, database, tenant)
            if home is None:
                return []
            return codec.select_collections(
                db,
                "WHERE home = ? ORDER BY id LIMIT ? OFFSET ?",
                (home.id, _NO_LIMIT if limit is None else limit, offset),
            )

        return await self._connection.read(read)

    async def count_collections(self, tenant: str, database: str) -> int:
        """How many collections a database holds; 0 if there is no such database."""

        def count(db: sqlite3.Connection) -> int:
            number: int = db.execute(
                "SELECT count(*) FROM collections JOIN databases ON databases.id = home"
                " WHERE databases.tenant = ? AND databases.name = ?",
                (tenant, database),
            ).fetchone()[0]
            return number

        return await self._connection.read(count)

    async def all_collections(self) -> list[CollectionEntry]:
        """Every collection of the catalog by UUID, those that are being deleted included."""
        return await self._connection.read(lambda db: codec.select_collections(db, "ORDER BY id"))

    async def collection_names(self) -> dict[str, str]:
        """The names of all collections that are not being deleted, by UUID; cheap, beside
        `all_collections`, which reads their slot maps."""

        def read(db: sqlite3.Connection) -> dict[str, str]:
            return dict(db.execute("SELECT id, name FROM collections WHERE state = 'active'"))

        return await self._connection.read(read)

    async def update_collection(
        self,
        expected: CollectionEntry,
        *,
        name: str | None = None,
        metadata: Metadata | None = None,
        configuration_json: str | None = None,
        schema_json: str | None = None,
    ) -> CollectionEntry:
        """Changes what is given. Raises Stale (CONFLICT), NotFound; AlreadyExists for a name."""

        def update(db: sqlite3.Connection) -> CollectionEntry:
            wanted = _unchanged(db, expected)
            if name is not None and name != wanted.name:
                if _named(db, wanted.database_id, name) is not None:
                    raise _collection_exists(name)
                wanted = dataclasses.replace(wanted, name=name)
            if metadata is not None:
                wanted = dataclasses.replace(wanted, metadata=codec.as_metadata(metadata))
            if configuration_json is not None:
                wanted = dataclasses.replace(wanted, configuration_json=configuration_json)
            if schema_json is not None:
                wanted = dataclasses.replace(wanted, schema_json=schema_json)
            return codec.update_collection(db, wanted)

        return await self._connection.write(update)

    async def set_placement(
        self, expected: CollectionEntry, placement_shards: int
    ) -> CollectionEntry:
        """Says on how many shards a collection is placed, 0 for all; moves nothing.

        Raises Stale (CONFLICT), NotFound.
        """

        def change(db: sqlite3.Connection) -> CollectionEntry:
            entry = _unchanged(db, expected)
            return _change(db, entry, dataclasses.replace(entry, placement_shards=placement_shards))

        return await self._connection.write(change)

    async def replace_slot_map(
        self, expected: CollectionEntry, slot_map: SlotMap
    ) -> CollectionEntry:
        """Puts the next slot map in the place of the one of `expected`.

        Raises Stale (CONFLICT), also for an unknown shard; NotFound.
        """
        # Invariant 1 holds for every SlotMap; here: one map for each epoch, and none left out.
        assert slot_map.epoch == expected.slot_map.epoch + 1, "invariant 1: the epoch rises by 1"

        def replace(db: sqlite3.Connection) -> CollectionEntry:
            entry = _unchanged(db, expected)
            shard_rows.check_known(db, slot_map.shards)
            return codec.update_collection(db, dataclasses.replace(entry, slot_map=slot_map))

        return await self._connection.write(replace)

    async def begin_delete(self, collection_id: str) -> CollectionEntry:
        """Gives the collection up: its name is free, its epoch one higher, its moves end.

        Idempotent. The caller tells every node to drop it, then calls finish_delete. Raises
        NotFound when that has happened already.
        """

        def begin(db: sqlite3.Connection) -> CollectionEntry:
            entry = _known(db, collection_id)
            if entry.state is CollectionState.DELETING:
                return entry
            return _give_up(db, entry)

        return await self._connection.write(begin)

    async def finish_delete(self, collection_id: str) -> None:
        """Forgets a collection in deletion, once every node has dropped it. Idempotent."""

        def finish(db: sqlite3.Connection) -> None:
            db.execute(
                "DELETE FROM collections WHERE id = ? AND state = 'deleting'", (collection_id,)
            )

        await self._connection.write(finish)

    async def deleting(self) -> list[CollectionEntry]:
        """The collections whose deletion was begun and not finished, by UUID."""
        return await self._connection.read(_deleting)

    async def reset(self) -> list[CollectionEntry]:
        """Forgets everything but the defaults, the shards and the cluster's id.

        Returns all collections that are being deleted now: the nodes have yet to drop them.
        """

        def reset(db: sqlite3.Connection) -> list[CollectionEntry]:
            for entry in codec.select_collections(db, "WHERE state = 'active'"):
                _give_up(db, entry)
            db.execute("DELETE FROM databases")
            db.execute("DELETE FROM tenants")
            schema.ensure_defaults(db)
            return _deleting(db)

        return await self._connection.write(reset)

    # ------------------------------------------------------------------------------ dimension

    async def claim_dimension(self, collection_id: str, dimension: int) -> CollectionEntry:
        """Claims the dimension for one write (dimension.py). Raises InvalidRequest, NotFound.

        If the entry comes back FIXED, nothing is to be given back. Else the caller owes exactly one
        of: fix_dimension, once something was applied; retract_dimension, if provably nothing was;
        nothing at all, if that is not known.
        """

        def claim(db: sqlite3.Connection) -> CollectionEntry:
            entry = _active(db, collection_id)
            return _change(db, entry, dimension_rules.claimed(entry, dimension))

        return await self._connection.write(claim)

    async def fix_dimension(self, collection_id: str, dimension: int) -> CollectionEntry:
        """Fixes the dimension for good: something of it is stored. Idempotent. Raises NotFound."""

        def fix(db: sqlite3.Connection) -> CollectionEntry:
            entry = _active(db, collection_id)
            return _change(db, entry, dimension_rules.fixed(entry, dimension))

        return await self._connection.write(fix)

    async def retract_dimension(self, claim: CollectionEntry) -> None:
        """Gives back a claim of which provably nothing was applied; once for each claim.

        Nothing happens if the dimension has been fixed or the collection deleted since.
        """

        def retract(db: sqlite3.Connection) -> None:
            entry = codec.select_collection(db, claim.id)
            if entry is not None:
                _change(db, entry, dimension_rules.retracted(entry))

        if claim.dimension_state is DimensionState.PROPOSED:
            await self._connection.write(retract)

    # --------------------------------------------------------------------------------- shards

    async def shards(self) -> list[ShardEntry]:
        """All shards by name."""
        return await self._connection.read(shard_rows.select_shards)

    async def add_shard(self, name: str, address: str) -> ShardEntry:
        """Makes a shard known. Raises AlreadyExists if the name or the address is taken."""
        return await self._connection.write(lambda db: shard_rows.add(db, name, address))

    async def add_first_shards(self, shards: Sequence[tuple[str, str]]) -> bool:
        """Makes these shards (name, address) known, all or none; False if there are some already.

        Raises AlreadyExists if a name or an address comes twice.
        """

        def add_all(db: sqlite3.Connection) -> bool:
            if shard_rows.select_shards(db):
                return False
            for name, address in shards:
                shard_rows.add(db, name, address)
            return True

        return await self._connection.write(add_all)

    async def set_shard_address(self, expected: ShardEntry, address: str) -> ShardEntry:
        """Gives a shard another address. Raises Stale (CONFLICT); AlreadyExists if it is taken."""
        return await self._connection.write(
            lambda db: shard_rows.change(db, expected, address=address)
        )

    async def set_shard_role(self, expected: ShardEntry, role: ShardRole) -> ShardEntry:
        """Says whether a shard takes new data. Raises Stale (CONFLICT)."""
        return await self._connection.write(lambda db: shard_rows.change(db, expected, role=role))

    async def remove_shard(self, name: str) -> None:
        """Forgets a shard that nothing is on.

        Raises NotFound (SHARD_NOT_FOUND); NotAllowed: LAST_SHARD if no other takes new data,
        SHARD_IN_USE if a slot map, a move or a drain that has not ended needs it.
        """
        await self._connection.write(lambda db: shard_rows.remove(db, name))

    async def remove_lost_shard(self, name: str) -> list[tuple[CollectionEntry, int]]:
        """Forgets a shard that is dead for good, and all that it owns (lost_shard.py).

        Returns the collections that lost slots, as they are now, and how many each lost. Raises
        NotFound (SHARD_NOT_FOUND), NotAllowed (LAST_SHARD) if it is the only one.
        """
        return await self._connection.write(lambda db: lost_shard.remove(db, name))


_SELECT_DATABASE = "SELECT id, name, tenant FROM databases"


def _has_tenant(db: sqlite3.Connection, name: str) -> bool:
    return db.execute("SELECT 1 FROM tenants WHERE name = ?", (name,)).fetchone() is not None


def _database(db: sqlite3.Connection, name: str, tenant: str) -> DatabaseEntry | None:
    row = db.execute(f"{_SELECT_DATABASE} WHERE tenant = ? AND name = ?", (tenant, name)).fetchone()
    return None if row is None else DatabaseEntry(*row)


def _named(db: sqlite3.Connection, database_id: str, name: str) -> CollectionEntry | None:
    found = codec.select_collections(db, "WHERE home = ? AND name = ?", (database_id, name))
    return found[0] if found else None


def _known(db: sqlite3.Connection, collection_id: str) -> CollectionEntry:
    entry = codec.select_collection(db, collection_id)
    if entry is None:
        raise _no_collection(collection_id)
    return entry


def _active(db: sqlite3.Connection, collection_id: str) -> CollectionEntry:
    entry = _known(db, collection_id)
    if entry.state is CollectionState.DELETING:
        raise _no_collection(collection_id)
    return entry


def _unchanged(db: sqlite3.Connection, expected: CollectionEntry) -> CollectionEntry:
    entry = _active(db, expected.id)
    if entry.version != expected.version:
        raise Stale(f"Collection [{expected.name}] has changed meanwhile", Reason.CONFLICT)
    return entry


def _deleting(db: sqlite3.Connection) -> list[CollectionEntry]:
    return codec.select_collections(db, "WHERE state = 'deleting' ORDER BY id")


def _give_up(db: sqlite3.Connection, entry: CollectionEntry) -> CollectionEntry:
    move_changes.end_moves_of(db, entry.id)
    slot_map = dataclasses.replace(entry.slot_map, epoch=entry.slot_map.epoch + 1)
    return codec.update_collection(
        db, dataclasses.replace(entry, state=CollectionState.DELETING, slot_map=slot_map)
    )


def _change(
    db: sqlite3.Connection, present: CollectionEntry, wanted: CollectionEntry
) -> CollectionEntry:
    return present if wanted == present else codec.update_collection(db, wanted)


def _no_tenant(name: str) -> NotFound:
    return NotFound(f"Tenant [{name}] not found", Reason.TENANT_NOT_FOUND)


def _no_collection(name_or_id: str) -> NotFound:
    return NotFound(f"Collection [{name_or_id}] does not exist", Reason.COLLECTION_NOT_FOUND)


def _collection_exists(name: str) -> AlreadyExists:
    return AlreadyExists(f"Collection [{name}] already exists", Reason.COLLECTION_EXISTS)
