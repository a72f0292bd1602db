"""BulkUpsert: batch after batch over one stream, each answered in its turn when it is durable.

A batch is what an Upsert is: the same checks, the same write, the same errors, an identity of its
own. Batches that share no id are worked on at the same time (router/core/batch_order.py); each
takes the sequences of its new records when it is read: insertion order is the order of the stream.

Backpressure: the next message is read only while few batches are unanswered and few bytes are being
worked on, so HTTP/2's flow control holds the client back. The full queue of a shard is no error for
a batch either: it waits for room, and the stream with it.

What ends the stream and not only a batch: a first message that names no collection, or none that
there is, for then there is nothing that the others could be about; the deadline of the call; a
client that sends nothing for long, although nothing of its own is worked on; a router that stops,
after the answers to all that it has read.
"""

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count

import structlog
from google.protobuf.message import DecodeError

from chroma_router.v1 import records_pb2, types_pb2, views_pb2
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    InternalFailure,
    InvalidRequest,
    Overloaded,
    Reason,
    Unavailable,
    detail_of,
)
from chroma_router.wire.status import bounded
from router.core.batch_order import BatchOrder
from router.core.identity import CallIdentity
from router.core.request_ids import RequestIds
from router.core.validate import WriteKind
from router.directory import Directory
from router.ids import fresh_id
from router.service.gates import IDLE_SECONDS, Gate
from router.service.handlers import ANSWER_MARGIN
from router.service.records import RecordService
from router.service.streams import Stream
from router.write_course import Write
from router.write_path import WritePath

log = structlog.get_logger(__name__)

# Measured with 384 dimensions on three shards and two cores: with batches of 100 records, 4 that
# are unanswered are enough for the engines; with batches of 10, 8 give two to four times the
# throughput of one at a time, 32 give half as much again, and 64 no more.
MAX_UNANSWERED = 32
"""Batches of one stream without an answer; with so many nothing more is read."""

MAX_BYTES_AT_WORK = 16 << 20
"""Bytes of one stream's batches that are not done; from there on nothing more is read. 16 MiB are
16 batches of 170 records of 1,536 dimensions."""

DRAINING_RETRY_AFTER = 1.0
"""Seconds after which a client is asked to go on, through a router that is not stopping."""


@dataclass(frozen=True, slots=True)
class BulkUpserts:
    """The call BulkUpsert, and what its streams share."""

    records: RecordService
    directory: Directory
    writes: WritePath
    gate: Gate
    batch_timeout: float
    """Seconds for one batch, from its reading, where the call has no deadline."""
    draining: asyncio.Event
    """Set when the router is told to stop."""
    idle_seconds: float = IDLE_SECONDS

    async def bulk_upsert(self, stream: Stream) -> None:
        """Serves one stream, from its first message to its last answer."""
        await _Session(self, stream).run()


@dataclass(eq=False, slots=True)
class _Batch:
    """One message on its way to its answer."""

    number: int
    size: int
    deadline: float
    identity: CallIdentity
    """Under which it is told and logged."""
    request_id: str = ""
    """The one that it has or is given; empty as long as none is known."""
    records: int = 0
    error: ClusterError | None = None
    held: ExitStack = field(default_factory=ExitStack)
    """Its part of the bound on all requests' bytes."""
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def answer(self) -> records_pb2.BulkUpsertResponse:
        """What the client is told of it."""
        return records_pb2.BulkUpsertResponse(
            batch=self.number,
            request_id=self.request_id,
            records=self.records,
            error=_told(self.error, self.identity) if self.error is not None else None,
        )


