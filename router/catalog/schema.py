"""The catalog's file: its format, how one comes to be, and how one is opened.

A file appears under its name only when it is complete: it is built beside it, fsynced and then
linked. So a half-made catalog is never found, and an existing one is never overwritten. Whatever
opens a catalog file passes through `connect`, which refuses what it cannot read safely.

    cluster       one row: the cluster's id, and `revision`, +1 with each transaction that writes
                  anything but a mover's signs of life
    tenants       hold databases
    databases     hold collections
    shards        name -> address, role
    collections   with their slot maps. `home` is the database in which the collection takes up its
                  name: NULL once it is being deleted, and so its name is free for another one, and
                  its database may go, while the row stays until every node has dropped it.
    rebalances    the newest and some before it. `unended` lets only one be there that has not
                  ended. `failure` is why it gave up; `problem` tells besides what passes.
    moves         of a rebalance, with how far they have come
    lease         one row: which router is the mover

`version` is the row version of the compare-and-swap: +1 with each change of the row.

A catalog of format 1 lacks shards.role and the last three tables. Who opens it to write brings it
to this format; who only reads takes it as it is.
"""

import contextlib
import os
import sqlite3
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from chroma_router.wire.errors import NotAllowed, Reason

APPLICATION_ID = 0x43685274  # "ChRt"
FORMAT = 2
FORMAT_BEFORE_MOVES = 1
"""The format of the first versions: upgraded where it is opened to write."""

