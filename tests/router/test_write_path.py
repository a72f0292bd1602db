"""Writes over real gRPC: split, repeated at newer epochs, told truly; the dimension settled."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from chroma_router.v1 import shard_pb2, types_pb2
from chroma_router.wire.errors import (
    ClusterError,
    InvalidRequest,
    OutcomeUnknown,
    Overloaded,
    Reason,
    Unavailable,
    detail_of,
)
from router import fences, write_path
from router.core.model import CollectionEntry, DimensionState
from router.write_course import MAX_REPORTED_BYTES, Course
from tests.router.scripted import Reads, Rig, an_add, away, ids_on, refuse, rig, wait_for

pytestmark = pytest.mark.timeout(15)


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def spread(entry: CollectionEntry, number: int = 2) -> list[str]:
    """So many ids on each shard, mixed."""
    parts = [ids_on(entry.slot_map, shard, number) for shard in entry.slot_map.shards]
    return [record_id for row in zip(*parts, strict=True) for record_id in row]


def outcome_of(error: ClusterError) -> types_pb2.WriteOutcome:
    outcome = detail_of(error, types_pb2.WriteOutcome)
    assert outcome is not None, "invariant 8: a write that failed says what became of it"
    return outcome


async def state_of(router: Rig, entry: CollectionEntry) -> DimensionState:
    return (await router.catalog.collection(entry.id)).dimension_state


# -------------------------------------------------------------------------------- the plain case


async def test_each_shard_gets_its_records_in_their_order(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        ids = spread(entry, 3)
        write = an_add(ids)
        assert await router.writes.write(entry, write, None, soon()) == len(ids)
        for name, shard in router.shards.items():
            (operation,) = shard.applied
            places = [n for n, i in enumerate(ids) if i in ids_on(entry.slot_map, name, 3)]
            assert list(operation.ids) == [ids[n] for n in places]
            assert list(operation.records) == [write.records[n] for n in places]
            assert list(operation.sequences) == [write.sequences[n] for n in places]
            assert operation.request_id == write.request_id
            assert operation.epoch == entry.slot_map.epoch


async def test_a_delete_by_condition_goes_to_all_shards_and_one_of_no_ids_to_none(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        delete = shard_pb2.OPERATION_KIND_DELETE
        everywhere = an_add([], kind=delete, where='{"a": 1}', to_all_shards=True)
        await router.writes.write(entry, everywhere, None, soon())
        assert [len(shard.applied) for shard in router.shards.values()] == [1, 1]
        assert await router.writes.write(entry, an_add([], kind=delete), None, soon()) == 0
        assert [len(shard.applied) for shard in router.shards.values()] == [1, 1]


# ---------------------------------------------------------------------------- newer boots, epochs


async def test_a_restarted_node_is_given_its_ownership_and_the_part_is_repeated(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        old = one.restart()
        write = an_add(spread(entry))
        await router.writes.write(entry, write, None, soon())
        assert one.requests("SetOwnership")[-1].boot_id == one.boot_id != old
        tries = [request.operations[0] for request in one.requests("Apply")]
        assert len(tries) == 2
        assert tries[0] == tries[1], "the same operation under the same identity"
        assert [len(shard.applied) for shard in (one, two)] == [1, 1]
        assert len(two.requests("Apply")) == 1, "what was applied is not sent again"


async def test_records_follow_their_slots_to_another_shard(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        moved = await router.move(entry, to="shard-2")
        for shard in (one, two):
            shard.epochs[entry.id] = moved.slot_map.epoch
        ids = spread(entry)
        await router.writes.write(entry, an_add(ids), None, soon())
        assert not one.applied
        assert sorted(i for operation in two.applied for i in operation.ids) == sorted(ids)
        assert {operation.epoch for operation in two.applied} == {2}


async def test_a_map_that_never_rests_ends_in_an_error_that_says_so(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        router.shards["shard-1"].then("Apply", *(refuse(Reason.STALE_EPOCH, 1) for _ in range(50)))
        with pytest.raises(Unavailable, match="kept changing") as failed:
            await router.writes.write(entry, an_add(["a"]), None, soon(10))
        assert failed.value.retry_after


async def test_a_node_that_restarts_during_its_grant_is_asked_again(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        (node,) = router.shards.values()
        node.restart()

        async def restarts(_: object) -> None:
            node.restart()

        node.then("SetOwnership", restarts)
        await router.writes.write(entry, an_add(["a"]), None, soon())
        assert len(node.applied) == 1


async def test_a_grant_that_hangs_does_not_hold_a_write_past_its_deadline(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        (node,) = router.shards.values()
        node.restart()
        gate = asyncio.Event()
        node.then("SetOwnership", wait_for(gate))
        try:
            async with asyncio.timeout(1.0):
                with pytest.raises(ClusterError):
                    await router.writes.write(entry, an_add(["a"]), None, soon(0.2))
        finally:
            gate.set()


# ---------------------------------------------------------------------------------------- fences


async def test_what_a_fence_refuses_is_held_and_goes_to_the_new_owner(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        one.fence(entry)
        ids = spread(entry)
        write = asyncio.create_task(router.writes.write(entry, an_add(ids), None, soon()))
        await one.arrival("Apply")
        router.directory.remember(await router.move(entry, to="shard-2"))
        await write
        assert not one.applied
        assert sorted(i for operation in two.applied for i in operation.ids) == sorted(ids)
        assert [operation.epoch for operation in two.applied] == [1, 2], "what was applied stays"


async def test_200_held_writes_read_the_catalog_seldom_and_all_go_on_at_the_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        one.fence(entry)
        reads = Reads(router.catalog, monkeypatch)
        fenced = ids_on(entry.slot_map, "shard-1", 200)
        writes = [
            asyncio.create_task(router.writes.write(entry, an_add([i]), None, soon()))
            for i in fenced
        ]
        while router.directory._fences.held(entry.id) < 200:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)
        # Neither another collection nor other slots of this one are held up meanwhile.
        other = await router.collection("shard-1", name="others")
        await router.writes.write(other, an_add(["x"]), None, soon(1))
        free = ids_on(entry.slot_map, "shard-2", 1)
        await router.writes.write(entry, an_add(free), None, soon(1))
        assert not any(write.done() for write in writes)
        assert router.cluster.shard("shard-1").queue.operations == 0, "they wait outside the queue"
        moved = await router.move(entry, to="shard-2")
        router.directory.remember(moved)
        errors = await router.directory.grant_all(moved, ["shard-1"])
        assert not errors
        await asyncio.gather(*writes)
        applied = [i for operation in two.applied for i in operation.ids]
        assert sorted(applied) == sorted([*free, *fenced])
        assert not [o for o in one.applied if o.collection_id == entry.id]
        assert reads.number <= 40


async def test_a_write_that_a_fence_holds_past_its_deadline_was_not_applied_and_says_so(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        one.fence(entry)
        with pytest.raises(Unavailable, match="was not applied; repeat") as failed:
            await router.writes.write(entry, an_add(spread(entry)), None, soon(0.4))
        outcome = outcome_of(failed.value)
        assert failed.value.retry_after
        assert list(outcome.refused_shards) == ["shard-1"]
        assert list(outcome.applied_shards) == ["shard-2"]
        assert not outcome.unknown_shards
        assert len(two.applied) == 1


async def test_a_write_whose_first_try_was_lost_stays_in_doubt_behind_a_fence(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        (node,) = router.shards.values()

        async def applies_and_is_fenced(request: shard_pb2.ApplyRequest) -> None:
            node.apply_now(request)
            node.fence(entry)
            raise away()

        node.then("Apply", applies_and_is_fenced)
        with pytest.raises(Unavailable) as failed:
            await router.writes.write(entry, an_add(["a"]), None, soon(0.5))
        assert list(outcome_of(failed.value).unknown_shards) == ["shard-1"]


async def test_a_fence_wears_out_no_rounds_and_one_that_is_lifted_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fences, "PATIENCE_BASE", 0.005)
    monkeypatch.setattr(fences, "PATIENCE_CAP", 0.005)
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        (node,) = router.shards.values()
        refusals = [refuse(Reason.SLOTS_FENCED, 1) for _ in range(2 * write_path.STALE_ROUNDS)]
        node.then("Apply", *refusals)
        await router.writes.write(entry, an_add(["a"]), None, soon())
        assert len(node.applied) == 1
        assert len({o.SerializeToString() for o in node.applied}) == 1


async def test_a_write_that_is_held_for_long_holds_its_records_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fences, "PATIENCE_BASE", 0.005)
    monkeypatch.setattr(fences, "PATIENCE_CAP", 0.005)
    made: list[Course] = []

    def course() -> Course:
        made.append(Course())
        return made[-1]

    monkeypatch.setattr(write_path, "Course", course)
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, _ = router.shards.values()
        one.fence(entry)
        write = asyncio.create_task(router.writes.write(entry, an_add(spread(entry)), None, soon()))
        for _ in range(30):
            await one.arrival("Apply")
            assert len(made[0].parts) <= 2
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write


async def test_held_writes_for_which_a_queue_has_no_room_wait_for_it(tmp_path: Path) -> None:
    """They were let in once: that a switch lets all of them go on at once is nobody's fault."""
    async with rig(tmp_path, queue_operations=4) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        one.fence(entry)
        fenced = ids_on(entry.slot_map, "shard-1", 12)
        writes = []
        for i in fenced:
            queue = router.cluster.shard("shard-1").queue
            while queue.operations == 4:  # noqa: ASYNC110 - the queue has no event for it
                await asyncio.sleep(0.001)
            writes.append(
                asyncio.create_task(router.writes.write(entry, an_add([i]), None, soon(10)))
            )
            await asyncio.sleep(0)
        while router.directory._fences.held(entry.id) < 12:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.001)
        router.directory.remember(await router.move(entry, to="shard-2"))
        await asyncio.gather(*writes)
        assert sorted(i for operation in two.applied for i in operation.ids) == sorted(fenced)


