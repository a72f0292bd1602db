"""The copy of a directory: of one moment, removed afterwards, also after a kill."""

import fcntl
from pathlib import Path

import chromadb
import numpy as np
import pytest

from router.cli.command import Failed
from router.cli.import_copy import DirectoryCopy


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    client = chromadb.PersistentClient(str(path))
    client.create_collection("abc").add(["a"], np.ones((1, 2), dtype="f4"))
    client.close()  # type: ignore[attr-defined]
    return path


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    path = tmp_path / "temporary"
    path.mkdir()
    return path


def test_a_write_meanwhile_is_refused(source: Path, temporary: Path) -> None:
    copy = DirectoryCopy(source, temporary)
    copy.add_vectors([])
    with (source / "chroma.sqlite3").open("ab") as database:
        database.write(b"\0")
    with pytest.raises(Failed, match="a process writes to it"):
        copy.add_vectors([])
    copy.close()
    assert list(temporary.iterdir()) == []


def test_a_journal_that_appears_is_a_write(source: Path, temporary: Path) -> None:
    copy = DirectoryCopy(source, temporary)
    (source / "chroma.sqlite3-wal").touch()
    with pytest.raises(Failed, match="a process writes to it"):
        copy.add_vectors([])
    copy.close()


def test_a_killed_importers_copy_is_removed_and_a_living_ones_is_not(
    source: Path, temporary: Path
) -> None:
    for name in ("dead", "alive"):
        home = temporary / f"chroma-router-import-{name}"
        home.mkdir()
        (home / "lock").touch()
    alive = temporary / "chroma-router-import-alive"
    with (alive / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        DirectoryCopy(source, temporary).close()
    assert list(temporary.iterdir()) == [alive]
