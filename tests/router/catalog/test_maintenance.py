"""Checks find what is wrong, copies are whole."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from chroma_router.wire.errors import NotAllowed
from router.catalog import Catalog, backup, check
from tests.router.catalog.helpers import a_move, a_rebalance, files, new, opened


async def _sound(path: Path) -> str:
    catalog = await opened(path)
    entry, _ = await catalog.create_collection(new(), False)
    await catalog.claim_dimension(entry.id, 3)
    rebalance = a_rebalance()
    moves = [a_move(rebalance, entry, [slot], "shard-1", "shard-2") for slot in (0, 3)]
    await catalog.moves.begin(rebalance, moves, {entry.id: 1})
    await catalog.close()
    return entry.id


async def test_a_copy_of_a_living_catalog_is_whole(tmp_path: Path) -> None:
    path, copy = tmp_path / "catalog.db", tmp_path / "copy.db"
    catalog = await opened(path)
    await catalog.create_collection(new(), False)
    backup(path, copy)
    held, state = await catalog.all_collections(), catalog.cluster_id
    await catalog.create_collection(new("later"), False)
    assert check(path) == check(copy) == []
    await catalog.close()
    assert files(tmp_path) == ["catalog.db", "copy.db"]
    restored = await Catalog.open(copy)
    assert await restored.all_collections() == held
    assert restored.cluster_id == state
    await restored.close()


async def test_a_backup_overwrites_nothing(tmp_path: Path) -> None:
    await _sound(tmp_path / "catalog.db")
    (tmp_path / "there").write_bytes(b"precious")
    with pytest.raises(NotAllowed, match="exists already"):
        backup(tmp_path / "catalog.db", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"precious"
    with pytest.raises(NotAllowed, match="does not exist"):
        backup(tmp_path / "nothing", tmp_path / "copy")
    assert files(tmp_path) == ["catalog.db", "there"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("UPDATE collections SET slot_map = x'7b7d'", "not an encoded slot map"),
        ("UPDATE collections SET version = 0", "version"),
        ("UPDATE collections SET dimension_joiners = 0", "0 writes claim its dimension"),
        ("UPDATE collections SET tenant = 'other'", "it says it is in database"),
        ("UPDATE collections SET state = 'lost'", "lost"),
        ("UPDATE collections SET metadata = '{'", "collection"),
        ("UPDATE collections SET dimension = NULL", "contradicts"),
        ("DELETE FROM shards WHERE name = 'shard-3'", "'shard-3'"),
        ("UPDATE shards SET role = 'lost' WHERE name = 'shard-3'", "shard shard-3: 'lost'"),
        ("DELETE FROM lease", "lease: its row is missing"),
        ("UPDATE rebalances SET state = 'lost'", "'lost' is not a valid RebalanceState"),
        ("UPDATE moves SET slots = x'00'", "a slot bitmap has 128 bytes, got 1"),
        ("UPDATE moves SET target = 'shard-1' WHERE number = 0", "from shard-1 to itself"),
        ("UPDATE moves SET target = 'shard-9' WHERE number = 0", "names shard 'shard-9'"),
        ("UPDATE moves SET collection_id = 'x' WHERE number = 0", "which is not there"),
        ("UPDATE moves SET slots = (SELECT max(slots) FROM moves)", "has too"),
        ("UPDATE moves SET rebalance_id = 'x' WHERE number = 0", "orphan: a row of moves"),
        ("DELETE FROM databases", "orphan: a row of collections"),
        ("DELETE FROM tenants", "orphan: a row of databases"),
    ],
)
async def test_check_names_what_is_wrong(tmp_path: Path, damage: str, words: str) -> None:
    path = tmp_path / "catalog.db"
    await _sound(path)
    assert check(path) == []
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(damage)
        db.commit()
    (problem,) = check(path)
    assert words in problem
    with pytest.raises(NotAllowed, match="not sound"):
        backup(path, tmp_path / "copy.db")
    assert files(tmp_path) == ["catalog.db"]


async def test_check_reports_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    assert "does not exist" in check(path)[0]
    await _sound(path)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xaa" * (len(content) - 4096)
    path.write_bytes(content)
    assert "damaged" in check(path)[0] or "cannot be read" in check(path)[0]
