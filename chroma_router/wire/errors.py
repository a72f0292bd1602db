"""The one error tree of the project, and its one table to gRPC statuses.

    ClusterError                    what can go wrong, for a reason
    ├── InvalidRequest              the request can never succeed as it is    INVALID_ARGUMENT
    ├── NotFound                    what it names does not exist              NOT_FOUND
    ├── AlreadyExists               what it would make exists                 ALREADY_EXISTS
    ├── NotAllowed                  the state or settings forbid it           FAILED_PRECONDITION
    ├── Stale                       another epoch or boot; repeat afresh      ABORTED
    ├── Overloaded                  something bounded is full                 RESOURCE_EXHAUSTED
    ├── Unavailable                 a part does not answer now; repeat        UNAVAILABLE
    ├── DeadlineExpired             the time given was not enough             DEADLINE_EXCEEDED
    ├── OutcomeUnknown              a write may or may not have happened      UNKNOWN
    ├── Unsupported                 not implemented, and why                  UNIMPLEMENTED
    └── InternalFailure             a defect here                             INTERNAL

Code decides by class (the gRPC status) and by `reason`, never by the text of a message. On the wire
an error is a google.rpc.Status with an ErrorInfo (domain, reason, metadata), a RetryInfo where
repeating helps, and for writes a WriteOutcome.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import ClassVar, TypeVar

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2

_M = TypeVar("_M", bound=Message)


class Reason(StrEnum):
    """Why, in a word that a program can decide by. The names are part of the public contract."""

    # InvalidRequest
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DIMENSION_MISMATCH = "DIMENSION_MISMATCH"
    DUPLICATE_IDS = "DUPLICATE_IDS"
    BATCH_TOO_LARGE = "BATCH_TOO_LARGE"
    # NotFound
    TENANT_NOT_FOUND = "TENANT_NOT_FOUND"
    DATABASE_NOT_FOUND = "DATABASE_NOT_FOUND"
    COLLECTION_NOT_FOUND = "COLLECTION_NOT_FOUND"
    RECORD_NOT_FOUND = "RECORD_NOT_FOUND"
    SHARD_NOT_FOUND = "SHARD_NOT_FOUND"
    NO_REBALANCE = "NO_REBALANCE"
    # AlreadyExists
    TENANT_EXISTS = "TENANT_EXISTS"
    DATABASE_EXISTS = "DATABASE_EXISTS"
    COLLECTION_EXISTS = "COLLECTION_EXISTS"
    SHARD_EXISTS = "SHARD_EXISTS"
    # NotAllowed
    RESET_DISABLED = "RESET_DISABLED"
    WRONG_CLUSTER = "WRONG_CLUSTER"
    WRONG_SHARD = "WRONG_SHARD"
    PROTOCOL_MISMATCH = "PROTOCOL_MISMATCH"
    CATALOG_BEHIND = "CATALOG_BEHIND"
    CATALOG_UNUSABLE = "CATALOG_UNUSABLE"
    NO_SHARDS = "NO_SHARDS"
    NO_SUPERVISOR = "NO_SUPERVISOR"
    LAST_SHARD = "LAST_SHARD"
    SHARD_IN_USE = "SHARD_IN_USE"
    NO_ROOM = "NO_ROOM"
    REBALANCE_RUNNING = "REBALANCE_RUNNING"
    REBALANCE_ENDED = "REBALANCE_ENDED"
    MOVE_SWITCHED = "MOVE_SWITCHED"
    MOVE_OUT_OF_STEP = "MOVE_OUT_OF_STEP"
    # Stale
    STALE_EPOCH = "STALE_EPOCH"
    STALE_BOOT = "STALE_BOOT"
    CONFLICT = "CONFLICT"
    SLOTS_FENCED = "SLOTS_FENCED"
    STALE_TOKEN = "STALE_TOKEN"
    # Overloaded
    QUEUE_FULL = "QUEUE_FULL"
    ANSWER_TOO_LARGE = "ANSWER_TOO_LARGE"
    # Unavailable
    SHARD_UNAVAILABLE = "SHARD_UNAVAILABLE"
    ENGINE_STARTING = "ENGINE_STARTING"
    ENGINE_FAILED = "ENGINE_FAILED"
    CATALOG_BUSY = "CATALOG_BUSY"
    DRAINING = "DRAINING"
    # the rest have one reason each
    DEADLINE_EXPIRED = "DEADLINE_EXPIRED"
    UNKNOWN_OUTCOME = "UNKNOWN_OUTCOME"
    UNSUPPORTED = "UNSUPPORTED"
    INTERNAL = "INTERNAL"


class ClusterError(Exception):
    """The root of the tree. `metadata` says what a program may want to know besides the reason.

    `retry_after` in seconds is set where repeating the request as it is can help. `details` are
    further protobuf messages for the status, such as a WriteOutcome.
    """

    code: ClassVar[int] = code_pb2.UNKNOWN
    default_reason: ClassVar[Reason] = Reason.INTERNAL

    def __init__(
        self,
        message: str,
        reason: Reason | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        details: Iterable[Message] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.details = tuple(details)


class InvalidRequest(ClusterError):
    """The request can never succeed as it is."""

    code = code_pb2.INVALID_ARGUMENT
    default_reason = Reason.INVALID_ARGUMENT


class NotFound(ClusterError):
    """What the request names does not exist."""

    code = code_pb2.NOT_FOUND
    default_reason = Reason.COLLECTION_NOT_FOUND


class AlreadyExists(ClusterError):
    """What the request would make exists already."""

    code = code_pb2.ALREADY_EXISTS
    default_reason = Reason.COLLECTION_EXISTS


class NotAllowed(ClusterError):
    """The state of the cluster or its settings forbid it."""

    code = code_pb2.FAILED_PRECONDITION
    default_reason = Reason.WRONG_CLUSTER


class Stale(ClusterError):
    """It was decided on knowledge that is no longer true; decide again."""

    code = code_pb2.ABORTED
    default_reason = Reason.STALE_EPOCH


class Overloaded(ClusterError):
    """Something bounded is full."""

    code = code_pb2.RESOURCE_EXHAUSTED
    default_reason = Reason.QUEUE_FULL


class Unavailable(ClusterError):
    """A part that is needed does not answer now."""

    code = code_pb2.UNAVAILABLE
    default_reason = Reason.SHARD_UNAVAILABLE


class DeadlineExpired(ClusterError):
    """The time that the caller gave was not enough."""

    code = code_pb2.DEADLINE_EXCEEDED
    default_reason = Reason.DEADLINE_EXPIRED


class OutcomeUnknown(ClusterError):
    """A write may or may not have happened, and it can no longer be found out."""

    code = code_pb2.UNKNOWN
    default_reason = Reason.UNKNOWN_OUTCOME


class Unsupported(ClusterError):
    """Not implemented here."""

    code = code_pb2.UNIMPLEMENTED
    default_reason = Reason.UNSUPPORTED


class InternalFailure(ClusterError):
    """A defect in this project or in the engine; the message names where to look."""

    code = code_pb2.INTERNAL
    default_reason = Reason.INTERNAL


_CLASSES: tuple[type[ClusterError], ...] = (
    InvalidRequest,
    NotFound,
    AlreadyExists,
    NotAllowed,
    Stale,
    Overloaded,
    Unavailable,
    DeadlineExpired,
    OutcomeUnknown,
    Unsupported,
    InternalFailure,
)
CLASS_BY_CODE: Mapping[int, type[ClusterError]] = {c.code: c for c in _CLASSES}

CLASS_BY_REASON: Mapping[Reason, type[ClusterError]] = {
    Reason.INVALID_ARGUMENT: InvalidRequest,
    Reason.DIMENSION_MISMATCH: InvalidRequest,
    Reason.DUPLICATE_IDS: InvalidRequest,
    Reason.BATCH_TOO_LARGE: InvalidRequest,
    Reason.TENANT_NOT_FOUND: NotFound,
    Reason.DATABASE_NOT_FOUND: NotFound,
    Reason.COLLECTION_NOT_FOUND: NotFound,
    Reason.RECORD_NOT_FOUND: NotFound,
    Reason.SHARD_NOT_FOUND: NotFound,
    Reason.NO_REBALANCE: NotFound,
    Reason.TENANT_EXISTS: AlreadyExists,
    Reason.DATABASE_EXISTS: AlreadyExists,
    Reason.COLLECTION_EXISTS: AlreadyExists,
    Reason.SHARD_EXISTS: AlreadyExists,
    Reason.RESET_DISABLED: NotAllowed,
    Reason.WRONG_CLUSTER: NotAllowed,
    Reason.WRONG_SHARD: NotAllowed,
    Reason.PROTOCOL_MISMATCH: NotAllowed,
    Reason.CATALOG_BEHIND: NotAllowed,
    Reason.CATALOG_UNUSABLE: NotAllowed,
    Reason.NO_SHARDS: NotAllowed,
    Reason.NO_SUPERVISOR: NotAllowed,
    Reason.LAST_SHARD: NotAllowed,
    Reason.SHARD_IN_USE: NotAllowed,
    Reason.NO_ROOM: NotAllowed,
    Reason.REBALANCE_RUNNING: NotAllowed,
    Reason.REBALANCE_ENDED: NotAllowed,
    Reason.MOVE_SWITCHED: NotAllowed,
    Reason.MOVE_OUT_OF_STEP: NotAllowed,
    Reason.STALE_EPOCH: Stale,
    Reason.STALE_BOOT: Stale,
    Reason.CONFLICT: Stale,
    Reason.SLOTS_FENCED: Stale,
    Reason.STALE_TOKEN: Stale,
    Reason.QUEUE_FULL: Overloaded,
    Reason.ANSWER_TOO_LARGE: Overloaded,
    Reason.SHARD_UNAVAILABLE: Unavailable,
    Reason.ENGINE_STARTING: Unavailable,
    Reason.ENGINE_FAILED: Unavailable,
    Reason.CATALOG_BUSY: Unavailable,
    Reason.DRAINING: Unavailable,
    Reason.DEADLINE_EXPIRED: DeadlineExpired,
    Reason.UNKNOWN_OUTCOME: OutcomeUnknown,
    Reason.UNSUPPORTED: Unsupported,
    Reason.INTERNAL: InternalFailure,
}


def error_for(reason: str, message: str, metadata: Mapping[str, str] | None = None) -> ClusterError:
    """The error of a reason's name; InternalFailure for a name that this version does not know."""
    try:
        known = Reason(reason)
    except ValueError:
        return InternalFailure(f"{message} (unknown reason {reason!r})", metadata=metadata)
    return CLASS_BY_REASON[known](message, known, metadata=metadata)


def detail_of(error: ClusterError, kind: type[_M]) -> _M | None:
    """The detail of one message type in an error, whether made here or received; None if absent."""
    for detail in error.details:
        if isinstance(detail, kind):
            return detail
        message = kind()
        if isinstance(detail, any_pb2.Any) and unpack(detail, message):
            return message
    return None


def unpack(detail: any_pb2.Any, into: Message) -> bool:
    try:
        return detail.Unpack(into)
    except DecodeError:
        return False
