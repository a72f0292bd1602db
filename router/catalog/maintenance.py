"""Checks and copies a catalog file, whether a router has it open or not. For the command line."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from chroma_router.wire.errors import ClusterError, NotAllowed, Reason
from router.catalog import codec, move_rows, schema, shard_rows
from router.core.model import CollectionEntry, CollectionState, DimensionState


def check(path: Path) -> list[str]:
    """What is wrong with the catalog at `path`; empty if it is sound. Changes nothing.

    One of an older format is sound as it is: the next router that opens it upgrades it.
    """
    try:
        db = schema.connect(path, to_write=False)
    except ClusterError as error:
        return [error.message]
    except sqlite3.Error as error:
        return [f"catalog {path} cannot be read: {error}"]
    with contextlib.closing(db):
        return _problems(db)


def backup(path: Path, to: Path) -> None:
    """Copies the catalog at `path` to the new file `to`, as of one moment, checked and fsynced.

    Raises NotAllowed if `to` exists, and for a catalog that `check` finds unsound.
    """

    def copy(target: sqlite3.Connection) -> None:
        with contextlib.closing(schema.connect(path, to_write=False)) as source:
            source.backup(target)
        problems = _problems(target)
        if problems:
            raise schema.unusable(path, f"is not sound, so it was not copied ({problems[0]})")

    try:
        schema.publish(to, copy)
    except FileExistsError:
        raise overwrites(to) from None


def outdated(path: Path) -> int | None:
    """The format of a catalog that the next router will upgrade; None for one of this format.

    Raises NotAllowed for what is no catalog.
    """
    with contextlib.closing(schema.connect(path, to_write=False)) as db:
        found = schema.format_of(db)
    return None if found == schema.FORMAT else found


def overwrites(path: Path) -> NotAllowed:
    """The refusal to write over a file."""
    return NotAllowed(
        f"{path} exists already; name a file that does not exist, or move that one away",
        Reason.CATALOG_UNUSABLE,
        metadata={"catalog": str(path)},
    )


def _problems(db: sqlite3.Connection) -> list[str]:
    try:
        db.execute("BEGIN")
        problems = list(_find_problems(db))
        db.execute("COMMIT")
    except sqlite3.Error as error:
        return [f"not readable to its end: {error}"]
    return problems


def _find_problems(db: sqlite3.Connection) -> Iterator[str]:
    # The names that must be unique are so by unique indexes, which this checks as well.
    for (verdict,) in db.execute("PRAGMA integrity_check").fetchall():
        if verdict != "ok":
            yield f"integrity: {verdict}"
    for table, _, parent, _ in db.execute("PRAGMA foreign_key_check").fetchall():
        yield f"orphan: a row of {table} refers to a row of {parent} that does not exist"
    databases = {
        home: (tenant, name)
        for home, tenant, name in db.execute("SELECT id, tenant, name FROM databases")
    }
    shards = {name for (name,) in db.execute("SELECT name FROM shards")}
    for (collection_id,) in db.execute("SELECT id FROM collections ORDER BY id").fetchall():
        try:
            # Decoding a slot map asserts invariant 1 and the bounds of its epoch.
            entry = codec.select_collection(db, collection_id)
        except schema.CorruptRow as error:
            yield str(error)
            continue
        if entry is not None:
            for problem in _entry_problems(entry, databases, shards):
                yield f"collection {collection_id} [{entry.name}]: {problem}"
    if schema.format_of(db) != schema.FORMAT_BEFORE_MOVES:
        try:
            yield from _move_problems(db, shards)
        except schema.CorruptRow as error:
            yield str(error)


def _entry_problems(
    entry: CollectionEntry, databases: dict[str, tuple[str, str]], shards: set[str]
) -> Iterator[str]:
    for shard in entry.slot_map.shards:
        if shard not in shards:
            yield f"orphan: its slot map names shard {shard!r}, which the catalog does not know"
    if entry.state is CollectionState.ACTIVE:
        at_home = databases.get(entry.database_id)
        if at_home is not None and at_home != (entry.tenant, entry.database):
            yield f"it says it is in database {entry.database!r}, its database is {at_home[1]!r}"
    if entry.version < 1:
        yield f"its version is {entry.version}, versions begin at 1"
    proposed = entry.dimension_state is DimensionState.PROPOSED
    if proposed != (entry.dimension_joiners > 0):
        yield (
            f"{entry.dimension_joiners} writes claim its dimension, which is"
            f" {entry.dimension_state.value}"
        )


def _move_problems(db: sqlite3.Connection, shards: set[str]) -> Iterator[str]:
    move_rows.select_lease(db)
    shard_rows.select_shards(db)
    ended = {rebalance.id: rebalance.ended for rebalance in move_rows.all_rebalances(db)}
    living = db.execute("SELECT id FROM collections WHERE state <> 'deleting'")
    collections = {collection_id for (collection_id,) in living}
    taken: dict[tuple[str, int], str] = {}
    for move in move_rows.unended_moves(db):
        name = f"move {move.id}"
        if ended.get(move.rebalance_id):
            yield f"{name} has not ended, its rebalance {move.rebalance_id} has"
        for shard in (move.source, move.target):
            if shard not in shards:
                yield f"orphan: {name} names shard {shard!r}, which the catalog does not know"
        if move.collection_id not in collections:
            yield f"orphan: {name} is of collection {move.collection_id}, which is not there"
        others = {taken.setdefault((move.collection_id, slot), move.id) for slot in move.slots}
        for other in sorted(others - {move.id}):
            yield f"{name} has slots of collection {move.collection_id} that move {other} has too"
