"""The decision to repeat, alone."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_router.retry import Failure, Repeat, RetryPolicy, pause_before_repeat
from chroma_router.wire.errors import CLASS_BY_REASON, Reason
from chroma_router.wire.status import grpc_status

POLICY = RetryPolicy()
DOWN = Failure(grpc.StatusCode.UNAVAILABLE, Reason.SHARD_UNAVAILABLE, told=False, retry_after=None)


def pause(failure: Failure, repeat: Repeat = Repeat.SAFE, attempt: int = 1) -> float | None:
    return pause_before_repeat(POLICY, failure, repeat, attempt, remaining=60.0, jitter=0.0)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_only_two_statuses_are_repeated(code: grpc.StatusCode) -> None:
    repeated = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
    failure = Failure(code, Reason.INTERNAL, told=True, retry_after=0.2)
    assert (pause(failure) is not None) == (code in repeated)


def test_a_full_queue_without_retry_info_is_final() -> None:
    full = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.QUEUE_FULL, True, None)
    assert pause(full) is None


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("told", [True, False])
def test_catalog_changes_are_repeated_only_when_untried(reason: Reason, told: bool) -> None:
    code = grpc_status(CLASS_BY_REASON[reason]("text", reason))
    if code is not grpc.StatusCode.UNAVAILABLE:
        return
    failure = Failure(code, reason, told, None)
    untried = told and reason in {Reason.CATALOG_BUSY, Reason.DRAINING}
    assert (pause(failure, Repeat.IF_UNTRIED) is not None) == untried


def test_attempts_end_unless_the_router_asks_to_wait() -> None:
    assert pause(DOWN, attempt=POLICY.max_attempts - 1) is not None
    assert pause(DOWN, attempt=POLICY.max_attempts) is None
    asked = Failure(DOWN.code, DOWN.reason, told=True, retry_after=0.5)
    assert pause(asked, attempt=1_000) == 0.5
    never = RetryPolicy(max_attempts=1)
    assert pause_before_repeat(never, asked, Repeat.SAFE, 1, 60.0, 0.0) is None


@given(
    attempt=st.integers(1, 7),
    remaining=st.floats(-1, 100),
    jitter=st.floats(0, 1, exclude_max=True),
    retry_after=st.none() | st.floats(0, 200),
)
def test_a_pause_is_bounded_and_ends_before_the_deadline(
    attempt: int, remaining: float, jitter: float, retry_after: float | None
) -> None:
    failure = Failure(DOWN.code, DOWN.reason, told=True, retry_after=retry_after)
    got = pause_before_repeat(POLICY, failure, Repeat.SAFE, attempt, remaining, jitter)
    if got is None:
        return
    assert 0 < got < remaining
    if retry_after is None:
        assert POLICY.initial_backoff_seconds / 2 <= got <= POLICY.max_backoff_seconds
    else:
        assert got >= retry_after


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": 0},
        {"initial_backoff_seconds": 0.0},
        {"initial_backoff_seconds": 3.0, "max_backoff_seconds": 2.0},
    ],
)
def test_a_senseless_policy_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        RetryPolicy(**options)  # type: ignore[arg-type]
