"""The single writer: a bounded queue of operations and turns, worked off in the order of arrival.

Group commit without timers: while one group is applied, arrivals collect; then the next group takes
what is there (grouping.take). A turn is other work that must not meet a write half done, such as a
change of ownership. One Applier serves one incarnation of the engine and ends with it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

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


@dataclass(slots=True)
class _Job:
    """The operations of one call. A result that is not None stands."""

    writes: list[Write | None]
    results: list[shard_pb2.OperationResult | None]
    size: int
    done: asyncio.Future[Applied]
    engine_seconds: float = 0.0


@dataclass(slots=True)
class _Turn:
    work: Callable[[], Awaitable[Any]]
    done: asyncio.Future[Any]


class Applier:
    """See the head of this file. It owns the queue; `run` is the only task that applies."""

    def __init__(
        self, committer: Committer, limits: GroupLimits, queue_operations: int, queue_bytes: int
    ) -> None:
        self._committer, self._limits = committer, limits
        self._max_operations, self._max_bytes = queue_operations, queue_bytes
        self._queue: deque[_Job | _Turn] = deque()
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
        count = len(operations)
        self._admit(count, size)
        self._operations += count
        self._bytes += size
        try:
            if size > _PARSE_INLINE_BYTES:
                writes, results = await asyncio.to_thread(_parse_all, operations)
            else:
                writes, results = _parse_all(operations)
            job = _Job(writes, results, size, asyncio.get_running_loop().create_future())
            self._put(job)
            return await job.done
        finally:
            self._operations -= count
            self._bytes -= size

    async def turn(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Runs `work` alone, after what waits."""
        if self._operations >= self._max_operations:
            raise _full(self._operations, self._bytes)
        turn = _Turn(work, asyncio.get_running_loop().create_future())
        self._put(turn)
        result: _T = await turn.done
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
            if head.done.done():  # nobody waits: what was not begun is not begun
                self._queue.popleft()
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
            _fail(self._queue.popleft(), error)

    def _admit(self, count: int, size: int) -> None:
        if self._ended is not None:
            raise self._ended
        if count > self._max_operations or size > self._max_bytes:
            raise InvalidRequest(
                f"{count} operations of {size} bytes are more than the node's queue holds",
                Reason.BATCH_TOO_LARGE,
            )
        if self._operations + count > self._max_operations or self._bytes + size > self._max_bytes:
            raise _full(self._operations, self._bytes)

    def _put(self, item: _Job | _Turn) -> None:
        if self._ended is not None:
            raise self._ended
        self._queue.append(item)
        self._idle.clear()
        self._wake.set()

    async def _run_turn(self, turn: _Turn) -> None:
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
        self._queue.popleft()

    async def _run_group(self) -> None:
        places: list[tuple[_Job, int]] = []

        def offered() -> Iterator[Write]:
            for job, position, write in self._waiting():
                places.append((job, position))
                yield write

        group = take(offered(), self._limits)
        del places[len(group) :]
        before = self._committer.engine_seconds
        try:
            results = await self._committer.apply(group) if group else []
        except ClusterError as error:
            for job, _ in places:
                if not job.done.done():
                    job.done.set_exception(error)
            return
        seconds = self._committer.engine_seconds - before
        for (job, position), result in zip(places, results, strict=True):
            job.results[position] = result
        for job in {id(job): job for job, _ in places}.values():
            job.engine_seconds += seconds
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
        while self._queue and isinstance(job := self._queue[0], _Job):
            results = [result for result in job.results if result is not None]
            if len(results) < len(job.results) and not job.done.done():
                return
            if not job.done.done():
                job.done.set_result(Applied(results, job.engine_seconds))
            self._queue.popleft()


def _full(operations: int, size: int) -> Overloaded:
    return Overloaded(
        f"the write queue is full: {operations} operations, {size} bytes",
        Reason.QUEUE_FULL,
        retry_after=_RETRY_AFTER_SECONDS,
    )


def _fail(item: _Job | _Turn, error: ClusterError) -> None:
    if not item.done.done():
        item.done.set_exception(error)


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
