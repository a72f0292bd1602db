"""Files that are catalogs, and files that are not."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from chroma_router.wire.errors import NotAllowed
from router.catalog import Catalog, check, schema
from tests.router.catalog.helpers import files, new, opened


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


async def _refusal(path: Path, *, create: bool = True) -> str:
    before = _content(path)
    with pytest.raises(NotAllowed) as refused:
        await Catalog.open(path, create=create)
    assert str(path) in refused.value.message
    assert _content(path) == before
    return refused.value.message


async def test_a_new_catalog_has_the_defaults_and_settings(tmp_path: Path) -> None:
    catalog = await Catalog.open(tmp_path / "catalog.db")
    try:
        assert await catalog.get_tenant("default_tenant") == "default_tenant"
        database = await catalog.get_database("default_database", "default_tenant")
        assert database.id == "00000000-0000-0000-0000-000000000000"
    finally:
        await catalog.close()
    with contextlib.closing(schema.connect(tmp_path / "catalog.db", to_write=True)) as db:
        settings = {
            name: db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "user_version")
        }
    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "user_version": schema.FORMAT,
    }
    assert files(tmp_path) == ["catalog.db"]


async def test_routers_that_begin_together_share_one_catalog(tmp_path: Path) -> None:
    catalogs = await asyncio.gather(*(Catalog.open(tmp_path / "catalog.db") for _ in range(8)))
    assert len({catalog.cluster_id for catalog in catalogs}) == 1
    # One after another: of two that close at the same moment neither may be the last to SQLite, and
    # then its log stays beside the file.
    for catalog in catalogs:
        await catalog.close()
    assert files(tmp_path) == ["catalog.db"]


async def test_routers_that_end_together_leave_a_catalog_that_opens(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    clusters = set()
    for _ in range(20):
        catalogs = await asyncio.gather(*(Catalog.open(path) for _ in range(8)))
        clusters |= {catalog.cluster_id for catalog in catalogs}
        await asyncio.gather(*(catalog.close() for catalog in catalogs))
    assert len(clusters) == 1
    assert check(path) == []


async def test_a_missing_catalog(tmp_path: Path) -> None:
    assert "does not exist" in await _refusal(tmp_path / "catalog.db", create=False)
    assert "directory does not exist" in await _refusal(tmp_path / "no" / "catalog.db")
    assert files(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"x", b"hello\n" * 1000, b"SQLite format 3\0" * 100])
async def test_garbage_is_refused_with_the_mend(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(content)
    message = await _refusal(path)
    assert "catalog rebuild" in message
    assert "catalog backup" in message


async def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "not a file" in await _refusal(tmp_path)


async def test_another_applications_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (x)")
        db.commit()
    assert "not a catalog of chroma-router" in await _refusal(path)


@pytest.mark.parametrize(("found", "words"), [(schema.FORMAT + 1, "upgrade"), (0, "no version")])
async def test_another_format_is_refused(tmp_path: Path, found: int, words: str) -> None:
    path = tmp_path / "catalog.db"
    schema.create(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {found}")
    assert words in await _refusal(path)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
async def test_a_truncated_catalog_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "catalog.db"
    schema.create(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    assert "catalog rebuild" in await _refusal(path)


async def test_the_log_of_a_lost_catalog_is_not_played_into_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.with_name("catalog.db-wal").write_bytes(b"log")
    assert "catalog.db-wal" in await _refusal(path)


async def test_a_damaged_row_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    catalog = await opened(path)
    entry, _ = await catalog.create_collection(new(), False)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE collections SET slot_map = x'00'")
        db.commit()
    with pytest.raises(NotAllowed, match="damaged"):
        await catalog.collection(entry.id)
    await catalog.close()
