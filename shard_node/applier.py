"""The single writer: a bounded queue of operations and turns, worked off in the order of arrival.

Group commit without timers: while one group is applied, arrivals collect; then the next group takes
what is there (grouping.take). A turn is other work that must not meet a write half done, such as a
change of ownership. Most turns wait like operations; an urgent one goes before everything that
waits, and a background one, such as a step of a move's copy, lets operations go first, for a while.
One Applier serves one incarnation of the engine and ends with it.
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

BACKGROUND_PATIENCE_SECONDS = 0.1
"""How long a background turn lets others go first. Beside operations without end one of them runs
so often, so that a move under any load comes to its end."""


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
    since: float = field(default_factory=time.monotonic)


_Item: TypeAlias = _Job | _Turn


class Applier:
    """See the head of this file. It owns the queue; `run` is the only task that applies.

    The queue has three lanes, each in the order of arrival: urgent turns, operations and other
    turns, background turns. Between two groups, and only there, `run` chooses the next lane.

    What an item takes of the bounds it takes until nothing here holds its bytes any more: it leaves
    the queue when it is done, when its caller goes away before it has begun, or, begun, when the
    group that it is in has ended.
    """

    def __init__(
        self, committer: Committer, limits: GroupLimits, queue_operations: int, queue_bytes: int
    ) -> None:
        self._committer, self._limits = committer, limits
        self._max_operations, self._max_bytes = queue_operations, queue_bytes
        self._urgent: deque[_Item] = deque()
        self._queue: deque[_Item] = deque()
        self._background: deque[_Item] = deque()
        self._lanes = (self._urgent, self._queue, self._background)
        self._background_was_last = False
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
        applied: Applied = await self._wait(job, self._queue)
        return applied

    async def turn(
        self,
        work: Callable[[], Awaitable[_T]],
        *,
        urgent: bool = False,
        background: bool = False,
    ) -> _T:
        """Runs `work` alone, after what waits.

        Urgent: before it, as soon as the group or turn under way has ended. Background: when
        nothing else waits, or when it has waited BACKGROUND_PATIENCE_SECONDS.
        """
        assert not (urgent and background), "a turn is in one lane"
        turn = _Turn(work, asyncio.get_running_loop().create_future())
        self._admit(turn)
        lane = self._urgent if urgent else self._background if background else self._queue
        result: _T = await self._wait(turn, lane)
        return result

    @property
    def queued_operations(self) -> int:
        """How many operations and turns wait or are being done."""
        return self._operations

    async def run(self) -> None:
        """The writer, until cancelled."""
        while True:
            if not any(self._lanes):
                self._idle.set()
                await self._wake.wait()
            self._wake.clear()
            if not any(self._lanes):
                continue
            self._idle.clear()
            lane = self._next_lane()
            head = lane[0]
            if head.done.done():  # its caller went away, or it failed, after it had begun
                self._leave(lane)
            elif isinstance(head, _Turn):
                await self._run_turn(head, lane)
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
        for lane in self._lanes:
            while lane:
                item = self._leave(lane)
                if not item.done.done():
                    item.done.set_exception(error)

    def _next_lane(self) -> deque[_Item]:
        """The lane that has its turn; not all of them are empty."""
        if self._urgent:
            return self._urgent
        if not self._queue or (
            self._background and not self._background_was_last and self._has_waited()
        ):
            self._background_was_last = True
            return self._background
        self._background_was_last = False
        return self._queue

    def _has_waited(self) -> bool:
        head = self._background[0]
        assert isinstance(head, _Turn), "operations are not in the background"
        return time.monotonic() - head.since >= BACKGROUND_PATIENCE_SECONDS

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

    async def _wait(self, item: _Item, lane: deque[_Item]) -> Any:
        """Queues an admitted item, and waits until it is done."""
        if self._ended is not None:
            self._release(item)
            raise self._ended
        lane.append(item)
        self._idle.clear()
        self._wake.set()
        try:
            return await item.done
        except asyncio.CancelledError:
            if not item.begun:  # else it leaves when its group has ended
                with contextlib.suppress(ValueError):  # it has left already
                    lane.remove(item)
                    self._release(item)
            raise

    def _leave(self, lane: deque[_Item]) -> _Item:
        """The head of a lane, which is no longer in it."""
        item = lane.popleft()
        self._release(item)
        return item

    async def _run_turn(self, turn: _Turn, lane: deque[_Item]) -> None:
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
        self._leave(lane)

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
            self._leave(self._queue)


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
