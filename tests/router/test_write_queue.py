"""The write queue: groups, order, bounds, repeats, deadlines, cancellation, the end."""

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    InternalFailure,
    InvalidRequest,
    NotAllowed,
    OutcomeUnknown,
    Overloaded,
    Reason,
    Stale,
    Unavailable,
)
from router import write_queue
from router.core.batching import AdaptiveBatch, BatchLimits
from router.write_queue import PendingWrite, QueueLimits, WriteQueue

pytestmark = pytest.mark.timeout(10)

Operations = list[shard_pb2.Operation]
Step = ClusterError | asyncio.Event | Callable[[Operations], shard_pb2.ApplyResponse]


class Node:
    """A scripted `apply`: refuses, waits or answers in turn; past the script it applies."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.timeouts: list[float] = []
        self.steps: deque[Step] = deque()
        self._arrivals: asyncio.Queue[list[str]] = asyncio.Queue()

    async def apply(self, operations: Operations, timeout: float) -> shard_pb2.ApplyResponse:
        group = [operation.request_id for operation in operations]
        self.groups.append(group)
        self.timeouts.append(timeout)
        self._arrivals.put_nowait(group)
        step = self.steps.popleft() if self.steps else None
        if isinstance(step, ClusterError):
            raise step
        if isinstance(step, asyncio.Event):
            await step.wait()
        elif step is not None:
            return step(operations)
        return answer(*("" for _ in operations))

    async def arrival(self) -> list[str]:
        """The request ids of the next group; waits for it."""
        return await self._arrivals.get()


def answer(*reasons: str) -> shard_pb2.ApplyResponse:
    """One result for each reason; the empty one means applied, with its place as `deleted`."""
    results = [
        shard_pb2.OperationResult(refused_reason=reason, message="scripted", node_epoch=7)
        if reason
        else shard_pb2.OperationResult(deleted=place)
        for place, reason in enumerate(reasons)
    ]
    return shard_pb2.ApplyResponse(results=results, apply_microseconds=1000)


def write(name: str, seconds: float = 5.0, size: int = 0, rows: int = 1) -> PendingWrite:
    operation = shard_pb2.Operation(
        request_id=name, ids=[f"{name}-{n}" for n in range(rows)], records=[bytes(size)]
    )
    return PendingWrite(operation, time.monotonic() + seconds)


def queue_of(
    node: Node, operations: int = 100, size: int = 1 << 20, max_operations: int = 256
) -> WriteQueue:
    batch = AdaptiveBatch(BatchLimits(max_operations=max_operations))
    return WriteQueue("shard-1", node.apply, QueueLimits(operations, size), batch)


@asynccontextmanager
async def running(queue: WriteQueue) -> AsyncIterator[asyncio.Task[None]]:
    """The queue's loop, ended at the end."""
    task = asyncio.create_task(queue.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def held(
    node: Node, queue: WriteQueue, name: str = "held"
) -> tuple[PendingWrite, asyncio.Event]:
    """Keeps the node busy with one write until the event is set."""
    gate, first = asyncio.Event(), write(name)
    node.steps.append(gate)
    queue.submit(first)
    assert await node.arrival() == [name]
    return first, gate


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_queue, "RETRY_BASE", 0.0005)
    monkeypatch.setattr(write_queue, "RETRY_CAP", 0.002)


# ------------------------------------------------------------------------------- groups and order


async def test_what_arrives_while_a_group_is_on_its_way_is_the_next_group() -> None:
    node = Node()
    queue = queue_of(node)
    async with running(queue):
        first, gate = await held(node, queue)
        later = [write(f"w{n}") for n in range(5)]
        for one in later:
            queue.submit(one)
        assert queue.operations == 6
        assert node.groups == [["held"]], "one group on its way at a time"
        gate.set()
        assert [await one.done for one in [first, *later]] == [0, 0, 1, 2, 3, 4]
    assert node.groups == [["held"], ["w0", "w1", "w2", "w3", "w4"]]
    assert (queue.operations, queue.bytes) == (0, 0)


