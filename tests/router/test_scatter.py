"""Reads over real gRPC: one epoch for one answer, patience with bounds, the error to act on."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    InvalidRequest,
    Overloaded,
    Reason,
    Stale,
    Unavailable,
)
from router import fences, scatter
from router.cluster import Shard
from router.core.limits import Limits
from router.core.model import CollectionEntry
from router.record_reads import RecordReads
from router.scatter import ReadCall, ReadPath
from tests.router.scripted import Rig, away, rig, wait_for

pytestmark = pytest.mark.timeout(15)


async def count(router: Rig, entry: CollectionEntry, seconds: float = 5.0) -> list[int]:
    """The shards' counts, read as RecordService reads them."""
    reads = ReadPath(router.cluster, router.directory)
    deadline = time.monotonic() + seconds

    async def read(entry: CollectionEntry) -> list[shard_pb2.ShardCountResponse]:
        part = shard_pb2.ShardCountRequest(collection_id=entry.id, epoch=entry.slot_map.epoch)
        return await reads.scatter(
            dict.fromkeys(entry.slot_map.shards, part),
            lambda shard, part: shard.client.count(part, max(0.001, deadline - time.monotonic())),
        )

    return [answer.count for answer in await reads.consistently(entry, deadline, read)]


async def test_answers_come_in_the_order_of_the_requests(tmp_path: Path) -> None:
    async with rig(tmp_path, 3) as router:
        entry = await router.collection()
        gate = asyncio.Event()

        def counts(number: int, *, last: bool) -> object:
            async def step(_: object) -> shard_pb2.ShardCountResponse:
                await gate.wait() if not last else gate.set()
                return shard_pb2.ShardCountResponse(count=number)

            return step

        for number, shard in enumerate(router.shards.values()):
            shard.then("ShardCount", counts(number, last=number == 2))  # type: ignore[arg-type]
        assert await count(router, entry) == [0, 1, 2]


