"""Rebalances are carried out to their end, by one router at a time, whatever comes between."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import ClusterError, NotAllowed, Reason, Unavailable
from router.catalog import Catalog
from router.core.agreement import QuerySample
from router.core.lease import Lease
from router.core.model import ShardRole
from router.core.move import Move, Stage
from router.core.rebalance import Rebalance, RebalanceKind, RebalanceState
from router.mover import mover as movers
from router.mover.carrier import Carrier
from tests.router.catalog.helpers import a_move, a_rebalance
from tests.router.mover.moving import Held, Moving, count_records, moving, now_us, stopped
from tests.router.scripted import away

pytestmark = pytest.mark.timeout(30)

DONE, FAILED, CANCELLED = RebalanceState.DONE, RebalanceState.FAILED, RebalanceState.CANCELLED


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movers, "LEASE_SECONDS", 0.4)
    monkeypatch.setattr(movers, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(movers, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(movers, "OBEY_SECONDS", 0.0)
    monkeypatch.setattr(movers, "RETRY_BASE", 0.005)
    monkeypatch.setattr(movers, "RETRY_CAP", 0.01)


@asynccontextmanager
async def second_router(here: Moving) -> AsyncIterator[Catalog]:
    """Another router's view of the catalog."""
    catalog = await Catalog.open(here.catalog._connection.path, create=False)
    try:
        yield catalog
    finally:
        await catalog.close()


def stages(moves: list[Move]) -> list[Stage]:
    return [move.stage for move in moves]


# --------------------------------------------------------------------------------- to the end


async def test_moves_are_done_one_after_the_other_each_run_under_a_higher_token(
    tmp_path: Path,
) -> None:
    async with moving(tmp_path, 3) as here:
        entry = await here.router.collection()
        await here.begun(entry, 2)
        async with here.at_work():
            rebalance, moves = await here.ended()
            assert (rebalance.state, rebalance.problem) == (DONE, "")
            assert stages(moves) == [Stage.TRIMMED] * 2
            while await here.catalog.moves.holder(now_us()):
                pass  # it is given back at once
        present = await here.catalog.collection(entry.id)
        expected = entry.slot_map
        for move in moves:
            expected = expected.reassigned(move.slots, "shard-2")
        assert present.slot_map == expected
        seen = [r.move for _, r in here.source.shard.seen if hasattr(r, "move")]
        by_move = {ref.move_id: ref.token for ref in seen}
        assert list(by_move) == [move.id for move in moves]
        assert len(here.tokens()) == 2
        assert here.tokens() == sorted(here.tokens())
        progress = await here.progress()
        assert [p.copied_records for p in progress] == [250, 250]
        assert [p.compared_records for p in progress] == [250, 250]
        assert all(p.write_pause_microseconds > 0 for p in progress)


async def test_a_failure_ends_the_run_and_the_next_goes_on_under_a_higher_token(
    tmp_path: Path,
) -> None:
    async with moving(tmp_path) as here:
        await here.begun(await here.router.collection())
        trouble = Held(here.target.shard, "ApplyMove")
        here.source.shard.then("ReadMove", away(), away())
        async with here.at_work():
            await trouble.came.wait()
            rebalance, _ = await here.newest()
            assert rebalance.problem == "scripted: away", "until something has come of it"
            trouble.let_go()
            rebalance, (move,) = await here.ended()
        assert (rebalance.state, rebalance.problem, move.stage) == (DONE, "", Stage.TRIMMED)
        assert len(here.tokens()) == 3
        assert here.tokens() == sorted(here.tokens())
        assert (await here.progress())[0].copied_records == 250


async def test_a_problem_that_has_passed_is_told_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movers, "NOTE_SECONDS", 0.0)
    async with moving(tmp_path) as here:
        await here.begun(await here.router.collection())
        here.source.shard.then("BeginCapture", away())
        hang = Held(here.source.shard, "ReadMove")
        async with here.at_work():
            await hang.came.wait()
            rebalance, (move,) = await here.newest()
            assert (rebalance.problem, move.stage) == ("", Stage.COPYING)
            hang.let_go()
            await here.ended()


