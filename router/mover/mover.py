"""Carries rebalances out, while this router has the lease: one move after the other.

Every router runs one; the lease in the catalog lets one of them work, and a token that rises with
each run makes the nodes refuse whatever an earlier run has still under way. What operators ask for
(pause, cancel) is a state in the catalog that is looked at between steps. Owns the lease, and
nothing else that would be missed: all that a move has reached is in the catalog and on the nodes.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import ClusterError, DeadlineExpired, InternalFailure, Reason, Stale
from router.catalog import Catalog, MoveRow
from router.cluster import Cluster, Shard
from router.core.latency import Foreground
from router.core.lease import Lease
from router.core.move import ENDED, PAUSABLE, Answer, Move, Run, Stage, Step, pursue
from router.core.pace import Pace
from router.core.rebalance import MoveProgress, Rebalance, RebalanceState
from router.core.retry import backoff
from router.directory import Directory
from router.mover.carrier import Carrier
from router.planning import Planning

log = structlog.get_logger(__name__)

LEASE_SECONDS, RENEW_SECONDS, LOOK_SECONDS = 2.0, 0.5, 0.5
"""How long a lease lasts, how often it is renewed, and how often the others look whether it is
free: a dead mover's work is taken over within LEASE_SECONDS + LOOK_SECONDS (DESIGN.md: 3 s)."""

OBEY_SECONDS, NOTE_SECONDS = 0.1, 1.0
"""How often a running move looks for pause and cancel, and how often its figures are kept."""

RETRY_BASE, RETRY_CAP = 0.1, 1.0
"""Seconds of back-off before a move that failed is run again: less than a lease lasts, since nobody
renews it meanwhile."""

UNFENCE_SECONDS = 4.0
"""How long a fenced move is tried: then it is cancelled, so that the writes that are held go on.
What does not answer is not waited for any longer either."""

CompareQueries = Callable[[Rebalance, shard_pb2.MoveRef, Shard, Shard], Awaitable[str]]


class _Interrupted(Exception):
    """What is to be done is to be looked up again: the operator has asked for something else, or
    the move is given up."""


@dataclass(frozen=True, slots=True)
class MoverParts:
    """What a mover works with."""

    catalog: Catalog
    cluster: Cluster
    directory: Directory
    planning: Planning
    foreground: Foreground
    compare_queries: CompareQueries
    idle: Callable[[], Awaitable[None]]
    """Called now and then while nothing is to be moved."""


