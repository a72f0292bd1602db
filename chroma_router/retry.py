"""Whether a client repeats a failed call, and after how long. Pure: no clock, random or network.

Decided by status code alone:

    UNAVAILABLE           repeated with growing pauses. Writes too: they carry a request id over all
                          repeats, so the cluster applies them once (invariant 8).
    RESOURCE_EXHAUSTED    repeated after the pause in its RetryInfo; without one it is final.
    everything else       final. What ABORTED (STALE_EPOCH and kin) asks for, the router has tried.

Calls that make or delete something named in the catalog have no request id. They are repeated only
when the router itself says that it did nothing: else a repeat could report "exists already" about
what its own first try had made.
"""

from dataclasses import dataclass
from enum import Enum, auto

import grpc

from chroma_router.wire.errors import Reason

_REFUSED_UNTRIED = frozenset({Reason.CATALOG_BUSY, Reason.DRAINING})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient a client is. Every pause also ends at the call's deadline.

    `max_attempts` counts tries that a router does not ask to be repeated, the first among them:
    with the defaults a router that is not there is reported after about 4 s. Where the router sends
    a RetryInfo, only the deadline ends the tries. `max_attempts=1` switches every repeat off.
    """

    max_attempts: int = 8
    initial_backoff_seconds: float = 0.05
    max_backoff_seconds: float = 2.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, got {self.max_attempts}")
        if not 0 < self.initial_backoff_seconds <= self.max_backoff_seconds:
            raise ValueError(
                "backoff must satisfy 0 < initial_backoff_seconds <= max_backoff_seconds, got "
                f"{self.initial_backoff_seconds} and {self.max_backoff_seconds}"
            )


class Repeat(Enum):
    """What repeating a call can do."""

    SAFE = auto()
    """It reads, or sets something to a value, or carries a request id."""
    IF_UNTRIED = auto()
    """A repeat may find what the first try left behind."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What one try came to. `told`: the router said so itself, it was not the connection."""

    code: grpc.StatusCode
    reason: Reason
    told: bool
    retry_after: float | None


def pause_before_repeat(
    policy: RetryPolicy,
    failure: Failure,
    repeat: Repeat,
    attempt: int,
    remaining: float,
    jitter: float,
) -> float | None:
    """Seconds to wait before trying again; None when the failure is final.

    `attempt` counts the tries made so far, from 1; `remaining` is what is left of the deadline in
    seconds; `jitter` is drawn by the caller, 0 <= jitter < 1, so that clients who failed together
    do not come back together.
    """
    if policy.max_attempts == 1 or not _may_help(failure, repeat):
        return None
    if failure.retry_after is None:
        if attempt >= policy.max_attempts:
            return None
        ceiling = min(
            policy.max_backoff_seconds, policy.initial_backoff_seconds * 2.0 ** min(attempt - 1, 64)
        )
        pause = ceiling * (1 + jitter) / 2
    else:
        pause = max(failure.retry_after, policy.initial_backoff_seconds) * (1 + jitter / 4)
    return pause if pause < remaining else None


def _may_help(failure: Failure, repeat: Repeat) -> bool:
    if failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return failure.retry_after is not None
    if failure.code is not grpc.StatusCode.UNAVAILABLE:
        return False
    return repeat is Repeat.SAFE or (failure.told and failure.reason in _REFUSED_UNTRIED)
