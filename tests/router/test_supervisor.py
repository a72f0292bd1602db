"""The supervisor's pure parts: pauses before a restart, and the layout of its directory."""

import os
from pathlib import Path

import pytest

from chroma_router.wire.errors import InvalidRequest, NotAllowed
from router.supervisor.backoff import Backoff, RestartPolicy
from router.supervisor.layout import Layout


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(RestartPolicy(0.1, 1.0, healthy_after_seconds=30))
    assert [backoff.ended(0.0) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_good_service_begins_again_with_the_first_pause() -> None:
    backoff = Backoff(RestartPolicy(0.1, 1.0, healthy_after_seconds=30))
    for _ in range(5):
        backoff.ended(29.9)
    assert backoff.ended(30.0) == 0.1
    assert backoff.ended(0.0) == 0.2


@pytest.mark.parametrize("numbers", [(0.0, 1.0, 1.0), (2.0, 1.0, 1.0), (0.1, 1.0, -1.0)])
def test_a_policy_that_makes_no_sense_is_refused(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        RestartPolicy(*numbers)


def test_a_new_directory_gets_three_shards_or_those_that_were_asked_for(tmp_path: Path) -> None:
    assert Layout.of(tmp_path / "a").names() == []
    for name, wanted, got in (("a", None, 3), ("b", 1, 1), ("c", 12, 12)):
        layout = Layout.of(tmp_path / name)
        os.close(layout.lock())
        names = layout.settle(wanted)
        assert names == [f"shard-{n}" for n in range(1, got + 1)]
        assert layout.names() == names == layout.settle(None) == layout.settle(got)


@pytest.mark.parametrize(("wanted", "why"), [(2, "out of reach"), (4, "not supported yet")])
def test_another_number_of_shards_is_refused_with_the_mend(
    tmp_path: Path, wanted: int, why: str
) -> None:
    layout = Layout.of(tmp_path)
    layout.settle(3)
    with pytest.raises(NotAllowed, match=why) as refusal:
        layout.settle(wanted)
    assert "--shards 3" in refusal.value.message


@pytest.mark.parametrize("wanted", [-1, 65])
def test_a_number_of_shards_out_of_bounds_is_refused(tmp_path: Path, wanted: int) -> None:
    with pytest.raises(InvalidRequest, match="from 1 to 64"):
        Layout.of(tmp_path).settle(wanted)
    assert Layout.of(tmp_path).names() == []


def test_shards_that_were_half_made_are_made_anew(tmp_path: Path) -> None:
    (tmp_path / "shards.new" / "shard-7").mkdir(parents=True)
    assert Layout.of(tmp_path).settle(1) == ["shard-1"]
    assert Layout.of(tmp_path).names() == ["shard-1"]


def test_used_shards_without_their_catalog_are_refused(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path)
    layout.settle(2)
    (layout.data_of("shard-2") / "chroma").mkdir()
    with pytest.raises(NotAllowed, match="catalog rebuild"):
        layout.settle(None)
    layout.catalog.touch()
    assert len(layout.settle(None)) == 2


def test_one_supervisor_at_a_time(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path)
    lock = layout.lock()
    with pytest.raises(NotAllowed, match=f"in use .*pid {os.getpid()}"):
        layout.lock()
    os.close(lock)
    os.close(layout.lock())


def test_a_directory_of_plain_chroma_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chroma.sqlite3").touch()
    with pytest.raises(NotAllowed, match="plain Chroma"):
        Layout.of(tmp_path).lock()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotAllowed, match="cannot use"):
        Layout.of(tmp_path / "file" / "below").lock()


def test_sockets_lie_in_the_directory_while_its_path_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Layout(Path("/srv/cluster"))
    assert short.address_of("shard-1") == "unix:/srv/cluster/shards/shard-1.sock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    long, other = Layout(Path("/srv") / ("x" * 120)), Layout(Path("/srv") / ("y" * 120))
    path = Path(long.address_of("shard-1").removeprefix("unix:"))
    assert path.parent.parent == tmp_path
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert long.address_of("shard-1") == f"unix:{path}"
    assert other.address_of("shard-1") != f"unix:{path}"


def test_a_socket_directory_that_others_may_enter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    layout = Layout(Path("/srv") / ("x" * 120))
    path = Path(layout.address_of("shard-1").removeprefix("unix:"))
    path.parent.chmod(0o755)
    with pytest.raises(NotAllowed, match="not a private directory"):
        layout.address_of("shard-1")
