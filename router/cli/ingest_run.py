"""Sends batches of lines to a router: a few at a time, repeated until they are in or time is up.

Each batch keeps its request id over its repeats, so that it takes effect once; or, where the order
of the lines is to be that of the records, it is taken back before it is repeated. A batch that is
refused as invalid is halved until the guilty line is alone. Two batches with an id in common are
never under way at once, so the later line wins.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from chroma_router.v1 import types_pb2
from chroma_router.wire.errors import ClusterError, InvalidRequest, Reason
from router.cli.command import Failed
from router.cli.ingest_lines import BadLine, Batch, Line
from router.cli.patient import PatientLink
from router.rate_cap import RateCap

OnBad = Callable[[BadLine], None]


@dataclass(slots=True)
class Tally:
    """What has come of the lines so far."""

    stored: int = 0
    rejected: int = 0
    batches: int = 0
    retries: int = 0
    position: int = 0
    """How many bytes of the file, as they lie on the disk, have been dealt with at least."""
    own_embeddings: bool = True
    """Whether every line so far could be read and came with an embedding."""


@dataclass(slots=True)
class Sender:
    """Upserts batches into one collection."""

    cluster: PatientLink
    collection: types_pb2.CollectionRef
    concurrency: int
    rate: RateCap | None
    on_bad: OnBad
    """Takes a bad line; raises to stop there."""
    prepare: Callable[[Batch | None], Awaitable[None]] | None = None
    """Awaited once, before the first batch is sent, or at the end with None when there was none to
    send; what it raises ends the sending."""
    in_order: bool = False
    """Whether a batch that broke is taken back before it is repeated, so that what some shards took
    of it does not end up before the rest. Of `concurrency` 1 alone, into a collection that has
    nothing but what is sent here."""
    tally: Tally = field(default_factory=Tally)
    _in_flight: dict[asyncio.Task[None], set[str]] = field(default_factory=dict)
    _failures: list[Exception] = field(default_factory=list)

    async def send_all(self, batches: Iterator[Batch]) -> None:
        """Sends every batch. Raises what ends it: Failed or a ClusterError.

        What is under way then is finished first, so that the tally is true.
        """
        prepare = self.prepare
        async with asyncio.TaskGroup() as tasks:
            while not self._failures:
                batch = await asyncio.to_thread(next, batches, None)
                if batch is None:
                    break
                if batch.embedded or batch.bad:
                    self.tally.own_embeddings = False
                try:
                    for bad in batch.bad:
                        self._reject(bad)
                    if batch.lines and prepare is not None:
                        await prepare(batch)
                        prepare = None
                except (Failed, ClusterError) as failure:
                    self._failures.append(failure)
                    break
                if batch.lines:
                    ids = {line.id for line in batch.lines}
                    await self._wait_for_room(ids)
                    if self.rate is not None:
                        await self.rate.take(len(batch.lines))
                    task = tasks.create_task(self._send_batch(batch.lines))
                    self._in_flight[task] = ids
                    task.add_done_callback(self._landed)
                self.tally.position = batch.position
        if self._failures:
            raise self._failures[0]
        if prepare is not None:
            await prepare(None)

    async def _send_batch(self, lines: Sequence[Line]) -> None:
        try:
            await self._send(lines)
        except (Failed, ClusterError) as failure:
            self._failures.append(failure)

    def _landed(self, task: asyncio.Task[None]) -> None:
        del self._in_flight[task]

    async def _wait_for_room(self, ids: set[str]) -> None:
        """Until fewer than `concurrency` batches are under way and none has one of these ids."""
        while len(self._in_flight) >= self.concurrency or any(
            not ids.isdisjoint(others) for others in self._in_flight.values()
        ):
            await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)

    async def _send(self, lines: Sequence[Line]) -> None:
        try:
            await self._upsert(lines)
        except InvalidRequest as refusal:
            fits = _fitting(lines, refusal)
            if fits is not None:
                good, guilty = fits
                for line in guilty:
                    self._reject(BadLine(line.number, line.text, refusal.message))
                if good:
                    await self._send(good)
            elif len(lines) == 1:
                self._reject(BadLine(lines[0].number, lines[0].text, refusal.message))
            else:
                middle = len(lines) // 2
                await self._send(lines[:middle])
                await self._send(lines[middle:])

    def _reject(self, line: BadLine) -> None:
        self.on_bad(line)
        self.tally.rejected += 1

    async def _upsert(self, lines: Sequence[Line]) -> None:
        """One write, repeated. Raises what is final (InvalidRequest); GaveUp at the timeout."""
        what = f"storing lines {lines[0].number} to {lines[-1].number}"
        records = [line.record for line in lines]
        try:
            if self.in_order:
                ids = [line.id for line in lines]
                await self.cluster.upsert_in_order(what, self.collection, ids, records)
            else:
                await self.cluster.upsert(what, self.collection, records)
        finally:
            self.tally.retries = self.cluster.retries
        self.tally.stored += len(lines)
        self.tally.batches += 1


def _fitting(
    lines: Sequence[Line], refusal: InvalidRequest
) -> tuple[list[Line], list[Line]] | None:
    """Lines with the collection's dimension and those with another, where that was the reason."""
    expected = refusal.metadata.get("expected")
    if refusal.reason is not Reason.DIMENSION_MISMATCH or expected is None:
        return None
    size = 4 * int(expected)
    good: list[Line] = []
    guilty: list[Line] = []
    for line in lines:
        fits = len(types_pb2.Record.FromString(line.record).embedding) == size
        (good if fits else guilty).append(line)
    return (good, guilty) if guilty else None