class _Session:
    """One stream: a reader, a task for each batch that may be worked on, and an answerer."""

    def __init__(self, call: BulkUpserts, stream: Stream) -> None:
        self._call = call
        self._stream = stream
        self._collection: types_pb2.CollectionRef | None = None
        self._collection_id = ""
        self._order = BatchOrder()
        self._request_ids = RequestIds()
        self._waiting: dict[int, tuple[_Batch, Write, int | None]] = {}
        """Batches that share an id with one that is not done."""
        self._unanswered: set[_Batch] = set()
        self._answers: asyncio.Queue[_Batch | None] = asyncio.Queue()
        """The unanswered batches in the order of the stream; None: there will be no more."""
        self._bytes_at_work = 0
        self._freed = asyncio.Event()
        self._patience: asyncio.Timeout | None = None
        """That of the reading under way."""
        self._tasks: asyncio.TaskGroup

    async def run(self) -> None:
        """Serves until the last answer. Raises the error that ends the stream."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                reader = self._tasks.create_task(self._read())
                reader.add_done_callback(lambda _: self._answers.put_nowait(None))
                stop = self._tasks.create_task(self._stop_reading(reader))
                await self._answer()
                stop.cancel()
        except* ClusterError as failed:
            raise failed.exceptions[0] from None
        finally:
            for batch in self._unanswered:
                batch.held.close()
        if reader.cancelled():
            raise _draining()

    async def _stop_reading(self, reader: "asyncio.Task[None]") -> None:
        await self._call.draining.wait()
        reader.cancel()

    # ---------------------------------------------------------------------------- reading

    async def _read(self) -> None:
        """Takes message after message, each when there is room for it."""
        for number in count():
            data = await self._next_message()
            if data is None:
                return
            deadline = self._stream.deadline or time.monotonic() + self._call.batch_timeout
            batch = _Batch(number, len(data), deadline, self._stream.identity(""))
            self._unanswered.add(batch)
            self._answers.put_nowait(batch)
            self._bytes_at_work += batch.size
            try:
                await self._accept(batch, data)
            except ClusterError as error:
                if not self._collection_id:
                    raise
                self._finish(batch, error)
            except asyncio.CancelledError:  # told to read no more, in the midst of the first one
                self._finish(batch, _draining())
                raise
            del data  # what waits below must not hold it
            while self._is_full():
                self._freed.clear()
                await self._freed.wait()

    async def _next_message(self) -> bytes | None:
        """The next message. While batches are at work or unread the client may well wait for them;
        after that it has `idle_seconds`."""
        try:
            async with asyncio.timeout(None) as self._patience:
                self._be_patient()
                return await self._stream.read()
        except TimeoutError:
            raise DeadlineExpired(
                f"nothing came on this stream for {self._call.idle_seconds:.0f} s; open another "
                "when there is a batch to send"
            ) from None
        finally:
            self._patience = None

    def _be_patient(self) -> None:
        """Sets the time at which a stream that brings nothing ends."""
        if self._patience is not None and not self._unanswered:
            until = asyncio.get_running_loop().time() + self._call.idle_seconds
            self._patience.reschedule(until)

    def _is_full(self) -> bool:
        return len(self._unanswered) >= MAX_UNANSWERED or self._bytes_at_work >= MAX_BYTES_AT_WORK

    async def _accept(self, batch: _Batch, data: bytes) -> None:
        """Checks a batch and starts it, or lets it wait for those that it shares an id with."""
        # Parsed first, so that also a batch for which there is no room is told under its own id.
        view = _parsed(data)
        # A header's x-request-id is the stream's and not a batch's.
        view.request_id = view.request_id or fresh_id()
        batch.identity = self._stream.identity(view.request_id)
        if batch.identity.request_id == view.request_id:
            batch.request_id = view.request_id
        batch.held.enter_context(self._call.gate.passed(batch.size))
        batch.records = len(view.records)
        await self._check_collection(view)
        write, dimension = self._call.records.checked(WriteKind.UPSERT, view)
        batch.request_id = write.request_id
        self._request_ids.enter(write.request_id, write.digest)
        if self._order.arrive(batch.number, write.ids):
            self._start(batch, write, dimension)
        else:
            self._waiting[batch.number] = batch, write, dimension

    async def _check_collection(self, view: views_pb2.WriteRequestView) -> None:
        """The first message says what the stream is about. It is found once: another collection
        that gets the name meanwhile is another one."""
        if self._collection is None:
            entry = await self._call.directory.resolve(view.collection)
            self._collection, self._collection_id = view.collection, entry.id
            return
        named = view.collection.WhichOneof("collection") is not None
        if named and view.collection != self._collection:
            raise InvalidRequest(
                "collection: not the one of the first message of this stream; leave it out, or "
                "open another stream for another collection"
            )

    # ---------------------------------------------------------------------------- working

    def _start(self, batch: _Batch, write: Write, dimension: int | None) -> None:
        self._tasks.create_task(self._work(batch, write, dimension))

    async def _work(self, batch: _Batch, write: Write, dimension: int | None) -> None:
        """A batch from its turn to its end; then those have theirs that waited for it alone."""
        error: ClusterError | None = None
        try:
            await self._write(batch, write, dimension)
        except ClusterError as failure:
            error = failure
        except Exception:
            log.exception("defect", method="BulkUpsert", **batch.identity.metadata())
            error = InternalFailure(
                "the router failed on this batch through a defect of its own; its log has the "
                "details under 'defect'"
            )
        self._finish(batch, error)
        for number in self._order.done(batch.number):
            self._start(*self._waiting.pop(number))

    async def _write(self, batch: _Batch, write: Write, dimension: int | None) -> None:
        """Applies a batch; a shard's full queue is waited for, as long as the deadline allows."""
        if self._call.draining.is_set():
            raise _draining()
        ref = types_pb2.CollectionRef(id=self._collection_id)
        while True:
            left = max(0.0, batch.deadline - time.monotonic())
            try:
                # The write itself minds the deadline and can say more at it, as in handlers.py.
                async with asyncio.timeout(left + ANSWER_MARGIN / 2):
                    entry = await self._call.directory.resolve(ref)
                    await self._call.writes.write(entry, write, dimension, batch.deadline)
                return
            except TimeoutError:
                raise DeadlineExpired(
                    "the router was not done with this batch in time; repeat it under its request "
                    "id, it takes effect once"
                ) from None
            except Overloaded as full:
                pause = full.retry_after
                if full.reason is not Reason.QUEUE_FULL or pause is None or pause >= left:
                    raise
            await asyncio.sleep(pause)

    # ---------------------------------------------------------------------------- answering

    def _finish(self, batch: _Batch, error: ClusterError | None) -> None:
        """What it held is free again; its answer comes in its turn."""
        batch.error = error
        batch.held.close()
        self._bytes_at_work -= batch.size
        self._freed.set()
        batch.done.set()

    async def _answer(self) -> None:
        """Answers the batches in their order, until there are no more."""
        while (batch := await self._answers.get()) is not None:
            await batch.done.wait()
            await self._stream.write(batch.answer())
            self._unanswered.remove(batch)
            self._freed.set()
            self._be_patient()


def _parsed(data: bytes) -> views_pb2.WriteRequestView:
    try:
        return views_pb2.WriteRequestView.FromString(data)
    except DecodeError:
        raise InvalidRequest(
            "the batch is not a BulkUpsertRequest: it is truncated, or a text in it is not UTF-8; "
            "build it from the .proto"
        ) from None


def _draining() -> Unavailable:
    return Unavailable(
        "the router is shutting down and did not begin this batch; send what has no answer again "
        "under its request id, when it is back or through another router",
        Reason.DRAINING,
        retry_after=DRAINING_RETRY_AFTER,
    )


def _told(error: ClusterError, identity: CallIdentity) -> records_pb2.BatchError:
    """An error as the answer of a batch has it."""
    wait = error.retry_after
    return records_pb2.BatchError(
        code=error.code,
        reason=error.reason.value,
        message=bounded(error.message),
        retry_after_milliseconds=None if wait is None else round(wait * 1000),
        outcome=detail_of(error, types_pb2.WriteOutcome),
        trace_id=identity.trace_id,
    )
