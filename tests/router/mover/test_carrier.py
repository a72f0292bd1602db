"""Each step of a run becomes the right calls, under its token and from its place in the stream."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import ClusterError, NotAllowed, Reason, Stale, Unavailable
from router.core import move as steps
from router.core.move import Move, Stage
from router.core.pace import Pace
from router.mover import carrier as carriers
from router.mover.carrier import DROP_RECORDS, TAIL_RECORDS, Carrier
from tests.router.mover.moving import Held, Moving, moving, slots_of
from tests.router.scripted import away

pytestmark = pytest.mark.timeout(30)

BEGINNING = shard_pb2.MoveCursor()


async def _entered(one: Carrier, upto: Stage) -> Move:
    """The move is at that stage in the catalog; nothing of it was done at the nodes."""
    for stage in (Stage.COPYING, Stage.CATCHING_UP, Stage.VERIFIED, Stage.FENCED):
        await one.do(steps.Enter(stage))
        if stage is upto:
            break
    return one.move


async def _ready(one: Carrier) -> None:
    """The target is ready for the first chunk."""
    arrived = await one.do(steps.Arrive())
    assert arrived == steps.Arrived(BEGINNING, ready=False, copy_done=False)
    assert await one.do(steps.Drop(one.move.target)) is True
    assert await one.do(steps.Arrive()) == steps.Arrived(BEGINNING, ready=True, copy_done=False)


def _transferred(answer: steps.Answer) -> steps.Transferred:
    assert isinstance(answer, steps.Transferred)
    return answer


def _copied(cursor: steps.Cursor) -> int:
    assert isinstance(cursor, shard_pb2.MoveCursor)
    return cursor.copied.sequence


# ---------------------------------------------------------------------------------- simple steps


async def test_every_call_is_of_the_move_under_the_token_of_the_run(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        lease = await here.lease()
        async with here.carrier(lease, move) as one:
            await one.do(steps.Capture())
            await _ready(one)
            await _entered(one, Stage.FENCED)
            await one.do(steps.Fence(BEGINNING))
            await one.do(steps.FenceReads())
            await one.do(steps.EndCapture())
            await one.do(steps.EndArrival())
        calls = here.calls(
            "BeginCapture", "BeginArrival", "DropSlots", "FenceSlots", "ApplyMove", "FenceReads",
            "EndCapture", "EndArrival",
        )  # fmt: skip
        at_source = ["BeginCapture", "FenceSlots", "FenceReads", "EndCapture"]
        at_target = ["BeginArrival", "DropSlots", "BeginArrival", "ApplyMove", "EndArrival"]
        assert calls == [
            *(("shard-1", method) for method in at_source),
            *(("shard-2", method) for method in at_target),
        ]
        for node in here.nodes.values():
            for _, request in node.shard.seen:
                if hasattr(request, "move"):
                    ref = request.move
                    assert (ref.move_id, ref.collection_id) == (move.id, entry.id)
                    assert (ref.token, slots_of(request)) == (lease.token, move.slots)


async def test_the_target_has_the_collection_before_it_is_asked(tmp_path: Path) -> None:
    async with moving(tmp_path, 3) as here:
        entry = await here.router.collection("shard-1", "shard-3")
        _, (move,) = await here.begun(entry)
        target = here.target.shard
        async with here.carrier(await here.lease(), move) as one:
            await one.do(steps.Arrive(afresh=True))
        assert [m for m, _ in target.seen] == ["Hello", "SetOwnership", "BeginArrival"]
        (given,) = target.requests("SetOwnership")
        assert (given.ownership_only, set(given.owned_slots)) == (True, {0})
        (asked,) = target.requests("BeginArrival")
        assert asked.afresh is True


async def test_drops_are_small_and_count_once_the_slots_are_switched(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        here.target.arrived[move.id] = here.source.arrived[move.id] = 1300
        async with here.carrier(await here.lease(), move, pace=Pace()) as one:
            await here.router.directory.grant(entry.id, "shard-2")
            assert await one.do(steps.Drop("shard-2")) is False
            assert one.progress.trimmed_records == 0
            one.move = replace(move, stage=Stage.SWITCHED, next_epoch=2)
            while not await one.do(steps.Drop("shard-1")):
                assert 0 < one.progress.trimmed_records < 1300
            assert one.progress.trimmed_records == 1300
        (first,) = here.target.shard.requests("DropSlots")
        assert first.limit == Pace().chunk_records
        limits = [request.limit for request in here.source.shard.requests("DropSlots")]
        assert max(limits) <= DROP_RECORDS


async def test_stages_are_entered_in_the_catalog(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        async with here.carrier(await here.lease(), move) as one:
            assert (await one.do(steps.Enter(Stage.COPYING))) == one.move
            assert (await here.newest())[1] == [one.move]
            fenced = await _entered_from_copying(one)
            assert (fenced.stage, fenced.next_epoch) == (Stage.FENCED, 2)
            await one.do(steps.Enter(Stage.CANCELLING, "why"))
            (present,) = (await here.newest())[1]
            assert (present.stage, present.problem) == (Stage.CANCELLING, "why")


async def _entered_from_copying(one: Carrier) -> Move:
    for stage in (Stage.CATCHING_UP, Stage.VERIFIED, Stage.FENCED):
        await one.do(steps.Enter(stage))
    return one.move


async def test_both_sides_must_take_the_epoch_of_the_switch_the_others_may_be_away(
    tmp_path: Path,
) -> None:
    async with moving(tmp_path, 3) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        async with here.carrier(await here.lease(), move) as one:
            here.nodes["shard-3"].shard.then("SetOwnership", away())
            await one.do(steps.Grant())
            for name in ("shard-1", "shard-2"):
                here.nodes[name].shard.then("SetOwnership", away())
                with pytest.raises(Unavailable, match="away") as refused:
                    await one.do(steps.Grant())
                assert refused.value.metadata["shard"] == name


async def test_what_a_fence_held_goes_on_when_it_is_lifted(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        held = asyncio.create_task(here.router.directory._fences.wait(entry.id))
        async with here.carrier(await here.lease(), move) as one:
            await asyncio.sleep(0)
            (hold,) = here.router.directory._fences._holds.values()
            news = hold.news
            await one.do(steps.EndCapture())
            assert news.is_set()
            await held


@pytest.mark.parametrize("side", ["shard-1", "shard-2"])
async def test_a_node_that_began_anew_is_told_what_it_owns(tmp_path: Path, side: str) -> None:
    """Else nobody may tell it: a target is asked by nobody but the mover."""
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        step = steps.Capture() if side == "shard-1" else steps.Drop(side)
        lease = await here.lease()
        async with here.carrier(lease, move) as one:
            await one.do(step)
            here.nodes[side].shard.restart()
            with pytest.raises(Stale) as stale:
                await one.do(step)
            assert stale.value.reason is Reason.STALE_EPOCH
        async with here.carrier(lease, move) as one:
            await one.do(step)


# ------------------------------------------------------------------------------------ the stream


async def test_a_chunk_goes_from_the_source_to_the_target_as_it_is(tmp_path: Path) -> None:
    async with moving(tmp_path, records=130) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        async with here.carrier(await here.lease(), move) as one:
            await _ready(one)
            await _entered(one, Stage.COPYING)
            first = _transferred(await one.do(steps.Transfer(BEGINNING)))
            assert (_copied(first.end), first.items, first.copy_done) == (100, 100, False)
            assert (first.target_records, first.source_records) == (100, -1)
            last = _transferred(await one.do(steps.Transfer(first.end)))
            assert (_copied(last.end), last.items, last.copy_done) == (130, 30, True)
            assert last.caught_up
            assert not last.compare_done, "it was not asked for"
            assert (one.progress.copied_records, one.progress.copy_microseconds > 0) == (130, True)
        read = here.source.shard.requests("ReadMove")
        applied = here.target.shard.requests("ApplyMove")
        assert [_copied(request.begin) for request in read] == [0, 100]
        assert [here.source._read(r).chunk for r in read] == [r.chunk for r in applied]


async def test_the_next_chunk_is_read_while_one_is_applied(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        async with here.carrier(await here.lease(), move) as one:
            await _ready(one)
            await _entered(one, Stage.COPYING)
            applying = Held(here.target.shard, "ApplyMove")
            going = asyncio.create_task(one.do(steps.Transfer(BEGINNING)))
            await applying.came.wait()
            await here.source.shard.arrival("ReadMove")
            ahead = await here.source.shard.arrival("ReadMove")
            assert _copied(ahead.begin) == 100
            applying.let_go()
            cursor = _transferred(await going).end
            while not (seen := _transferred(await one.do(steps.Transfer(cursor)))).copy_done:
                cursor = seen.end
            assert one.progress.copied_records == 250
        begins = [_copied(r.begin) for r in here.source.shard.requests("ReadMove")]
        assert begins == sorted(set(begins)), "nothing is read twice, nothing past the end"


async def test_what_was_read_ahead_counts_though_chunks_are_of_another_size_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        async with here.carrier(await here.lease(), move) as one:
            await _ready(one)
            await _entered(one, Stage.COPYING)
            Clock(monkeypatch)
            seen = _transferred(await one.do(steps.Transfer(BEGINNING)))
            one.pace.cap(30)
            seen = _transferred(await one.do(steps.Transfer(seen.end)))
            assert seen.items > 30


async def test_what_was_read_ahead_of_another_place_is_dropped(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        async with here.carrier(await here.lease(), move) as one:
            await _ready(one)
            await _entered(one, Stage.COPYING)
            here.source.shard.forget_arrivals()
            second: list[Held] = []

            async def first(_request: Any) -> None:
                second.append(Held(here.source.shard, "ReadMove"))  # the one that is read ahead

            here.source.shard.then("ReadMove", first)
            await one.do(steps.Transfer(BEGINNING))
            await second[0].came.wait()
            # It is never answered; the target has begun anew meanwhile.
            here.target.cursors[move.id] = BEGINNING
            seen = _transferred(await one.do(steps.Transfer(BEGINNING)))
            assert _copied(seen.end) >= 100
            second[0].let_go()


async def test_a_read_ahead_that_fails_counts_only_if_its_chunk_is_wanted(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        async with here.carrier(await here.lease(), move) as one:
            await _ready(one)
            await _entered(one, Stage.COPYING)

            async def then_fail(_request: Any) -> None:
                here.source.shard.then("ReadMove", away())

            here.source.shard.then("ReadMove", then_fail)
            seen = _transferred(await one.do(steps.Transfer(BEGINNING)))
            with pytest.raises(Unavailable, match="away"):
                await one.do(steps.Transfer(seen.end))
            here.source.shard.then("ReadMove", then_fail)
            await one.do(steps.Transfer(seen.end))  # and nothing comes of the failure after it


async def test_what_is_read_ahead_ends_with_the_run(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)

        async def never(_request: Any) -> None:
            await asyncio.Event().wait()

        async def then_hang(_request: Any) -> None:
            here.source.shard.then("ReadMove", never)

        async with here.carrier(await here.lease(), move) as one:
            await _ready(one)
            await _entered(one, Stage.COPYING)
            here.source.shard.then("ReadMove", then_hang)
            await one.do(steps.Transfer(BEGINNING))
        # The block has ended, and with it the task group that the read was in.


@pytest.mark.parametrize("stage", [Stage.VERIFIED, Stage.FENCED])
async def test_nothing_is_read_ahead_where_the_tail_may_be_short(
    tmp_path: Path, stage: Stage
) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        async with here.carrier(await here.lease(), move) as one:
            await _ready(one)
            await _entered(one, stage)
            await one.do(steps.Transfer(BEGINNING))
            assert one._ahead is None
        (request,) = here.source.shard.requests("ReadMove")
        most = TAIL_RECORDS if stage is Stage.FENCED else Pace().chunk_records
        assert request.max_records == most


async def test_comparing_goes_on_from_place_to_place(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        end = here.target.all_here(move)
        async with here.carrier(await here.lease(), move) as one:
            await here.router.directory.grant(entry.id, "shard-2")
            await _entered(one, Stage.CATCHING_UP)
            for _ in range(2):  # it begins from the beginning in each run, and so do the figures
                place: steps.Place | None = None
                seen = None
                while seen is None or not seen.compare_done:
                    step = steps.Transfer(end, compare=True, compared=place)
                    seen = _transferred(await one.do(step))
                    place = seen.compared
                assert place == (250, "")
                assert one.progress.compared_records == 250
            assert one.progress.copied_records == 0
            here.target.differences = 3
            seen = _transferred(await one.do(steps.Transfer(end, compare=True)))
            assert seen.differences == "3 records, such as id-7: other documents"
        requests = here.source.shard.requests("ReadMove")
        assert all(request.compare for request in requests)
        assert not requests[0].HasField("compared")
        assert requests[1].compared.sequence == 100


async def test_a_copy_that_begins_again_is_counted_again(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        async with here.carrier(await here.lease(), move) as one:
            await _ready(one)
            await _entered(one, Stage.COPYING)
            for _ in range(2):
                seen = _transferred(await one.do(steps.Transfer(BEGINNING)))
                assert one.progress.copied_records == seen.items > 0
                here.target.cursors[move.id] = BEGINNING


@pytest.mark.parametrize(
    ("side", "method", "step"),
    [
        ("shard-1", "ReadMove", steps.Transfer(BEGINNING)),
        ("shard-2", "ApplyMove", steps.Transfer(BEGINNING)),
        ("shard-1", "FenceSlots", steps.Fence(BEGINNING)),
        ("shard-2", "ApplyMove", steps.Fence(BEGINNING)),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
async def test_a_cursor_that_is_refused_is_out_of_step_any_other_refusal_an_error(
    tmp_path: Path, side: str, method: str, step: steps.Step
) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        async with here.carrier(await here.lease(), move) as one:
            await _ready(one)
            await _entered(one, Stage.FENCED if isinstance(step, steps.Fence) else Stage.VERIFIED)
            shard = here.nodes[side].shard
            shard.then(method, NotAllowed("scripted: elsewhere", Reason.MOVE_OUT_OF_STEP))
            assert await one.do(step) == steps.OutOfStep()
            shard.then(method, NotAllowed("scripted: no", Reason.WRONG_CLUSTER))
            with pytest.raises(NotAllowed, match="scripted: no"):
                await one.do(step)


# ------------------------------------------------------------------------------- fence and switch


async def test_the_fence_is_for_the_next_epoch_and_its_tail_is_applied(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        async with here.carrier(await here.lease(), move) as one:
            await _ready(one)
            await _entered(one, Stage.FENCED)
            tail = _transferred(await one.do(steps.Fence(BEGINNING)))
            assert (tail.source_records, tail.target_records, tail.caught_up) == (250, 250, True)
            await one.do(steps.FenceReads())
        (request,) = here.source.shard.requests("FenceSlots")
        assert (request.next_epoch, request.max_records) == (2, TAIL_RECORDS)


@pytest.mark.parametrize("third", ["serves", "hangs"])
async def test_after_the_switch_everybody_is_told_and_no_third_shard_waited_for(
    tmp_path: Path, third: str
) -> None:
    async with moving(tmp_path, 3) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        async with here.carrier(await here.lease(), move) as one:
            await _ready(one)
            await _entered(one, Stage.FENCED)
            await one.do(steps.Fence(BEGINNING))
            await one.do(steps.FenceReads())
            hello = Held(here.nodes["shard-3"].shard, "Hello")
            if third == "serves":
                hello.let_go()
            assert await one.do(steps.Switch()) is one.move
            assert [here.nodes[n].shard.epochs[entry.id] for n in ("shard-1", "shard-2")] == [2, 2]
            assert one.progress.write_pause_microseconds > one.progress.read_pause_microseconds > 0
            hello.let_go()
            await one.do(steps.Grant())
            assert here.nodes["shard-3"].shard.epochs[entry.id] == 2
        known = here.router.directory._entries[entry.id]
        assert known.slot_map == entry.slot_map.reassigned(move.slots, "shard-2")
        assert (await here.newest())[1] == [one.move]
        assert one.move.stage is Stage.SWITCHED


async def test_a_switch_counts_though_neither_side_can_be_told_yet(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        async with here.carrier(await here.lease(), move) as one:
            await _entered(one, Stage.FENCED)
            for node in here.nodes.values():
                node.shard.then("SetOwnership", away())
            switched = await one.do(steps.Switch())
            assert isinstance(switched, Move)
            assert switched.stage is Stage.SWITCHED


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda here: here.catalog.moves.cancel(1), Reason.CONFLICT),
        (lambda here: here.lease(), Reason.STALE_TOKEN),
    ],
    ids=["cancelled meanwhile", "lease taken over"],
)
async def test_a_switch_that_the_catalog_refuses_has_changed_nothing(
    tmp_path: Path, change: Callable[[Moving], Awaitable[object]], reason: Reason
) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        async with here.carrier(await here.lease(), move) as one:
            await _entered(one, Stage.FENCED)
            await change(here)
            with pytest.raises(ClusterError) as refused:
                await one.do(steps.Switch())
            assert refused.value.reason is reason
        assert (await here.catalog.collection(entry.id)).slot_map == entry.slot_map
        assert here.target.shard.epochs[entry.id] == 1


# --------------------------------------------------------------------------------------- the pace


class Clock:
    """Stands in for the module's clock and its sleep: nothing passes but what is passed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        patch.setattr(carriers, "time", self)
        self._sleep = asyncio.sleep
        patch.setattr(asyncio, "sleep", self._passed)

    def monotonic(self) -> float:
        return self.now

    async def _passed(self, seconds: float) -> None:
        self.now += seconds
        await self._sleep(0)


