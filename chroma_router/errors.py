"""The exceptions that a client raises for what a cluster reports.

    chromadb.errors.ChromaError
    └── RouterError                    what a cluster reports; has reason, request_id, trace_id
        ├── InvalidArgumentError       ┐
        ├── DuplicateIDError           │
        ├── BatchSizeExceededError     │
        ├── NotFoundError              │ each also the class of the same name in chromadb.errors:
        ├── UniqueConstraintError      │ code written for Chroma catches them unchanged
        ├── AuthorizationError         │
        ├── ChromaAuthError            │
        ├── VersionMismatchError       │
        ├── RateLimitError             │
        ├── QuotaError                 │
        ├── InternalError              ┘
        ├── FailedPreconditionError    the state of the cluster forbids it
        ├── ConflictError              others changed the same thing all the while; repeat
        ├── UnavailableError           a part that is needed does not answer
        ├── DeadlineExceededError      the time given was not enough
        ├── OutcomeUnknownError        a write may or may not have happened
        └── UnsupportedError           not implemented here; also a NotImplementedError

One table maps every reason of chroma_router.wire.errors to its class, a second one the gRPC
statuses that no reason stands behind (a proxy, gRPC itself).
"""

from collections.abc import Mapping

import chromadb.errors as chroma
import grpc
from overrides import override

from chroma_router.retry import Failure
from chroma_router.v1.types_pb2 import WriteOutcome
from chroma_router.wire.errors import CLASS_BY_CODE, ClusterError, Reason, detail_of


class RouterError(chroma.ChromaError):
    """What a cluster reports.

    `trace_id` (32 hexadecimal digits) names the call in the router's logs and traces; `request_id`
    is the id under which a write may be repeated; `retry_after` in seconds is set where repeating
    can help; `outcome` says of a write what became of its parts, where the cluster knows.
    """

    reason: Reason = Reason.INTERNAL
    request_id: str = ""
    retry_after: float | None = None
    outcome: WriteOutcome | None = None

    @classmethod
    @override
    def name(cls) -> str:
        return cls.__name__


class InvalidArgumentError(chroma.InvalidArgumentError, RouterError):
    """The request can never succeed as it is."""


class DuplicateIDError(chroma.DuplicateIDError, RouterError):
    """An id stands twice in one request."""


class BatchSizeExceededError(chroma.BatchSizeExceededError, RouterError):
    """More records, or more bytes, than one request may carry."""


class NotFoundError(chroma.NotFoundError, RouterError):
    """What the request names does not exist."""


class RecordNotFoundError(chroma.InternalError, chroma.NotFoundError, RouterError):
    """An id by which a query is filtered does not exist. Chroma raises its InternalError for it."""


class UniqueConstraintError(chroma.UniqueConstraintError, RouterError):
    """What the request would make exists already."""


class AuthorizationError(chroma.AuthorizationError, RouterError):
    """Not allowed by the settings of the cluster, or the caller is not known to it."""


class ChromaAuthError(chroma.ChromaAuthError, RouterError):
    """The caller is known and may not do this."""

    @override
    def message(self) -> str:
        return ", ".join(self.args)


class VersionMismatchError(chroma.VersionMismatchError, RouterError):
    """Two parts of the cluster speak different versions of the protocol."""


class RateLimitError(chroma.RateLimitError, RouterError):
    """Something bounded is full; `retry_after` says when to come back."""


class QuotaError(chroma.QuotaError, RouterError):
    """The answer would be larger than the bounds allow; ask for less."""


class InternalError(chroma.InternalError, RouterError):
    """A defect in the cluster or in the engine."""


class FailedPreconditionError(RouterError):
    """The state of the cluster forbids it."""


class ConflictError(RouterError):
    """Others changed the same thing all the while; repeating can help."""

    @override
    def code(self) -> int:
        return 409


class UnavailableError(RouterError):
    """A part that is needed does not answer now."""

    @override
    def code(self) -> int:
        return 503


class DeadlineExceededError(RouterError):
    """The time given was not enough."""

    @override
    def code(self) -> int:
        return 504


class OutcomeUnknownError(RouterError):
    """A write may or may not have happened, and it can no longer be found out."""

    @override
    def code(self) -> int:
        return 500


class UnsupportedError(RouterError, NotImplementedError):
    """Not implemented here."""

    @override
    def code(self) -> int:
        return 501


