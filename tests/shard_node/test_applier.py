"""The queue of the single writer: its bounds hold whatever callers and engine do."""

import asyncio
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import grpc
import psutil
import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import Overloaded, Reason
from shard_node import applier as applier_module
from shard_node.applier import Applied, Applier
from shard_node.committer import Committer
from shard_node.engine import EngineLost
from shard_node.grouping import GroupLimits
from shard_node.operations import Write
from tests.shard_node.running import ADD, Row, floats, running

LIMITS = GroupLimits(rows=2, floats=1000)


class StalledCommitter:
    """Applies a group when it is let."""

    def __init__(self) -> None:
        self.engine_seconds = 0.0
        self.groups: list[list[str]] = []
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def apply(self, group: Sequence[Write]) -> list[shard_pb2.OperationResult]:
        self.groups.append([write.request_id for write in group])
        self.begun.set()
        await self.go_on.wait()
        return [shard_pb2.OperationResult() for _ in group]

    async def prune(self) -> None:
        pass


class Running:
    """An applier of at most 3 operations (or so many) and 1 MB, and its stalled committer."""

    def __init__(self, operations: int = 3) -> None:
        self.committer = StalledCommitter()
        self.applier = Applier(cast("Committer", self.committer), LIMITS, operations, 1_000_000)
        self.writer = asyncio.create_task(self.applier.run())

    def submit(self, *names: str, size: int = 1) -> asyncio.Task[Applied]:
        operations = [
            shard_pb2.Operation(kind=shard_pb2.OPERATION_KIND_DELETE, request_id=i, ids=[i])
            for i in names
        ]
        return asyncio.create_task(self.applier.submit(operations, size))

    def turn(self, name: str, **lane: bool) -> asyncio.Task[None]:
        """A turn that writes its name among the groups."""

        async def work() -> None:
            self.committer.groups.append([name])

        return asyncio.create_task(self.applier.turn(work, **lane))

    def held(self) -> tuple[int, int]:
        return self.applier._operations, self.applier._bytes

    async def empty(self) -> None:
        """Waits until nothing is held."""
        while self.held() != (0, 0):  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def end(self) -> None:
        self.committer.go_on.set()
        assert await self.applier.drain(5)
        assert self.held() == (0, 0)
        self.writer.cancel()


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_has_not_begun_leaves_with_its_bytes_at_once() -> None:
    running = Running()
    first = running.submit("a", "b", size=100_000)
    await running.committer.begun.wait()
    for _ in range(20):
        waiting = running.submit("c", size=200_000)
        await asyncio.sleep(0.001)
        assert running.held() == (3, 300_000)
        await cancelled(waiting)
        assert running.held() == (2, 100_000)
        assert len(running.applier._queue) == 1
    last = running.submit("d")
    running.committer.go_on.set()
    await asyncio.gather(first, last)
    assert running.committer.groups == [["a", "b"], ["d"]]
    await running.end()


async def test_what_has_begun_keeps_its_share_until_its_group_has_ended() -> None:
    running = Running()
    first = running.submit("a", "b", "c", size=900_000)
    await running.committer.begun.wait()
    await cancelled(first)
    assert running.held() == (3, 900_000)
    with pytest.raises(Overloaded) as refused:
        await running.submit("d")
    assert refused.value.reason is Reason.QUEUE_FULL
    assert refused.value.retry_after
    running.committer.go_on.set()
    await running.empty()
    await running.submit("e")
    assert running.committer.groups == [["a", "b"], ["e"]]  # of "c" nobody hears
    await running.end()


async def test_what_is_being_parsed_keeps_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    running, parse, go_on = Running(), applier_module._parse_all, threading.Event()

    def slow(operations: Sequence[shard_pb2.Operation]) -> Any:
        go_on.wait(5)
        return parse(operations)

    monkeypatch.setattr(applier_module, "_parse_all", slow)
    large = running.submit("a", size=600_000)
    await asyncio.sleep(0.01)
    await cancelled(large)
    assert running.held() == (1, 600_000)
    go_on.set()
    await running.empty()
    await running.end()
    assert running.committer.groups == []


