"""The write queue of one shard: bounded, in order, one group on its way at a time.

Group commit without timers: while a group is being applied, arrivals collect; then the next group
takes what is there, up to what AdaptiveBatch allows. The queue owns the waiting operations and
nothing else; what an outcome means to a client's request is decided in write_path.

A group whose fate is unknown (the node went away) stays at the head and is sent again, since every
operation has an identity under which it takes effect once; an operation leaves early when its
deadline passes, and then says whether it had been sent.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    InternalFailure,
    InvalidRequest,
    Overloaded,
    Reason,
    Stale,
    Unavailable,
    error_for,
)
from router.core.batching import AdaptiveBatch
from router.core.retry import backoff

log = structlog.get_logger(__name__)

Apply = Callable[[list[shard_pb2.Operation], float], Awaitable[shard_pb2.ApplyResponse]]

APPLY_TIMEOUT = 30.0
"""Seconds after which a node that holds a group without answering is asked again."""

EXPIRED_RETRY_AFTER = 1.0
"""Seconds after which a client is asked to repeat a write that ran out of time."""

NOT_APPLIED = "the write waited for its shard past its deadline and was not applied; repeat it"
"""Of a write that ran out of time and was never sent, or only refused."""

RETRY_BASE, RETRY_CAP = 0.05, 1.0
"""Seconds of back-off between two tries to deliver a group."""


@dataclass(eq=False, slots=True)
class PendingWrite:
    """One operation on its way to one shard."""

    operation: shard_pb2.Operation
    deadline: float
    """On the clock of time.monotonic()."""
    rows: int = field(init=False)
    size: int = field(init=False)
    uncertain: bool = False
    """An earlier try to deliver this write got no answer: it may have been applied then."""
    under_way: bool = False
    """It has been sent and is not answered yet."""
    done: asyncio.Future[int] = field(init=False)
    """Becomes the operation's `deleted` figure, or the error that ended it."""

    def __post_init__(self) -> None:
        self.rows = max(1, len(self.operation.ids))
        self.size = self.operation.ByteSize()
        self.done = asyncio.get_running_loop().create_future()

    @property
    def maybe_applied(self) -> bool:
        """Whether the node may have applied it, for all that has been heard."""
        return self.uncertain or self.under_way

    def expired(self) -> Unavailable:
        """What a write that ran out of time must say: whether its outcome is known."""
        return Unavailable(
            "the shard did not say in time what became of the write; repeat it with the same "
            "request id, it takes effect once"
            if self.maybe_applied
            else NOT_APPLIED,
            retry_after=EXPIRED_RETRY_AFTER,
        )


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait for one shard, the group under way included."""

    operations: int
    bytes: int


class WriteQueue:
    """Waiting operations of one shard, and the loop that delivers them."""

    def __init__(self, shard: str, apply: Apply, limits: QueueLimits, batch: AdaptiveBatch) -> None:
        self._shard = shard
        self._apply = apply
        self._limits = limits
        self._batch = batch
        self._waiting: deque[PendingWrite] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._closing = False
        self._removed = False

    @property
    def operations(self) -> int:
        """How many operations wait or are on their way."""
        return len(self._waiting)

    @property
    def bytes(self) -> int:
        """How many bytes wait or are on their way."""
        return self._bytes

    def check_room(self, operations: int, size: int) -> None:
        """Raises Overloaded unless so much more fits, Unavailable when the queue is closing, Stale
        when its shard was removed.

        Between this and `submit` nothing may be awaited: that makes admission of a write to several
        queues one decision.
        """
        if size > self._limits.bytes:
            raise InvalidRequest(
                f"the write has {size} bytes for shard {self._shard}, more than its queue ever "
                f"holds ({self._limits.bytes}); write smaller batches",
                Reason.BATCH_TOO_LARGE,
            )
        if self._removed:
            raise self._shard_removed()
        if self._closing:
            raise Unavailable("the router is shutting down", Reason.DRAINING, retry_after=1.0)
        if (
            len(self._waiting) + operations > self._limits.operations
            or self._bytes + size > self._limits.bytes
        ):
            raise Overloaded(
                f"the write queue of shard {self._shard} is full ({len(self._waiting)} operations, "
                f"{self._bytes} bytes wait; limits {self._limits.operations} and "
                f"{self._limits.bytes}); slow down and repeat",
                metadata={"shard": self._shard},
                retry_after=max(0.1, min(5.0, self._batch.seconds_for(len(self._waiting)))),
            )

    def submit(self, write: PendingWrite) -> None:
        """Puts a write at the end of the queue; its future `done` says what became of it."""
        self.check_room(1, write.size)
        self._waiting.append(write)
        self._bytes += write.size
        self._arrived.set()

    def close(self) -> None:
        """Takes no more writes; `run` ends when those that wait are done."""
        self._closing = True
        self._arrived.set()

    def abandon(self) -> None:
        """The shard is no longer part of the cluster: whatever waits fails as Stale, so that it is
        routed anew, under the same identity. `run` ends when the call under way does.

        Also what is under way fails at once: whether it was applied there is not known, and matters
        no more than what that node holds. What of it counts has come with the slots to their new
        owners, its outcome as well (or is lost with the shard).
        """
        self._removed = True
        self.close()
        for write in self._waiting:
            write.uncertain |= write.under_way
            _fail(write, self._shard_removed())
        self._drop_finished(time.monotonic())

    def _shard_removed(self) -> Stale:
        return Stale(
            f"shard {self._shard} is no longer part of the cluster",
            metadata={"shard": self._shard},
            retry_after=0.1,
        )

    async def run(self) -> None:
        """Delivers groups until the queue is closed and empty."""
        try:
            while True:
                await self._arrived.wait()
                if not self._waiting:
                    if self._closing:
                        return
                    self._arrived.clear()
                    continue
                self._drop_finished(time.monotonic())
                if self._waiting:
                    await self._deliver(self._next_group())
        finally:
            for write in self._waiting:
                _fail(write, write.expired())
            self._waiting.clear()
            self._bytes = 0

    def _next_group(self) -> list[PendingWrite]:
        count = self._batch.take((write.rows, write.size) for write in self._waiting)
        return [self._waiting[i] for i in range(count)]

    async def _deliver(self, group: list[PendingWrite]) -> None:
        """Sends the head of the queue until its fate is known or its deadlines have passed."""
        attempt = 0
        while True:
            now = time.monotonic()
            group = [write for write in group if not self._gone(write, now)]
            self._drop_finished(now)
            if not group:
                return
            for write in group:
                write.under_way = True
            latest = max(write.deadline for write in group)
            try:
                answer = await self._apply(
                    [write.operation for write in group], min(APPLY_TIMEOUT, latest - now)
                )
            except ClusterError as error:
                unheard = isinstance(error, Unavailable | DeadlineExpired)
                if not unheard and error.reason is not Reason.QUEUE_FULL:
                    self._settle(group, error)  # refused as a whole, by this try
                    return
                attempt += 1
                for write in group:
                    write.under_way = False
                    write.uncertain |= unheard
                log.warning(
                    "apply_repeated", shard=self._shard, attempt=attempt, error=error.message
                )
                await self._pause(attempt, group)
            else:
                self._batch.observe(sum(w.rows for w in group), answer.apply_microseconds / 1e6)
                self._settle(group, answer)
                return

    async def _pause(self, attempt: int, group: list[PendingWrite]) -> None:
        """Waits before the next try, but not past the moment when a waiting write expires."""
        # Jitter is for crowds; one queue per shard and router is none.
        delay = backoff(attempt, RETRY_BASE, RETRY_CAP, jitter=0.5)
        first = min(write.deadline for write in group)
        await asyncio.sleep(max(0.0, min(delay, first - time.monotonic())))

    def _settle(
        self, group: list[PendingWrite], outcome: shard_pb2.ApplyResponse | ClusterError
    ) -> None:
        for write in group:
            # Who was told before this answer came was told that it is not known.
            write.uncertain |= write.done.done()
            write.under_way = False
        if isinstance(outcome, ClusterError):
            for write in group:
                _fail(write, outcome)
        elif len(outcome.results) != len(group):
            log.error("defect", shard=self._shard, reason="wrong number of results")
            for write in group:
                write.uncertain = True
                _fail(
                    write, InternalFailure(f"shard {self._shard} broke its contract; see its log")
                )
        else:
            for write, result in zip(group, outcome.results, strict=True):
                if result.refused_reason:
                    metadata = {"shard": self._shard, "epoch": str(result.node_epoch)}
                    _fail(write, error_for(result.refused_reason, result.message, metadata))
                elif not write.done.done():
                    write.done.set_result(result.deleted)
        self._drop_finished(time.monotonic())

    def _gone(self, write: PendingWrite, now: float) -> bool:
        """Whether a write needs no delivery: it is done, its caller is gone, or it expired."""
        if not write.done.done() and write.deadline <= now:
            _fail(write, write.expired())
        return write.done.done()

    def _drop_finished(self, now: float) -> None:
        """Takes every write that needs no delivery out of the queue, wherever it stands."""
        if any(self._gone(write, now) for write in self._waiting):
            self._waiting = deque(write for write in self._waiting if not write.done.done())
            self._bytes = sum(write.size for write in self._waiting)


def _fail(write: PendingWrite, error: ClusterError) -> None:
    if not write.done.done():
        write.done.set_exception(error)
        # A caller that went away never asks; asyncio must not report the error as unretrieved.
        write.done.exception()
