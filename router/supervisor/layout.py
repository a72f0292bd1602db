"""The directory of a cluster on one machine: what stands where, who may use it, its shards.

DIR/up.lock               flock'ed while a supervisor runs here
DIR/catalog.sqlite3       the catalog
DIR/shards/shard-1 ...    one data directory for each shard
DIR/shards/shard-1.sock   where its node listens (a short path elsewhere when DIR's is too long)
"""

import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from chroma_router.wire.errors import InvalidRequest, NotAllowed

DEFAULT_SHARDS = 3
MAX_SHARDS = 64
"""More processes than that belong on several machines."""

_SHARD = re.compile(r"shard-([1-9][0-9]*)")
_LONGEST_SOCKET_PATH = 100
"""Bytes; the system's limit is 108 on Linux and 104 on macOS, with the zero at the end."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The directory of a cluster, by its absolute path."""

    directory: Path

    @classmethod
    def of(cls, directory: Path) -> Self:
        """The layout of a directory that may be given by a relative path."""
        return cls(directory.resolve())

    @property
    def catalog(self) -> Path:
        """The catalog's file."""
        return self.directory / "catalog.sqlite3"

    @property
    def shards(self) -> Path:
        """The directory of the shards' data directories."""
        return self.directory / "shards"

    def names(self) -> list[str]:
        """The shards that the directory has, by number."""
        if not self.shards.is_dir():
            return []
        matches = (
            _SHARD.fullmatch(entry.name) for entry in self.shards.iterdir() if entry.is_dir()
        )
        return [f"shard-{n}" for n in sorted(int(match[1]) for match in matches if match)]

    def data_of(self, shard: str) -> Path:
        """The data directory of a shard."""
        return self.shards / shard

    def address_of(self, shard: str) -> str:
        """Where a shard's node listens: unix:PATH."""
        inside = self.shards / f"{shard}.sock"
        if len(os.fsencode(inside)) <= _LONGEST_SOCKET_PATH:
            return f"unix:{inside}"
        return f"unix:{_short_directory(self.directory) / shard}"

    def lock(self) -> int:
        """Takes the directory for this process, made if it is missing; the lock's descriptor.

        Raises NotAllowed when another supervisor runs here.
        """
        if (self.directory / "chroma.sqlite3").exists():
            raise NotAllowed(
                f"{self.directory} is a directory of plain Chroma; choose an empty one with --data"
            )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(
                self.directory / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
            )
        except OSError as error:
            raise NotAllowed(
                f"cannot use {self.directory}: {error.strerror}; choose another with --data"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 100, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise NotAllowed(
                f"{self.directory} is in use by another `chroma-router up` (pid {holder or '?'}); "
                "stop that one first, or choose another with --data"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    def settle(self, wanted: int | None) -> list[str]:
        """The shards to run: those it has, or so many new ones. The lock must be held.

        Raises NotAllowed when it has another number than is wanted, or lost its catalog.
        """
        names = self.names()
        if not names:
            return self._make(wanted or DEFAULT_SHARDS)
        if wanted is not None and wanted != len(names):
            mend = (
                "records would be out of reach"
                if wanted < len(names)
                else "adding shards to a cluster that exists is not supported yet"
            )
            raise NotAllowed(
                f"{self.directory} has {len(names)} shards, --shards {wanted} was asked for: {mend}"
                f"; start it with --shards {len(names)}, or without --shards"
            )
        used = any((self.data_of(name) / "chroma").exists() for name in names)
        if used and not self.catalog.exists():
            raise NotAllowed(
                f"{self.catalog} is missing but the shards beside it are not empty; bring back a "
                "backup, or make it from the shards with `chroma-router catalog rebuild "
                f"--data {self.directory}`"
            )
        return names

    def _make(self, count: int) -> list[str]:
        if not 1 <= count <= MAX_SHARDS:
            raise InvalidRequest(f"--shards: from 1 to {MAX_SHARDS} on one machine, got {count}")
        # Renamed when whole: a directory has either all its shards or none.
        fresh = self.directory / "shards.new"
        shutil.rmtree(fresh, ignore_errors=True)
        names = [f"shard-{n}" for n in range(1, count + 1)]
        for name in names:
            (fresh / name).mkdir(parents=True)
        fresh.rename(self.shards)
        return names


def _short_directory(directory: Path) -> Path:
    """A private directory with a short path that belongs to this cluster's directory."""
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:12]
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    path = base / f"chroma-router-{os.getuid()}-{digest}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise NotAllowed(f"{path} is not a private directory of this user; remove it")
    return path
