"""A copy of a Chroma directory, made by reading its files and nothing else.

Chroma writes to a directory by merely opening it (it applies migrations, replays and purges its
queue, persists its index), and even SQLite's read-only mode rolls back a journal or makes a WAL's
index. So the engine is given a copy. Only the files that are needed are copied: the database, and
the vector segments of the collections that are asked for. Where the file system can, they share
their blocks with the original.
"""

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from router.cli.command import Failed
from router.cli.output import bytes_text

DATABASE = "chroma.sqlite3"

_DATABASE_FILES = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-journal")
_PREFIX = "chroma-router-import-"
_CHUNK = 64 << 20
_SPARE_BYTES = 64 << 20
"""Left free in the temporary directory: the engine writes a little to its copy."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a file was when it was looked at; it changes with every write to the file."""

    size: int
    modified: int
    inode: int


class DirectoryCopy:
    """The copy; `path` is what an engine may open. Raises Failed for what cannot be copied."""

    def __init__(self, source: Path, temporary: Path | None = None) -> None:
        self.source = source
        if not (source / DATABASE).is_file():
            raise Failed(
                f"{source} holds no {DATABASE}, so it is no directory of a persistent Chroma; "
                "give the path that PersistentClient or `chroma run --path` was given"
            )
        parent = temporary or Path(tempfile.gettempdir())
        _sweep(parent)
        self._home = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._lock = _locked(self._home)
        self.path = self._home / "data"
        self.path.mkdir()
        self._copied: dict[Path, _Seen] = {}
        try:
            for name in _DATABASE_FILES:
                if (source / name).is_file():
                    self._copy(Path(name))
            self._check_quiet()
            _check_format(self.path / DATABASE, source)
        except BaseException:
            self.close()
            raise

    def add_vectors(self, collection_ids: Collection[str]) -> None:
        """Copies the vector segments of these collections too."""
        wanted = set(collection_ids)
        with contextlib.closing(sqlite3.connect(self.path / DATABASE)) as link:
            rows = link.execute(
                "SELECT id, collection FROM segments WHERE scope = 'VECTOR'"
            ).fetchall()
        folders = [Path(segment) for segment, collection in rows if collection in wanted]
        files = [
            file.relative_to(self.source)
            for folder in folders
            if (self.source / folder).is_dir()
            for file in sorted((self.source / folder).iterdir())
            if file.is_file()
        ]
        for file in files:
            (self.path / file).parent.mkdir(exist_ok=True)
            self._copy(file)
        self._check_quiet()

    def tenants(self) -> list[str]:
        """The names of the tenants; the engine's interface cannot list them."""
        with contextlib.closing(sqlite3.connect(self.path / DATABASE)) as link:
            return [name for (name,) in link.execute("SELECT id FROM tenants ORDER BY id")]

    def close(self) -> None:
        """Removes the copy."""
        shutil.rmtree(self._home, ignore_errors=True)
        self._lock.close()

    def _copy(self, file: Path) -> None:
        with (self.source / file).open("rb") as origin, (self.path / file).open("wb") as copy:
            self._copied[file] = seen = _look(origin)
            free = shutil.disk_usage(self._home).free
            if seen.size + _SPARE_BYTES > free:
                raise Failed(
                    f"{self._home.parent} has {bytes_text(free)} free, too little for the copy of "
                    f"{self.source / file} ({bytes_text(seen.size)}), which is made since Chroma "
                    "writes to what it opens; name a directory with more room with --temp DIR"
                )
            _copy_bytes(origin, copy)

    def _check_quiet(self) -> None:
        """Nobody wrote to the source since its files were copied: so the copy is of one moment."""
        for name in _DATABASE_FILES:
            if (self.source / name).is_file() != (Path(name) in self._copied):
                self._refuse_busy(Path(name))
        for file, seen in self._copied.items():
            try:
                with (self.source / file).open("rb") as origin:
                    same = _look(origin) == seen
            except FileNotFoundError:
                same = False
            if not same:
                self._refuse_busy(file)

    def _refuse_busy(self, file: Path) -> None:
        raise Failed(
            f"{self.source / file} changed while it was copied: a process writes to it. Stop that "
            "process, or import from its server with --from http://HOST:PORT"
        )


def _look(file: IO[bytes]) -> _Seen:
    found = os.fstat(file.fileno())
    return _Seen(found.st_size, found.st_mtime_ns, found.st_ino)


def _copy_bytes(origin: IO[bytes], copy: IO[bytes]) -> None:
    """Shares blocks where the file system can, else copies in the kernel, else by hand."""
    try:
        while os.copy_file_range(origin.fileno(), copy.fileno(), _CHUNK):
            pass
    except (AttributeError, OSError):
        origin.seek(0)
        copy.seek(0)
        copy.truncate()
        shutil.copyfileobj(origin, copy, _CHUNK)


def _locked(home: Path) -> IO[bytes]:
    lock = (home / "lock").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def _sweep(parent: Path) -> None:
    """Removes copies whose importers are gone: a killed one leaves its copy behind."""
    for home in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (home / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(home, ignore_errors=True)


class _IsShard(Exception):
    """The database belongs to a shard node."""


def _check_format(database: Path, source: Path) -> None:
    """Whether this version's Chroma reads the database as it is. Raises Failed with the mend."""
    try:
        there = _format_of(database)
    except _IsShard:
        raise Failed(
            f"{source} is the data directory of a shard, which holds a part of each collection; "
            "read its cluster with `chroma-router export` instead"
        ) from None
    except sqlite3.DatabaseError as error:
        raise Failed(
            f"{source / DATABASE} cannot be read ({error}); restore it from a backup, or recover "
            "it with sqlite3's .recover"
        ) from None
    wanted = _installed_format()
    missing, unknown = sorted(wanted - there), sorted(there - wanted)
    if missing:
        part, step = missing[0]
        raise Failed(
            f"{source} has an older format than Chroma 1.5.9 (its {part} lacks step {step}); make "
            "a copy of it, open the copy once with chromadb 1.5.9 "
            "(`chromadb.PersistentClient(path=COPY)`), which brings it up to date, and import that"
        )
    if unknown:
        part, step = unknown[0]
        raise Failed(
            f"{source} was written by a Chroma newer than 1.5.9 (its {part} has step {step}); "
            "import from its server with --from http://HOST:PORT, or with a newer chroma-router"
        )


def _format_of(database: Path) -> set[tuple[str, int]]:
    """The steps by which a database came to its format: part and number."""
    with contextlib.closing(sqlite3.connect(database)) as link:
        tables = {name for (name,) in link.execute("SELECT name FROM sqlite_master")}
        if "router_meta" in tables:
            raise _IsShard
        if "migrations" not in tables:
            return set()
        return set(link.execute("SELECT dir, version FROM migrations"))


def _installed_format() -> set[tuple[str, int]]:
    """The steps that the installed engine knows: those of a database that it makes."""
    from router.cli.import_engine import LocalEngine

    with tempfile.TemporaryDirectory(prefix=_PREFIX) as blank:
        LocalEngine(Path(blank)).close()
        return _format_of(Path(blank) / DATABASE)
