"""The single writer: a bounded queue of operations and turns, worked off in the order of arrival.

Group commit without timers: while one group is applied, arrivals collect; then the next group takes
what is there (grouping.take). A turn is other work that must not meet a write half done, such as a
change of ownership. One Applier serves one incarnation of the engine and ends with it.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import ClusterError, InvalidRequest, Overloaded, Reason, Unavailable
from shard_node.committer import Committer, refusal
from shard_node.grouping import GroupLimits, take
from shard_node.operations import Write, parse

_T = TypeVar("_T")

_RETRY_AFTER_SECONDS = 0.1
_PRUNE_SECONDS = 1.0
_PARSE_INLINE_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a call's operations, and how long the engine worked on their groups."""

    results: list[shard_pb2.OperationResult]
    engine_seconds: float


@dataclass(slots=True, eq=False)
class _Job:
    """The operations of one call. A result that is not None stands."""

    count: int
    size: int
    done: asyncio.Future[Applied]
    writes: list[Write | None] = field(default_factory=list)
    results: list[shard_pb2.OperationResult | None] = field(default_factory=list)
    engine_seconds: float = 0.0
    begun: bool = False  # some of it is in the group that is applied now


@dataclass(slots=True, eq=False)
class _Turn:
    work: Callable[[], Awaitable[Any]]
    done: asyncio.Future[Any]
    count: int = 1
    size: int = 0
    begun: bool = False


_Item: TypeAlias = _Job | _Turn