async def test_no_more_is_copied_than_was_asked_for_however_it_is_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cap, applying = 1000, 0.08
    async with moving(tmp_path, records=2000) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        async with here.carrier(await here.lease(), move, pace=Pace(cap)) as one:
            await _ready(one)
            await _entered(one, Stage.COPYING)
            clock = Clock(monkeypatch)
            came = [asyncio.Event() for _ in range(100)]
            go = [asyncio.Event() for _ in range(100)]
            applies = count(1)

            async def as_it_is(_request: Any) -> None:
                """The first chunk is not read ahead."""

            async def read_slowly(n: int, _request: Any) -> None:
                # For as long as the chunk before it is being applied.
                came[n].set()
                await go[n].wait()

            async def apply_slowly(_request: Any) -> None:
                n = next(applies)
                await came[n].wait()
                clock.now += applying
                go[n].set()

            here.source.shard.then("ReadMove", as_it_is)
            here.source.shard.then("ReadMove", *(partial(read_slowly, n) for n in range(1, 100)))
            here.target.shard.then("ApplyMove", *[apply_slowly] * 99)
            began, items = clock.now, 0
            cursor: steps.Cursor = BEGINNING
            while items < 1000:
                seen = _transferred(await one.do(steps.Transfer(cursor)))
                cursor, items = seen.end, items + seen.items
            assert items / (clock.now - began) == pytest.approx(cap, rel=0.01)


async def test_nothing_pauses_while_calls_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        async with here.carrier(await here.lease(), move, pace=Pace(1)) as one:
            await _ready(one)
            await _entered(one, Stage.FENCED)
            clock = Clock(monkeypatch)
            seen = _transferred(await one.do(steps.Fence(BEGINNING)))
            await one.do(steps.Transfer(seen.end))
            assert clock.now == 1000.0
