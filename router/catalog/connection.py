"""Runs transactions on a catalog file, one after the other, off the event loop.

Owns one SQLite connection and the one thread that uses it. Bounded in every direction: by waiting
transactions and by the time a transaction may wait for its turn, here or in another process.
It knows nothing of what the tables mean.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

from chroma_router.wire.errors import ClusterError, InternalFailure, Reason, Unavailable
from router.catalog import schema

BUSY_TIMEOUT_SECONDS = 5.0
MAX_WAITING = 1024

_T = TypeVar("_T")
Job = Callable[[sqlite3.Connection], _T]


class Connection:
    """Transactions on one catalog file. `await Connection.open(path)`, later `await close()`.

    A call that is cancelled after its turn has come is finished all the same, unseen: who cancels a
    write reads the catalog again before deciding anything.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="catalog")
        self._waiting = 0
        self._closed = False
        self._db: sqlite3.Connection
        self._inode: tuple[int, int]

    @classmethod
    async def open(cls, path: Path, *, create: bool) -> Self:
        """Opens the catalog at `path`, and makes it first if it is missing and `create` is set."""
        self = cls(path)
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._open, create)
        except BaseException:
            # Even when cancelled: the connection may just have been opened on its thread.
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Finishes what waits and closes the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        closing = self._thread.submit(self._close)
        self._thread.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closing))

    async def read(self, job: Job[_T]) -> _T:
        """Runs `job` in a transaction that sees one state of the catalog."""
        return await self._run("BEGIN", job)

    async def write(self, job: Job[_T], *, counts: bool = True) -> _T:
        """Runs `job` in a transaction of its own: nobody else writes meanwhile, in any process.

        What it wrote is on the disk when this returns; nothing of it if `job` raises. A transaction
        that wrote anything raises the catalog's revision, unless it `counts` for nobody else.
        """

        def counted(db: sqlite3.Connection) -> _T:
            before = db.total_changes
            result = job(db)
            if counts and db.total_changes != before:
                db.execute("UPDATE cluster SET revision = revision + 1")
            return result

        return await self._run("BEGIN IMMEDIATE", counted)

    async def _run(self, begin: str, job: Job[_T]) -> _T:
        if self._closed:
            raise Unavailable(f"catalog {self.path} is closed", Reason.DRAINING)
        if self._waiting >= MAX_WAITING:
            raise self._busy(f"{MAX_WAITING} calls wait for it")
        deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self._transact, begin, job, deadline
            )
        finally:
            self._waiting -= 1

    # ------------------------------------------------------------------ on the thread

    def _open(self, create: bool) -> None:
        try:
            if create and not self.path.exists():
                # Another router may be first; its catalog is the catalog.
                with contextlib.suppress(FileExistsError):
                    schema.create(self.path)
            self._db = schema.connect(self.path, to_write=True)
            self._inode = self._present_inode()
        except sqlite3.Error as error:
            raise self._translated(error) from error
        except OSError as error:
            raise schema.unusable(self.path, f"cannot be opened ({error})") from error

    def _close(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()

    def _transact(self, begin: str, job: Job[_T], deadline: float) -> _T:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise self._busy(f"no turn within {BUSY_TIMEOUT_SECONDS:g} s")
        db = self._db
        try:
            db.execute(f"PRAGMA busy_timeout = {round(remaining * 1000) + 1}")
            db.execute(begin)
            try:
                # A catalog that was moved away under us would still take writes, and lose them.
                if self._present_inode() != self._inode:
                    raise schema.unusable(self.path, "was replaced while it was open; restart")
                result = job(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            return result
        except schema.CorruptRow as error:
            raise schema.unusable(self.path, f"is damaged ({error})") from error
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _present_inode(self) -> tuple[int, int]:
        try:
            status = self.path.stat()
        except OSError as error:
            raise schema.unusable(self.path, f"cannot be found any more ({error})") from error
        return status.st_dev, status.st_ino

    def _busy(self, why: str) -> Unavailable:
        return Unavailable(
            f"catalog {self.path} is busy: {why}", Reason.CATALOG_BUSY, retry_after=1.0
        )

    def _translated(self, error: sqlite3.Error) -> ClusterError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return self._busy(f"another process has held it for {BUSY_TIMEOUT_SECONDS:g} s")
        if schema.is_damage(error):
            return schema.unusable(self.path, f"is damaged ({error})")
        if code in _OF_THE_DISK:
            return Unavailable(
                f"catalog {self.path} cannot be used now: {error}; look at its disk",
                Reason.CATALOG_BUSY,
                retry_after=BUSY_TIMEOUT_SECONDS,
            )
        return InternalFailure(f"catalog {self.path}: {error}")


_OF_THE_DISK = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
)