async def test_writes_that_waited_for_the_old_owner_wait_for_room_at_the_new_one(
    tmp_path: Path,
) -> None:
    """No fence has held them: the old owner refuses them when it has lost the slots already."""
    async with rig(tmp_path, queue_operations=4) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        busy, refused = asyncio.Event(), asyncio.Event()
        two.then("Apply", wait_for(busy))
        ids = [ids_on(entry.slot_map, shard, 4) for shard in ("shard-1", "shard-2")]
        moved = await router.move(entry, to="shard-2")
        one.epochs[entry.id] = moved.slot_map.epoch
        one.then("Apply", wait_for(refused))
        writes = [
            asyncio.create_task(router.writes.write(entry, an_add([i]), None, soon(5)))
            for i in (*ids[0], *ids[1])
        ]
        await one.arrival("Apply")
        await two.arrival("Apply")
        refused.set()
        queue = router.cluster.shard("shard-1").queue
        while queue.operations:  # noqa: ASYNC110 - the queue has no event for it
            await asyncio.sleep(0.001)
        assert router.cluster.shard("shard-2").queue.operations == 4, "there is no room"
        busy.set()
        await asyncio.gather(*writes)
        applied = [i for operation in two.applied for i in operation.ids]
        assert sorted(applied) == sorted(ids[0] + ids[1])


