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
    """An applier of at most 3 operations and 1 MB, and its stalled committer."""

    def __init__(self) -> None:
        self.committer = StalledCommitter()
        self.applier = Applier(cast("Committer", self.committer), LIMITS, 3, 1_000_000)
        self.writer = asyncio.create_task(self.applier.run())

    def submit(self, *names: str, size: int = 1) -> asyncio.Task[Applied]:
        operations = [
            shard_pb2.Operation(kind=shard_pb2.OPERATION_KIND_DELETE, request_id=i, ids=[i])
            for i in names
        ]
        return asyncio.create_task(self.applier.submit(operations, size))

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