async def test_a_switch_of_which_nothing_is_known_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        await here.begun(entry)
        switch = here.catalog.moves.switch
        switches = []

        async def lost(lease: Lease, move: Move) -> Any:
            switches.append(await switch(lease, move))
            raise Unavailable("the answer was lost", Reason.CATALOG_BUSY)

        monkeypatch.setattr(here.catalog.moves, "switch", lost)
        async with here.at_work():
            rebalance, (move,) = await here.ended()
        assert (rebalance.state, move.stage, len(switches)) == (DONE, Stage.TRIMMED, 1)
        assert len(here.source.shard.requests("FenceSlots")) == 1
        first, second = here.tokens()
        assert first < second
        assert here.source.shard.requests("DropSlots")[0].move.token == second
        assert here.source.shard.epochs[entry.id] == here.target.shard.epochs[entry.id] == 2


async def test_a_target_that_lost_everything_is_brought_everything_again(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        _, (move,) = await here.begun(await here.router.collection())

        async def loses(_request: Any) -> None:
            here.target.cursors.clear()
            here.target.arrived.clear()

        here.target.shard.then("ApplyMove", *[lambda _: asyncio.sleep(0)] * 2, loses)
        async with here.at_work():
            rebalance, _ = await here.ended()
        assert rebalance.state is DONE
        assert here.target.arrived[move.id] == 250


@pytest.mark.parametrize("side", ["shard-1", "shard-2"])
@pytest.mark.parametrize("stage", [Stage.COPYING, Stage.FENCED, Stage.CANCELLING])
async def test_a_node_that_is_killed_and_asked_by_no_client(
    tmp_path: Path, side: str, stage: Stage
) -> None:
    async with moving(tmp_path) as here:
        await here.begun(await here.router.collection())
        method = {Stage.COPYING: "ApplyMove", Stage.FENCED: "FenceSlots"}.get(stage, "EndCapture")
        if stage is Stage.CANCELLING:
            here.target.differences = 1

        async def killed(_request: Any) -> None:
            here.nodes[side].shard.restart()

        shard = here.target.shard if method == "ApplyMove" else here.source.shard
        shard.then(method, killed)
        async with here.at_work():
            rebalance, _ = await here.ended()
        assert rebalance.state is (FAILED if stage is Stage.CANCELLING else DONE)


# ----------------------------------------------------------------------------- one at a time


async def test_two_movers_only_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with moving(tmp_path) as here, second_router(here) as catalog:
        await here.begun(await here.router.collection())
        held = Held(here.source.shard, "ReadMove")
        async with here.at_work():
            await held.came.wait()
            before = here.tokens()
            looks = 0
            acquire = catalog.moves.acquire
            looked = asyncio.Event()

            async def counting(*arguments: Any) -> Lease | None:
                nonlocal looks
                looks += 1
                if looks == 30:  # past what a lease lasts that is not renewed
                    looked.set()
                return await acquire(*arguments)

            monkeypatch.setattr(catalog.moves, "acquire", counting)
            async with here.at_work(here.mover("router-2", catalog=catalog)):
                await looked.wait()
                assert await catalog.moves.holder(now_us()) == "router-1"
                assert here.tokens() == before
                held.let_go()
                rebalance, _ = await here.ended()
        assert rebalance.state is DONE


async def test_a_mover_that_hangs_is_replaced_and_does_no_more_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with moving(tmp_path) as here, second_router(here) as catalog:
        _, (move,) = await here.begun(await here.router.collection())
        loop = asyncio.get_running_loop()
        hanging, awake, went_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
        renew, do = here.catalog.moves.renew, Carrier.do
        refused: list[ClusterError] = []

        async def hangs(self: Carrier, step: Any) -> Any:
            mine = self.lease.holder == "router-1"
            if mine and self.move.stage is Stage.CATCHING_UP:
                hanging.set()
                await awake.wait()
            try:
                return await do(self, step)
            except ClusterError as error:
                if mine:
                    refused.append(error)
                    went_on.set()
                raise

        async def renew_late(lease: Lease, *more: Any) -> Lease:
            if hanging.is_set():
                await asyncio.Event().wait()
            return await renew(lease, *more)

        monkeypatch.setattr(Carrier, "do", hangs)
        monkeypatch.setattr(here.catalog.moves, "renew", renew_late)
        async with here.at_work():
            await hanging.wait()
            hung = loop.time()
            async with here.at_work(here.mover("router-2", catalog=catalog)):
                rebalance, _ = await here.ended()
                assert rebalance.state is DONE
                assert loop.time() - hung < 3.0
                before = await here.catalog.moves.newest()
                brought = here.target.arrived[move.id]
                awake.set()
                await went_on.wait()
                assert refused[0].reason in {Reason.STALE_TOKEN, Reason.MOVE_OUT_OF_STEP}
        assert await here.catalog.moves.newest() == before
        assert here.target.arrived[move.id] == brought


async def test_a_deposed_mover_stops_at_the_next_renewal(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        await here.begun(await here.router.collection())
        cancelled = asyncio.Event()

        async def until_it_is_given_up(_request: Any) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        here.source.shard.then("ReadMove", until_it_is_given_up)
        async with here.at_work():
            await here.source.shard.arrival("ReadMove")
            # Whoever acquires the lease last has it, even under the holder's own name.
            other = await here.catalog.moves.acquire("router-1", now_us(), 3_600_000_000)
            assert other is not None
            await cancelled.wait()
            assert (await here.newest())[1][0].stage is Stage.COPYING


async def test_a_router_that_stops_gives_the_lease_back(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        await here.begun(await here.router.collection(), 3)
        async with here.at_work():
            # Not in its first run: each has a lease of its own.
            await here.until(lambda _, moves: moves[0].ended)
            held = Held(here.source.shard, "ReadMove")
            await held.came.wait()
        assert await here.catalog.moves.holder(now_us()) == ""
        held.let_go()


@pytest.mark.parametrize(
    ("method", "left_at"),
    [("ReadMove", Stage.COPYING), ("FenceSlots", Stage.SWITCHED)],
    ids=["while it copies", "while calls are held"],
)
async def test_told_to_stop_it_leaves_no_call_held(
    tmp_path: Path, method: str, left_at: Stage
) -> None:
    async with moving(tmp_path) as here:
        await here.begun(await here.router.collection(), 2)
        held = Held(here.source.shard, method)
        mover = here.mover()
        task = asyncio.create_task(mover.run())
        await held.came.wait()
        mover.stop()
        held.let_go()
        await task
        assert await here.catalog.moves.holder(now_us()) == ""
        assert stages((await here.newest())[1]) == [left_at, Stage.PLANNED]


AWAITS = [
    ("shard-1", "BeginCapture"),
    ("shard-2", "BeginArrival"),
    ("shard-2", "DropSlots"),
    ("shard-1", "ReadMove"),
    ("shard-2", "ApplyMove"),
    ("shard-1", "FenceSlots"),
    ("shard-1", "FenceReads"),
    ("shard-1", "DropSlots"),
]


@pytest.mark.parametrize(("side", "method"), AWAITS, ids=["-".join(a) for a in AWAITS])
@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
async def test_cancelled_at_any_call_another_mover_goes_on(
    tmp_path: Path, side: str, method: str, done: bool
) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (move,) = await here.begun(entry)
        shard = here.nodes[side].shard
        came = asyncio.Event()

        async def hold(request: Any) -> None:
            if done:  # the node does what it was asked for, and the answer is lost
                shard.usual[method](request)
            came.set()
            await asyncio.Event().wait()

        shard.then(method, hold)
        task = asyncio.create_task(here.mover().run())
        await came.wait()
        await stopped(task)
        assert await here.catalog.moves.holder(now_us()) == ""
        async with here.at_work(here.mover("router-2")):
            rebalance, _ = await here.ended()
        assert rebalance.state is DONE
        assert here.target.arrived[move.id] == 250
        present = await here.catalog.collection(entry.id)
        assert present.slot_map == entry.slot_map.reassigned(move.slots, "shard-2")


async def test_cancelled_at_the_very_moment_at_which_its_lease_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11 forgets a cancellation then, and the router would wait for its mover for ever."""
    async with moving(tmp_path) as here:
        await here.begun(await here.router.collection())
        held = Held(here.source.shard, "ReadMove")
        mover = here.mover()
        task = asyncio.create_task(mover.run())

        async def ends_badly(_lease: Lease) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise Unavailable("it ends badly", Reason.CATALOG_BUSY)

        monkeypatch.setattr(mover, "_keep", ends_badly)
        await held.came.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


# -------------------------------------------------------------------- pause, resume, cancel


async def test_paused_it_stops_and_resumed_it_goes_on_in_the_way_that_is_asked_for(
    tmp_path: Path,
) -> None:
    async with moving(tmp_path) as here:
        await here.begun(await here.router.collection())
        applying = Held(here.target.shard, "ApplyMove")
        async with here.at_work() as mover:
            await applying.came.wait()
            await here.catalog.moves.pause()
            applying.let_go()
            while await here.catalog.moves.holder(now_us()):
                pass  # until it has stopped
            rebalance, (move,) = await here.newest()
            assert (rebalance.state, move.stage) == (RebalanceState.PAUSED, Stage.COPYING)
            here.source.shard.forget_arrivals()
            await here.catalog.moves.resume(20, None)
            mover.wake()
            assert (await here.source.shard.arrival("ReadMove")).max_records == 20
            await here.catalog.moves.resume(0, None)
            rebalance, _ = await here.ended()
        assert rebalance.state is DONE


async def test_another_rate_holds_at_once(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        await here.begun(await here.router.collection(), records_per_second=0)
        applying = Held(here.target.shard, "ApplyMove")
        async with here.at_work():
            await applying.came.wait()
            await here.catalog.moves.resume(30, None)
            applying.let_go()
            while (await here.source.shard.arrival("ReadMove")).max_records != 30:
                pass
            await here.catalog.moves.resume(0, None)
            await here.ended()


PAUSED_AT: list[tuple[str, str]] = [
    ("shard-1", "FenceSlots"),
    ("shard-1", "FenceReads"),
    ("shard-1", "DropSlots"),
]


@pytest.mark.parametrize(("side", "method"), PAUSED_AT, ids=[m for _, m in PAUSED_AT])
@pytest.mark.parametrize("interrupted", [False, True], ids=["", "and then its router dies"])
async def test_a_pause_does_not_leave_calls_held_nor_a_move_half_done(
    tmp_path: Path, side: str, method: str, interrupted: bool
) -> None:
    async with moving(tmp_path) as here:
        await here.begun(await here.router.collection(), 2)
        held = Held(here.nodes[side].shard, method)
        task = asyncio.create_task(here.mover().run())
        await held.came.wait()
        await here.catalog.moves.pause()
        if interrupted:
            await stopped(task)
            task = asyncio.create_task(here.mover("router-2").run())
        held.let_go()
        rebalance, moves = await here.until(lambda _, moves: moves[0].ended)
        while await here.catalog.moves.holder(now_us()):
            pass
        rebalance, moves = await here.newest()
        assert rebalance.state is RebalanceState.PAUSED
        assert stages(moves) == [Stage.TRIMMED, Stage.PLANNED]
        await here.catalog.moves.resume(None, None)
        rebalance, _ = await here.ended()
        assert rebalance.state is DONE
        await stopped(task)


async def test_a_pause_after_which_nothing_is_left_to_do_is_the_end(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        await here.begun(await here.router.collection())
        held = Held(here.source.shard, "FenceSlots")
        async with here.at_work():
            await held.came.wait()
            await here.catalog.moves.pause()
            held.let_go()
            rebalance, _ = await here.ended()
        assert rebalance.state is DONE


CANCELLED_AT = AWAITS[:7]


@pytest.mark.parametrize(("side", "method"), CANCELLED_AT, ids=["-".join(a) for a in CANCELLED_AT])
async def test_cancelled_by_the_operator_it_is_undone_up_to_the_switch(
    tmp_path: Path, side: str, method: str
) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        _, (first, second) = await here.begun(entry, 2)
        held = Held(here.nodes[side].shard, method)
        async with here.at_work():
            await held.came.wait()
            await here.catalog.moves.cancel(now_us())
            held.let_go()
            rebalance, moves = await here.ended()
        assert (rebalance.state, rebalance.problem) == (CANCELLED, "")
        assert stages(moves) == [Stage.CANCELLED] * 2
        assert (await here.catalog.collection(entry.id)).slot_map == entry.slot_map
        assert here.source.fenced == {}
        assert here.target.arrived.get(first.id, 0) == 0
        assert second.id not in {r.move.move_id for r in here.source.shard.requests("ReadMove")}
        if moves[0].version > 3:  # it had begun: PLANNED ones have left nothing at the source
            assert here.source.ended == [first.id]


async def test_what_is_switched_is_trimmed_though_the_rest_is_cancelled(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        await here.begun(await here.router.collection(), 2)
        held = Held(here.source.shard, "DropSlots")
        async with here.at_work():
            await held.came.wait()
            await here.catalog.moves.cancel(now_us())
            held.let_go()
            rebalance, moves = await here.ended()
        assert rebalance.state is CANCELLED
        assert stages(moves) == [Stage.TRIMMED, Stage.CANCELLED]


@pytest.mark.parametrize(("side", "method"), AWAITS[2:], ids=["-".join(a) for a in AWAITS[2:]])
async def test_a_collection_that_is_deleted_under_way(
    tmp_path: Path, side: str, method: str
) -> None:
    async with moving(tmp_path) as here:
        doomed, kept = [await here.router.collection(name=name) for name in ("doomed", "kept")]
        asked = a_rebalance()
        rebalance, _ = await _begun_for(here, asked, doomed, kept)
        held = Held(here.nodes[side].shard, method)
        async with here.at_work():
            await held.came.wait()
            await here.catalog.begin_delete(doomed.id)
            held.let_go()
            rebalance, (first, second) = await here.ended()
        assert (rebalance.state, second.stage) == (DONE, Stage.TRIMMED)
        assert first.problem == "the collection was deleted"


def _always(answer: Any, _request: Any) -> Any:
    return answer


async def _begun_for(here: Moving, asked: Rebalance, *entries: Any) -> tuple[Rebalance, list[Move]]:
    """A move of each collection, from shard-1 to shard-2."""
    moves = [
        a_move(asked, entry, sorted(entry.slot_map.slots_of("shard-1"))[:3], "shard-1", "shard-2")
        for entry in entries
    ]
    epochs = {entry.id: entry.slot_map.epoch for entry in entries}
    await here.catalog.moves.begin(asked, moves, epochs)
    return await here.newest()


# ------------------------------------------------------------------------- what gives itself up


async def test_sides_that_differ_fail_the_rebalance_with_the_reason(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        await here.begun(entry, 3)
        here.target.differences = 2
        async with here.at_work():
            rebalance, moves = await here.ended()
        assert rebalance.state is FAILED
        assert "2 records, such as id-7: other documents" in rebalance.problem
        assert stages(moves) == [Stage.CANCELLED] * 3
        assert rebalance.problem == moves[0].problem
        assert here.target.arrived == {moves[0].id: 0}
        assert (await here.catalog.collection(entry.id)).slot_map == entry.slot_map


@pytest.mark.parametrize("method", ["EndCapture", "EndArrival"])
async def test_it_fails_though_its_router_dies_before_all_is_undone(
    tmp_path: Path, method: str
) -> None:
    async with moving(tmp_path) as here:
        await here.begun(await here.router.collection(), 2)
        here.target.differences = 2
        side = here.source if method == "EndCapture" else here.target
        held = Held(side.shard, method)
        task = asyncio.create_task(here.mover().run())
        await held.came.wait()
        await stopped(task)
        held.let_go()
        async with here.at_work(here.mover("router-2")):
            rebalance, moves = await here.ended()
        assert (rebalance.state, stages(moves)) == (FAILED, [Stage.CANCELLED] * 2)
        assert "differ" in rebalance.problem


async def test_it_fails_though_its_router_dies_as_soon_as_the_move_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with moving(tmp_path) as here:
        await here.begun(await here.router.collection(), 2)
        here.target.differences = 2
        fail = here.catalog.moves.fail
        came = asyncio.Event()

        async def dies(*_: Any) -> Rebalance:
            came.set()
            return await asyncio.Event().wait()  # type: ignore[return-value]

        monkeypatch.setattr(here.catalog.moves, "fail", dies)
        task = asyncio.create_task(here.mover().run())
        await came.wait()
        await stopped(task)
        monkeypatch.setattr(here.catalog.moves, "fail", fail)
        async with here.at_work(here.mover("router-2")):
            rebalance, moves = await here.ended()
        assert (rebalance.state, stages(moves)) == (FAILED, [Stage.CANCELLED] * 2)


FENCED_CALLS = [("shard-1", "FenceSlots"), ("shard-2", "ApplyMove"), ("shard-1", "FenceReads")]


@pytest.mark.parametrize("how", ["hangs", "refuses"])
@pytest.mark.parametrize(("side", "method"), FENCED_CALLS, ids=[m for _, m in FENCED_CALLS])
async def test_what_stays_fenced_too_long_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str, method: str, how: str
) -> None:
    monkeypatch.setattr(movers, "UNFENCE_SECONDS", 0.15)
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        await here.begun(entry, 2)
        shard = here.nodes[side].shard
        usual = shard.usual[method]

        async def trouble(request: Any) -> Any:
            if not here.source.fenced and method != "FenceSlots":
                return usual(request)
            if how == "hangs":
                await asyncio.Event().wait()
            raise away()

        shard.usual[method] = trouble
        async with here.at_work():
            fenced = asyncio.get_running_loop().time()
            await here.until(lambda _, moves: moves[0].stage is Stage.CANCELLING)
            assert asyncio.get_running_loop().time() - fenced < 3.0
            rebalance, moves = await here.ended()
        assert (rebalance.state, stages(moves)) == (FAILED, [Stage.CANCELLED] * 2)
        assert "could not be switched in time" in rebalance.problem
        assert here.source.fenced == {}
        assert here.source.ended == [moves[0].id]
        assert (await here.catalog.collection(entry.id)).slot_map == entry.slot_map


async def test_another_moves_fence_is_not_held_against_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mover that once saw a fence takes over a move that is fenced now: it tries it first."""
    monkeypatch.setattr(movers, "UNFENCE_SECONDS", 3600.0)
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        rebalance, (first, _) = await here.begun(entry, 2)
        mover = here.mover()
        mover._fenced = first.id, -1e9
        mover._failed = 7
        lease = await here.lease("router-2")
        _, moves = await here.newest()
        await here.catalog.moves.enter(lease, moves[0], Stage.CANCELLED)
        second = moves[1]
        for stage in (Stage.COPYING, Stage.CATCHING_UP, Stage.VERIFIED, Stage.FENCED):
            second = await here.catalog.moves.enter(lease, second, stage)
        here.target.all_here(second)
        await here.catalog.moves.release(lease)
        async with here.at_work(mover):
            rebalance, moves = await here.ended()
        assert (rebalance.state, moves[1].stage) == (DONE, Stage.TRIMMED)


async def test_a_defect_is_told_and_ends_neither_the_mover_nor_the_rebalance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with moving(tmp_path) as here:
        await here.begun(await here.router.collection())
        do = Carrier.do
        runs = 0
        mended = asyncio.Event()

        async def defective(self: Carrier, step: Any) -> Any:
            nonlocal runs
            runs += 1
            if not mended.is_set():
                raise KeyError("a defect")
            return await do(self, step)

        monkeypatch.setattr(Carrier, "do", defective)
        async with here.at_work():
            rebalance, _ = await here.until(lambda rebalance, _: bool(rebalance.problem))
            assert "a defect in the mover: KeyError: 'a defect'" in rebalance.problem
            mended.set()
            rebalance, _ = await here.ended()
        assert (rebalance.state, rebalance.problem) == (DONE, "")


async def test_a_defect_elsewhere_does_not_end_the_mover(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        looks = asyncio.Semaphore(0)

        async def idle() -> None:
            looks.release()
            raise ZeroDivisionError

        async with here.at_work(here.mover(idle=idle)):
            for _ in range(3):
                await looks.acquire()
            await here.begun(entry)
            assert (await here.ended())[0].state is DONE


async def test_queries_that_do_not_agree_fail_it(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        here.samples.add(entry.id, QuerySample(b"\0" * 8, 2, b""))
        for node, second in ((here.source, ("b", 2.0)), (here.target, ("c", 3.0))):
            hits = shard_pb2.ShardQueryResult(ids=["a", second[0]], distances=[1.0, second[1]])
            answer = shard_pb2.PreviewMoveResponse(results=[hits])
            node.shard.usual["PreviewMove"] = partial(_always, answer)
        await here.begun(entry, query_agreement=0.9)
        async with here.at_work():
            rebalance, moves = await here.ended()
        assert (rebalance.state, stages(moves)) == (FAILED, [Stage.CANCELLED])
        assert "50.0% of their hits agree" in rebalance.problem


# -------------------------------------------------------------------------------------- drains


async def test_a_drain_takes_along_what_came_meanwhile(tmp_path: Path) -> None:
    async with moving(tmp_path, 3, records=0) as here:
        papers = await here.router.collection("shard-2", name="papers")
        shards = [node.shard for node in here.nodes.values()]
        count_records(shards, papers)
        asked = a_rebalance(RebalanceKind.DRAIN, "shard-1")
        # As planned when nothing was on it; but a collection is, that was made at the same time.
        late = await here.router.collection("shard-1", name="late")
        count_records(shards, late)
        moved, *_ = (await _begun_for(here, asked, late))[1]
        async with here.at_work():
            rebalance, moves = await here.ended()
        assert rebalance.state is DONE
        assert moves[0].id == moved.id
        assert len(moves) > 1, "there were more slots than were planned first"
        assert set(stages(moves)) == {Stage.TRIMMED}
        assert [move.number for move in moves] == list(range(len(moves)))
        present = await here.catalog.collection(late.id)
        assert "shard-1" not in present.slot_map.shards
        roles = {shard.name: shard.role for shard in await here.catalog.shards()}
        assert roles["shard-1"] is ShardRole.DRAINING


async def test_a_drain_that_cannot_be_planned_further_waits_and_says_why(tmp_path: Path) -> None:
    async with moving(tmp_path, 3, records=0) as here:
        late = await here.router.collection("shard-1", name="late")
        count_records((node.shard for node in here.nodes.values()), late)
        await _begun_for(here, a_rebalance(RebalanceKind.DRAIN, "shard-1"), late)
        third = here.nodes["shard-3"].shard

        async def gone(_request: Any) -> Any:
            raise away()

        third.usual["GetShardStats"] = gone
        async with here.at_work():
            await here.until(lambda rebalance, _: "without shard shard-3" in rebalance.problem)
            del third.usual["GetShardStats"]
            rebalance, _ = await here.ended()
        assert (rebalance.state, rebalance.problem) == (DONE, "")


# -------------------------------------------------------------------------------------- waking


async def test_it_is_woken_and_no_call_is_lost_while_it_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movers, "LOOK_SECONDS", 3600.0)
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        looking, go = asyncio.Event(), asyncio.Event()

        async def idle() -> None:
            looking.set()
            await go.wait()

        async with here.at_work(here.mover(idle=idle)) as mover:
            await looking.wait()
            await here.begun(entry)
            mover.wake()  # it has looked already, and found nothing
            go.set()
            await here.ended()


async def test_idle_is_called_only_while_nothing_is_to_be_moved(tmp_path: Path) -> None:
    async with moving(tmp_path) as here:
        entry = await here.router.collection()
        calls = asyncio.Semaphore(0)

        async def idle() -> None:
            found = await here.catalog.moves.current()
            assert found is None
            calls.release()

        await here.begun(entry)
        await here.catalog.moves.pause()
        async with here.at_work(here.mover(idle=idle)):
            await here.catalog.moves.resume(None, None)
            await here.ended()
            await calls.acquire()
            assert await here.catalog.moves.holder(now_us()) == ""


async def test_a_refusal_is_shown_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with moving(tmp_path) as here:
        await here.begun(await here.router.collection())
        no_room = NotAllowed("scripted: the disk is full", Reason.NO_ROOM)
        here.target.shard.then("ApplyMove", *[no_room] * 5)
        seen = []
        set_problem = here.catalog.moves.set_problem

        async def noting(lease: Lease, rebalance: str, text: str) -> None:
            seen.append(text)
            await set_problem(lease, rebalance, text)

        monkeypatch.setattr(here.catalog.moves, "set_problem", noting)
        async with here.at_work():
            rebalance, _ = await here.ended()
        assert (rebalance.state, rebalance.problem) == (DONE, "")
        assert seen[:5] == ["scripted: the disk is full"] * 5
