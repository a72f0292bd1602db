"""The supervisor's parts: pauses before a restart, its directory, nodes that come and go."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from chroma_router.v1.supervisor_pb2 import StartShardRequest, StopShardRequest
from chroma_router.v1.supervisor_pb2_grpc import SupervisorServiceStub
from chroma_router.wire.errors import (
    AlreadyExists,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Reason,
    Unavailable,
)
from chroma_router.wire.status import from_rpc_error
from router.supervisor.backoff import Backoff, RestartPolicy
from router.supervisor.child import Child
from router.supervisor.layout import Layout
from router.supervisor.nodes import Nodes
from router.supervisor.service import SupervisorService

if TYPE_CHECKING:
    from chroma_router.v1.supervisor_pb2_grpc import SupervisorServiceAsyncStub


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


@pytest.mark.parametrize(("wanted", "mend"), [(2, "shards drain NAME"), (4, "shards add")])
def test_another_number_of_shards_is_refused_with_the_mend(
    tmp_path: Path, wanted: int, mend: str
) -> None:
    layout = Layout.of(tmp_path)
    layout.settle(3)
    with pytest.raises(NotAllowed, match=mend) as refusal:
        layout.settle(wanted)
    assert "without --shards" in refusal.value.message


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


# ----------------------------------------------------------------------- shards that come and go


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout.of(tmp_path)
    made.settle(2)
    return made


def test_a_new_shard_has_the_next_number(layout: Layout) -> None:
    known = ["shard-1", "shard-2"]
    assert layout.add("", known) == "shard-3"
    assert layout.add("", [*known, "shard-3"]) == "shard-4"
    assert layout.names() == ["shard-1", "shard-2", "shard-3", "shard-4"]


def test_one_that_did_not_become_known_is_taken_before_a_new_one_is_made(layout: Layout) -> None:
    known = ["shard-1", "shard-2"]
    assert layout.add("", known) == layout.add("", known) == layout.add("shard-3", known)
    assert len(layout.names()) == 3


def test_a_name_may_be_chosen_above_all_that_were_there(layout: Layout) -> None:
    assert layout.add("shard-7", []) == "shard-7"
    assert layout.add("", ["shard-1", "shard-2", "shard-7"]) == "shard-8"
    with pytest.raises(AlreadyExists, match="shard-9"):
        layout.add("shard-5", [])
    for name in ("blue", "shard-0", "shard-01", "../shard-9"):
        with pytest.raises(InvalidRequest, match="leave the name out"):
            layout.add(name, [])
    assert len(layout.names()) == 4


def test_no_number_is_given_out_twice(layout: Layout) -> None:
    everything = [f"shard-{n}" for n in range(1, 9)]
    assert layout.add("", layout.names()) == "shard-3"
    aside = layout.put_aside("shard-3")
    assert aside == layout.directory / "removed" / "shard-3"
    aside.rmdir()  # an operator who wants the space
    assert layout.add("", layout.names()) == "shard-4"
    layout.put_aside("shard-4")
    assert Layout.of(layout.directory).add("", layout.names()) == "shard-5"
    assert layout.add("", everything) == "shard-9", "known shards may live elsewhere"


def test_putting_aside_is_idempotent_and_overwrites_nothing(layout: Layout) -> None:
    (layout.data_of("shard-2") / "precious").touch()
    first = layout.put_aside("shard-2")
    assert layout.put_aside("shard-2") == first
    layout.data_of("shard-2").mkdir()  # an operator has brought one back
    second = layout.put_aside("shard-2")
    assert (second.name, (first / "precious").exists()) == ("shard-2.1", True)
    with pytest.raises(NotFound, match="has no shard-9"):
        layout.put_aside("shard-9")


def test_only_so_many_shards_fit_on_one_machine(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path)
    layout.settle(64)
    with pytest.raises(InvalidRequest, match="64 shards"):
        layout.add("", layout.names())


def test_a_disk_that_refuses_is_told(layout: Layout) -> None:
    (layout.directory / "highest-shard.new").mkdir()
    with pytest.raises(Unavailable, match=r"cannot make .*shard-3"):
        layout.add("", layout.names())
    assert layout.names() == ["shard-1", "shard-2"]


@asynccontextmanager
async def supervised(layout: Layout) -> AsyncIterator["SupervisorServiceAsyncStub"]:
    """The supervisor's service over its socket."""
    async with asyncio.TaskGroup() as tasks:
        nodes = Nodes(layout, tasks)
        service = SupervisorService(nodes)
        await service.serve(layout.control)
        try:
            async with grpc.aio.insecure_channel(layout.control) as channel:
                yield SupervisorServiceStub(channel)
        finally:
            await service.close()
            await nodes.stop_all()


def control_path(layout: Layout) -> Path:
    return Path(layout.control.removeprefix("unix:"))


def a_node(module: str) -> Callable[[Layout, str], Child]:
    return lambda _, name: Child(name, module, [], RestartPolicy())


async def test_a_shard_is_started_and_put_aside_over_the_socket(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.supervisor.nodes.node_of", a_node("tests.support.ready_child"))
    control_path(layout).touch()  # of a supervisor that was killed
    known = ["shard-1", "shard-2"]
    async with supervised(layout) as stub:
        mode = control_path(layout).stat().st_mode
        assert mode & 0o077 == 0, "nobody else may start processes here"
        both = await asyncio.gather(
            *(stub.StartShard(StartShardRequest(known=known)) for _ in range(2))
        )
        assert [answer.name for answer in both] == ["shard-3", "shard-3"]
        assert both[0].address == layout.address_of("shard-3")
        for _ in range(2):
            stopped = await stub.StopShard(StopShardRequest(name="shard-3"))
            assert stopped.directory == str(layout.directory / "removed" / "shard-3")
        assert layout.names() == known
        for call, reason in (
            (stub.StopShard(StopShardRequest(name="shard-9")), Reason.SHARD_NOT_FOUND),
            (stub.StartShard(StartShardRequest(name="shard-3")), Reason.SHARD_EXISTS),
            (stub.StartShard(StartShardRequest(name="x")), Reason.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert from_rpc_error(refused.value).reason is reason


async def test_a_node_that_does_not_start_is_told_and_can_be_tried_again(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supervised(layout) as stub:
        monkeypatch.setattr("router.supervisor.nodes.node_of", a_node("this_is_no_module"))
        with pytest.raises(grpc.aio.AioRpcError, match="shard-3 ended before it served"):
            await stub.StartShard(StartShardRequest(known=layout.names()))
        monkeypatch.setattr("router.supervisor.nodes.node_of", a_node("tests.support.ready_child"))
        answer = await stub.StartShard(StartShardRequest(name="shard-3"))
        assert answer.name == "shard-3"