async def test_nothing_to_ask_is_no_answer(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router:
        reads = ReadPath(router.cluster, router.directory)

        async def never(_shard: Shard, _request: object) -> None:
            raise AssertionError

        assert await reads.scatter({}, never) == []


async def test_the_whole_read_is_repeated_at_the_newer_epoch(tmp_path: Path) -> None:
    """Invariant 3: also a shard that had answered is asked again."""
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        reassigned = entry.slot_map.reassigned([0], "shard-2")
        await router.catalog.replace_slot_map(await router.catalog.collection(entry.id), reassigned)
        answered = asyncio.Event()

        async def old_answer(_: object) -> shard_pb2.ShardCountResponse:
            answered.set()
            return shard_pb2.ShardCountResponse(count=99)

        async def refuses(_: object) -> None:
            await answered.wait()
            two.epochs[entry.id] = 2

        one.then("ShardCount", old_answer)
        two.then("ShardCount", refuses)
        assert await count(router, entry) == [10, 10]
        epochs = [request.epoch for request in one.requests("ShardCount")]
        assert epochs[0] == 1
        assert epochs[-1] == 2
        assert one.requests("SetOwnership")[-1].definition.collection.epoch == 2


async def test_a_restarted_node_costs_no_error(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        for shard in router.shards.values():
            shard.restart()
        assert await count(router, entry) == [10, 10]


async def test_a_node_that_refuses_for_ever_is_not_asked_for_ever(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        (node,) = router.shards.values()
        node.then("ShardCount", *(node.stale(1) for _ in range(50)))
        with pytest.raises(Unavailable, match="kept changing"):
            await count(router, entry)
        assert len(node.requests("ShardCount")) == scatter.ROUNDS


async def test_a_shard_that_comes_back_within_the_window_is_waited_for(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        router.shards["shard-1"].then("ShardCount", away(), away())
        assert await count(router, entry) == [10, 10]


@pytest.mark.parametrize(("window", "deadline"), [(0.3, 5.0), (5.0, 0.3)])
async def test_a_shard_that_stays_away_is_waited_for_as_long_as_the_window_or_the_deadline(
    tmp_path: Path, window: float, deadline: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scatter, "UNAVAILABLE_WINDOW", window)
    async with rig(tmp_path) as router:
        entry = await router.collection()
        router.shards["shard-1"].then("ShardCount", *(away() for _ in range(100)))
        began = time.monotonic()
        with pytest.raises((Unavailable, DeadlineExpired)) as failed:
            await count(router, entry, deadline)
        assert 0.2 < time.monotonic() - began < 1.5
        if window < deadline:
            assert failed.value.metadata["shard"] == "shard-1"
            assert failed.value.retry_after


async def test_a_shard_that_says_nothing_ends_in_the_deadline(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        gate = asyncio.Event()
        router.shards["shard-1"].then("ShardCount", wait_for(gate))
        with pytest.raises(DeadlineExpired):
            await count(router, entry, 0.2)
        gate.set()


async def test_what_cannot_succeed_is_not_repeated(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one = router.shards["shard-1"]
        one.then("ShardCount", InvalidRequest("scripted"))
        with pytest.raises(InvalidRequest) as failed:
            await count(router, entry)
        assert failed.value.metadata["shard"] == "shard-1"
        assert len(one.requests("ShardCount")) == 1


async def test_a_node_whose_queue_is_full_is_asked_again(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        full = Overloaded("reads wait for the engine", Reason.QUEUE_FULL, retry_after=0.1)
        router.shards["shard-1"].then("ShardCount", full)
        assert await count(router, entry) == [10, 10]


async def test_a_node_that_restarts_during_its_grant_costs_no_error(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        (node,) = router.shards.values()
        node.restart()

        async def restarts(_: object) -> None:
            node.restart()

        node.then("SetOwnership", restarts)
        assert await count(router, entry) == [10]


async def test_a_node_that_goes_away_during_its_grant_is_waited_for(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        (node,) = router.shards.values()
        node.restart()
        node.then("Hello", away())
        assert await count(router, entry) == [10]


async def test_a_grant_that_hangs_does_not_hold_a_read_past_its_deadline(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        (node,) = router.shards.values()
        node.restart()
        gate = asyncio.Event()
        node.then("SetOwnership", wait_for(gate))
        try:
            async with asyncio.timeout(1.0):
                with pytest.raises(DeadlineExpired):
                    await count(router, entry, 0.2)
        finally:
            gate.set()


# --------------------------------------------------------------------------------------- fences


async def test_a_fenced_read_is_held_until_the_switch_and_costs_no_error(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one = router.shards["shard-1"]
        one.fence(entry, reads=True)
        reading = asyncio.create_task(count(router, entry))
        await one.arrival("ShardCount")
        moved = await router.move(entry, to="shard-2")
        router.directory.remember(moved)
        assert await reading == [10]
        assert router.shards["shard-2"].requests("ShardCount")[-1].epoch == 2


async def test_a_fence_wears_out_neither_rounds_nor_the_window_for_shards_that_are_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fences, "PATIENCE_BASE", 0.01)
    monkeypatch.setattr(fences, "PATIENCE_CAP", 0.01)
    monkeypatch.setattr(scatter, "UNAVAILABLE_WINDOW", 0.2)
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        (node,) = router.shards.values()
        fenced = node.stale(1, Reason.SLOTS_FENCED)
        node.then("ShardCount", *[fenced] * (2 * scatter.ROUNDS), away())
        began = time.monotonic()
        assert await count(router, entry) == [10]
        assert time.monotonic() - began > 0.2, "longer than the window for the shard that was away"


async def test_a_shard_that_goes_away_behind_its_fence_is_waited_for_as_long_as_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scatter, "UNAVAILABLE_WINDOW", 0.5)
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        (node,) = router.shards.values()
        node.then("ShardCount", node.stale(1, Reason.SLOTS_FENCED), *(away() for _ in range(99)))
        began = time.monotonic()
        with pytest.raises(Unavailable, match="away"):
            await count(router, entry, 10.0)
        assert time.monotonic() - began < 3.0


async def test_a_fence_that_does_not_end_holds_a_read_until_its_deadline(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        router.shards["shard-1"].fence(entry, reads=True)
        began = time.monotonic()
        with pytest.raises(DeadlineExpired):
            await count(router, entry, 0.4)
        assert 0.3 < time.monotonic() - began < 1.0


async def test_a_partial_read_leaves_a_shard_out_whose_fence_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scatter, "straggler_patience", lambda *_: 0.3)
    async with rig(tmp_path) as router:
        entry = await router.collection()
        router.shards["shard-1"].fence(entry, reads=True)
        call = ReadCall(time.monotonic() + 10, allow_partial=True)
        reads = RecordReads(router.directory, ReadPath(router.cluster, router.directory), Limits())
        began = time.monotonic()
        assert await reads.count(call, entry) == 10
        assert 0.25 < time.monotonic() - began < 2.0
        assert list(call.missing) == ["shard-1"]
        assert "moving away" in call.missing["shard-1"].message


async def test_a_partial_read_has_its_patience_for_each_of_several_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scatter, "straggler_patience", lambda *_: 0.5)
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one = router.shards["shard-1"]

        async def fenced_for_the_next(request: shard_pb2.SetOwnershipRequest) -> object:
            answer = one._own(request)
            one.fence(await router.catalog.collection(entry.id), reads=True)
            return answer

        one.fence(entry, reads=True)
        one.then("SetOwnership", fenced_for_the_next)
        call = ReadCall(time.monotonic() + 10, allow_partial=True)
        reads = RecordReads(router.directory, ReadPath(router.cluster, router.directory), Limits())
        counting = asyncio.create_task(reads.count(call, entry))
        for slot in (0, 2):
            await asyncio.sleep(0.35)  # a fence that lasts for most of the patience
            present = await router.catalog.collection(entry.id)
            slot_map = present.slot_map.reassigned([slot], "shard-2")
            router.directory.remember(await router.catalog.replace_slot_map(present, slot_map))
        assert await counting == 20
        assert not call.missing


async def test_a_read_whose_map_names_a_removed_shard_is_made_with_the_newest(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        await router.move(entry, to="shard-2")
        await router.forget_shard("shard-1")
        await router.cluster.refresh()
        assert await count(router, entry) == [10]


_REFUSED = InvalidRequest("refused")
_FENCED = Stale("fenced", Reason.SLOTS_FENCED, metadata={"shard": "shard-1"})
_STALE = Stale("stale", metadata={"shard": "shard-1"})
_AWAY = Unavailable("away")


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([_AWAY, _STALE, _REFUSED], _REFUSED),
        ([_STALE, _REFUSED, _AWAY], _REFUSED),
        ([_AWAY, _STALE, _AWAY], _STALE),
        ([_AWAY, _AWAY, _AWAY], _AWAY),
        ([_FENCED, _AWAY, _STALE], _STALE),
        ([_AWAY, _FENCED, _AWAY], _FENCED),
    ],
)
async def test_of_several_errors_the_one_to_act_on_is_raised(
    tmp_path: Path, errors: Sequence[ClusterError], expected: ClusterError
) -> None:
    async with rig(tmp_path, 3) as router:
        reads = ReadPath(router.cluster, router.directory)
        together = asyncio.Barrier(3)

        async def call(_shard: Shard, error: ClusterError) -> None:
            await together.wait()
            raise error

        with pytest.raises(type(expected)) as failed:
            await reads.scatter(dict(zip(router.shards, errors, strict=True)), call)
        assert failed.value is expected


@pytest.mark.parametrize("allow_partial", [False, True])
async def test_a_timeout_further_out_still_works_after_rounds_that_failed(
    tmp_path: Path, allow_partial: bool
) -> None:
    """Before Python 3.13 a TaskGroup in which a task fails leaves its owner counted as cancelled;
    a timeout around it then ends the call as if its client had gone away."""
    async with rig(tmp_path) as router:
        entry = await router.collection()
        for shard in router.shards.values():
            shard.restart()
        reads = RecordReads(router.directory, ReadPath(router.cluster, router.directory), Limits())

        async def hangs_afterwards() -> None:
            async with asyncio.timeout(0.3):
                call = ReadCall(time.monotonic() + 10, allow_partial=allow_partial)
                assert await reads.count(call, entry) == 20
                await asyncio.Event().wait()

        with pytest.raises(TimeoutError):
            await hangs_afterwards()


@pytest.mark.parametrize("end", ["cancelled", "failed"])
async def test_calls_under_way_end_with_the_read(tmp_path: Path, end: str) -> None:
    async with rig(tmp_path, 2) as router:
        reads = ReadPath(router.cluster, router.directory)
        begun, ended = asyncio.Event(), asyncio.Event()

        async def call(shard: Shard, _request: None) -> None:
            if shard.name == "shard-1":
                begun.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()
            await begun.wait()
            if end == "failed":
                raise _REFUSED
            await asyncio.Event().wait()

        task = asyncio.create_task(reads.scatter(dict.fromkeys(router.shards), call))
        await begun.wait()
        if end == "cancelled":
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, InvalidRequest):
            await task
        assert ended.is_set()