async def test_a_group_is_bounded_and_order_is_kept() -> None:
    node = Node()
    queue = queue_of(node, max_operations=2)
    async with running(queue):
        _, gate = await held(node, queue)
        later = [write(f"w{n}") for n in range(5)]
        for one in later:
            queue.submit(one)
        gate.set()
        await asyncio.gather(*(one.done for one in later))
    assert node.groups == [["held"], ["w0", "w1"], ["w2", "w3"], ["w4"]]


async def test_the_node_is_given_the_time_that_the_latest_write_has_and_no_more_than_a_bound() -> (
    None
):
    node = Node()
    queue = queue_of(node)
    async with running(queue):
        _, gate = await held(node, queue)
        short, long = write("short", 1), write("long", 3)
        queue.submit(short)
        queue.submit(long)
        gate.set()
        await long.done
        very_long = write("very long", 1000)
        queue.submit(very_long)
        await very_long.done
    assert 2 < node.timeouts[1] <= 3
    assert node.timeouts[2] == write_queue.APPLY_TIMEOUT


# -------------------------------------------------------------------------------------- bounds


async def test_full_by_operations_and_by_bytes() -> None:
    node = Node()
    one = write("a", size=100)
    queue = queue_of(node, operations=3, size=10 * one.size)
    for name in "abc":
        queue.submit(write(name, size=100))
    with pytest.raises(Overloaded) as by_operations:
        queue.submit(write("d", size=100))
    assert by_operations.value.reason is Reason.QUEUE_FULL
    assert by_operations.value.metadata == {"shard": "shard-1"}
    assert by_operations.value.retry_after is not None, "invariant 6: full comes with RetryInfo"
    assert 0 < by_operations.value.retry_after <= 5
    assert queue.operations == 3

    queue = queue_of(node, operations=100, size=2 * one.size)
    queue.submit(one)
    queue.check_room(1, one.size)
    with pytest.raises(Overloaded) as by_bytes:
        queue.check_room(1, one.size + 1)
    assert by_bytes.value.retry_after is not None
    assert (queue.operations, queue.bytes) == (1, one.size), "asking for room takes none"


async def test_what_never_fits_is_refused_for_good() -> None:
    with pytest.raises(InvalidRequest) as refused:
        queue_of(Node(), size=100).check_room(1, 101)
    assert refused.value.reason is Reason.BATCH_TOO_LARGE


async def test_the_group_on_its_way_counts_and_room_comes_back_when_it_is_settled() -> None:
    node = Node()
    queue = queue_of(node, operations=2)
    async with running(queue):
        first, gate = await held(node, queue)
        second = write("second")
        queue.submit(second)
        with pytest.raises(Overloaded):
            queue.check_room(1, 1)
        gate.set()
        await asyncio.gather(first.done, second.done)
        queue.check_room(2, 1)


# ------------------------------------------------------------------- failures and their repeats


@pytest.mark.parametrize("lost", [Unavailable("away"), DeadlineExpired("slow"), Overloaded("full")])
async def test_a_group_of_unknown_fate_is_sent_again_as_it_was(lost: ClusterError) -> None:
    node = Node()
    queue = queue_of(node)
    async with running(queue):
        _, gate = await held(node, queue)
        writes = [write("a"), write("b")]
        for one in writes:
            queue.submit(one)
        node.steps.extend([lost, lost, lambda _: answer("", "")])
        gate.set()
        assert [await one.done for one in writes] == [0, 1]
    assert node.groups == [["held"], ["a", "b"], ["a", "b"], ["a", "b"]]


async def test_what_arrives_during_the_repeats_waits_behind_them() -> None:
    node = Node()
    queue = queue_of(node)
    async with running(queue):
        first, gate = await held(node, queue)

        def arrives(_: Operations) -> shard_pb2.ApplyResponse:
            queue.submit(late)
            raise Unavailable("away")

        late = write("late")
        again = write("again")
        node.steps.append(arrives)
        queue.submit(again)
        gate.set()
        await asyncio.gather(first.done, again.done, late.done)
    assert node.groups == [["held"], ["again"], ["again"], ["late"]]


