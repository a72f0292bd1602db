"""The data directory: who may open it, how it is laid out, and the engine settings made in it.

    DIR/node.lock              flock'ed while a node, or an engine it left behind, lives
    DIR/chroma/                the engine's persist path; chroma.sqlite3 holds the node's tables too
    DIR/chroma.new/            a first open that has not finished; it never served and is made anew

All engine settings are made here, once, before any data, and verified at each open: WAL (8 fsyncs
per write become 2), a queue that is never purged by itself (the only copy from which a damaged
index can be rebuilt), and the queue's index (16.5 ms per add beside 30,000 foreign rows become
1.8). That commits fsync (synchronous=FULL) is compiled into the engine.
"""

import fcntl
import json
import os
import platform
import re
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path

from shard_node.state import LATER, SCHEMA, connect

FORMAT_VERSION = 1

_QUEUE_CONFIG = {"automatically_purge": False, "_type": "EmbeddingsQueueConfigurationInternal"}
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class DirectoryRefused(Exception):
    """The node must not open this directory; the message says why and what mends it."""


class DataDirectory:
    """A locked data directory. It owns the lock; `prepare` makes it ready to serve."""

    def __init__(self, path: Path, shard: str) -> None:
        if not _SHARD_NAME.fullmatch(shard):
            raise DirectoryRefused(
                f"{shard!r} is no shard name: 1 to 63 letters, digits, '.', '_' or '-'"
            )
        self.path, self.shard = path, shard
        self.lock_fd = _lock(path, shard)

    @property
    def persist_path(self) -> Path:
        """Where the engine keeps its files."""
        return self.path / "chroma"

    @property
    def database(self) -> Path:
        """The engine's SQLite file, which holds the node's tables too."""
        return self.persist_path / "chroma.sqlite3"

    async def prepare(self, run_engine_once: Callable[[Path], Awaitable[None]]) -> None:
        """Makes the directory at its first open, by an engine run that migrates; verifies it."""
        if (self.path / "chroma.sqlite3").exists():
            raise DirectoryRefused(
                f"{self.path} is a directory of plain Chroma. Choose an empty directory and bring"
                " its records in through the router (chroma-router ingest)"
            )
        if not self.persist_path.exists():
            fresh = self.path / "chroma.new"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            await run_engine_once(fresh)
            _set_up(fresh / "chroma.sqlite3", self.shard)
            _sync(fresh)
            fresh.rename(self.persist_path)
            _sync(self.path)
        self._verify()

    def _verify(self) -> None:
        if not self.database.exists():
            raise DirectoryRefused(
                f"{self.database} is missing. Restore the directory, or remove"
                f" {self.persist_path} to begin empty"
            )
        link = connect(self.database)
        try:
            _check(link, self.path, self.shard)
        except sqlite3.DatabaseError as error:
            raise DirectoryRefused(
                f"{self.database} cannot be read ({error}). Restore the directory from a snapshot"
            ) from error
        finally:
            link.close()

    def release(self) -> None:
        """Gives the lock up."""
        os.close(self.lock_fd)


def _lock(path: Path, shard: str) -> int:
    """The descriptor of the flock'ed lock file; handed to the engine, which thereby holds it."""
    lock = path / "node.lock"
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DirectoryRefused(f"cannot use {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 1000, 0).decode("utf-8", "replace") or "another process"
        os.close(descriptor)
        raise DirectoryRefused(
            f"{path} is in use by {holder.strip()}. One directory has one node: stop that one first"
        ) from None
    who = {"shard": shard, "pid": os.getpid(), "host": platform.node()}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(who) + "\n").encode(), 0)
    return descriptor


def _set_up(database: Path, shard: str) -> None:
    link = sqlite3.connect(database, isolation_level=None)
    link.execute("PRAGMA journal_mode=WAL")
    link.execute("PRAGMA synchronous=FULL")
    link.execute("BEGIN IMMEDIATE")
    link.execute("DELETE FROM embeddings_queue_config")
    link.execute(
        "INSERT INTO embeddings_queue_config(config_json_str) VALUES (?)",
        (json.dumps(_QUEUE_CONFIG),),
    )
    for statement in SCHEMA.values():
        link.execute(statement)
    link.execute("INSERT INTO router_batch VALUES (1, 0, 0, 0, '')")
    meta = {"format_version": str(FORMAT_VERSION), "shard": shard, "engine": version("chromadb")}
    link.executemany("INSERT INTO router_meta VALUES (?, ?)", meta.items())
    link.execute("COMMIT")
    link.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    link.close()


def _check(link: sqlite3.Connection, path: Path, shard: str) -> None:
    schema: dict[str, str] = dict(link.execute("SELECT name, sql FROM sqlite_master"))
    if "router_meta" not in schema:
        raise DirectoryRefused(
            f"{path} holds a Chroma that no node has made. Choose an empty directory and bring its"
            " records in through the router (chroma-router ingest)"
        )
    meta: dict[str, str] = dict(link.execute("SELECT key, value FROM router_meta"))
    if int(meta["format_version"]) != FORMAT_VERSION:
        raise DirectoryRefused(
            f"{path} has format {meta['format_version']}, this node reads {FORMAT_VERSION}. Run the"
            " version of chroma-shard-node that wrote it, or a newer one"
        )
    if meta["shard"] != shard:
        raise DirectoryRefused(
            f"{path} belongs to shard {meta['shard']!r}, not {shard!r}. Start it with"
            f" --name {meta['shard']} or choose another --data"
        )
    if meta["engine"] != version("chromadb"):
        raise DirectoryRefused(
            f"{path} was made by chromadb {meta['engine']}, installed is {version('chromadb')}."
            f" Install chromadb=={meta['engine']}"
        )
    for name in [name for name in SCHEMA if name in LATER and name not in schema]:
        link.execute("BEGIN IMMEDIATE")
        if name == "router_array_delete":  # what was left behind before
            link.execute(
                "DELETE FROM embedding_metadata_array WHERE id NOT IN (SELECT id FROM embeddings)"
            )
        link.execute(SCHEMA[name])  # 1.0 to 1.6 s for the index of a million records
        link.execute("COMMIT")
        schema[name] = SCHEMA[name]
    _check_settings(link, path, schema)


def _check_settings(link: sqlite3.Connection, path: Path, schema: dict[str, str]) -> None:
    broken = [name for name, sql in SCHEMA.items() if schema.get(name) != sql]
    if broken:
        raise DirectoryRefused(
            f"{path}: the node's tables differ from what it made: {', '.join(broken)}. Something"
            " else has written here: restore the directory from a snapshot"
        )
    (mode,) = link.execute("PRAGMA journal_mode").fetchone()
    if mode != "wal":
        raise DirectoryRefused(
            f"{path}: SQLite's journal mode is {mode}. With no node running: sqlite3"
            f" {path}/chroma/chroma.sqlite3 'PRAGMA journal_mode=WAL'"
        )
    row = link.execute("SELECT config_json_str FROM embeddings_queue_config").fetchone()
    if row is None or json.loads(row[0]).get("automatically_purge") is not False:
        raise DirectoryRefused(
            f"{path}: the engine's queue is set to purge itself (did `chroma vacuum` run here?), so"
            " a damaged index could no longer be rebuilt. Restore the directory from a snapshot"
        )


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