class Applier:
    """See the head of this file. It owns the queue; `run` is the only task that applies.

    What an item takes of the bounds it takes until nothing here holds its bytes any more: it leaves
    the queue when it is done, when its caller goes away before it has begun, or, begun, when the
    group that it is in has ended.
    """

    def __init__(
        self, committer: Committer, limits: GroupLimits, queue_operations: int, queue_bytes: int
    ) -> None:
        self._committer, self._limits = committer, limits
        self._max_operations, self._max_bytes = queue_operations, queue_bytes
        self._queue: deque[_Item] = deque()
        self._operations = self._bytes = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended: ClusterError | None = None
        self._prune_at = time.monotonic() + _PRUNE_SECONDS

    async def submit(self, operations: Sequence[shard_pb2.Operation], size: int) -> Applied:
        """Applies a call's operations, `size` bytes of them, in their order, after what waits.

        Raises Overloaded when the queue is full, Unavailable when the engine goes away meanwhile.
        The outcome is then not known to this caller; a repeat under the same identity is safe.
        """
        job = _Job(len(operations), size, asyncio.get_running_loop().create_future())
        self._admit(job)
        if size > _PARSE_INLINE_BYTES:
            parsing = asyncio.create_task(asyncio.to_thread(_parse_all, operations))
            try:
                job.writes, job.results = await asyncio.shield(parsing)
            except BaseException:  # the thread goes on, and holds the bytes until it is done
                parsing.add_done_callback(lambda _: self._release(job))
                raise
        else:
            try:
                job.writes, job.results = _parse_all(operations)
            except BaseException:
                self._release(job)
                raise
        applied: Applied = await self._wait(job)
        return applied

    async def turn(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Runs `work` alone, after what waits."""
        turn = _Turn(work, asyncio.get_running_loop().create_future())
        self._admit(turn)
        result: _T = await self._wait(turn)
        return result

    async def run(self) -> None:
        """The writer, until cancelled."""
        while True:
            if not self._queue:
                self._idle.set()
                await self._wake.wait()
            self._wake.clear()
            if not self._queue:
                continue
            self._idle.clear()
            head = self._queue[0]
            if head.done.done():  # its caller went away, or it failed, after it had begun
                self._leave()
            elif isinstance(head, _Turn):
                await self._run_turn(head)
            else:
                await self._run_group()
            if time.monotonic() >= self._prune_at:
                await self._committer.prune()
                self._prune_at = time.monotonic() + _PRUNE_SECONDS

    async def drain(self, seconds: float) -> bool:
        """Admits nothing more and waits until the queue is empty; False if it is not by then."""
        self._ended = Unavailable("the node is stopping", Reason.DRAINING, retry_after=1.0)
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def end(self, error: ClusterError) -> None:
        """Refuses what waits and all that comes: the engine is gone."""
        self._ended = error
        while self._queue:
            item = self._leave()
            if not item.done.done():
                item.done.set_exception(error)

    def _admit(self, item: _Item) -> None:
        """Takes the item's share of the bounds."""
        if self._ended is not None:
            raise self._ended
        if item.count > self._max_operations or item.size > self._max_bytes:
            raise InvalidRequest(
                f"{item.count} operations of {item.size} bytes are more than the node's queue"
                " holds",
                Reason.BATCH_TOO_LARGE,
            )
        if (
            self._operations + item.count > self._max_operations
            or self._bytes + item.size > self._max_bytes
        ):
            raise _full(self._operations, self._bytes)
        self._operations += item.count
        self._bytes += item.size

    def _release(self, item: _Item) -> None:
        self._operations -= item.count
        self._bytes -= item.size

    async def _wait(self, item: _Item) -> Any:
        """Queues an admitted item, and waits until it is done."""
        if self._ended is not None:
            self._release(item)
            raise self._ended
        self._queue.append(item)
        self._idle.clear()
        self._wake.set()
        try:
            return await item.done
        except asyncio.CancelledError:
            if not item.begun:  # else it leaves when its group has ended
                with contextlib.suppress(ValueError):  # it has left already
                    self._queue.remove(item)
                    self._release(item)
            raise

    def _leave(self) -> _Item:
        """The head of the queue, which is no longer in it."""
        item = self._queue.popleft()
        self._release(item)
        return item

    async def _run_turn(self, turn: _Turn) -> None:
        turn.begun = True
        try:
            result = await turn.work()
        except asyncio.CancelledError:
            raise  # the engine is gone; `end` tells the caller
        except Exception as error:
            if not turn.done.done():
                turn.done.set_exception(error)
        else:
            if not turn.done.done():
                turn.done.set_result(result)
        self._leave()

    async def _run_group(self) -> None:
        places: list[tuple[_Job, int]] = []

        def offered() -> Iterator[Write]:
            for job, position, write in self._waiting():
                places.append((job, position))
                yield write

        group = take(offered(), self._limits)
        del places[len(group) :]
        before = self._committer.engine_seconds
        for job, _ in places:
            job.begun = True
        try:
            results = await self._committer.apply(group) if group else []
        except ClusterError as error:
            for job, _ in places:
                job.begun = False
                if not job.done.done():
                    job.done.set_exception(error)
            return
        seconds = self._committer.engine_seconds - before
        for (job, position), result in zip(places, results, strict=True):
            job.results[position] = result
        for job in {id(job): job for job, _ in places}.values():
            job.engine_seconds += seconds
            job.begun = False
        self._finish_jobs()

    def _waiting(self) -> Iterator[tuple[_Job, int, Write]]:
        """The open operations up to the next turn, in order, of calls that are still waited for."""
        for item in self._queue:
            if isinstance(item, _Turn):
                return
            if not item.done.done():
                for position, write in enumerate(item.writes):
                    if write is not None and item.results[position] is None:
                        yield item, position, write

    def _finish_jobs(self) -> None:
        """Of jobs whose callers went away, what is not applied yet never is."""
        while self._queue and isinstance(job := self._queue[0], _Job):
            results = [result for result in job.results if result is not None]
            if len(results) < len(job.results) and not job.done.done():
                return
            if not job.done.done():
                job.done.set_result(Applied(results, job.engine_seconds))
            self._leave()


def _full(operations: int, size: int) -> Overloaded:
    return Overloaded(
        f"the write queue is full: {operations} operations, {size} bytes",
        Reason.QUEUE_FULL,
        retry_after=_RETRY_AFTER_SECONDS,
    )


def _parse_all(
    operations: Sequence[shard_pb2.Operation],
) -> tuple[list[Write | None], list[shard_pb2.OperationResult | None]]:
    """Each operation becomes a write, or a refusal that stands."""
    writes: list[Write | None] = []
    results: list[shard_pb2.OperationResult | None] = []
    for operation in operations:
        try:
            writes.append(parse(operation))
            results.append(None)
        except InvalidRequest as error:
            writes.append(None)
            results.append(refusal(error))
    return writes, results