@pytest.mark.parametrize(
    "refusal", [NotAllowed("no"), InvalidRequest("no"), Stale("no", metadata={"epoch": "3"})]
)
async def test_a_group_that_is_refused_as_a_whole_fails_without_a_repeat(
    refusal: ClusterError,
) -> None:
    node = Node()
    queue = queue_of(node)
    async with running(queue):
        node.steps.append(refusal)
        writes = [write("a"), write("b")]
        for one in writes:
            queue.submit(one)
        for one in writes:
            with pytest.raises(type(refusal)) as failed:
                await one.done
            assert failed.value.metadata == refusal.metadata
        assert queue.operations == 0
    assert node.groups == [["a", "b"]]


async def test_each_refused_operation_gets_its_own_error() -> None:
    reasons = {
        "": None,
        "INVALID_ARGUMENT": InvalidRequest,
        "DIMENSION_MISMATCH": InvalidRequest,
        "STALE_EPOCH": Stale,
        "UNKNOWN_OUTCOME": OutcomeUnknown,
        "ENGINE_FAILED": Unavailable,
        "A_REASON_OF_TOMORROW": InternalFailure,
    }
    node = Node()
    queue = queue_of(node)
    async with running(queue):
        node.steps.append(lambda _: answer(*reasons))
        writes = {reason: write(reason or "applied") for reason in reasons}
        for one in writes.values():
            queue.submit(one)
        for reason, one in writes.items():
            expected = reasons[reason]
            if expected is None:
                assert await one.done == 0
                continue
            with pytest.raises(expected) as failed:
                await one.done
            assert failed.value.metadata == {"shard": "shard-1", "epoch": "7"}
            if expected is not InternalFailure:
                assert failed.value.reason == reason


async def test_a_node_that_answers_nonsense_does_not_end_the_queue() -> None:
    node = Node()
    queue = queue_of(node)
    async with running(queue) as task:
        node.steps.append(lambda _: answer(""))
        pair = [write("a"), write("b")]
        for one in pair:
            queue.submit(one)
        await asyncio.wait([one.done for one in pair])
        await asyncio.wait([task], timeout=0.05)
        assert not task.done()


# ------------------------------------------------------------------------------------- deadlines


async def test_a_write_whose_time_is_over_says_whether_it_was_sent() -> None:
    node = Node()
    queue = queue_of(node)
    node.steps.extend(Unavailable("away") for _ in range(10_000))
    async with running(queue):
        sent = write("sent", 0.05)
        queue.submit(sent)
        assert await node.arrival() == ["sent"]
        unsent = write("unsent", 0.02)
        queue.submit(unsent)
        with pytest.raises(Unavailable, match="was not applied") as not_applied:
            await unsent.done
        with pytest.raises(Unavailable, match="did not say in time") as unknown:
            await sent.done
    assert not_applied.value.retry_after
    assert unknown.value.retry_after
    assert all("unsent" not in group for group in node.groups)
    assert (queue.operations, queue.bytes) == (0, 0)


async def test_an_expired_write_leaves_its_group_and_the_others_go_on() -> None:
    node = Node()
    queue = queue_of(node)
    async with running(queue):
        _, gate = await held(node, queue)
        short, long = write("short", 0.05), write("long")
        queue.submit(short)
        queue.submit(long)

        def until_short_is_over(operations: Operations) -> shard_pb2.ApplyResponse:
            if short.deadline > time.monotonic():
                node.steps.appendleft(until_short_is_over)
                raise Unavailable("away")
            return answer(*("" for _ in operations))

        node.steps.append(until_short_is_over)
        gate.set()
        with pytest.raises(Unavailable, match="did not say in time"):
            await short.done
        assert await long.done == 0
    assert node.groups[1] == ["short", "long"]
    assert node.groups[-1] == ["long"]


