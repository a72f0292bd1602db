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

from chroma_router.v1 import shard_pb2, types_pb2
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    InvalidRequest,
    OutcomeUnknown,
    Reason,
    Stale,
    Unavailable,
)
from router.catalog import Catalog
from router.cluster import Cluster
from router.core.model import CollectionEntry, DimensionState
from router.core.plan import split_by_shard
from router.core.sequence import SequenceClock
from router.core.validate import dimension_refusal
from router.directory import Directory
from router.write_queue import PendingWrite

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
    to_all_shards: bool = False
    """A delete by condition alone: it has no ids and goes to every shard of the collection."""


@dataclass(slots=True)
class _Part:
    """What of a write goes to one shard: positions in `Write.ids`."""

    shard: str
    positions: list[int]
    pending: PendingWrite


@dataclass(slots=True)
class _Tally:
    """What became of the parts so far."""

    deleted: int = 0
    applied: set[str] = field(default_factory=set)
    failed: list[tuple[_Part, ClusterError]] = field(default_factory=list)


class WritePath:
    """Takes writes to the shards' queues and gathers what became of them."""

    def __init__(
        self, catalog: Catalog, cluster: Cluster, directory: Directory, clock: SequenceClock
    ) -> None:
        self._catalog = catalog
        self._cluster = cluster
        self._directory = directory
        self._clock = clock

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
        tally = _Tally()
        try:
            await self._apply(claim or entry, write, deadline, tally)
        finally:
            if claim is not None:
                await self._settle_claim(claim, tally)
        if tally.failed:
            raise _first_error(write, tally)
        return tally.deleted

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
        claimed = self._directory.remember(await self._catalog.claim_dimension(entry.id, dimension))
        return None if claimed.dimension_state is DimensionState.FIXED else claimed

    async def _settle_claim(self, claim: CollectionEntry, tally: _Tally) -> None:
        assert claim.dimension is not None
        if tally.applied:
            settled = await self._catalog.fix_dimension(claim.id, claim.dimension)
            self._directory.remember(settled)
        elif all(_nothing_applied(part, error) for part, error in tally.failed):
            await self._catalog.retract_dimension(claim)
            self._directory.forget(claim.id)
        # Else some part may have been applied: the proposal stands until one is known to be.

    async def _apply(
        self, entry: CollectionEntry, write: Write, deadline: float, tally: _Tally
    ) -> None:
        positions = list(range(len(write.ids)))
        stale: list[tuple[_Part, Stale]] = []
        for _ in range(STALE_ROUNDS):
            parts = self._submit(entry, write, positions, deadline)
            await _finished(parts, deadline)
            stale = []
            for part in parts:
                error = part.pending.done.exception()
                if error is None:
                    tally.deleted += part.pending.done.result()
                    tally.applied.add(part.shard)
                elif isinstance(error, Stale):
                    stale.append((part, error))
                else:
                    assert isinstance(error, ClusterError)
                    tally.failed.append((part, error))
            if not stale:
                return
            try:
                for _, refusal in stale:
                    entry = await self._directory.reconcile(entry, refusal)
            except ClusterError as failure:
                tally.failed.extend((part, failure) for part, _ in stale)
                return
            positions = [p for part, _ in stale for p in part.positions]
            if write.to_all_shards:
                # Shards that applied it answer again from memory; only the stale ones count anew.
                tally.deleted = 0
        tally.failed.extend(
            (part, Unavailable("the slot map kept changing; repeat the write", retry_after=1.0))
            for part, _ in stale
        )

    def _submit(
        self, entry: CollectionEntry, write: Write, positions: Sequence[int], deadline: float
    ) -> list[_Part]:
        """Puts every part into its shard's queue, or none of them if one has no room."""
        if write.to_all_shards:
            split: dict[str, list[int]] = {shard: [] for shard in entry.slot_map.shards}
        else:
            local = split_by_shard(entry.slot_map, [write.ids[p] for p in positions])
            split = {shard: [positions[i] for i in found] for shard, found in local.items()}
        parts = [
            _Part(shard, chosen, PendingWrite(_operation(entry, write, chosen), deadline))
            for shard, chosen in split.items()
        ]
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


def _nothing_applied(part: _Part, error: ClusterError) -> bool:
    """Whether it is certain that nothing of a failed part was applied, now or ever."""
    return not part.pending.sent or isinstance(error, InvalidRequest)


def _first_error(write: Write, tally: _Tally) -> ClusterError:
    """The error of the whole write: the refusal of a part if there is one, else what is unknown."""

    def rank(item: tuple[_Part, ClusterError]) -> int:
        error = item[1]
        if isinstance(error, InvalidRequest):
            return 0
        return 1 if isinstance(error, OutcomeUnknown) else 2

    _, error = min(tally.failed, key=rank)
    unknown = [part for part, e in tally.failed if not _nothing_applied(part, e) and _is_unknown(e)]
    refused = [part for part, _ in tally.failed if part not in unknown]
    outcome = types_pb2.WriteOutcome(
        request_id=write.request_id,
        applied_shards=sorted(tally.applied),
        refused_shards=sorted({part.shard for part in refused}),
        unknown_shards=sorted({part.shard for part in unknown}),
        refused_ids=_ids(write, refused),
        unknown_ids=_ids(write, unknown),
    )
    summary = (
        f" [applied: {', '.join(outcome.applied_shards) or 'none'}; refused: "
        f"{', '.join(outcome.refused_shards) or 'none'}; unknown: "
        f"{', '.join(outcome.unknown_shards) or 'none'}; request id {write.request_id}]"
    )
    return type(error)(
        error.message + (summary if len(tally.failed) + len(tally.applied) > 1 else ""),
        error.reason,
        metadata={**error.metadata, "request_id": write.request_id},
        retry_after=error.retry_after,
        details=(outcome,),
    )


def _is_unknown(error: ClusterError) -> bool:
    return isinstance(error, OutcomeUnknown | Unavailable | DeadlineExpired) or (
        error.reason is Reason.INTERNAL
    )


def _ids(write: Write, parts: Sequence[_Part]) -> list[str]:
    """The ids of these parts, as many as may be reported."""
    ids = [write.ids[p] for part in parts for p in part.positions]
    ends = accumulate(len(record_id.encode()) for record_id in ids)
    return ids[: bisect_right(list(ends), MAX_REPORTED_BYTES)]