async def test_turns_are_bounded_and_leave_too() -> None:
    running = Running()
    first = running.submit("a")
    await running.committer.begun.wait()
    done: list[int] = []

    async def work() -> None:
        done.append(1)

    turns = [asyncio.create_task(running.applier.turn(work)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await running.applier.turn(work)
    await cancelled(turns[0])
    assert running.held() == (2, 1)
    running.committer.go_on.set()
    await asyncio.gather(first, turns[1])
    assert done == [1]
    await running.end()


async def test_urgent_turns_go_before_all_that_waits_in_their_order() -> None:
    running = Running(operations=10)
    first = running.submit("a", "b", "c", "d")
    await running.committer.begun.wait()
    rest: list[asyncio.Task[Any]] = [running.submit("e"), running.turn("turn")]
    rest.append(running.turn("back", background=True))
    await asyncio.sleep(0)
    urgent = [running.turn(name, urgent=True) for name in ("urgent 1", "urgent 2")]
    await asyncio.sleep(0)
    running.committer.go_on.set()
    await asyncio.gather(first, *rest, *urgent)
    assert running.committer.groups == [
        ["a", "b"], ["urgent 1"], ["urgent 2"], ["c", "d"], ["e"], ["turn"], ["back"],
    ]  # fmt: skip
    await running.end()


@pytest.mark.parametrize(
    ("patience", "order"),
    [
        (1e9, ["a", "b", "c", "turn", "d", "back 1", "back 2"]),
        (0.0, ["a", "back 1", "b", "back 2", "c", "turn", "d"]),
    ],
)
async def test_background_turns_let_others_go_first_as_long_as_they_are_patient(
    monkeypatch: pytest.MonkeyPatch, patience: float, order: list[str]
) -> None:
    monkeypatch.setattr(applier_module, "BACKGROUND_PATIENCE_SECONDS", patience)
    monkeypatch.setattr(applier_module, "take", lambda offered, _: [next(iter(offered))])
    running = Running(operations=10)
    waiting: list[asyncio.Task[Any]] = [running.submit("a")]
    await running.committer.begun.wait()
    waiting += [running.turn("back 1", background=True), running.turn("back 2", background=True)]
    waiting += [running.submit("b", "c"), running.turn("turn"), running.submit("d")]
    await asyncio.sleep(0)
    running.committer.go_on.set()
    await asyncio.gather(*waiting)
    assert [name for (name,) in running.committer.groups] == order
    await running.end()


@pytest.mark.parametrize("lane", ["urgent", "background"])
async def test_the_other_lanes_are_bounded_and_left_in_the_same_way(lane: str) -> None:
    running = Running()
    first = running.submit("a", size=100)
    await running.committer.begun.wait()
    turns = [running.turn(name, **{lane: True}) for name in ("one", "two")]
    await asyncio.sleep(0)
    assert running.applier.queued_operations == 3
    with pytest.raises(Overloaded):
        await running.turn("three", **{lane: True})
    await cancelled(turns[0])
    assert running.held() == (2, 100)
    assert not running.applier._idle.is_set()
    running.committer.go_on.set()
    await asyncio.gather(first, turns[1])
    assert running.committer.groups == [["a"], ["two"]]
    await running.end()


async def test_a_turn_whose_caller_goes_away_within_it_leaves_once() -> None:
    running, begun, go_on = Running(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go_on.wait()

    turn = asyncio.create_task(running.applier.turn(work, background=True))
    await begun.wait()
    await cancelled(turn)
    assert running.held() == (1, 0)
    go_on.set()
    await running.empty()
    await running.end()


async def test_a_lost_engine_refuses_what_waits_in_every_lane() -> None:
    running = Running(operations=10)
    first = running.submit("a")
    await running.committer.begun.wait()
    waiting = [
        running.turn("urgent", urgent=True), running.turn("turn"),
        running.turn("background", background=True),
    ]  # fmt: skip
    await asyncio.sleep(0)
    running.writer.cancel()
    running.applier.end(EngineLost("gone"))
    for call in (first, *waiting):
        with pytest.raises(EngineLost):
            await call
    assert running.held() == (0, 0)


@pytest.mark.integration
def test_memory_is_bounded_while_the_engine_stalls(tmp_path: Path) -> None:
    bounds = {"CHROMA_ROUTER_NODE_QUEUE_BYTES": str(8 << 20)}
    with running(tmp_path / "data", environment=bounds) as node:
        docs = node.collection()
        docs.write(ADD, Row("first", floats(1)))
        process = psutil.Process(node.process.pid)
        node.engine().send_signal(signal.SIGSTOP)
        apply = shard_pb2.ApplyRequest(
            operations=[docs.operation(ADD, [Row("a", floats(1), "x" * (2 << 20))])]
        )
        before, began = process.memory_info().rss, time.monotonic()
        for _ in range(60):
            calls = [node.stub.Apply.future(apply, timeout=0.1) for _ in range(4)]
            for call in calls:
                with pytest.raises(grpc.RpcError):
                    call.result()
        grown = process.memory_info().rss - before
        node.engine().send_signal(signal.SIGCONT)
        # 480 MiB were sent; gRPC and malloc keep some of it, whatever the queue holds.
        assert grown < 260 << 20, f"{grown >> 20} MiB more in {time.monotonic() - began:.0f} s"