DEFAULT_TENANT = "default_tenant"
DEFAULT_DATABASE = "default_database"
DEFAULT_DATABASE_ID = "00000000-0000-0000-0000-000000000000"

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_TABLES = """
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
    version INTEGER NOT NULL,
    role    TEXT NOT NULL DEFAULT 'active'
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

_MOVE_TABLES = """
CREATE TABLE rebalances (
    number             INTEGER PRIMARY KEY,
    id                 TEXT NOT NULL UNIQUE,
    kind               TEXT NOT NULL,
    subject            TEXT NOT NULL,
    placement_before   INTEGER NOT NULL,
    state              TEXT NOT NULL,
    records_per_second INTEGER NOT NULL,
    query_agreement    REAL NOT NULL,
    problem            TEXT NOT NULL,
    started_at         INTEGER NOT NULL,
    ended_at           INTEGER NOT NULL,
    version            INTEGER NOT NULL,
    failure            TEXT NOT NULL DEFAULT '',
    unended INTEGER GENERATED ALWAYS
         AS (CASE WHEN state IN ('running', 'paused', 'cancelling') THEN 1 END) STORED UNIQUE
) STRICT;
CREATE TABLE moves (
    id            TEXT PRIMARY KEY,
    rebalance_id  TEXT NOT NULL REFERENCES rebalances (id) ON DELETE CASCADE,
    number        INTEGER NOT NULL,
    collection_id TEXT NOT NULL,
    source        TEXT NOT NULL,
    target        TEXT NOT NULL,
    slots         BLOB NOT NULL,
    stage         TEXT NOT NULL,
    next_epoch    INTEGER NOT NULL,
    records       INTEGER NOT NULL,
    bytes         INTEGER NOT NULL,
    problem       TEXT NOT NULL,
    version       INTEGER NOT NULL,
    copied_records           INTEGER NOT NULL DEFAULT 0,
    compared_records         INTEGER NOT NULL DEFAULT 0,
    trimmed_records          INTEGER NOT NULL DEFAULT 0,
    copy_microseconds        INTEGER NOT NULL DEFAULT 0,
    write_pause_microseconds INTEGER NOT NULL DEFAULT 0,
    read_pause_microseconds  INTEGER NOT NULL DEFAULT 0,
    UNIQUE (rebalance_id, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE lease (
    only_row   INTEGER PRIMARY KEY CHECK (only_row = 1),
    holder     TEXT NOT NULL,
    token      INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
INSERT INTO lease VALUES (1, '', 0, 0);
"""


class CorruptRow(Exception):
    """A row that the catalog cannot have written."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the file is not what it should be, and repeating will not help."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


def unusable(path: Path, why: str) -> NotAllowed:
    """The refusal of a catalog file, with the mend."""
    return NotAllowed(
        f"catalog {path} {why}; put a copy made by"
        " `chroma-router catalog backup` in its place, or move it away and run"
        " `chroma-router catalog rebuild`",
        Reason.CATALOG_UNUSABLE,
        metadata={"catalog": str(path)},
    )


def connect(path: Path, *, to_write: bool) -> sqlite3.Connection:
    """Opens the catalog at `path` for this thread, durable and verified; the caller closes it.

    One of an older format is upgraded if it is opened `to_write`, else left as it is. Raises
    NotAllowed for a file that is not a sound catalog of a format known here, and sqlite3.Error for
    what may pass (a lock held by another process).
    """
    if not path.is_file():
        raise unusable(path, "is not a file" if path.exists() else "does not exist")
    if not os.access(path, os.R_OK | os.W_OK):
        raise unusable(path, "cannot be read and written by this user; mend its permissions")
    db = _connect(path, "rw")
    try:
        _verify(db, path)
        # Each acknowledged change is on the disk (F_FULLFSYNC where fsync alone is not enough).
        db.execute("PRAGMA fullfsync = ON")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA foreign_keys = ON")
        if to_write and format_of(db) != FORMAT:
            _upgrade(db)
    except BaseException:
        db.close()
        raise
    return db


def create(
    path: Path,
    cluster_id: str | None = None,
    fill: Callable[[sqlite3.Connection], None] | None = None,
) -> None:
    """Makes a new catalog file with what `fill` puts into it. Raises FileExistsError."""

    def build(db: sqlite3.Connection) -> None:
        # Lasts: it is written into the file, so that every connection finds it in WAL mode.
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("BEGIN IMMEDIATE")
        _execute(db, _TABLES + _MOVE_TABLES)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {FORMAT}")
        db.execute("INSERT INTO cluster VALUES (1, ?, 1)", (cluster_id or str(uuid.uuid4()),))
        if fill is not None:
            fill(db)
        ensure_defaults(db)
        db.execute("COMMIT")

    publish(path, build)


def format_of(db: sqlite3.Connection) -> int:
    """The format of an open catalog."""
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    return found


def ensure_defaults(db: sqlite3.Connection) -> None:
    """The tenant and the database that are there from the beginning, as in Chroma."""
    db.execute("INSERT INTO tenants VALUES (?) ON CONFLICT DO NOTHING", (DEFAULT_TENANT,))
    db.execute(
        "INSERT INTO databases (id, name, tenant) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (DEFAULT_DATABASE_ID, DEFAULT_DATABASE, DEFAULT_TENANT),
    )


def publish(path: Path, build: Callable[[sqlite3.Connection], None]) -> None:
    """Lets `build` make a database and puts it at `path`: whole or not at all, never over a file.

    Raises FileExistsError, NotAllowed.
    """
    if not path.parent.is_dir():
        raise unusable(path, "cannot be made: its directory does not exist")
    for suffix in ("-wal", "-journal"):
        log = path.with_name(path.name + suffix)
        # SQLite would play the log of a catalog that is gone into the new one. (A log together with
        # its file is a living catalog: then the link below fails.)
        if log.exists() and not path.exists():
            raise unusable(
                path, f"is gone but its log {log} is still there; move that away as well"
            )
    building = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with contextlib.closing(_connect(building, "rwc")) as db:
            db.execute("PRAGMA fullfsync = ON")
            db.execute("PRAGMA synchronous = FULL")
            build(db)
        # The last close has moved the write-ahead log into the file; make sure of the file itself.
        _fsync(building)
        os.link(building, path)
    except FileExistsError:
        raise
    except (OSError, sqlite3.Error) as error:
        raise unusable(path, f"cannot be made ({error})") from error
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            building.with_name(building.name + suffix).unlink(missing_ok=True)
    _fsync(path.parent)


def _verify(db: sqlite3.Connection, path: Path) -> None:
    try:
        application = db.execute("PRAGMA application_id").fetchone()[0]
        found = format_of(db)
        if application != APPLICATION_ID:
            raise unusable(path, "is not a catalog of chroma-router")
        if found > FORMAT:
            raise NotAllowed(
                f"catalog {path} has format {found}, this version reads formats up to {FORMAT}:"
                " upgrade chroma-router",
                Reason.CATALOG_UNUSABLE,
                metadata={"catalog": str(path)},
            )
        if found not in (FORMAT_BEFORE_MOVES, FORMAT):
            raise unusable(path, f"has format {found}, which no version has written")
        # Milliseconds, and damage is found before anything is decided on it.
        verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise unusable(path, f"is damaged ({verdict})")
        db.execute("SELECT id FROM cluster").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise unusable(path, f"cannot be read as a database ({error})") from error
        raise


def _upgrade(db: sqlite3.Connection) -> None:
    """Brings a catalog of format 1 to this format, in one transaction.

    Of several routers that come at once the first does it; the others wait and find it done.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        if format_of(db) == FORMAT_BEFORE_MOVES:
            db.execute("ALTER TABLE shards ADD COLUMN role TEXT NOT NULL DEFAULT 'active'")
            _execute(db, _MOVE_TABLES)
            db.execute(f"PRAGMA user_version = {FORMAT}")
            db.execute("UPDATE cluster SET revision = revision + 1")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _execute(db: sqlite3.Connection, statements: str) -> None:
    """Runs statements one by one: `executescript` would end the transaction first."""
    for statement in statements.split(";\n"):
        db.execute(statement)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # isolation_level None: no transaction but those that are written out.
    return sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}", uri=True, isolation_level=None
    )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
