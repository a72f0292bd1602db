"""Turns, bounds, cancellation."""

import asyncio
import contextlib
import sqlite3
import threading
from pathlib import Path

import pytest

from chroma_router.wire.errors import NotAllowed, Reason, Unavailable
from router.catalog import connection as connection_module
from router.catalog.connection import Connection
from tests.router.catalog.helpers import files


def _tenants(db: sqlite3.Connection) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM tenants")}


def _add_tenant(db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO tenants VALUES ('acme')")


async def test_a_lock_held_elsewhere_becomes_catalog_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "BUSY_TIMEOUT_SECONDS", 0.05)
    connection = await Connection.open(tmp_path / "catalog.db", create=True)
    with contextlib.closing(
        sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as busy:
            await connection.write(_add_tenant)
        assert busy.value.reason is Reason.CATALOG_BUSY
        assert busy.value.retry_after
        # Readers do not wait for a writer.
        assert await connection.read(_tenants) == {"default_tenant"}
        other.execute("ROLLBACK")
    await connection.write(_add_tenant)
    assert "acme" in await connection.read(_tenants)
    await connection.close()


async def test_what_waits_is_bounded_in_number_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "MAX_WAITING", 2)
    connection = await Connection.open(tmp_path / "catalog.db", create=True)
    begun, go_on = threading.Event(), threading.Event()

    def stall(_: sqlite3.Connection) -> None:
        begun.set()
        go_on.wait()

    first = asyncio.create_task(connection.read(stall))
    await asyncio.to_thread(begun.wait)
    monkeypatch.setattr(connection_module, "BUSY_TIMEOUT_SECONDS", 0.0)
    late = asyncio.create_task(connection.write(_add_tenant))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="2 calls wait"):
        await connection.read(_tenants)
    go_on.set()
    await first
    with pytest.raises(Unavailable, match="no turn"):
        await late
    monkeypatch.undo()
    assert await connection.read(_tenants) == {"default_tenant"}
    await connection.close()


async def test_a_failed_job_leaves_nothing_and_the_revision_as_it_was(tmp_path: Path) -> None:
    connection = await Connection.open(tmp_path / "catalog.db", create=True)

    def revision(db: sqlite3.Connection) -> int:
        found: int = db.execute("SELECT revision FROM cluster").fetchone()[0]
        return found

    def half(db: sqlite3.Connection) -> None:
        _add_tenant(db)
        raise LookupError

    before = await connection.read(revision)
    with pytest.raises(LookupError):
        await connection.write(half)
    await connection.write(_tenants)
    assert await connection.read(revision) == before
    assert await connection.read(_tenants) == {"default_tenant"}
    await connection.write(_add_tenant)
    assert await connection.read(revision) == before + 1
    await connection.close()


async def test_a_cancelled_write_is_finished_or_never_begun(tmp_path: Path) -> None:
    connection = await Connection.open(tmp_path / "catalog.db", create=True)
    begun, go_on = threading.Event(), threading.Event()

    def slow(db: sqlite3.Connection) -> None:
        begun.set()
        go_on.wait()
        _add_tenant(db)

    running = asyncio.create_task(connection.write(slow))
    await asyncio.to_thread(begun.wait)
    waiting = asyncio.create_task(
        connection.write(lambda db: db.execute("DELETE FROM cluster").close())
    )
    await asyncio.sleep(0)
    for task in (running, waiting):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    go_on.set()
    assert await connection.read(_tenants) == {"default_tenant", "acme"}
    assert await connection.read(lambda db: db.execute("SELECT id FROM cluster").fetchone())
    await connection.close()


async def test_closing_finishes_what_waits_and_is_idempotent(tmp_path: Path) -> None:
    connection = await Connection.open(tmp_path / "catalog.db", create=True)
    write = asyncio.create_task(connection.write(_add_tenant))
    await asyncio.sleep(0)
    await connection.close()
    await connection.close()
    await write
    with pytest.raises(Unavailable) as closed:
        await connection.read(_tenants)
    assert closed.value.reason is Reason.DRAINING
    # The log is gone with the last connection: the catalog is its one file again.
    assert files(tmp_path) == ["catalog.db"]


@pytest.mark.parametrize("removed", [True, False])
async def test_a_catalog_that_is_replaced_under_a_router_takes_no_writes(
    tmp_path: Path, removed: bool
) -> None:
    path = tmp_path / "catalog.db"
    connection = await Connection.open(path, create=True)
    path.rename(tmp_path / "old.db")
    if not removed:
        path.write_bytes((tmp_path / "old.db").read_bytes())
    with pytest.raises(NotAllowed):
        await connection.write(_add_tenant)
    await connection.close()