async def test_writes_whose_callers_went_away_are_never_sent() -> None:
    node = Node()
    queue = queue_of(node)
    async with running(queue):
        first, gate = await held(node, queue)
        writes = [write(f"w{n}") for n in range(4)]
        for one in writes:
            queue.submit(one)
        for one in writes[::2]:  # as write_path does when its caller is cancelled
            one.done.set_exception(one.expired())
            one.done.exception()
        gate.set()
        await asyncio.gather(first.done, *(one.done for one in writes[1::2]))
    assert node.groups == [["held"], ["w1", "w3"]]
    assert queue.bytes == 0


async def test_a_caller_that_goes_away_while_its_write_is_on_its_way_disturbs_nobody() -> None:
    node = Node()
    queue = queue_of(node)
    async with running(queue):
        first, gate = await held(node, queue)
        first.done.set_exception(first.expired())
        first.done.exception()
        second = write("second")
        queue.submit(second)
        gate.set()
        assert await second.done == 0


# --------------------------------------------------------------------------------------- the end


async def test_closing_takes_no_more_and_delivers_what_waits() -> None:
    node = Node()
    queue = queue_of(node)
    async with running(queue) as task:
        first, gate = await held(node, queue)
        second = write("second")
        queue.submit(second)
        queue.close()
        with pytest.raises(Unavailable) as refused:
            queue.submit(write("third"))
        assert refused.value.reason is Reason.DRAINING
        assert refused.value.retry_after
        gate.set()
        await task
        assert first.done.result() == 0
        assert second.done.result() == 0
    assert node.groups == [["held"], ["second"]]


async def test_what_waits_for_a_shard_that_is_removed_is_stale_and_says_whether_it_was_sent() -> (
    None
):
    node = Node()
    queue = queue_of(node)
    async with running(queue) as task:
        sent, gate = await held(node, queue)
        unsent = write("unsent")
        queue.submit(unsent)
        queue.abandon()
        for one, uncertain in ((sent, True), (unsent, False)):
            with pytest.raises(Stale) as stale:
                await one.done
            assert stale.value.metadata == {"shard": "shard-1"}
            assert one.maybe_applied is uncertain
        with pytest.raises(Stale):
            queue.submit(write("later"))
        assert (queue.operations, queue.bytes) == (0, 0)
        gate.set()
        await task
    assert node.groups == [["held"]]


async def test_a_queue_that_is_abandoned_between_two_tries_ends() -> None:
    node = Node()
    queue = queue_of(node)
    node.steps.extend(Unavailable("away") for _ in range(10_000))
    async with running(queue) as task:
        one = write("one")
        queue.submit(one)
        await node.arrival()
        await node.arrival()
        queue.abandon()
        await task
        with pytest.raises(Stale):
            await one.done
        assert one.uncertain, "the first try may have been applied"


async def test_a_fence_that_refuses_some_writes_holds_up_no_others() -> None:
    """Those that it refuses leave the queue; they wait elsewhere."""
    node = Node()
    queue = queue_of(node)
    async with running(queue):
        _, gate = await held(node, queue)
        fenced, free = write("fenced"), write("free")
        queue.submit(fenced)
        queue.submit(free)
        node.steps.append(lambda _: answer("SLOTS_FENCED", ""))
        gate.set()
        assert await free.done == 1
        with pytest.raises(Stale) as refused:
            await fenced.done
        assert refused.value.reason is Reason.SLOTS_FENCED
        assert refused.value.metadata == {"shard": "shard-1", "epoch": "7"}
        assert not fenced.maybe_applied
        assert queue.operations == 0


async def test_closing_an_idle_queue_ends_it() -> None:
    queue = queue_of(Node())
    async with running(queue) as task:
        queue.close()
        await task


