"""A simulated shard node: its single writer, ownership, writes and reads. (Moves: node_moves.py.)

A turn of the writer is a generator that yields while the engine works; what it puts on the disk it
puts there in one step, so that a death lands before or after it. Checks that the real node makes
under the writer are made here in the turn, those that it makes at once are made at once.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tests.sim.checks import Checks
from tests.sim.disk import NOTHING, Disk, Outcome
from tests.sim.options import Mutations, Options
from tests.sim.records import CONDITIONAL, IDS, SLOT, Kind, Request, State, after, matches
from tests.sim.schedule import Exchange, Peer, Process, Refused, Reply, Schedule

BACKGROUND_IMPATIENCE = 0.2
"""How likely a background turn goes before the foreground ones that wait."""

LONG_READ = 14.0
"""Ticks that a node takes over a long read at most."""

_LANES = {
    "apply": 1, "set_ownership": 0, "fence_slots": 0, "begin_capture": 1, "end_capture": 1,
    "begin_arrival": 1, "end_arrival": 1, "read_move": 2, "apply_move": 2, "drop_slots": 2,
}  # fmt: skip
"""Which calls are turns of the single writer: 0 urgent, 1 foreground, 2 background."""


class Grant(NamedTuple):
    """What a router has said that the node owns, since it began."""

    epoch: int
    owned: frozenset[int]


class Answer(NamedTuple):
    """Records as a node gives them, and at which epoch it did."""

    found: dict[str, State]
    epoch: int


class NodeBase(Peer):
    """See the head of this file."""

    def __init__(
        self, schedule: Schedule, name: str, checks: Checks, options: Options, mutations: Mutations
    ) -> None:
        super().__init__(schedule, name)
        self.checks, self.options, self.mutations = checks, options, mutations
        self.disk = Disk()
        self.grant: Grant | None = None
        self.read_fenced: set[str] = set()
        """The moves whose fences cover reads."""
        self._lanes: tuple[deque[tuple[str, Process, Reply]], ...] = (deque(), deque(), deque())
        self._busy = False
        self.begin()

    @property
    def boot_id(self) -> int:
        """Another one each time the node begins."""
        return self.life

    def begin(self) -> None:
        """Only what is on the disk is left; every fence covers reads from here on."""
        self.grant = None
        self.read_fenced = set() if self.mutations.no_read_fence else set(self.disk.fences)
        if self.mutations.volatile_fence:
            self.disk.fences.clear()
        for lane in self._lanes:
            lane.clear()
        self._busy = False

    def wipe(self) -> None:
        """An empty directory in the place of the old one."""
        self.die(3.0)
        self.disk = Disk()

    # ------------------------------------------------------------------------------ the writer

    def handle(self, method: str, arguments: tuple[Any, ...], exchange: Exchange) -> None:
        """Turns wait for the writer; everything else is done at once."""
        if method in _LANES:
            reply = self.answering(exchange)
            try:
                process: Process = getattr(self, method)(*arguments)
            except Refused as refusal:  # before its turn
                reply(None, refusal)
            else:
                self.enqueue(method, process, reply)
        else:
            super().handle(method, arguments, exchange)

    def enqueue(self, method: str, turn: Process, reply: Reply) -> None:
        """Puts a turn into its lane."""
        self._lanes[_LANES[method]].append((method, turn, reply))
        if not self._busy:
            self._next_turn()

    def _next_turn(self) -> None:
        urgent, foreground, background = self._lanes
        if urgent:
            lane = urgent
        elif background and (not foreground or self.schedule.rng.random() < BACKGROUND_IMPATIENCE):
            lane = background
        elif foreground:
            lane = foreground
        else:
            self._busy = False
            return
        self._busy = True
        method, turn, reply = lane.popleft()
        self._go_on(self.life, method, turn, reply)

    def _go_on(self, life: int, method: str, turn: Process, reply: Reply) -> None:
        """The turn until it next waits for the engine. A node may die before each of its steps."""
        if life != self.life or self._dies(method):
            return
        try:
            ticks = next(turn)
        except StopIteration as end:
            if not self._dies(method):
                self._end_turn(reply, end.value, None)
        except Refused as refusal:
            self._end_turn(reply, None, refusal)
        else:
            self.schedule.at(ticks, self._go_on, life, method, turn, reply)

    def _end_turn(self, reply: Reply, value: Any, error: Refused | None) -> None:
        reply(value, error)
        self._next_turn()

    def _dies(self, method: str) -> bool:
        chance = self.options.crash_in.get(method, self.options.node_crash)
        if not self.schedule.chance(chance):
            return False
        self.fall(self.life)
        return True

    def fall(self, life: int) -> None:
        """Dies for a while, if it has not died since."""
        if life == self.life:
            self.die(0.5 + self.schedule.rng.random() * 2.0 * self.options.down)

    # ------------------------------------------------------------------------------ ownership

    def hello(self) -> int:
        """The boot id."""
        return self.boot_id

    def set_ownership(self, epoch: int, owned: frozenset[int], boot_id: int) -> Process:
        """Monotonic. A grant that is there changes at once, before the turn."""
        if boot_id != self.boot_id and not self.mutations.no_boot_id:
            raise Refused("STALE_BOOT")
        here = max(self.disk.epoch, self.grant.epoch if self.grant else 0)
        if epoch < here:
            raise Refused("STALE_EPOCH", epoch=here)
        if self.grant is not None and self.grant.epoch < epoch:
            self.grant = Grant(epoch, owned)
        return self._ownership_turn(epoch, owned)

    def _ownership_turn(self, epoch: int, owned: frozenset[int]) -> Process:
        if epoch < self.disk.epoch:
            raise Refused("STALE_EPOCH", epoch=self.disk.epoch)
        if epoch > self.disk.epoch:
            yield 0.5
            disk = self.disk
            disk.epoch, disk.owned = epoch, owned
            disk.fences = {m: f for m, f in disk.fences.items() if f.next_epoch > epoch}
            # What is now owned, not what was lost or gained: the row before may be of any age.
            disk.captures = {m: c for m, c in disk.captures.items() if c.slots <= owned}
            disk.arrivals = {m: a for m, a in disk.arrivals.items() if not a.slots & owned}
            self.read_fenced &= disk.fences.keys()
        if self.grant is None or self.grant.epoch < epoch:
            self.grant = Grant(epoch, owned)

    def _granted(self, epoch: int) -> Grant:
        grant = self.grant
        if grant is None or (grant.epoch != epoch and not self.mutations.no_epoch_check):
            raise Refused("STALE_EPOCH", epoch=grant.epoch if grant else 0)
        return grant

    def _fenced(self, grant: Grant, next_epoch: int) -> Refused:
        return Refused("SLOTS_FENCED", epoch=grant.epoch, next_epoch=next_epoch)

    # ------------------------------------------------------------------------------ writes

    def apply(self, epoch: int, request: Request, ids: Sequence[str]) -> Process:
        """Applies a request's part for this shard; answers the `deleted` figure."""
        grant, disk = self._granted(epoch), self.disk
        sweep = request.kind is Kind.SWEEP
        slots = grant.owned if sweep else frozenset(SLOT[i] for i in ids)
        if not slots <= grant.owned:
            raise Refused("INTERNAL")
        for fence in disk.fences.values():
            if fence.slots & slots:
                raise self._fenced(grant, fence.next_epoch)
        remembered: frozenset[int] = NOTHING
        for row in disk.outcomes.get(request.number, ()):
            remembered |= row.slots
        covers = slots - remembered
        if covers:
            named = IDS if sweep else ids
            left = [i for i in named if SLOT[i] in covers]
            if request.kind in CONDITIONAL:
                left = [i for i in left if matches(request, disk.records.get(i))]
            if len(left) > 1 and request.kind is Kind.SWEEP:
                # In steps, as the engine's bound may ask: only the last says that it is complete.
                yield self._work()
                self._commit(request, left[:1], NOTHING)
                left = left[1:]
            yield self._work()
            self._commit(request, left, covers)
        # All that the request has deleted in slots that are owned now: the rest is told by others.
        rows = disk.outcomes.get(request.number, ())
        return sum(slot in grant.owned for row in rows for slot in row.deleted)

    def _work(self) -> float:
        return 0.2 + self.schedule.rng.random()

    def _commit(self, request: Request, ids: Sequence[str], covers: frozenset[int]) -> None:
        """One transaction of the engine: records, what is captured of them, and the outcome."""
        disk = self.disk
        batch = disk.changed(list(ids))
        effects: list[tuple[str, State, State]] = []
        for record_id in ids:
            before = disk.records.get(record_id)
            new = after(request, before)
            effects.append((record_id, before, new))
            if new is None:
                disk.records.pop(record_id, None)
            else:
                disk.records[record_id] = new
        deleted = tuple(SLOT[i] for i in ids) if request.kind in CONDITIONAL else ()
        disk.outcomes.setdefault(request.number, []).append(Outcome(batch, covers, deleted))
        if self.schedule.tracing:
            self.schedule.say(
                f"{self.name} commits #{request.number} {request.kind.value}: {effects}"
            )
        self.checks.committed(self.name, request, effects)

    # ------------------------------------------------------------------------------ reads

    def get(self, epoch: int, ids: Sequence[str]) -> Process:
        """Some records by their ids."""
        return self._read(epoch, frozenset(SLOT[i] for i in ids), lambda: ids)

    def get_all(self, epoch: int) -> Process:
        """All owned records, filtered here."""

        def owned() -> Sequence[str]:
            mine = self._granted(epoch).owned
            if self.mutations.no_filter:
                return list(self.disk.records)
            return [i for i in self.disk.records if SLOT[i] in mine]

        return self._read(epoch, None, owned)

    def _read(
        self, epoch: int, slots: frozenset[int] | None, chosen: Callable[[], Sequence[str]]
    ) -> Process:
        """Looked at when it begins and when it ends; in between, it reads what is there then."""
        grant = self._granted(epoch)
        touched = grant.owned if slots is None else slots
        for move in self.read_fenced:
            fence = self.disk.fences.get(move)
            if fence is not None and fence.slots & touched:
                raise self._fenced(grant, fence.next_epoch)
        rng = self.schedule.rng
        yield LONG_READ * rng.random() if rng.random() < self.options.long_read else 0.2
        found = {i: self.disk.records[i] for i in chosen() if i in self.disk.records}
        yield 0.1
        if self.grant is not grant:
            raise Refused("STALE_EPOCH", epoch=self.grant.epoch if self.grant else 0)
        self.checks.answered(self.name, epoch, grant.epoch, found)
        return Answer(dict(found), grant.epoch)
