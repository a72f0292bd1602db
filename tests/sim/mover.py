"""A simulated mover: takes the lease, runs the real `pursue`, does its steps, and begins again.

A run ends at the first step that fails or is not answered; the next one has a higher token. A mover
that lost its lease goes on believing until something refuses it.
"""

from typing import Any

from router.core import move as protocol
from router.core.move import PAUSABLE, Move, Step, Transferred
from tests.sim.mutations import mutated
from tests.sim.node_moves import Applied, Chunk
from tests.sim.options import Mutations
from tests.sim.router import Router
from tests.sim.schedule import Call, CallError, Process, Refused

LEASE = 60.0
"""Ticks that a lease lasts."""

PATIENCE = 20.0
"""Ticks that a mover waits for a node."""

_OUT_OF_STEP = "MOVE_OUT_OF_STEP"


class Mover:
    """The mover of one router; `work` is its process, which begins anew with the router."""

    def __init__(self, router: Router, mutations: Mutations) -> None:
        self._router, self._mutations = router, mutations
        self._schedule, self._catalog = router.schedule, router.catalog
        self._token = 0
        self._renewed = 0.0
        self._pause = 4.0
        self.idle = False
        """Nothing more is to be done."""

    def work(self) -> Process:
        """Run after run."""
        while not self.idle:
            try:
                token = yield Call(self._catalog, "acquire", (self._router.name, LEASE))
                self._pause = 4.0 if token is not None else 20.0
                if token is not None:
                    self._token, self._renewed = token, self._schedule.now
                    yield from self._run()
            except CallError as error:
                if self._schedule.tracing:
                    name = self._router.name
                    self._schedule.say(f"{name}: the run under {self._token} ends: {error}")
            yield 1.0 + self._schedule.rng.random() * self._pause

    def _run(self) -> Process:
        """One run of the move that the catalog has, as far as it comes."""
        move, paused = yield Call(self._catalog, "current")
        if move is None or move.ended or paused:
            return
        if self._schedule.tracing:
            name = self._router.name
            self._schedule.say(f"{name}: run of {move.id} from {move.stage}, token {self._token}")
        run = mutated(protocol.pursue, move, self._mutations)
        step = next(run)
        while True:
            yield from self._between_steps()
            if self._schedule.rng.random() < 0.2:
                now, paused = yield Call(self._catalog, "current")
                if now != move or (paused and move.stage in PAUSABLE):
                    return
            answer = yield from self._done(step, move)
            if isinstance(answer, Move):
                move = answer
            try:
                step = run.send(answer)
            except StopIteration:
                return

    def _between_steps(self) -> Process:
        """Here a mover may die, stall, and renew its lease, or forget to."""
        if self._router.may_die():
            yield 0.0
        if self._schedule.chance(self._router.options.stall):
            yield LEASE * (0.3 + 2.0 * self._schedule.rng.random())
        elif self._schedule.now > self._renewed + LEASE / 2:
            yield Call(self._catalog, "renew", (self._token, LEASE))
            self._renewed = self._schedule.now

    def _done(self, step: Step, move: Move) -> Process:
        """Does one step; what came of it."""
        match step:
            case protocol.Enter(stage, problem):
                return (yield self._ask("enter", move, stage, problem))
            case protocol.Switch():
                return (yield self._ask("switch", move))
            case protocol.Arrive(afresh):
                yield from self._router.give(move.target)
                applied, ready = yield self._tell(move.target, "begin_arrival", move, afresh)
                return protocol.Arrived(applied, ready, applied is not None and applied.copy_done)
            case protocol.Drop(shard):
                return (yield self._tell(shard, "drop_slots", move))
            case protocol.Transfer(begin, compare, compared):
                after = compared[0] if compared else -1
                read = self._tell(move.source, "read_move", move, begin, compare, after)
                return (yield from self._relayed(read, move))
            case protocol.Fence(begin):
                fence = self._tell(move.source, "fence_slots", move, move.next_epoch, begin)
                return (yield from self._relayed(fence, move))
            case protocol.CompareQueries():
                return ""
            case protocol.Grant():
                yield from self._grant(move)
            case protocol.Capture():
                yield self._tell(move.source, "begin_capture", move)
            case _:
                yield from self._ended(step, move)
        return None

    def _ended(self, step: Step, move: Move) -> Process:
        """The steps by which something at a node comes to an end."""
        match step:
            case protocol.FenceReads():
                yield self._tell(move.source, "fence_reads", move)
            case protocol.EndArrival():
                yield self._tell(move.target, "end_arrival", move)
            case protocol.EndCapture():
                yield self._tell(move.source, "end_capture", move)
            case _:
                raise AssertionError(f"{step} is not known here")

    def _ask(self, method: str, *arguments: Any) -> Call:
        return Call(self._catalog, method, (self._token, *arguments))

    def _tell(self, shard: str, method: str, *arguments: Any) -> Call:
        return Call(self._router.nodes[shard], method, (self._token, *arguments), PATIENCE)

    def _relayed(self, read: Call, move: Move) -> Process:
        """A chunk from the source to the target."""
        try:
            chunk: Chunk = yield read
            if self._router.may_die():
                yield 0.0
            applied: Applied = yield self._tell(move.target, "apply_move", move, chunk)
        except Refused as refused:
            if refused.reason == _OUT_OF_STEP:
                return protocol.OutOfStep()
            raise
        return Transferred(
            end=chunk.end,
            copy_done=chunk.end.copy_done,
            caught_up=chunk.caught_up,
            items=chunk.items,
            compared=(chunk.comparison.upto, "") if chunk.comparison else None,
            compare_done=chunk.compare_done,
            differences=applied.differences,
            source_records=chunk.records,
            target_records=applied.records,
        )

    def _grant(self, move: Move) -> Process:
        for shard in self._router.nodes:
            try:
                yield from self._router.give(shard)
            except CallError:
                if shard in {move.source, move.target}:
                    raise
