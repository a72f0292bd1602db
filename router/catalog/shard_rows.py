"""Shards in the catalog's file: what the methods of Catalog that concern them do in a transaction.

A shard that is dead for good goes by lost_shard.py.
"""

import dataclasses
import sqlite3
from collections.abc import Iterable
from typing import Any

from chroma_router.wire.errors import AlreadyExists, NotAllowed, NotFound, Reason, Stale
from router.catalog import codec, move_rows
from router.catalog.schema import CorruptRow
from router.core.model import ShardEntry, ShardRole

_COLUMNS = tuple(f.name for f in dataclasses.fields(ShardEntry))
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM shards"
_INSERT = f"INSERT INTO shards ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_UPDATE = f"UPDATE shards SET {', '.join(f'{c} = ?' for c in _COLUMNS)} WHERE name = ?"


def select_shards(db: sqlite3.Connection) -> list[ShardEntry]:
    """All shards by name."""
    return [_decode(row) for row in db.execute(f"{_SELECT} ORDER BY name")]


def insert_shard(db: sqlite3.Connection, entry: ShardEntry) -> None:
    """Writes a new row."""
    db.execute(_INSERT, _values(entry))


def delete_shard(db: sqlite3.Connection, name: str) -> None:
    """Deletes a row."""
    db.execute("DELETE FROM shards WHERE name = ?", (name,))


def known_shard(db: sqlite3.Connection, name: str) -> ShardEntry:
    """The shard of that name. Raises NotFound, which names those that there are."""
    row = db.execute(f"{_SELECT} WHERE name = ?", (name,)).fetchone()
    if row is None:
        there = ", ".join(shard.name for shard in select_shards(db)) or "none"
        raise NotFound(f"Shard [{name}] does not exist; there are: {there}", Reason.SHARD_NOT_FOUND)
    return _decode(row)


def add(db: sqlite3.Connection, name: str, address: str) -> ShardEntry:
    """Makes an ACTIVE shard known. Raises AlreadyExists."""
    if db.execute("SELECT 1 FROM shards WHERE name = ?", (name,)).fetchone():
        raise AlreadyExists(f"Shard [{name}] already exists", Reason.SHARD_EXISTS)
    _check_address_is_free(db, address)
    entry = ShardEntry(name=name, address=address, version=1)
    insert_shard(db, entry)
    return entry


def change(
    db: sqlite3.Connection,
    expected: ShardEntry,
    *,
    address: str | None = None,
    role: ShardRole | None = None,
) -> ShardEntry:
    """Changes what is given. Raises Stale (CONFLICT); AlreadyExists for an address."""
    row = db.execute(f"{_SELECT} WHERE name = ?", (expected.name,)).fetchone()
    if row is None or _decode(row) != expected:
        raise Stale(f"Shard [{expected.name}] has changed meanwhile", Reason.CONFLICT)
    wanted = expected
    if address is not None and address != expected.address:
        _check_address_is_free(db, address)
        wanted = dataclasses.replace(wanted, address=address)
    if role is not None:
        wanted = dataclasses.replace(wanted, role=role)
    if wanted == expected:
        return expected
    wanted = dataclasses.replace(wanted, version=expected.version + 1)
    db.execute(_UPDATE, (*_values(wanted), wanted.name))
    return wanted


def remove(db: sqlite3.Connection, name: str) -> None:
    """Forgets a shard that nothing is on. Raises NotFound, NotAllowed."""
    known_shard(db, name)
    check_not_last(db, name, "removed")
    uses = list(_uses(db, name))
    if uses:
        raise NotAllowed(
            f"Shard [{name}] is in use: {'; '.join(uses)}. Empty it with"
            f" `chroma-router shards drain {name}` and wait for that to end; for a shard that is"
            f" dead for good: `chroma-router shards remove {name} --force-lost`",
            Reason.SHARD_IN_USE,
            metadata={"shard": name},
        )
    delete_shard(db, name)


def check_not_last(db: sqlite3.Connection, name: str, what: str) -> None:
    """Raises NotAllowed (LAST_SHARD) unless another shard takes new data."""
    others = [s for s in select_shards(db) if s.name != name and s.role is ShardRole.ACTIVE]
    if not others:
        raise NotAllowed(
            f"Shard [{name}] cannot be {what}: no other shard takes new data; add one first with"
            " `chroma-router shards add`",
            Reason.LAST_SHARD,
            metadata={"shard": name},
        )


def check_known(db: sqlite3.Connection, names: Iterable[str]) -> None:
    """Raises Stale (CONFLICT) for a shard that the catalog does not know (any more)."""
    known = {shard.name for shard in select_shards(db)}
    for name in names:
        if name not in known:
            raise Stale(f"Shard [{name}] is not in the catalog", Reason.CONFLICT)


def check_active(db: sqlite3.Connection, names: Iterable[str]) -> None:
    """Raises Stale (CONFLICT) for a shard that is not known, or takes no new data (any more)."""
    roles = {shard.name: shard.role for shard in select_shards(db)}
    for name in names:
        if name not in roles:
            raise Stale(f"Shard [{name}] is not in the catalog", Reason.CONFLICT)
        if roles[name] is not ShardRole.ACTIVE:
            raise Stale(f"Shard [{name}] is being drained: it takes no new data", Reason.CONFLICT)


def _uses(db: sqlite3.Connection, name: str) -> Iterable[str]:
    """What a shard is needed for, in words."""
    owned = [e for e in codec.select_collections(db, "ORDER BY id") if name in e.slot_map.shards]
    if owned:
        slots = sum(len(entry.slot_map.slots_of(name)) for entry in owned)
        yield f"it owns {slots} slots of {len(owned)} collections"
    for move in move_rows.unended_moves(db):
        if name in (move.source, move.target):
            yield f"move {move.id} from {move.source} to {move.target} has not ended"
            break
    rebalance = move_rows.unended_rebalance(db)
    if rebalance is not None and rebalance.subject == name:
        yield f"rebalance {rebalance.id}, which empties it, has not ended"


def _check_address_is_free(db: sqlite3.Connection, address: str) -> None:
    row = db.execute("SELECT name FROM shards WHERE address = ?", (address,)).fetchone()
    if row is not None:
        raise AlreadyExists(
            f"Shard [{row[0]}] already has the address {address}", Reason.SHARD_EXISTS
        )


def _values(entry: ShardEntry) -> tuple[codec.Value, ...]:
    return tuple(getattr(entry, column) for column in _COLUMNS)


def _decode(row: tuple[Any, ...]) -> ShardEntry:
    values = dict(zip(_COLUMNS, row, strict=True))
    try:
        values["role"] = ShardRole(values["role"])
    except ValueError as error:
        raise CorruptRow(f"shard {values['name']}: {error}") from error
    return ShardEntry(**values)