class Mover:
    """See the head of this file. `run` is its one task."""

    def __init__(self, name: str, parts: MoverParts) -> None:
        """`name` tells this router from the others: it is shown to operators."""
        self._name = name
        self._parts = parts
        self._catalog = parts.catalog
        self._wake = asyncio.Event()
        self._stopping = False
        self._lease: Lease | None = None
        self._failed = 0
        self._fenced: tuple[str, float] | None = None
        """Which move is fenced, and since when this mover knows it."""

    def wake(self) -> None:
        """A rebalance was begun, or changed, through this router."""
        self._wake.set()

    def stop(self) -> None:
        """Makes `run` return as soon as no calls are held, and give the lease back: another router
        goes on from there."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Until it is stopped or cancelled."""
        while not self._stopping:
            self._wake.clear()  # first: what is begun while it looks, is looked at again
            try:
                await self._look()
            except ClusterError as error:
                log.warning("mover_delayed", error=error.message)
            except Exception as error:  # a defect here must not end the router
                log.error("mover_failed", exc_info=error)
            if not self._stopping:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._wake.wait()

    async def _look(self) -> None:
        found = await self._catalog.moves.current()
        if found is None:
            await self._parts.idle()
            return
        if _waits(*found):
            return
        lease = await self._acquired()
        if lease is None:
            return
        log.info("mover_begins", rebalance=found[0].id, mover=self._name, token=lease.token)
        self._parts.foreground.begin_busy(time.monotonic())
        try:
            await self._work(lease)
        finally:
            self._parts.foreground.end_busy(time.monotonic())
            # Whoever is to go on need not wait until it has expired.
            if self._lease is not None:
                with contextlib.suppress(ClusterError):
                    await self._catalog.moves.release(self._lease)

    async def _acquired(self) -> Lease | None:
        self._lease = await self._catalog.moves.acquire(
            self._name, _now(), round(LEASE_SECONDS * 1e6)
        )
        return self._lease

    # ------------------------------------------------------------------------------ the lease

    async def _work(self, lease: Lease) -> None:
        """Runs moves while the lease is held and something is to do."""
        held: Lease | None = lease
        while held is not None:
            more, failed = False, None
            try:
                async with asyncio.TaskGroup() as group:
                    keeping = group.create_task(self._keep(held), name="lease")
                    more = await self._run_next(held, group)
                    keeping.cancel()
            except* Exception as failures:
                failed = _first(failures)
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    # Python 3.11 forgets it when a task of the group fails at the same moment.
                    raise asyncio.CancelledError from failed
            if failed is not None:
                if failed.reason is Reason.STALE_TOKEN:
                    log.info("mover_deposed", mover=self._name, token=held.token)
                    return
                await self._delay(held, failed)
            # The next run has a higher token: the nodes refuse what this one has left under way.
            held = await self._acquired() if more or failed is not None else None

    async def _keep(self, lease: Lease) -> None:
        """Renews the lease; raises what the catalog says when it cannot be renewed in time."""
        expires = time.monotonic() + LEASE_SECONDS
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await self._catalog.moves.renew(lease, _now(), round(LEASE_SECONDS * 1e6))
            except ClusterError as error:
                if isinstance(error, Stale) or time.monotonic() > expires:
                    raise
            else:
                expires = time.monotonic() + LEASE_SECONDS

    async def _delay(self, lease: Lease, error: ClusterError) -> None:
        """A run has failed: says so where operators look, and waits a little."""
        log.warning("move_delayed", error=error.message, failures=self._failed + 1)
        self._failed += 1
        with contextlib.suppress(ClusterError):
            found = await self._catalog.moves.current()
            if found is not None and error.reason is not Reason.CONFLICT:
                await self._catalog.moves.set_problem(lease, found[0].id, error.message)
        pause = backoff(self._failed - 1, RETRY_BASE, RETRY_CAP, jitter=0.5)
        if self._fenced is not None and (left := self._fence_left()) > 0:
            pause = min(pause, left)
        await asyncio.sleep(pause)

    # ------------------------------------------------------------------------------ one after one

    async def _run_next(self, lease: Lease, tasks: asyncio.TaskGroup) -> bool:
        """Carries on what is next; False when nothing is left to do here."""
        moves = self._catalog.moves
        found = await moves.current()
        if found is None or _waits(*found):
            return False
        rebalance, under_way = found
        if self._stopping and (under_way is None or under_way[0].stage is not Stage.FENCED):
            return False
        if under_way is None:
            wanted = rebalance.state is not RebalanceState.CANCELLING
            if wanted and await self._parts.planning.more(lease, rebalance):
                return True
            ended = await moves.finish(lease, rebalance, _now())
            log.info("rebalance_ended", rebalance=ended.id, state=ended.state)
            return False
        move, progress = under_way
        self._note_fence(move)
        if self._fenced is not None and self._fence_left() <= 0:
            why = "it could not be switched in time, and writes were being held; start it again"
            move = await moves.enter(lease, move, Stage.CANCELLING, why)
        if _gave_up(rebalance, move):
            # First, so that whoever takes over knows it too.
            rebalance = await moves.fail(lease, rebalance, move.problem, _now())
        try:
            await self._pursue(lease, rebalance, move, progress, tasks)
        except _Interrupted:
            return True
        await self._note_success(lease, rebalance)
        return True

    async def _note_success(self, lease: Lease, rebalance: Rebalance) -> None:
        """Nothing stands in the way any more."""
        self._failed = 0
        if rebalance.problem:
            await self._catalog.moves.set_problem(lease, rebalance.id, "")

    # ------------------------------------------------------------------------------ the fence

    def _note_fence(self, move: Move) -> None:
        if move.stage is not Stage.FENCED:
            self._fenced = None
        elif self._fenced is None or self._fenced[0] != move.id:
            self._fenced = move.id, time.monotonic()

    def _fence_left(self) -> float:
        """For how many seconds the fenced move is tried yet."""
        assert self._fenced is not None
        return self._fenced[1] + UNFENCE_SECONDS - time.monotonic()

    async def _done(self, carrier: Carrier, step: Step) -> Answer:
        """Does a step, but no longer than writes may be held. Raises ClusterError."""
        self._note_fence(carrier.move)
        left = None if self._fenced is None else max(self._fence_left(), 0.0)
        try:
            async with asyncio.timeout(left):
                return await carrier.do(step)
        except TimeoutError:
            # If it was the switch, the catalog knows whether it took place.
            raise DeadlineExpired(
                f"move {carrier.move.id} was not switched within {UNFENCE_SECONDS:g} s"
            ) from None

    async def _pursue(
        self,
        lease: Lease,
        rebalance: Rebalance,
        move: Move,
        progress: MoveProgress,
        tasks: asyncio.TaskGroup,
    ) -> Move:
        """One run of a move, to its end. Raises ClusterError, _Interrupted."""
        parts = self._parts

        async def compare(ref: shard_pb2.MoveRef, source: Shard, target: Shard) -> str:
            return await parts.compare_queries(rebalance, ref, source, target)

        carrier = Carrier(
            lease, move, progress, parts.catalog, parts.cluster, parts.directory,
            Pace(rebalance.records_per_second), parts.foreground, compare, tasks,
        )  # fmt: skip
        watch = _Watch(self._catalog, rebalance)
        run = pursue(move)
        noted = time.monotonic()
        try:
            step = _next(run, None)
            while not isinstance(step, Move):
                answer = await self._done(carrier, step)
                if _gave_up(rebalance, carrier.move):
                    raise _Interrupted
                if self._stopping and carrier.move.stage is not Stage.FENCED:
                    raise _Interrupted
                await watch.obey(carrier.move)
                if (
                    time.monotonic() - noted > NOTE_SECONDS
                    and carrier.move.stage is not Stage.FENCED
                ):
                    await self._catalog.moves.note(lease, move.id, carrier.progress)
                    await self._note_success(lease, rebalance)
                    noted = time.monotonic()
                step = _next(run, answer)
            return step
        finally:
            run.close()
            carrier.close()
            with contextlib.suppress(ClusterError):
                await self._catalog.moves.note(lease, move.id, carrier.progress)


