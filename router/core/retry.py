"""When to try again, and after how long. Decided by an error's reason, never by its text."""

from chroma_router.wire.errors import ClusterError, Reason

# One set for reads and writes: a write carries its request id, so a repeat takes effect once even
# where the first try was applied and only the answer was lost (invariant 8).
# Not here though of a class that is: ANSWER_TOO_LARGE, which would be too large again.
_REPEATABLE = frozenset(
    {
        # Decide again with fresh knowledge, then repeat.
        Reason.STALE_EPOCH,
        Reason.STALE_BOOT,
        Reason.CONFLICT,
        Reason.SLOTS_FENCED,
        Reason.STALE_TOKEN,
        # It passes by itself.
        Reason.QUEUE_FULL,
        Reason.SHARD_UNAVAILABLE,
        Reason.ENGINE_STARTING,
        Reason.ENGINE_FAILED,
        Reason.CATALOG_BUSY,
        Reason.DRAINING,
    }
)

# Past this many doublings every sensible cap is reached; keeps 2**attempt within a float.
_MAX_DOUBLINGS = 64


def retryable(error: ClusterError) -> bool:
    """Whether repeating the request, as it is and under its request id, may help."""
    return error.reason in _REPEATABLE


def backoff(attempt: int, base: float, cap: float, jitter: float) -> float:
    """How many seconds to wait before trying again: exponential with "equal jitter".

    Half of min(cap, base * 2**attempt) for certain, and `jitter` (0 <= jitter < 1, drawn by the
    caller) of the other half, so that callers who failed together do not come back together, yet
    none comes back at once. `attempt` counts the failures before this one, from 0; `base` and `cap`
    are seconds. From Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    ceiling = min(cap, base * 2.0 ** min(attempt, _MAX_DOUBLINGS))
    return ceiling / 2 + ceiling / 2 * jitter
