"""The life of a client's write: dimension, split by slot, queues, outcomes.

A write is split by the owner of each record's slot, goes to the queues of the shards concerned, and
is acknowledged when all of them applied it (invariant 4). Parts that a node refuses as stale are
routed again at the newer epoch under the same identity, so that each record is applied once; those
that a fence refuses wait here until their slots have a new owner. When something fails, the error
says which shards applied their part, which refused it, and which have not said (invariant 8).

**Deletes with a condition** (`Write.counted`) report how many records they deleted, and a move may
come between two of their parts. Let D(s) be the number of records of slot s that were deleted under
the request's identity. A node remembers D(s) together with the deletion; outcomes travel with the
records when slots move, so at any epoch the owner of s has D(s), and applies the delete in s no
second time once it was complete there. A node's answer at an epoch is the sum of D(s) over the
slots that it owns at that epoch: also those of other parts of the request, that it applied before
or that moved there. So answers of different epochs must never be added: s would count twice if it
moved to a shard that answers later, and never if it moved to one that has answered. Of one epoch
they always may, for each slot has one owner in it (invariant 1) and a node answers at no other
(invariant 3). Therefore, if one part is stale, *all* are repeated at the epoch that comes next,
under the same identity, and only the last round's answers count. Shards that had applied theirs
answer from memory. The slots of shards that get no part have D(s) = 0, as none of the ids is in
them; where the router chose the ids and an earlier try may have had others, they are chosen anew
at the new epoch (`Choose`), together with what the shards that get no part remember.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    Overloaded,
    Reason,
    Stale,
    Unavailable,
)
from router.catalog import Catalog
from router.cluster import Cluster
from router.core.model import CollectionEntry, DimensionState
from router.core.plan import split_by_shard
from router.core.retry import backoff
from router.core.schema import may_grow
from router.core.sequence import SequenceClock
from router.core.validate import dimension_refusal
from router.directory import Directory
from router.write_course import Course, Part, Refused, Write, first_error
from router.write_queue import EXPIRED_RETRY_AFTER, NOT_APPLIED, PendingWrite

log = structlog.get_logger(__name__)

RETRY_BASE, RETRY_CAP = 0.05, 1.0
"""Seconds of back-off before a node that is away is asked again whether it is up to date."""

STALE_ROUNDS = 20
"""How often the parts of one write are routed anew before the router gives up. What a fence refuses
does not count: it is held as long as its deadline allows."""

Choose = Callable[[CollectionEntry], Awaitable[tuple[CollectionEntry, Write]]]
"""Chooses the ids of a write for the entry's epoch or a later one; with the entry of that epoch."""


