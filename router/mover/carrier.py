"""Does the steps of one run of a move: calls to source and target, changes in the catalog.

Which step comes next is decided in router/core/move.py; what a failure means, in mover.py. A
carrier lives for one run, under one token; it owns the read ahead of the stream and the run's
figures.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import structlog

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import ClusterError, DeadlineExpired, NotAllowed, Reason
from chroma_router.wire.slots import slots_to_bitmap
from router.catalog import Catalog
from router.cluster import Cluster, Shard
from router.concurrency import settled
from router.core import move as steps
from router.core.latency import Foreground
from router.core.lease import Lease
from router.core.move import Move, Place, Stage
from router.core.pace import Pace
from router.core.rebalance import MoveProgress
from router.directory import Directory

log = structlog.get_logger(__name__)

CALL_TIMEOUT = 30.0
"""Seconds for one call of a move: a chunk waits for the node's writer, and an engine may load."""

FENCE_TIMEOUT = 5.0
"""Seconds for a call while writes are held: past it the run ends, and the next one asks again."""

CHUNK_BYTES = 4 << 20
"""Most bytes of a chunk, unless its first record alone is larger."""

TAIL_RECORDS = 5_000
"""Most records of a chunk between fence and switch: what is left shall come at once."""

DROP_RECORDS = 500
"""Most records that are trimmed or purged with one call."""


@dataclass(slots=True)
class _Read:
    """A chunk that is being read ahead."""

    asked: shard_pb2.ReadMoveRequest
    task: "asyncio.Task[shard_pb2.ReadMoveResponse | ClusterError]"


