"""The directory of a cluster on one machine: what stands where, who may use it, its shards.

DIR/up.lock               flock'ed while a supervisor runs here
DIR/up.sock               where the supervisor listens to its router
DIR/catalog.sqlite3       the catalog
DIR/shards/shard-1 ...    one data directory for each shard
DIR/shards/shard-1.sock   where its node listens (a short path elsewhere when DIR's is too long)
DIR/highest-shard         the highest number that a shard here ever had: none is given out twice
DIR/removed/shard-1 ...   what the directory of a removed shard was
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from chroma_router.wire.errors import (
    AlreadyExists,
    ClusterError,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Reason,
    Unavailable,
)

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
        return [f"shard-{n}" for n in sorted(_numbers(_directories(self.shards)))]

    def data_of(self, shard: str) -> Path:
        """The data directory of a shard."""
        return self.shards / shard

    def address_of(self, shard: str) -> str:
        """Where a shard's node listens: unix:PATH."""
        return self._socket(self.shards / f"{shard}.sock", shard)

    @property
    def control(self) -> str:
        """Where the supervisor listens to its router: unix:PATH."""
        return self._socket(self.directory / "up.sock", "up")

    def _socket(self, inside: Path, short_name: str) -> str:
        if len(os.fsencode(inside)) <= _LONGEST_SOCKET_PATH:
            return f"unix:{inside}"
        return f"unix:{_short_directory(self.directory) / short_name}"

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
                "empty those that are too many with `chroma-router shards drain NAME`, then "
                "`chroma-router shards remove NAME`"
                if wanted < len(names)
                else "add to them with `chroma-router shards add`, then `rebalance start`"
            )
            raise NotAllowed(
                f"{self.directory} has {len(names)} shards, --shards {wanted} was asked for; start "
                f"it without --shards, and when it serves {mend}"
            )
        used = any((self.data_of(name) / "chroma").exists() for name in names)
        if used and not self.catalog.exists():
            raise NotAllowed(
                f"{self.catalog} is missing but the shards beside it are not empty; bring back a "
                "backup, or make it from the shards with `chroma-router catalog rebuild "
                f"--data {self.directory}`"
            )
        return names

    def add(self, name: str, known: Iterable[str]) -> str:
        """Makes the data directory of one more shard, unless it is there; its name.

        `name` may be empty: then a shard of the directory that is not among the `known` is taken,
        else the next number that no shard here ever had. The lock must be held. Raises
        InvalidRequest for another kind of name or too many shards, AlreadyExists for a number that
        was in use, Unavailable when the disk refuses.
        """
        names, taken = self.names(), set(known)
        name = name or next((n for n in names if n not in taken), "")
        if name in names:
            return name
        if len(names) >= MAX_SHARDS:
            raise InvalidRequest(f"{self.directory} has {MAX_SHARDS} shards, as many as it may")
        highest = self._highest(taken)
        number = highest + 1
        if name:
            (number,) = _numbers([name]) or (0,)
            if number <= highest:
                raise _no_new_name(name, highest)
        fresh = self.data_of(f"shard-{number}")
        try:
            self._remember_highest(number)
            fresh.mkdir()
            _sync(self.shards)
        except OSError as error:
            raise Unavailable(
                f"cannot make {fresh}: {error.strerror}; mend it and repeat", retry_after=1.0
            ) from None
        return fresh.name

    def put_aside(self, shard: str) -> Path:
        """Moves the data directory of a removed shard out of the way; where it is now. Idempotent.

        Its node must have ended, the lock must be held. Raises NotFound if there never was one,
        Unavailable when the disk refuses.
        """
        removed = self.directory / "removed"
        source, there = self.data_of(shard), [removed / shard]
        if shard not in self.names():
            if not there[0].is_dir():
                raise NotFound(f"{self.directory} has no {shard}", Reason.SHARD_NOT_FOUND)
            return there[0]
        while there[-1].exists():  # an operator has brought one back
            there.append(removed / f"{shard}.{len(there)}")
        try:
            self._remember_highest(self._highest(()))
            removed.mkdir(exist_ok=True)
            source.rename(there[-1])
            _sync(removed)
            _sync(self.shards)
        except OSError as error:
            raise Unavailable(
                f"cannot move {source} to {removed}: {error.strerror}; mend it and repeat",
                retry_after=1.0,
            ) from None
        return there[-1]

    def _highest(self, known: Iterable[str]) -> int:
        """The highest number that a shard has or, as far as anything tells, ever had."""
        remembered = 0
        with contextlib.suppress(OSError, ValueError):
            remembered = int(self._highest_file.read_text("ascii"))
        removed = [name.partition(".")[0] for name in _directories(self.directory / "removed")]
        return max([remembered, *_numbers([*self.names(), *removed, *known])])

    def _remember_highest(self, number: int) -> None:
        """Durable before the shard is made: it may be removed and its directory deleted."""
        fresh = self._highest_file.with_suffix(".new")
        with fresh.open("w", encoding="ascii") as file:
            file.write(f"{number}\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._highest_file)
        _sync(self.directory)

    @property
    def _highest_file(self) -> Path:
        return self.directory / "highest-shard"

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


def _directories(parent: Path) -> list[str]:
    """The names of the directories in a directory; none if that is missing."""
    return [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []


def _numbers(names: Iterable[str]) -> list[int]:
    """The numbers in the names that are of the form shard-N."""
    return [int(match[1]) for match in map(_SHARD.fullmatch, names) if match]


def _no_new_name(name: str, highest: int) -> ClusterError:
    if not _numbers([name]):
        return InvalidRequest(
            f"a shard that `chroma-router up` starts is named shard-{highest + 1} or higher, not "
            f"{name!r}; leave the name out, or give the address of a node that runs"
        )
    return AlreadyExists(
        f"there was a {name} here before; leave the name out, or take shard-{highest + 1}",
        Reason.SHARD_EXISTS,
    )


def _sync(directory: Path) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