class _Watch:
    """Looks, not too often, whether the operator wants something else."""

    def __init__(self, catalog: Catalog, rebalance: Rebalance) -> None:
        self._catalog, self._rebalance = catalog, rebalance
        self._next = time.monotonic() + OBEY_SECONDS
        self._revision = -1

    async def obey(self, move: Move) -> None:
        """Raises _Interrupted. Not between fence and switch: calls are being held."""
        if time.monotonic() < self._next or move.stage in {Stage.FENCED, *ENDED}:
            return
        self._next = time.monotonic() + OBEY_SECONDS
        revision = await self._catalog.revision()
        if revision == self._revision:
            return
        self._revision = revision
        found = await self._catalog.moves.current()
        if found is None:
            raise _Interrupted
        present, under_way = found
        if under_way is None or (under_way[0].id, under_way[0].stage) != (move.id, move.stage):
            raise _Interrupted  # it was cancelled, or its collection is being deleted
        before = self._rebalance
        if (present.state, present.records_per_second, present.query_agreement) != (
            before.state, before.records_per_second, before.query_agreement,
        ):  # fmt: skip
            raise _Interrupted


def _waits(rebalance: Rebalance, under_way: MoveRow | None) -> bool:
    """Whether it is paused, and is where it may be: not while calls are held, nor half undone."""
    paused = rebalance.state is RebalanceState.PAUSED
    return paused and under_way is not None and under_way[0].stage in PAUSABLE


def _gave_up(rebalance: Rebalance, move: Move) -> bool:
    """Whether the mover has begun to undo a move by itself, and the rebalance goes on as yet."""
    return move.stage is Stage.CANCELLING and rebalance.state is not RebalanceState.CANCELLING


def _next(run: Run, answer: Answer) -> Step | Move:
    """The next step, or the move when it has ended."""
    try:
        return run.send(answer)
    except StopIteration as end:
        ended: Move = end.value
        return ended


def _now() -> int:
    return time.time_ns() // 1000


def _first(failures: BaseExceptionGroup[Exception]) -> ClusterError:
    """Of several the one that says that another has the lease, else a defect, else the first."""
    errors: list[ClusterError] = []
    defects: list[ClusterError] = []
    stack: list[BaseException] = [failures]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(error.exceptions)
        elif isinstance(error, ClusterError):
            errors.append(error)
        else:
            log.error("move_failed", exc_info=error)
            why = f"a defect in the mover: {type(error).__name__}: {error}; see the router's log"
            defects.append(InternalFailure(why))
    stale = [error for error in errors if error.reason is Reason.STALE_TOKEN]
    return (stale or defects or errors)[0]
