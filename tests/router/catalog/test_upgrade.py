"""Catalogs of format 1: made by the first versions, brought to this one where they are written."""

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chroma_router.wire.errors import NotAllowed
from router.catalog import (
    DEFAULT_DATABASE,
    DEFAULT_DATABASE_ID,
    DEFAULT_TENANT,
    Catalog,
    backup,
    check,
    outdated,
    schema,
)
from router.cli.main import app
from router.core.model import CollectionEntry, ShardEntry, ShardRole
from tests.router.catalog.helpers import SHARDS, a_move, a_rebalance, leased, new

CLUSTER = "0b1f9a54-7a52-4f0f-9a39-0c5a6f1b8a11"

# As the first versions wrote it; never to be changed.
FORMAT_1 = """
CREATE TABLE cluster (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    id       TEXT NOT NULL,
    revision INTEGER NOT NULL
) STRICT;
CREATE TABLE tenants (
    name TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;
CREATE TABLE databases (
    id     TEXT PRIMARY KEY,
    name   TEXT NOT NULL,
    tenant TEXT NOT NULL REFERENCES tenants (name),
    UNIQUE (tenant, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE shards (
    name    TEXT PRIMARY KEY,
    address TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE collections (
    id                 TEXT PRIMARY KEY,
    name               TEXT NOT NULL,
    tenant             TEXT NOT NULL,
    database           TEXT NOT NULL,
    database_id        TEXT NOT NULL,
    metadata           TEXT,
    configuration_json TEXT NOT NULL,
    schema_json        TEXT NOT NULL,
    dimension          INTEGER,
    dimension_state    TEXT NOT NULL,
    dimension_joiners  INTEGER NOT NULL,
    placement_shards   INTEGER NOT NULL,
    created_at         INTEGER NOT NULL,
    slot_map           BLOB NOT NULL,
    state              TEXT NOT NULL,
    version            INTEGER NOT NULL,
    home TEXT GENERATED ALWAYS AS (CASE state WHEN 'active' THEN database_id END) STORED
         REFERENCES databases (id),
    UNIQUE (home, name)
) STRICT;
"""

SHARD_ENTRIES = [
    ShardEntry(name, f"127.0.0.1:{7000 + number}", version=number + 1, role=ShardRole.ACTIVE)
    for number, name in enumerate(SHARDS)
]


def _made_by_the_first_version(path: Path) -> CollectionEntry:
    """A catalog with one collection on three shards."""
    entry = new("papers", metadata={"a": 1}).entry(DEFAULT_DATABASE_ID)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("BEGIN IMMEDIATE")
        for statement in FORMAT_1.split(";\n"):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {0x43685274}")
        db.execute("PRAGMA user_version = 1")
        db.execute("INSERT INTO cluster VALUES (1, ?, 7)", (CLUSTER,))
        db.execute("INSERT INTO tenants VALUES (?)", (DEFAULT_TENANT,))
        db.execute(
            "INSERT INTO databases (id, name, tenant) VALUES (?, ?, ?)",
            (DEFAULT_DATABASE_ID, DEFAULT_DATABASE, DEFAULT_TENANT),
        )
        db.executemany(
            "INSERT INTO shards (name, address, version) VALUES (?, ?, ?)",
            [(shard.name, shard.address, shard.version) for shard in SHARD_ENTRIES],
        )
        db.execute(
            "INSERT INTO collections (id, name, tenant, database, database_id, metadata,"
            " configuration_json, schema_json, dimension, dimension_state, dimension_joiners,"
            " placement_shards, created_at, slot_map, state, version)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, 'none', 0, 0, ?, ?, 'active', 1)",
            (
                *(entry.id, entry.name, DEFAULT_TENANT, DEFAULT_DATABASE, DEFAULT_DATABASE_ID),
                *('{"a": 1}', entry.configuration_json, "", entry.created_at),
                entry.slot_map.encode(),
            ),
        )
        db.execute("COMMIT")
    return entry


def _layout(path: Path) -> tuple[int, set[tuple[str, str, str]]]:
    """The format of a catalog, and its tables' columns."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE sql <> ''")]
        columns = {
            (table, row[1], row[2])
            for table in tables
            for row in db.execute(f"PRAGMA table_xinfo({table})")
        }
        return db.execute("PRAGMA user_version").fetchone()[0], columns


async def test_a_router_upgrades_it_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    entry = _made_by_the_first_version(path)
    catalog = await Catalog.open(path)
    assert catalog.cluster_id == CLUSTER
    assert await catalog.all_collections() == [entry]
    assert await catalog.shards() == SHARD_ENTRIES
    assert await catalog.revision() == 8
    assert await catalog.moves.newest() is None
    # It does all that a new one does.
    lease = await leased(catalog)
    rebalance = a_rebalance()
    move = a_move(rebalance, entry, [0], "shard-1", "shard-2")
    await catalog.moves.begin(rebalance, [move], {entry.id: 1})
    running = await catalog.moves.running()
    assert running is not None
    assert lease.token == 1
    await catalog.close()
    schema.create(tmp_path / "new.db")
    assert _layout(path) == _layout(tmp_path / "new.db")
    assert check(path) == []
    assert outdated(path) is None


def test_who_only_reads_leaves_it_as_it_is(tmp_path: Path) -> None:
    path, copy = tmp_path / "catalog.db", tmp_path / "copy.db"
    _made_by_the_first_version(path)
    before = _layout(path)
    assert check(path) == []
    assert outdated(path) == 1
    backup(path, copy)
    said = CliRunner().invoke(app, ["catalog", "check", "--catalog", str(path)])
    assert said.exit_code == 0
    assert "is sound" in said.stdout
    assert "older format 1; the next router that opens it upgrades it" in said.stdout
    assert _layout(path) == _layout(copy) == before
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM shards WHERE name = 'shard-2'")
        db.commit()
    assert "'shard-2'" in check(path)[0]


async def test_of_routers_that_come_at_once_one_upgrades_it(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    entry = _made_by_the_first_version(path)
    catalogs = await asyncio.gather(*(Catalog.open(path) for _ in range(8)))
    for catalog in catalogs:
        assert await catalog.all_collections() == [entry]
        assert await catalog.revision() == 8
        await catalog.close()
    assert check(path) == []


OPENER = """
import asyncio, sys
from pathlib import Path
from router.catalog import Catalog

async def main(path: Path) -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    catalog = await Catalog.open(path)
    print(await catalog.revision(), flush=True)
    await catalog.close()

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.integration
def test_processes_that_come_at_once(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    _made_by_the_first_version(path)
    command = [sys.executable, "-c", OPENER, str(path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in processes] == ["8\n"] * 4
    assert check(path) == []


async def test_an_upgrade_that_fails_leaves_it_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    _made_by_the_first_version(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE lease (x)")
        db.commit()
    before = _layout(path)
    with pytest.raises(Exception, match="lease"):
        await Catalog.open(path)
    assert _layout(path) == before


async def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    _made_by_the_first_version(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 3")
    with pytest.raises(NotAllowed, match="reads formats up to 2: upgrade"):
        await Catalog.open(path)
    assert "upgrade chroma-router" in check(path)[0]