EXCEPTION_BY_REASON: Mapping[Reason, type[RouterError]] = {
    Reason.INVALID_ARGUMENT: InvalidArgumentError,
    Reason.DIMENSION_MISMATCH: InvalidArgumentError,
    Reason.DUPLICATE_IDS: DuplicateIDError,
    Reason.BATCH_TOO_LARGE: BatchSizeExceededError,
    Reason.TENANT_NOT_FOUND: NotFoundError,
    Reason.DATABASE_NOT_FOUND: NotFoundError,
    Reason.COLLECTION_NOT_FOUND: NotFoundError,
    Reason.RECORD_NOT_FOUND: RecordNotFoundError,
    Reason.SHARD_NOT_FOUND: NotFoundError,
    Reason.NO_REBALANCE: NotFoundError,
    Reason.TENANT_EXISTS: UniqueConstraintError,
    Reason.DATABASE_EXISTS: UniqueConstraintError,
    Reason.COLLECTION_EXISTS: UniqueConstraintError,
    Reason.SHARD_EXISTS: UniqueConstraintError,
    Reason.RESET_DISABLED: AuthorizationError,
    Reason.WRONG_CLUSTER: FailedPreconditionError,
    Reason.WRONG_SHARD: FailedPreconditionError,
    Reason.PROTOCOL_MISMATCH: VersionMismatchError,
    Reason.CATALOG_BEHIND: FailedPreconditionError,
    Reason.CATALOG_UNUSABLE: FailedPreconditionError,
    Reason.NO_SHARDS: FailedPreconditionError,
    Reason.NO_SUPERVISOR: FailedPreconditionError,
    Reason.LAST_SHARD: FailedPreconditionError,
    Reason.SHARD_IN_USE: FailedPreconditionError,
    Reason.NO_ROOM: FailedPreconditionError,
    Reason.REBALANCE_RUNNING: FailedPreconditionError,
    Reason.REBALANCE_ENDED: FailedPreconditionError,
    Reason.MOVE_SWITCHED: FailedPreconditionError,
    Reason.MOVE_OUT_OF_STEP: FailedPreconditionError,
    Reason.STALE_EPOCH: ConflictError,
    Reason.STALE_BOOT: ConflictError,
    Reason.CONFLICT: ConflictError,
    Reason.SLOTS_FENCED: ConflictError,
    Reason.STALE_TOKEN: ConflictError,
    Reason.QUEUE_FULL: RateLimitError,
    Reason.ANSWER_TOO_LARGE: QuotaError,
    Reason.SHARD_UNAVAILABLE: UnavailableError,
    Reason.ENGINE_STARTING: UnavailableError,
    Reason.ENGINE_FAILED: UnavailableError,
    Reason.CATALOG_BUSY: UnavailableError,
    Reason.DRAINING: UnavailableError,
    Reason.DEADLINE_EXPIRED: DeadlineExceededError,
    Reason.UNKNOWN_OUTCOME: OutcomeUnknownError,
    Reason.UNSUPPORTED: UnsupportedError,
    Reason.INTERNAL: InternalError,
}

# Statuses that the cluster's own error tree does not use.
EXCEPTION_BY_FOREIGN_STATUS: Mapping[grpc.StatusCode, type[RouterError]] = {
    grpc.StatusCode.UNAUTHENTICATED: AuthorizationError,
    grpc.StatusCode.PERMISSION_DENIED: ChromaAuthError,
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.DATA_LOSS: InternalError,
}

# Ends of calls after which a write's fate is open, unless a WriteOutcome says more.
_OPEN_ENDED = (UnavailableError, DeadlineExceededError, OutcomeUnknownError)


def exception_for(
    error: ClusterError, failure: Failure, *, request_id: str, trace_id: str, write: bool
) -> RouterError:
    """The exception for a call that failed for good.

    The text is the cluster's own. Where the caller cannot mend it, the ids by which an operator
    finds the call are added, and for a write cut off midway that its outcome is open.
    """
    kind = EXCEPTION_BY_REASON[error.reason]
    if failure.code.value[0] not in CLASS_BY_CODE:
        kind = EXCEPTION_BY_FOREIGN_STATUS.get(failure.code, InternalError)
    # What the router told is what its log has.
    trace_id = error.metadata.get("trace_id", trace_id)
    request_id = error.metadata.get("request_id", request_id)
    text = error.message
    outcome = detail_of(error, WriteOutcome)
    if write and outcome is None and not failure.told and issubclass(kind, _OPEN_ENDED):
        text += "; whether the write was applied is not known"
    if issubclass(kind, (*_OPEN_ENDED, InternalError)):
        text += f" (request id {request_id}, trace id {trace_id})"
    exception = kind(text)
    exception.reason = error.reason
    exception.request_id = request_id
    exception.trace_id = trace_id
    exception.retry_after = error.retry_after
    exception.outcome = outcome
    return exception


def unsupported(what: str) -> UnsupportedError:
    """The error for an operation that this cluster does not have, in local Chroma's words."""
    error = UnsupportedError(f"{what} is not implemented for a cluster of local Chroma shards")
    error.reason = Reason.UNSUPPORTED
    return error