async def test_a_node_with_a_full_queue_is_given_its_ownership_later(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        (node,) = router.shards.values()
        node.restart()
        node.then("SetOwnership", Overloaded("scripted: full", retry_after=0.1))
        await router.writes.write(entry, an_add(["a"]), None, soon())
        assert len(node.applied) == 1


@pytest.mark.parametrize("end", ["cancelled", "deadline"])
async def test_a_held_write_that_ends_leaves_nothing_behind(tmp_path: Path, end: str) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        (node,) = router.shards.values()
        node.fence(entry)
        deadline = soon(0.3 if end == "deadline" else 5.0)
        write = asyncio.create_task(router.writes.write(entry, an_add(["a"]), 3, deadline))
        await node.arrival("Apply")
        while not router.directory._fences.held(entry.id):  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0)
        if end == "cancelled":
            write.cancel()
        with pytest.raises((asyncio.CancelledError, Unavailable)):
            await write
        assert router.directory._fences.held(entry.id) == 0
        assert router.cluster.shard("shard-1").queue.operations == 0
        assert await state_of(router, entry) is DimensionState.NONE, "the claim is given back"


# ------------------------------------------------------------------- deletes that count


async def test_a_conditional_delete_is_asked_of_all_again_when_one_part_is_stale(
    tmp_path: Path,
) -> None:
    """Shards that have applied it answer from memory; answers of one epoch are added."""
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        two.then("Apply", refuse(Reason.STALE_EPOCH, 0))
        delete = an_add(
            spread(entry),
            kind=shard_pb2.OPERATION_KIND_DELETE,
            records=(),
            sequences=(),
            where="{}",
        )
        assert await router.writes.write(entry, delete, None, soon()) == len(delete.ids)
        assert [len(shard.requests("Apply")) for shard in (one, two)] == [2, 2]