@dataclass(frozen=True, slots=True)
class _Round:
    """What is sent at once, at one epoch."""

    entry: CollectionEntry
    write: Write
    positions: Sequence[int]
    uncertain: frozenset[int] = frozenset()
    """Positions that an earlier round may have applied, for all that has been heard."""
    all_uncertain: bool = False
    """So for every part, whichever its positions."""


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
        self,
        entry: CollectionEntry,
        write: Write,
        dimension: int | None,
        deadline: float,
        choose: Choose | None = None,
    ) -> int:
        """Applies a write; returns how many records the shards report as deleted.

        `dimension` is that of the write's embeddings, None if it carries none. `deadline` is on the
        clock of time.monotonic(). `choose` made this write for this entry, and is asked again when
        the epoch is another. Raises the error of the first part that failed, with a WriteOutcome
        among its details.
        """
        claim = await self._claim(entry, dimension)
        course = Course()
        try:
            await self._apply(claim or entry, write, deadline, course, choose)
        finally:
            if claim is not None:
                # In a task of its own: a caller that goes away must not leave it undone.
                settling = self._tasks.create_task(self._settle_claim(claim, course))
                await asyncio.shield(settling)
        if course.failed:
            raise first_error(write, course)
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
            await self._settle_claim(claimed, Course())

    async def _settle_claim(self, claim: CollectionEntry, course: Course) -> None:
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
        self,
        entry: CollectionEntry,
        write: Write,
        deadline: float,
        course: Course,
        choose: Choose | None,
    ) -> None:
        """Sends round after round, until no part is refused as stale."""
        this = _Round(entry, write, range(len(write.ids)))
        refused: list[Refused] = []
        rounds = 0
        while rounds < STALE_ROUNDS:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    if refused:
                        this = await self._rerouted(this, course, refused, choose)
                    this, parts = await self._submitted(
                        this, choose, deadline, admitted=bool(refused)
                    )
            except (TimeoutError, ClusterError) as failure:
                known = failure if isinstance(failure, ClusterError) else None
                if refused:
                    course.fail(refused, known)
                    return
                raise known or Unavailable(NOT_APPLIED, retry_after=EXPIRED_RETRY_AFTER) from None
            replaced = course.parts if write.counted else [part for part, _ in refused]
            course.parts = [part for part in course.parts if part not in replaced] + parts
            if write.counted:
                course.deleted = this.write.deleted_elsewhere
            await _finished(parts, deadline)
            refused = self._gather(parts, course)
            if write.counted and course.failed:  # a repeat would go to those that failed as well
                course.fail(refused, course.failed[0][1])
                return
            if not refused:
                return
            rounds += any(error.reason is not Reason.SLOTS_FENCED for _, error in refused)
        kept_changing = Unavailable("the slot map kept changing; repeat the write", retry_after=1.0)
        course.fail(refused, kept_changing)

    def _gather(self, parts: Sequence[Part], course: Course) -> list[Refused]:
        """Enters what became of one round's parts; returns those to be routed again."""
        refused: list[Refused] = []
        for part in parts:
            error = part.pending.done.exception()
            if error is None:
                course.deleted += part.pending.done.result()
            elif isinstance(error, Stale):
                refused.append((part, error))
            else:
                assert isinstance(error, ClusterError)
                course.failed.append((part, error))
        return refused

    async def _rerouted(
        self, last: _Round, course: Course, refused: Sequence[Refused], choose: Choose | None
    ) -> _Round:
        """The next round, once router and nodes are up to date."""
        entry = await self._reconciled(last.entry, [error for _, error in refused])
        if last.write.counted:
            # All are asked again, those that have applied it too: if any has, or may have, then of
            # nothing that fails from here on it is known that it was not applied.
            sent = any(part.applied or part.pending.uncertain for part in course.parts)
            positions = range(len(last.write.ids))
            return await _at(entry, replace(last, positions=positions, all_uncertain=sent), choose)
        return _Round(
            entry,
            last.write,
            [p for part, _ in refused for p in part.positions],
            frozenset(p for part, _ in refused if part.pending.uncertain for p in part.positions),
        )

    async def _reconciled(
        self, entry: CollectionEntry, refusals: Sequence[Stale]
    ) -> CollectionEntry:
        """Brings router and nodes up to date; waits for a node that is away (until cancelled)."""
        newest, attempt = entry, 0
        # Fences last: what the others know may be what a fence waits for.
        left = sorted(refusals, key=lambda error: error.reason is Reason.SLOTS_FENCED)
        while left:
            try:
                found = await self._directory.reconcile(entry, left[0])
                newest = max(newest, found, key=lambda e: (e.slot_map.epoch, e.version))
                left.pop(0)
            except (Unavailable, Stale, DeadlineExpired, Overloaded) as error:
                # Overloaded: the node's queue is full, and an ownership waits in it like a write.
                log.info("reconcile_repeated", collection=entry.id, error=error.message)
                await asyncio.sleep(backoff(attempt, RETRY_BASE, RETRY_CAP, jitter=0.5))
                attempt += 1
        return newest

    async def _submitted(
        self, this: _Round, choose: Choose | None, deadline: float, *, admitted: bool
    ) -> tuple[_Round, list[Part]]:
        """The round as it was sent, and its parts in their queues.

        At a switch many writes go on at once, those that a fence has held and those that had waited
        for the old owner, and the new owner's queue may have no room for all of them: one that was
        `admitted` before waits for it. Raises Overloaded at the deadline, or at once for others;
        whatever `_submit` raises.
        """
        while True:
            this = await _at(await self._directory.usable(this.entry), this, choose)
            try:
                return this, self._submit(this, deadline)
            except Overloaded as full:
                pause = full.retry_after or 0.0
                if not admitted or time.monotonic() + pause >= deadline:
                    raise
                await asyncio.sleep(pause)

    def _submit(self, this: _Round, deadline: float) -> list[Part]:
        """Puts every part into its shard's queue, or none of them if one has no room."""
        entry, write, positions = this.entry, this.write, this.positions
        if write.to_all_shards:
            split: dict[str, list[int]] = {shard: [] for shard in entry.slot_map.shards}
        else:
            local = split_by_shard(entry.slot_map, [write.ids[p] for p in positions])
            split = {shard: [positions[i] for i in found] for shard, found in local.items()}
        parts = []
        for shard, chosen in split.items():
            pending = PendingWrite(_operation(entry, write, chosen), deadline)
            pending.uncertain = this.all_uncertain or not this.uncertain.isdisjoint(chosen)
            parts.append(Part(shard, chosen, pending))
        queues = [(self._cluster.shard(part.shard).queue, part.pending) for part in parts]
        for queue, pending in queues:
            queue.check_room(1, pending.size)
        for queue, pending in queues:
            queue.submit(pending)
        return parts


async def _at(entry: CollectionEntry, this: _Round, choose: Choose | None) -> _Round:
    """The round for that entry; ids that the router chose are those of its epoch."""
    if choose is None or entry.slot_map.epoch == this.entry.slot_map.epoch:
        return replace(this, entry=entry)
    entry, write = await choose(entry)
    return replace(this, entry=entry, write=write, positions=range(len(write.ids)))


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


async def _finished(parts: Sequence[Part], deadline: float) -> None:
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
