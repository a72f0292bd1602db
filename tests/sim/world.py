"""One simulation: everything put together, run from one seed, and judged.

First there are faults and a user who plans, cancels and pauses moves; then the faults stop, and
everything must come to an end by itself.
"""

import random
from collections import Counter
from dataclasses import dataclass

from chroma_router.wire.slots import SLOT_COUNT
from router.core.move import PAUSABLE, Stage
from router.core.slot_map import SlotMap
from tests.sim.catalog import Catalog, owned_by
from tests.sim.checks import Checks, Violation
from tests.sim.mover import Mover
from tests.sim.node_moves import Node
from tests.sim.options import NO_MUTATION, Mutations, Options
from tests.sim.records import IDS, SLOTS
from tests.sim.router import Client, Router
from tests.sim.schedule import CallError, Peer, Process, Schedule

FAULTS_END = 600.0
"""Ticks after which nothing goes wrong any more, if there is still anything to do."""

LIMIT = 2000.0
"""Ticks within which everything has ended."""

NODES = ("a", "b", "base")
"""Base also owns all slots that have no ids, so that the others can be emptied."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a simulation went."""

    violation: str
    """Empty: every invariant held."""
    events: int
    ticks: float
    stages: Counter[Stage]
    trace: list[str]


def simulate(
    seed: int,
    options: Options | None = None,
    mutations: Mutations = NO_MUTATION,
    *,
    strict: bool = True,
    tracing: bool = False,
) -> Outcome:
    """Runs a seed, with the options that are given or else drawn by it."""
    rng = random.Random(seed)
    world = World(rng, options or Options.drawn(rng), mutations, strict=strict, tracing=tracing)
    violation = ""
    try:
        world.run()
    except Violation as found:
        violation = str(found)
    schedule = world.schedule
    return Outcome(violation, schedule.events, schedule.now, world.checks.stages, schedule.trace)


class World:
    """See the head of this file."""

    def __init__(
        self, rng: random.Random, options: Options, mutations: Mutations, *, strict: bool,
        tracing: bool,
    ) -> None:  # fmt: skip
        self.options = options
        self.schedule = Schedule(rng, options, tracing=tracing)
        self.checks = Checks(self.schedule, strict=strict, copy_faults=options.copy_fault > 0.0)
        owners = ["base"] * SLOT_COUNT
        for slot in SLOTS:
            owners[slot] = rng.choice(options.owners)
        self.catalog = Catalog(self.schedule, self.checks, SlotMap(1, tuple(owners)))
        self.nodes = {
            name: Node(self.schedule, name, self.checks, options, mutations) for name in NODES
        }
        self.checks.nodes = self.nodes
        for name, node in self.nodes.items():
            node.disk.epoch, node.disk.owned = 1, owned_by(self.catalog.slot_map, name)
        for record_id in IDS:
            if rng.random() < options.loaded:
                record = (0, 0, 0, rng.randrange(2))
                self.nodes[self.checks.owner(record_id)].disk.records[record_id] = record
                self.checks.loaded(record_id, record)
        self.routers = [
            Router(self.schedule, f"router-{n}", self.checks, self.catalog, self.nodes, options)
            for n in range(options.routers)
        ]
        self.movers = [Mover(router, mutations) for router in self.routers[:2]]
        self._busy = options.clients + 1
        self._user = Peer(self.schedule, "user")

    def run(self) -> None:
        """Raises Violation."""
        for router, mover in zip(self.routers, self.movers, strict=False):
            self._keep_moving(router, mover)
        for n in range(self.options.clients):
            client = Client(self.schedule, f"client-{n}", self.checks, self.routers, self.options)
            self.schedule.start(client, client.work(), self._one_ends)
        self.schedule.start(self._user, self._use(), self._one_ends)
        self.schedule.run(FAULTS_END, self._ended)
        self.schedule.faults = False
        self.schedule.run(LIMIT, self._ended)
        self.checks.require(self._ended(), "it does not come to rest")
        for mover in self.movers:
            mover.idle = True
        # What is still under way arrives, however late.
        self.schedule.run(self.schedule.now + LIMIT, lambda: False)
        self._look_at_everything()
        self.checks.rest()

    def _keep_moving(self, router: Router, mover: Mover) -> None:
        begin = router.begin

        def begin_with_mover() -> None:
            begin()
            self.schedule.start(router, mover.work())

        router.begin = begin_with_mover  # type: ignore[method-assign]
        self.schedule.start(router, mover.work())

    def _one_ends(self, value: object, error: object) -> None:
        """A client or the user is done; when all are, the faults stop."""
        assert error is None
        self._busy -= 1
        if not self._busy:
            self.schedule.faults = False

    def _ended(self) -> bool:
        move = self.catalog.move
        return not self._busy and (move is None or move.ended)

    def _look_at_everything(self) -> None:
        """At rest every router answers; the checks see whether it is the truth."""
        for router in self.routers:
            self.checks.require(self._answers(router), f"{router.name} does not answer at rest")

    def _answers(self, router: Router) -> bool:
        client = Client(self.schedule, "last", self.checks, [router], self.options)
        failures: list[CallError | None] = []
        self.schedule.start(client, client.read(None), lambda _, error: failures.append(error))
        self.schedule.run(self.schedule.now + LIMIT, lambda: bool(failures))
        return failures == [None]

    # ------------------------------------------------------------------------------ the user

    def _use(self) -> Process:
        """Plans moves, one after another, cancels or pauses some, replaces emptied directories."""
        rng, options, catalog = self.schedule.rng, self.options, self.catalog
        for _ in range(options.moves):
            yield 2.0 + rng.random() * 20.0
            self._plan()
            cancel_at = self._moment(options.cancel)
            pause_at = self._moment(options.pause)
            wipe_at = self._moment(options.wipe)
            while catalog.move is not None and not catalog.move.ended:
                yield 2.0
                now = self.schedule.now
                if now >= cancel_at:
                    catalog.cancel()
                    cancel_at = LIMIT
                elif now >= pause_at:
                    catalog.pause()
                    pause_at = LIMIT
                    yield rng.random() * 60.0
                    catalog.resume()
                elif now >= wipe_at:
                    self._wipe()
                    wipe_at = LIMIT
            if self.schedule.chance(options.wipe):
                yield rng.random() * 10.0
                self._wipe()

    def _moment(self, chance: float) -> float:
        rng = self.schedule.rng
        return self.schedule.now + rng.random() * 120.0 if rng.random() < chance else LIMIT

    def _plan(self) -> None:
        rng, slot_map = self.schedule.rng, self.catalog.slot_map
        source = rng.choice([name for name in NODES if owned_by(slot_map, name)])
        target = rng.choice([name for name in NODES if name != source])
        owned = sorted(owned_by(slot_map, source))
        some = len(owned) if rng.random() < self.options.drain else rng.randint(1, len(owned))
        self.catalog.plan(source, target, rng.sample(owned, some))

    def _wipe(self) -> None:
        """A shard that owns nothing, and is no part of a move past VERIFIED, begins empty: it was
        drained, removed and added again, or its directory was replaced."""
        move = self.catalog.move
        assert move is not None
        idle = move.ended or move.stage in PAUSABLE
        moving = set() if idle else {move.source, move.target}
        emptied = [
            name
            for name in NODES[:-1]
            if name not in moving and not owned_by(self.catalog.slot_map, name)
        ]
        if emptied:
            name = move.source if move.source in emptied else self.schedule.rng.choice(emptied)
            if self.schedule.tracing:
                self.schedule.say(f"user: {name} is given an empty directory")
            self.nodes[name].wipe()