@pytest.mark.parametrize("where", ["idle", "applying", "pausing"])
async def test_cancelling_the_loop_fails_every_waiting_write(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node()
    queue = queue_of(node)
    async with running(queue) as task:
        writes = []
        if where != "idle":
            writes = [write("sent"), write("unsent")]
            if where == "pausing":
                monkeypatch.setattr(write_queue, "RETRY_BASE", 100.0)
                monkeypatch.setattr(write_queue, "RETRY_CAP", 100.0)
                node.steps.append(Unavailable("away"))
            else:
                node.steps.append(asyncio.Event())
            queue.submit(writes[0])
            await node.arrival()
            queue.submit(writes[1])
        else:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    for one, text in zip(writes, ["did not say in time", "was not applied"], strict=False):
        with pytest.raises(Unavailable, match=text):
            one.done.result()
    assert (queue.operations, queue.bytes) == (0, 0)


# ------------------------------------------------------------------------------ whatever happens


class FaultyNode:
    """Applies each operation once, in its order; calls and answers get lost by a seed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.sent: set[str] = set()
        """Whatever was on its way to it, lost or not."""
        self.outcomes: dict[str, str] = {}
        """The reason of each operation's refusal, empty if applied; in the order of application."""

    async def apply(self, operations: Operations, _timeout: float) -> shard_pb2.ApplyResponse:
        self.sent.update(operation.request_id for operation in operations)
        for _ in range(self._rng.randrange(4)):
            await asyncio.sleep(0)
        fate = self._rng.random()
        if fate < 0.2:
            raise Unavailable("lost on its way")
        if fate < 0.25:
            raise NotAllowed("refused as a whole")
        if fate < 0.3:
            operations = operations[: self._rng.randrange(len(operations) + 1)]
        for operation in operations:
            refused = "INVALID_ARGUMENT" if self._rng.random() < 0.1 else ""
            self.outcomes.setdefault(operation.request_id, refused)
        if fate < 0.45:
            raise DeadlineExpired("the answer was lost")
        return answer(*(self.outcomes[operation.request_id] for operation in operations))


def _note(resolved: list[str], name: str, _done: object) -> None:
    resolved.append(name)


def _check(node: FaultyNode, name: str, one: PendingWrite, known: Sequence[str]) -> None:
    error = one.done.exception()
    outcome = node.outcomes.get(name)
    if error is None:
        assert outcome == "", "acknowledged means applied"
    elif isinstance(error, InvalidRequest):
        assert outcome, "a refused write was not applied"
    elif "was not applied" in str(error):
        assert name not in known, "a write that was never sent never arrives"


@pytest.mark.parametrize("seed", range(40))
async def test_every_write_is_resolved_once_and_in_order(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    node = FaultyNode(rng)
    batch = AdaptiveBatch(BatchLimits(max_operations=rng.choice([1, 3, 256])))
    queue = WriteQueue("shard-1", node.apply, QueueLimits(20, 1 << 20), batch)
    writes: dict[str, PendingWrite] = {}
    resolved: list[str] = []
    gone: dict[str, bool] = {}
    async with running(queue) as task:
        for n in range(150):
            name = f"{n:03}"
            one = write(name, rng.choice([0.0, 0.001, 0.003, 5.0, 5.0, 5.0]))
            try:
                queue.submit(one)
            except Overloaded:
                assert queue.operations == 20
            else:
                writes[name] = one
                one.done.add_done_callback(partial(_note, resolved, name))
            for _ in range(rng.choice([0, 0, 1, 5])):
                await asyncio.sleep(0)
            if rng.random() < 0.1:
                leaver = rng.choice(sorted(writes))
                if not writes[leaver].done.done():
                    gone[leaver] = leaver in node.sent
                    writes[leaver].done.set_exception(writes[leaver].expired())
                    writes[leaver].done.exception()
        queue.close()
        await task
    assert sorted(resolved) == sorted(writes), "each exactly once"
    assert (queue.operations, queue.bytes) == (0, 0)
    applied = [name for name, refused in node.outcomes.items() if not refused]
    acknowledged = [name for name, one in writes.items() if one.done.exception() is None]
    assert list(node.outcomes) == sorted(node.outcomes), "invariant 5: applied in arrival order"
    assert set(acknowledged) <= set(applied)
    for name, one in writes.items():
        _check(node, name, one, list(node.outcomes))
    assert not {name for name, sent in gone.items() if not sent} & set(node.outcomes)
