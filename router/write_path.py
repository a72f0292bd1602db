"""The life of a client's write: dimension, split by slot, queues, outcomes.

A write is split by the owner of each record's slot, goes to the queues of the shards concerned, and
is acknowledged when all of them applied it (invariant 4). Parts that a node refuses as stale are
routed again at the newer epoch under the same identity, so that each record is applied once. When
something fails, the error says which shards applied their part, which refused it, and which have
not said (invariant 8).
"""

import asyncio
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import structlog

from chroma_router.v1 import shard_pb2, types_pb2
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    InvalidRequest,
    OutcomeUnknown,
    Stale,
    Unavailable,
)
from router.catalog import Catalog
from router.cluster import Cluster
from router.core.model import CollectionEntry, DimensionState
from router.core.plan import split_by_shard
from router.core.retry import backoff
from router.core.schema import MetadataType, may_grow
from router.core.sequence import SequenceClock
from router.core.validate import dimension_refusal
from router.directory import Directory
from router.write_queue import PendingWrite

log = structlog.get_logger(__name__)

RETRY_BASE, RETRY_CAP = 0.05, 1.0
"""Seconds of back-off before a node that is away is asked again whether it is up to date."""

STALE_ROUNDS = 20
"""How often the parts of one write are routed anew before the router gives up."""

MAX_REPORTED_BYTES = 2048
"""How many bytes of ids each list of a WriteOutcome may have, as documented in types.proto: error
details travel in HTTP/2 headers, of which gRPC takes 8 KiB by default."""


@dataclass(frozen=True, slots=True)
class Write:
    """A checked client write on its way to the shards."""

    kind: shard_pb2.OperationKind
    request_id: str
    ids: Sequence[str]
    records: Sequence[bytes] = ()
    """Serialized Records in the order of `ids`; none for a delete."""
    sequences: Sequence[int] = ()
    """In the order of `ids`; none for update and delete."""
    where: str = ""
    where_document: str = ""
    digest: int = 0
    """A hash of the client's whole request; a request id stands for one digest."""
    to_all_shards: bool = False
    """A delete by condition alone: it has no ids and goes to every shard of the collection."""
    metadata_types: frozenset[MetadataType] = frozenset()
    """The keys and types of the records' metadata."""


@dataclass(slots=True)
class _Part:
    """What of a write goes to one shard: positions in `Write.ids`."""

    shard: str
    positions: list[int]
    pending: PendingWrite

    @property
    def applied(self) -> bool:
        """Whether the shard has said that it applied it."""
        done = self.pending.done
        return done.done() and not done.cancelled() and done.exception() is None

    @property
    def surely_not_applied(self) -> bool:
        """Whether it is certain that nothing of it was applied, nor will be.

        A node looks into its memory of the request before it finds a write invalid, so that answer
        holds for earlier tries too.
        """
        done = self.pending.done
        if not done.done() or done.cancelled() or self.applied:
            return False
        error = done.exception()
        if isinstance(error, OutcomeUnknown):
            return False
        return not self.pending.maybe_applied or isinstance(error, InvalidRequest)


@dataclass(slots=True)
class _Course:
    """How a write went: all parts of all rounds, and the errors that ended it."""

    parts: list[_Part] = field(default_factory=list)
    failed: list[tuple[_Part, ClusterError]] = field(default_factory=list)
    deleted: int = 0

    @property
    def any_applied(self) -> bool:
        """Whether a shard has said that it applied a part."""
        return any(part.applied for part in self.parts)


