"""The simulated catalog: slot map, move and lease, each changed by compare-and-swap. Never dies.

Every call is one transaction when it arrives; its answer may get lost like any other.
"""

from collections.abc import Iterable

from router.core.move import CANCELLABLE, PAUSABLE, Move, Stage
from router.core.slot_map import SlotMap
from tests.sim.checks import Checks
from tests.sim.records import SLOTS
from tests.sim.schedule import Peer, Refused, Schedule


def owned_by(slot_map: SlotMap, shard: str) -> frozenset[int]:
    """Those of the slots that have ids which a shard owns: the others do not matter here."""
    owners = slot_map.owners
    return frozenset(slot for slot in SLOTS if owners[slot] == shard)


class Catalog(Peer):
    """See the head of this file."""

    def __init__(self, schedule: Schedule, checks: Checks, slot_map: SlotMap) -> None:
        super().__init__(schedule, "catalog")
        self.checks = checks
        self.slot_map = slot_map
        self.move: Move | None = None
        self.paused = False
        self._holder, self._token, self._expires = "", 0, 0.0
        checks.mapped(slot_map)

    def read(self) -> SlotMap:
        """The slot map."""
        return self.slot_map

    # ------------------------------------------------------------------------------ movers

    def acquire(self, holder: str, ticks: float) -> int | None:
        """A new token, or None while another holder's lease lasts."""
        if self._holder not in {"", holder} and self.schedule.now < self._expires:
            return None
        self._holder, self._expires = holder, self.schedule.now + ticks
        self._token += 1
        return self._token

    def renew(self, token: int, ticks: float) -> None:
        """The lease lasts longer."""
        self._check(token)
        self._expires = self.schedule.now + ticks

    def current(self) -> tuple[Move | None, bool]:
        """The move, and whether it is paused."""
        return self.move, self.paused

    def enter(self, token: int, move: Move, stage: Stage, problem: str) -> Move:
        """The move at its next stage, if it is still what the mover believes it to be."""
        self._check(token, move)
        next_epoch = self.slot_map.epoch + 1 if stage is Stage.FENCED else 0
        return self._put(move.entered(stage, next_epoch=next_epoch, problem=problem))

    def switch(self, token: int, move: Move) -> Move:
        """Slot map and stage at once."""
        self._check(token, move)
        if self.slot_map.epoch != move.next_epoch - 1:
            raise Refused("CONFLICT")
        switched = move.entered(Stage.SWITCHED)
        self.slot_map = self.slot_map.reassigned(move.slots, move.target)
        self.checks.mapped(self.slot_map)
        return self._put(switched)

    def _check(self, token: int, move: Move | None = None) -> None:
        if token != self._token:
            raise Refused("STALE_TOKEN")
        if move is not None and (
            self.move is None or (self.move.id, self.move.version) != (move.id, move.version)
        ):
            raise Refused("CONFLICT")

    def _put(self, move: Move) -> Move:
        if self.schedule.tracing:
            self.schedule.say(f"catalog: move {move.id} is {move.stage} {move.problem}")
        self.move = move
        self.checks.entered(move)
        return move

    # ------------------------------------------------------------------------------ the user

    def plan(self, source: str, target: str, slots: Iterable[int]) -> None:
        """A new move."""
        move = Move(
            str(self.checks.fresh_number()), "rebalance", 0, "collection", source, target,
            frozenset(slots),
        )  # fmt: skip
        if self.schedule.tracing:
            self.schedule.say(f"user: move {move.id} {sorted(move.slots)} {source} -> {target}")
        self.paused = False
        self.move = move

    def cancel(self) -> None:
        """Undoes the move, if it has not switched."""
        move = self.move
        if move is not None and move.stage in CANCELLABLE:
            planned = move.stage is Stage.PLANNED
            self._put(move.entered(Stage.CANCELLED if planned else Stage.CANCELLING))

    def pause(self) -> None:
        """Halts the move, where that may be."""
        self.paused = self.move is not None and self.move.stage in PAUSABLE

    def resume(self) -> None:
        """Lets it go on."""
        self.paused = False