async def test_a_conditional_delete_that_some_have_applied_is_in_doubt_once_it_is_repeated(
    tmp_path: Path,
) -> None:
    """Before the repeat is sent the first round's answers stand; after that a shard that says no
    more may have applied it, and did."""
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        delete = an_add(
            [], kind=shard_pb2.OPERATION_KIND_DELETE, records=(), sequences=(), where="{}",
            to_all_shards=True,
        )  # fmt: skip
        two.fence(entry)
        with pytest.raises(Unavailable) as failed:
            await router.writes.write(entry, delete, None, soon(0.05))
        assert list(outcome_of(failed.value).applied_shards) == ["shard-1"]
        assert list(outcome_of(failed.value).refused_shards) == ["shard-2"]

        async def applies(request: shard_pb2.ApplyRequest) -> object:
            return one.apply_now(request)

        one.then("Apply", applies, *(away() for _ in range(100)))
        with pytest.raises(Unavailable) as failed:
            await router.writes.write(entry, delete, None, soon(0.5))
        outcome = outcome_of(failed.value)
        assert "shard-1" in outcome.unknown_shards
        assert not outcome.refused_shards or list(outcome.refused_shards) == ["shard-2"]


async def test_a_conditional_delete_that_a_shard_refuses_for_good_is_not_repeated(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        one.then("Apply", refuse(Reason.INVALID_ARGUMENT))
        two.fence(entry)
        delete = an_add(
            [], kind=shard_pb2.OPERATION_KIND_DELETE, records=(), sequences=(), where="{}",
            to_all_shards=True,
        )  # fmt: skip
        with pytest.raises(InvalidRequest) as failed:
            await router.writes.write(entry, delete, None, soon())
        assert list(outcome_of(failed.value).refused_shards) == ["shard-1", "shard-2"]
        assert [len(shard.requests("Apply")) for shard in (one, two)] == [1, 1]


# ---------------------------------------------------------------------------- failures tell truth


async def test_a_partial_failure_says_what_became_of_each_part(tmp_path: Path) -> None:
    async with rig(tmp_path, 3) as router:
        entry = await router.collection()
        router.shards["shard-2"].then("Apply", refuse(Reason.INVALID_ARGUMENT))
        router.shards["shard-3"].then("Apply", refuse(Reason.UNKNOWN_OUTCOME))
        ids = {name: ids_on(entry.slot_map, name, 2) for name in router.shards}
        write = an_add([i for part in ids.values() for i in part])
        with pytest.raises(InvalidRequest) as failed:
            await router.writes.write(entry, write, None, soon())
        outcome = outcome_of(failed.value)
        assert outcome.request_id == write.request_id == failed.value.metadata["request_id"]
        assert list(outcome.applied_shards) == ["shard-1"]
        assert list(outcome.refused_shards) == ["shard-2"]
        assert list(outcome.unknown_shards) == ["shard-3"]
        assert list(outcome.refused_ids) == ids["shard-2"]
        assert list(outcome.unknown_ids) == ids["shard-3"]
        assert "applied: shard-1; refused: shard-2; unknown: shard-3" in failed.value.message


async def test_error_priority_a_refusal_then_a_lost_outcome_then_what_may_be_repeated(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, 3) as router:
        entry = await router.collection()
        ids = spread(entry, 1)
        names = list(router.shards)
        reasons = [Reason.ENGINE_FAILED, Reason.UNKNOWN_OUTCOME, Reason.INVALID_ARGUMENT]
        expected = [Unavailable, OutcomeUnknown, InvalidRequest]
        for worst in range(3):
            for name, reason in zip(names, reasons[: worst + 1], strict=False):
                router.shards[name].then("Apply", refuse(reason))
            with pytest.raises(expected[worst]) as failed:
                await router.writes.write(entry, an_add(ids), None, soon())
            assert failed.value.reason is reasons[worst]


async def test_a_node_that_never_answers_leaves_its_part_unknown(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        router.shards["shard-2"].then("Apply", *(away() for _ in range(100)))
        with pytest.raises(Unavailable, match="did not say in time") as failed:
            await router.writes.write(entry, an_add(spread(entry)), None, soon(0.3))
        outcome = outcome_of(failed.value)
        assert list(outcome.applied_shards) == ["shard-1"]
        assert list(outcome.unknown_shards) == ["shard-2"]
        assert not outcome.refused_shards
        assert failed.value.retry_after


async def test_the_lists_of_ids_stay_within_their_bytes(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        router.shards["shard-1"].then("Apply", refuse(Reason.INVALID_ARGUMENT))
        ids = [f"{n:03}" + "é" * 50 for n in range(100)]
        with pytest.raises(InvalidRequest) as failed:
            await router.writes.write(entry, an_add(ids), None, soon())
        reported = list(outcome_of(failed.value).refused_ids)
        assert reported == ids[: len(reported)]
        size = len(ids[0].encode())
        assert MAX_REPORTED_BYTES - size < len(reported) * size <= MAX_REPORTED_BYTES


async def test_a_full_queue_of_one_shard_keeps_the_write_from_all(tmp_path: Path) -> None:
    async with rig(tmp_path, queue_operations=1) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        gate = asyncio.Event()
        two.then("Apply", wait_for(gate))
        busy = asyncio.create_task(
            router.writes.write(entry, an_add(ids_on(entry.slot_map, "shard-2", 1)), None, soon())
        )
        await two.arrival("Apply")
        with pytest.raises(Overloaded) as full:
            await router.writes.write(entry, an_add(spread(entry)), 3, soon())
        assert full.value.reason is Reason.QUEUE_FULL
        assert full.value.retry_after
        assert router.cluster.shard("shard-1").queue.operations == 0
        assert await state_of(router, entry) is DimensionState.NONE, "the claim is given back"
        gate.set()
        await busy
        assert not one.requests("Apply")
        assert len(two.applied) == 1


async def test_a_queue_that_is_full_for_the_repeat_does_not_hide_what_was_applied(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, queue_operations=1) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        two.restart()
        gate, granting = asyncio.Event(), asyncio.Event()

        async def grant_waits(_: object) -> None:
            granting.set()
            await gate.wait()

        two.then("SetOwnership", grant_waits)
        adding = router.writes.write(entry, an_add(spread(entry)), None, soon(1.0))
        write = asyncio.create_task(adding)
        await granting.wait()
        hold = asyncio.Event()
        two.then("Apply", wait_for(hold))
        await two.arrival("Apply")
        other = await router.collection("shard-2", name="others")
        busy = asyncio.create_task(router.writes.write(other, an_add(["x"]), None, soon()))
        await two.arrival("Apply")
        gate.set()
        try:
            with pytest.raises(Overloaded) as failed:
                await write
        finally:
            hold.set()
            await busy
        assert len(one.applied) == 1
        assert list(outcome_of(failed.value).applied_shards) == ["shard-1"]


async def test_a_shard_that_refused_its_second_part_is_not_reported_as_applied(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        moved = await router.move(entry, to="shard-1")
        two.epochs[entry.id] = moved.slot_map.epoch

        async def applies_and_moves_on(request: shard_pb2.ApplyRequest) -> object:
            answer = one.apply_now(request)
            one.epochs[entry.id] = moved.slot_map.epoch
            return answer

        one.then("Apply", applies_and_moves_on, refuse(Reason.INVALID_ARGUMENT))
        with pytest.raises(InvalidRequest) as failed:
            await router.writes.write(entry, an_add(spread(entry)), None, soon())
        outcome = outcome_of(failed.value)
        assert list(outcome.refused_shards) == ["shard-1"]
        assert not outcome.applied_shards


async def test_a_lost_try_stays_in_doubt_when_its_repeat_was_not_sent(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        (node,) = router.shards.values()
        deadline = soon(0.5)

        async def applies_and_dies(request: shard_pb2.ApplyRequest) -> None:
            node.apply_now(request)
            node.restart()
            raise away()

        async def slow_grant(_: object) -> None:
            await asyncio.sleep(deadline - time.monotonic())

        node.then("Apply", applies_and_dies)
        node.then("SetOwnership", slow_grant)
        with pytest.raises(Unavailable) as failed:
            await router.writes.write(entry, an_add(["a"]), 3, deadline)
        assert len(node.applied) == 1
        assert list(outcome_of(failed.value).unknown_shards) == ["shard-1"]
        assert await state_of(router, entry) is DimensionState.PROPOSED


# ------------------------------------------------------------------------------------- dimension


async def test_the_dimension_is_fixed_after_a_success(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        await router.writes.write(entry, an_add(spread(entry)), 3, soon())
        assert await state_of(router, entry) is DimensionState.FIXED
        known = await router.directory.resolve(types_pb2.CollectionRef(id=entry.id))
        assert known.dimension == 3
        with pytest.raises(InvalidRequest, match="dimension of 3, got 4"):
            await router.writes.write(known, an_add(["b"]), 4, soon())
        with pytest.raises(InvalidRequest, match="dimension of 3, got 4"):
            await router.writes.write(entry, an_add(["b"]), 4, soon())


async def test_a_refused_first_write_leaves_no_dimension(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        for shard in router.shards.values():
            shard.then("Apply", refuse(Reason.INVALID_ARGUMENT))
        with pytest.raises(InvalidRequest):
            await router.writes.write(entry, an_add(spread(entry)), 3, soon())
        assert await state_of(router, entry) is DimensionState.NONE
        known = await router.directory.resolve(types_pb2.CollectionRef(id=entry.id))
        assert known.dimension is None
        await router.writes.write(known, an_add(spread(entry)), 4, soon())
        assert (await router.catalog.collection(entry.id)).dimension == 4


async def test_an_unknown_first_write_keeps_the_proposal(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        one.then("Apply", refuse(Reason.INVALID_ARGUMENT))
        two.then("Apply", *(away() for _ in range(100)))
        with pytest.raises(InvalidRequest):
            await router.writes.write(entry, an_add(spread(entry)), 3, soon(0.3))
        assert await state_of(router, entry) is DimensionState.PROPOSED
        with pytest.raises(InvalidRequest):
            await router.writes.write(entry, an_add(spread(entry)), 4, soon())


async def test_a_partly_applied_first_write_fixes_the_dimension(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        router.shards["shard-1"].then("Apply", refuse(Reason.INVALID_ARGUMENT))
        with pytest.raises(InvalidRequest):
            await router.writes.write(entry, an_add(spread(entry)), 3, soon())
        assert await state_of(router, entry) is DimensionState.FIXED


# ---------------------------------------------------------------------------------- cancellation


async def _cancelled(
    router: Rig, entry: CollectionEntry, when: Callable[[], Awaitable[object]]
) -> None:
    write = asyncio.create_task(router.writes.write(entry, an_add(spread(entry)), 3, soon()))
    await when()
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write


async def test_a_write_cancelled_on_its_way_keeps_the_proposal(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        gate = asyncio.Event()
        nodes = list(router.shards.values())
        for shard in nodes:
            shard.then("Apply", wait_for(gate))
        try:
            await _cancelled(
                router,
                entry,
                lambda: asyncio.gather(*(shard.arrival("Apply") for shard in nodes)),
            )
            assert await state_of(router, entry) is not DimensionState.NONE
        finally:
            gate.set()


async def test_a_write_cancelled_in_the_queue_is_never_sent_and_gives_its_claim_back(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await router.collection()
        (node,) = router.shards.values()
        gate = asyncio.Event()
        node.then("Apply", wait_for(gate))
        busy = asyncio.create_task(router.writes.write(entry, an_add(["busy"]), None, soon()))
        await node.arrival("Apply")
        queue = router.cluster.shard("shard-1").queue
        write = asyncio.create_task(router.writes.write(entry, an_add(["late"]), 3, soon()))
        while queue.operations < 2:  # noqa: ASYNC110 - the queue has no event for it
            await asyncio.sleep(0)
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write
        assert await state_of(router, entry) is DimensionState.NONE
        gate.set()
        await busy
        await router.writes.write(entry, an_add(["after"]), None, soon())
        assert [list(operation.ids) for operation in node.applied] == [["busy"], ["after"]]
        assert queue.operations == 0
