"""A client's write, its parts, and what became of them: what an error must tell (invariant 8)."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from chroma_router.v1 import shard_pb2, types_pb2
from chroma_router.wire.errors import ClusterError, InvalidRequest, OutcomeUnknown, Stale
from router.core.schema import MetadataType
from router.write_queue import PendingWrite

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
    deleted_elsewhere: int = 0
    """Delete: how many records were deleted under this identity before, on shards that own none of
    `ids`."""

    @property
    def counted(self) -> bool:
        """Whether it is a delete of which only the shards know how many records it deletes."""
        return bool(self.where or self.where_document)


@dataclass(eq=False, slots=True)
class Part:
    """What of a write goes to one shard: positions in `Write.ids`."""

    shard: str
    positions: list[int]
    pending: PendingWrite

    @property
    def ids(self) -> Sequence[str]:
        """Its ids."""
        return self.pending.operation.ids

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


Refused = tuple[Part, Stale]
"""A part that is to be routed anew, and why."""


@dataclass(slots=True)
class Course:
    """How a write went: the parts that count, and the errors that ended it.

    A part that is routed anew counts no more: a write that is held for long holds its records once.
    """

    parts: list[Part] = field(default_factory=list)
    failed: list[tuple[Part, ClusterError]] = field(default_factory=list)
    deleted: int = 0

    @property
    def any_applied(self) -> bool:
        """Whether a shard has said that it applied a part."""
        return any(part.applied for part in self.parts)

    def fail(self, refused: Sequence[Refused], error: ClusterError | None = None) -> None:
        """Ends the write for parts that are not routed anew, for this error or lack of time."""
        self.failed.extend((part, error or part.pending.expired()) for part, _ in refused)


def first_error(write: Write, course: Course) -> ClusterError:
    """The error of the whole write: the refusal of a part if there is one, else what is unknown."""

    def rank(item: tuple[Part, ClusterError]) -> int:
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
        refused_ids=_ids(refused),
        unknown_ids=_ids(unknown),
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


def _ids(parts: Sequence[Part]) -> list[str]:
    """The ids of these parts, as many as may be reported."""
    ids = [record_id for part in parts for record_id in part.ids]
    ends = accumulate(len(record_id.encode()) for record_id in ids)
    return ids[: bisect_right(list(ends), MAX_REPORTED_BYTES)]