@dataclass(slots=True)
class Carrier:
    """One run of one move: `do` each step, then `close`."""

    lease: Lease
    move: Move
    progress: MoveProgress
    catalog: Catalog
    cluster: Cluster
    directory: Directory
    pace: Pace
    foreground: Foreground
    compare_queries: Callable[[shard_pb2.MoveRef, Shard, Shard], Awaitable[str]]
    tasks: asyncio.TaskGroup
    """Of the run; it ends with it."""
    _ahead: _Read | None = field(init=False, default=None)
    _has_grant: set[str] = field(init=False, default_factory=set)
    _fenced_at: float = field(init=False, default=0.0)
    _reads_fenced_at: float = field(init=False, default=0.0)
    _counted_at: float = field(init=False, default_factory=time.monotonic)

    def close(self) -> None:
        """The run is over: nothing is read ahead any more."""
        self._drop_ahead()

    async def do(self, step: steps.Step) -> steps.Answer:
        """Does one step. Raises ClusterError: its outcome may be unknown, and the run is over."""
        match step:
            case steps.Enter():
                self.move = await self.catalog.moves.enter(
                    self.lease, self.move, step.stage, step.problem
                )
                log.info("move_stage", move=self.move.id, stage=step.stage, problem=step.problem)
                return self.move
            case steps.Transfer():
                return await self._in_step(self._transfer(step))
            case steps.Fence():
                return await self._in_step(self._fence(step))
            case steps.Switch():
                return await self._switch()
            case steps.Arrive():
                return await self._arrive(step)
            case steps.Drop():
                return await self._drop(step)
            case steps.CompareQueries():
                return await self.compare_queries(self._ref, self._source, self._target)
            case _:
                await self._simple(step)
                return None

    # ------------------------------------------------------------------------------ simple steps

    async def _simple(self, step: steps.Step) -> None:
        source, target, ref = self._source.client.moves, self._target.client.moves, self._ref
        match step:
            case steps.Capture():
                await self._granted(self.move.source)
                await source.begin_capture(ref, CALL_TIMEOUT)
            case steps.Grant():
                await self._grant()
            case steps.FenceReads():
                self._reads_fenced_at = time.monotonic()
                await source.fence_reads(ref, FENCE_TIMEOUT)
            case steps.EndCapture():
                await source.end_capture(ref, CALL_TIMEOUT)
                self.directory.fence_lifted(self.move.collection_id)
            case steps.EndArrival():
                await target.end_arrival(ref, CALL_TIMEOUT)
            case _:
                raise AssertionError(f"{step} is no step of a move")

    async def _arrive(self, step: steps.Arrive) -> steps.Arrived:
        # A node makes a collection on an ownership message only: of none of the slots, as yet. And
        # one whose engine began anew reads nothing before it.
        await self._granted(self.move.target)
        await self._granted(self.move.source)
        answer = await self._target.client.moves.begin_arrival(
            self._ref, afresh=step.afresh, timeout=self._timeout
        )
        return steps.Arrived(answer.applied, answer.ready, answer.applied.copy_done)

    async def _drop(self, step: steps.Drop) -> bool:
        """Some records of the slots at one side; whether that was all."""
        await self._granted(step.shard)
        began = time.monotonic()
        answer = await self.cluster.shard(step.shard).client.moves.drop_slots(
            self._ref, self._at_once(DROP_RECORDS), CALL_TIMEOUT
        )
        if self.move.stage is Stage.SWITCHED:
            trimmed = self.progress.trimmed_records + answer.dropped
            self.progress = replace(self.progress, trimmed_records=trimmed)
        await self._breathe(answer.dropped, 0.0, time.monotonic() - began)
        return answer.done

    async def _granted(self, shard: str) -> None:
        """The node of a shard has its present ownership, as far as this run has seen."""
        if shard not in self._has_grant:
            try:
                async with asyncio.timeout(self._timeout):
                    await self.directory.grant(self.move.collection_id, shard)
            except TimeoutError:
                raise DeadlineExpired(
                    f"shard {shard} did not take its ownership within {self._timeout:.0f} s",
                    metadata={"shard": shard},
                ) from None
            self._has_grant.add(shard)

    async def _grant(self) -> None:
        """The source must know that it has lost the slots, or it may not be trimmed; the target
        that it has them; other shards learn it now or when a call meets them."""
        both = (self.move.source, self.move.target)
        entry = await self.catalog.collection(self.move.collection_id)
        refused = await self.directory.grant_all(entry, both)
        for shard in both:
            if shard in refused:
                raise refused[shard]
        for shard, error in refused.items():
            log.warning("epoch_not_told", shard=shard, error=error.message)

    # ------------------------------------------------------------------------------ the stream

    async def _in_step(
        self, work: Awaitable[steps.Transferred]
    ) -> steps.Transferred | steps.OutOfStep:
        try:
            return await work
        except NotAllowed as refused:
            if refused.reason is not Reason.MOVE_OUT_OF_STEP:
                raise
            log.warning("move_out_of_step", move=self.move.id, error=refused.message)
            self._drop_ahead()
            return steps.OutOfStep()

    async def _transfer(self, step: steps.Transfer) -> steps.Transferred:
        """One chunk. The next one is read while this one is applied: the stream's cursors keep them
        in order, and what is read in vain is thrown away."""
        request = self._read_request(step.begin, step.compare, step.compared)
        asked = time.monotonic()
        chunk = await self._read(request)
        if self.move.stage in {Stage.COPYING, Stage.CATCHING_UP} and not _is_last(chunk, step):
            compared = _place(chunk) or step.compared
            self._read_ahead(self._read_request(chunk.end, step.compare, compared))
        began = time.monotonic()
        applied = await self._apply(chunk)
        # Only what was waited for: a chunk that was read ahead has taken none of the time.
        waited, applying = began - asked, time.monotonic() - began
        self._count(chunk, step.begin)
        worked = chunk.items + (self._count_compared(chunk, step) if step.compare else 0)
        if self.move.stage is not Stage.FENCED:
            await self._breathe(worked, waited, applying)
        return _seen(chunk, applied, step.compare)

    async def _fence(self, step: steps.Fence) -> steps.Transferred:
        self._drop_ahead()
        # A definition that has changed since the run began is made known now: told together with
        # the new epoch it would cost engine calls while clients wait.
        self._has_grant.clear()
        await self._granted(self.move.target)
        await self._granted(self.move.source)
        self._fenced_at = time.monotonic()
        request = self._read_request(step.begin, compare=False, compared=None)
        answer = await self._source.client.moves.fence_slots(
            shard_pb2.FenceSlotsRequest(
                move=self._ref,
                next_epoch=self.move.next_epoch,
                begin=request.begin,
                max_records=request.max_records,
                max_bytes=request.max_bytes,
            ),
            FENCE_TIMEOUT,
        )
        applied = await self._apply(answer.tail)
        self._count(answer.tail, step.begin)
        return replace(_seen(answer.tail, applied, False), source_records=answer.records)

    async def _apply(self, chunk: shard_pb2.ReadMoveResponse) -> shard_pb2.ApplyMoveResponse:
        return await self._target.client.moves.apply_move(self._ref, chunk.chunk, self._timeout)

    async def _read(self, request: shard_pb2.ReadMoveRequest) -> shard_pb2.ReadMoveResponse:
        """The chunk that a request asks for."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            # The size may have been changed meanwhile; the place in the stream counts.
            ahead.asked.max_records = request.max_records
            if ahead.asked == request:
                chunk = await ahead.task
                if isinstance(chunk, ClusterError):
                    raise chunk
                return chunk
            ahead.task.cancel()
        return await self._read_now(request)

    async def _try_to_read(
        self, request: shard_pb2.ReadMoveRequest
    ) -> shard_pb2.ReadMoveResponse | ClusterError:
        try:
            return await self._read_now(request)
        except ClusterError as error:
            return error  # returned, not raised: perhaps nobody needs the chunk

    async def _read_now(self, request: shard_pb2.ReadMoveRequest) -> shard_pb2.ReadMoveResponse:
        return await self._source.client.moves.read_move(request, self._timeout)

    def _read_ahead(self, request: shard_pb2.ReadMoveRequest) -> None:
        task = self.tasks.create_task(self._try_to_read(request), name="read-ahead")
        self._ahead = _Read(request, task)

    def _drop_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.task.cancel()

    def _read_request(
        self, begin: steps.Cursor, compare: bool, compared: Place | None
    ) -> shard_pb2.ReadMoveRequest:
        assert isinstance(begin, shard_pb2.MoveCursor)
        fenced = self.move.stage is Stage.FENCED
        return shard_pb2.ReadMoveRequest(
            move=self._ref,
            begin=begin,
            max_records=TAIL_RECORDS if fenced else self.pace.chunk_records,
            max_bytes=CHUNK_BYTES,
            compare=compare,
            compared=shard_pb2.Position(sequence=compared[0], id=compared[1]) if compared else None,
        )

    # ------------------------------------------------------------------------------ the switch

    async def _switch(self) -> Move:
        """The point of no return. What the catalog took is what is true, whatever the answer says:
        an unknown outcome ends the run, and the next one reads the catalog."""
        entry, self.move = await self.catalog.moves.switch(self.lease, self.move)
        self.directory.remember(entry)  # what is held goes on; a node that is behind is told
        both = (self.move.source, self.move.target)
        for name in set(entry.slot_map.shards).difference(both):
            # Not waited for: it holds nobody up, and Grant asks it again.
            self.tasks.create_task(self._tell(name), name=f"tell-{name}")
        await settled(self.directory.grant(entry.id, name) for name in both)
        now = time.monotonic()
        self.progress = replace(
            self.progress,
            write_pause_microseconds=round((now - self._fenced_at) * 1e6),
            read_pause_microseconds=round((now - self._reads_fenced_at) * 1e6),
        )
        log.info(
            "move_switched",
            move=self.move.id,
            epoch=entry.slot_map.epoch,
            write_pause_ms=self.progress.write_pause_microseconds / 1000,
            read_pause_ms=self.progress.read_pause_microseconds / 1000,
        )
        return self.move

    async def _tell(self, name: str) -> None:
        with contextlib.suppress(ClusterError):
            await self.directory.grant(self.move.collection_id, name)

    # ------------------------------------------------------------------------------ figures, pace

    def _count(self, chunk: shard_pb2.ReadMoveResponse, begin: steps.Cursor) -> None:
        """Enters a chunk that is applied into the figures."""
        assert isinstance(begin, shard_pb2.MoveCursor)
        before, now = self.progress, time.monotonic()
        if not begin.capture_id:  # the very first, perhaps of a copy that begins again
            before = replace(before, copied_records=0, copy_microseconds=0)
        spent = round((now - self._counted_at) * 1e6) if self.move.stage is Stage.COPYING else 0
        self._counted_at = now
        self.progress = replace(
            before,
            copied_records=before.copied_records + chunk.items,
            copy_microseconds=before.copy_microseconds + spent,
        )

    def _count_compared(self, chunk: shard_pb2.ReadMoveResponse, step: steps.Transfer) -> int:
        """Enters what a chunk has compared into the figures; how many records that were."""
        compared = len(shard_pb2.MoveChunk.FromString(chunk.chunk).comparison.sequences)
        # Each run compares from the beginning.
        before = self.progress.compared_records if step.compared else 0
        self.progress = replace(self.progress, compared_records=before + compared)
        return compared

    async def _breathe(self, items: int, reading: float, applying: float) -> None:
        """Pauses so that clients do not suffer, and it is no faster than was asked for. The times,
        in seconds, are one after the other what the items have taken until now."""
        now = time.monotonic()
        self.pace.observe(
            items=items,
            read_seconds=reading,
            apply_seconds=applying,
            p95=self.foreground.recent(now),
            baseline=self.foreground.baseline(now),
        )
        if self.pace.pause_seconds > 0:
            await asyncio.sleep(self.pace.pause_seconds)

    def _at_once(self, most: int) -> int:
        return max(1, min(most, self.pace.chunk_records))

    # ------------------------------------------------------------------------------ who and what

    @property
    def _timeout(self) -> float:
        """Seconds for one call: short while clients may be held by a fence."""
        return FENCE_TIMEOUT if self.move.stage is Stage.FENCED else CALL_TIMEOUT

    @property
    def _source(self) -> Shard:
        return self.cluster.shard(self.move.source)

    @property
    def _target(self) -> Shard:
        return self.cluster.shard(self.move.target)

    @property
    def _ref(self) -> shard_pb2.MoveRef:
        return shard_pb2.MoveRef(
            move_id=self.move.id,
            collection_id=self.move.collection_id,
            token=self.lease.token,
            slots=slots_to_bitmap(self.move.slots),
        )


def _place(chunk: shard_pb2.ReadMoveResponse) -> Place | None:
    if not chunk.HasField("compared"):
        return None
    return chunk.compared.sequence, chunk.compared.id


def _is_last(chunk: shard_pb2.ReadMoveResponse, step: steps.Transfer) -> bool:
    """Whether the stage ends with this chunk, so that nothing is to be read ahead."""
    return chunk.compare_done if step.compare else chunk.end.copy_done


def _seen(
    chunk: shard_pb2.ReadMoveResponse, applied: shard_pb2.ApplyMoveResponse, compare: bool
) -> steps.Transferred:
    differences = ""
    if applied.differences:
        differences = f"{applied.differences} records, such as {'; '.join(applied.differing)}"
    return steps.Transferred(
        end=chunk.end,
        copy_done=chunk.end.copy_done,
        caught_up=chunk.caught_up,
        items=chunk.items,
        compared=_place(chunk),
        compare_done=compare and chunk.compare_done,
        differences=differences,
        target_records=applied.records,
    )