class WritePath:
    """Takes writes to the shards' queues and gathers what became of them."""

    def __init__(
        self,
        catalog: Catalog,
        cluster: Cluster,
        directory: Directory,
        clock: SequenceClock,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._catalog = catalog
        self._cluster = cluster
        self._directory = directory
        self._clock = clock
        self._tasks = tasks

    def sequences(self, count: int) -> range:
        """Fresh sequences for `count` records that may be new, in the order of their batch."""
        base = self._clock.take(time.time_ns() // 1000, count)
        return range(base, base + count)

    async def write(
        self, entry: CollectionEntry, write: Write, dimension: int | None, deadline: float
    ) -> int:
        """Applies a write; returns the sum of what the shards report as deleted.

        `dimension` is that of the write's embeddings, None if it carries none. `deadline` is on the
        clock of time.monotonic(). Raises the error of the first part that failed, with a
        WriteOutcome among its details.
        """
        claim = await self._claim(entry, dimension)
        course = _Course()
        try:
            await self._apply(claim or entry, write, deadline, course)
        finally:
            if claim is not None:
                # In a task of its own: a caller that goes away must not leave it undone.
                settling = self._tasks.create_task(self._settle_claim(claim, course))
                await asyncio.shield(settling)
        if course.failed:
            raise _first_error(write, course)
        if may_grow(entry.schema_json, write.metadata_types):
            shards = sorted({part.shard for part in course.parts})
            await self._directory.learn_schema(entry, shards, write.metadata_types, deadline)
        return course.deleted

    async def _claim(self, entry: CollectionEntry, dimension: int | None) -> CollectionEntry | None:
        """Sees to it that the catalog has the write's dimension; returns a proposal to settle.

        Everything else about the write has been validated before (DESIGN.md, "Write path").
        """
        if dimension is None:
            return None
        if entry.dimension_state is DimensionState.FIXED:
            if entry.dimension != dimension:
                assert entry.dimension is not None
                raise dimension_refusal(entry.dimension, dimension)
            return None
        claiming = self._tasks.create_task(self._claimed(entry, dimension))
        try:
            claimed = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            self._tasks.create_task(self._give_back(claiming))
            raise
        if isinstance(claimed, ClusterError):
            raise claimed
        self._directory.remember(claimed)
        return None if claimed.dimension_state is DimensionState.FIXED else claimed

    async def _claimed(
        self, entry: CollectionEntry, dimension: int
    ) -> CollectionEntry | ClusterError:
        try:
            return await self._catalog.claim_dimension(entry.id, dimension)
        except ClusterError as error:
            return error  # returned, not raised: it must not end the task group

    async def _give_back(self, claiming: "asyncio.Task[CollectionEntry | ClusterError]") -> None:
        """The caller went away before anything was sent: its claim is taken back."""
        claimed = await claiming
        if isinstance(claimed, CollectionEntry):
            await self._settle_claim(claimed, _Course())

    async def _settle_claim(self, claim: CollectionEntry, course: _Course) -> None:
        """Fixes the proposed dimension once a part was applied; gives the claim back when provably
        nothing was, nor will be; else leaves it: the proposal stands until an apply is known."""
        if claim.dimension is None or claim.dimension_state is DimensionState.FIXED:
            return
        try:
            if course.any_applied:
                settled = await self._catalog.fix_dimension(claim.id, claim.dimension)
                self._directory.remember(settled)
            elif all(part.surely_not_applied for part in course.parts):
                await self._catalog.retract_dimension(claim)
                self._directory.forget(claim.id)
        except ClusterError as error:
            # The proposal stands; the next write of the collection settles it.
            log.warning("claim_not_settled", collection=claim.id, error=error.message)

    async def _apply(
        self, entry: CollectionEntry, write: Write, deadline: float, course: _Course
    ) -> None:
        positions = list(range(len(write.ids)))
        uncertain: frozenset[int] = frozenset()
        stale: list[tuple[_Part, Stale]] = []
        for _ in range(STALE_ROUNDS):
            try:
                parts = self._submit(entry, write, positions, uncertain, deadline)
            except ClusterError as failure:
                if not stale:
                    raise
                course.failed.extend((part, failure) for part, _ in stale)
                return
            course.parts += parts
            await _finished(parts, deadline)
            stale = self._gather(parts, course)
            if not stale:
                return
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    entry = await self._reconciled(entry, [error for _, error in stale])
            except TimeoutError:
                course.failed.extend((part, part.pending.expired()) for part, _ in stale)
                return
            except ClusterError as failure:
                course.failed.extend((part, failure) for part, _ in stale)
                return
            positions = [p for part, _ in stale for p in part.positions]
            uncertain = frozenset(
                p for part, _ in stale if part.pending.uncertain for p in part.positions
            )
            if write.to_all_shards:
                # Shards that applied it answer again from memory; all of them count anew.
                course.deleted = 0
        course.failed.extend(
            (part, Unavailable("the slot map kept changing; repeat the write", retry_after=1.0))
            for part, _ in stale
        )

    def _gather(self, parts: Sequence[_Part], course: _Course) -> list[tuple[_Part, Stale]]:
        """Enters what became of one round's parts; returns those to be routed again."""
        stale: list[tuple[_Part, Stale]] = []
        for part in parts:
            error = part.pending.done.exception()
            if error is None:
                course.deleted += part.pending.done.result()
            elif isinstance(error, Stale):
                stale.append((part, error))
            else:
                assert isinstance(error, ClusterError)
                course.failed.append((part, error))
        return stale

    async def _reconciled(
        self, entry: CollectionEntry, refusals: Sequence[Stale]
    ) -> CollectionEntry:
        """Brings router and nodes up to date; waits for a node that is away (until cancelled)."""
        attempt = 0
        left = list(refusals)
        while left:
            try:
                entry = await self._directory.reconcile(entry, left[0])
                left.pop(0)
            except (Unavailable, Stale, DeadlineExpired) as error:
                log.info("reconcile_repeated", collection=entry.id, error=error.message)
                await asyncio.sleep(backoff(attempt, RETRY_BASE, RETRY_CAP, jitter=0.5))
                attempt += 1
        return entry

    def _submit(
        self,
        entry: CollectionEntry,
        write: Write,
        positions: Sequence[int],
        uncertain: frozenset[int],
        deadline: float,
    ) -> list[_Part]:
        """Puts every part into its shard's queue, or none of them if one has no room."""
        if write.to_all_shards:
            split: dict[str, list[int]] = {shard: [] for shard in entry.slot_map.shards}
        else:
            local = split_by_shard(entry.slot_map, [write.ids[p] for p in positions])
            split = {shard: [positions[i] for i in found] for shard, found in local.items()}
        parts = []
        for shard, chosen in split.items():
            pending = PendingWrite(_operation(entry, write, chosen), deadline)
            pending.uncertain = not uncertain.isdisjoint(chosen)
            parts.append(_Part(shard, chosen, pending))
        queues = [(self._cluster.shard(part.shard).queue, part.pending) for part in parts]
        for queue, pending in queues:
            queue.check_room(1, pending.size)
        for queue, pending in queues:
            queue.submit(pending)
        return parts


def _operation(
    entry: CollectionEntry, write: Write, positions: Sequence[int]
) -> shard_pb2.Operation:
    return shard_pb2.Operation(
        collection_id=entry.id,
        epoch=entry.slot_map.epoch,
        kind=write.kind,
        request_id=write.request_id,
        ids=[write.ids[p] for p in positions],
        records=[write.records[p] for p in positions] if write.records else (),
        sequences=[write.sequences[p] for p in positions] if write.sequences else (),
        where=write.where,
        where_document=write.where_document,
        digest=write.digest,
    )


async def _finished(parts: Sequence[_Part], deadline: float) -> None:
    """Waits until every part is done or the deadline has passed; late parts fail as expired."""
    pending = [part.pending for part in parts]
    if not pending:
        return  # a delete of no ids
    try:
        await asyncio.wait(
            [write.done for write in pending], timeout=max(0.0, deadline - time.monotonic())
        )
    finally:
        # Also when the caller is gone: what was not sent must not be sent any more.
        for write in pending:
            if not write.done.done():
                write.done.set_exception(write.expired())
                write.done.exception()


def _first_error(write: Write, course: _Course) -> ClusterError:
    """The error of the whole write: the refusal of a part if there is one, else what is unknown."""

    def rank(item: tuple[_Part, ClusterError]) -> int:
        error = item[1]
        if isinstance(error, InvalidRequest):
            return 0
        return 1 if isinstance(error, OutcomeUnknown) else 2

    _, error = min(course.failed, key=rank)
    parts = [part for part, _ in course.failed]
    refused = [part for part in parts if part.surely_not_applied]
    unknown = [part for part in parts if not part.surely_not_applied]
    outcome = types_pb2.WriteOutcome(
        request_id=write.request_id,
        applied_shards=sorted(
            {part.shard for part in course.parts if part.applied} - {part.shard for part in parts}
        ),
        refused_shards=sorted({part.shard for part in refused}),
        unknown_shards=sorted({part.shard for part in unknown}),
        refused_ids=_ids(write, refused),
        unknown_ids=_ids(write, unknown),
        refused_count=sum(len(part.positions) for part in refused),
        unknown_count=sum(len(part.positions) for part in unknown),
    )
    summary = (
        f" [applied: {', '.join(outcome.applied_shards) or 'none'}; refused: "
        f"{', '.join(outcome.refused_shards) or 'none'}; unknown: "
        f"{', '.join(outcome.unknown_shards) or 'none'}; request id {write.request_id}]"
    )
    return type(error)(
        error.message + (summary if len(course.parts) > 1 else ""),
        error.reason,
        metadata={**error.metadata, "request_id": write.request_id},
        retry_after=error.retry_after,
        details=(outcome,),
    )


def _ids(write: Write, parts: Sequence[_Part]) -> list[str]:
    """The ids of these parts, as many as may be reported."""
    ids = [write.ids[p] for part in parts for p in part.positions]
    ends = accumulate(len(record_id.encode()) for record_id in ids)
    return ids[: bisect_right(list(ends), MAX_REPORTED_BYTES)]
