"""The invariants of DESIGN.md, checked at every step of a simulation and when it has come to rest.

Knows the truth: what each record is by the order in which the single writers committed (invariant
5), which requests took effect, and what clients were told. `strict` False leaves only what a client
or an operator can see; the mutation check uses that too, so that no mutation is found merely by
looking into the nodes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING

from router.core.move import Move, Stage
from router.core.slot_map import SlotMap
from tests.sim.linear import Seen, linearizable
from tests.sim.records import CONDITIONAL, IDS, SLOT, Kind, Request, State, matches
from tests.sim.schedule import Schedule

if TYPE_CHECKING:
    from tests.sim.node_moves import Node


class Violation(AssertionError):
    """An invariant does not hold."""


class Checks:
    """See the head of this file."""

    def __init__(self, schedule: Schedule, *, strict: bool, copy_faults: bool) -> None:
        self.schedule = schedule
        self.strict = strict
        self.copy_faults = copy_faults
        self.maps: dict[int, SlotMap] = {}
        """Every slot map that the catalog had, by its epoch."""
        self.nodes: Mapping[str, Node] = {}
        self.stages: Counter[Stage] = Counter()
        """How often each stage was entered: what a set of seeds has covered."""
        self._epoch = 0
        self._truth: dict[str, State] = dict.fromkeys(IDS)
        self._history: dict[str, list[tuple[float, State]]] = {i: [(-1.0, None)] for i in IDS}
        self._applied: dict[int, set[str]] = {}
        self._acknowledged: set[int] = set()
        self._deleted: Counter[int] = Counter()
        self._seen: dict[str, list[Seen]] = {i: [] for i in IDS}
        self._number = 0

    def fresh_number(self) -> int:
        """A number that was not given before."""
        self._number += 1
        return self._number

    @property
    def truth(self) -> Mapping[str, State]:
        """What each record is."""
        return self._truth

    def require(self, holds: bool, what: str) -> None:
        """Raises Violation unless it holds."""
        if not holds:
            if self.schedule.tracing:
                self.schedule.say(f"VIOLATION: {what}")
            raise Violation(f"at {self.schedule.now:.1f}: {what}")

    # ------------------------------------------------------------------------------ the catalog

    def mapped(self, slot_map: SlotMap) -> None:
        """The catalog has a new slot map. (That it has one owner a slot, SlotMap itself checks.)"""
        self.require(slot_map.epoch == self._epoch + 1, "invariant 1: epochs go up by one")
        self._epoch = slot_map.epoch
        self.maps[slot_map.epoch] = slot_map

    def loaded(self, record_id: str, record: State) -> None:
        """A record that is there before everything."""
        self._truth[record_id] = record
        self._history[record_id] = [(-1.0, record)]

    def owner(self, record_id: str) -> str:
        """Who owns a record now, by the catalog."""
        return self.maps[self._epoch].owners[SLOT[record_id]]

    def entered(self, move: Move) -> None:
        """The catalog has a move at a new stage."""
        self.stages[move.stage] += 1
        if move.stage is Stage.CANCELLING and not self.copy_faults:
            self.require("differ" not in move.problem, f"the copy was wrong: {move.problem}")
        if not self.strict:
            return
        if move.stage is Stage.SWITCHED:
            self._check_switch(move)
        elif move.stage is Stage.TRIMMED:
            self.require(not self._left(move.source, move), f"{move.source} is not trimmed")
        elif move.stage is Stage.CANCELLED:
            brought = move.target in self.maps[self._epoch].shards and self._left(move.target, move)
            self.require(not brought, f"{move.target} is not purged")

    def _left(self, shard: str, move: Move) -> list[str]:
        return self.nodes[shard].disk.held(move.slots)

    def _check_switch(self, move: Move) -> None:
        """Invariant 9: what the new owner has is what was acknowledged."""
        target = self.nodes[move.target].disk.records
        for record_id in IDS:
            if SLOT[record_id] in move.slots:
                self._same(target.get(record_id), record_id, f"{move.target}, switched to, has")

    def _same(self, state: State, record_id: str, who: str) -> None:
        self.require(
            state == self._truth[record_id],
            f"invariant 9: {who} {record_id} = {state}, it is {self._truth[record_id]}",
        )

    # ------------------------------------------------------------------------------ the nodes

    def committed(
        self, node: str, request: Request, effects: Sequence[tuple[str, State, State]]
    ) -> None:
        """A node's engine has committed a request's effects (id, before, after)."""
        applied = self._applied.setdefault(request.number, set())
        for record_id, before, new in effects:
            if self.strict:
                owner = self.owner(record_id)
                self.require(
                    owner == node, f"invariant 2: {node} writes {record_id}, {owner} owns it"
                )
                self._same(before, record_id, f"{node} has")
                self.require(
                    # A sweep in steps that broke off between two of them looks again.
                    record_id not in applied or request.kind is Kind.SWEEP,
                    f"invariant 8: #{request.number} is applied to {record_id} again",
                )
                self.require(
                    request.number not in self._acknowledged,
                    f"invariant 8: #{request.number} is applied after it was acknowledged",
                )
            if self._truth[record_id] != new:
                self._truth[record_id] = new
                self._history[record_id].append((self.schedule.now, new))
                self._deleted[request.number] += request.kind in CONDITIONAL
            applied.add(record_id)

    def answered(self, node: str, epoch: int, granted: int, found: Mapping[str, State]) -> None:
        """A node answers a read that was routed by an epoch."""
        if not self.strict:
            return
        self.require(granted == epoch, f"invariant 3: {node} at {granted} answers for {epoch}")
        owners = self.maps[epoch].owners
        for record_id in found:
            self.require(
                owners[SLOT[record_id]] == node, f"invariant 2: {node} answers with {record_id}"
            )

    # ------------------------------------------------------------------------------ the clients

    def read(self, began: float, ids: Sequence[str], found: Mapping[str, State]) -> None:
        """A client has the answer to a read."""
        now = self.schedule.now
        for record_id in ids:
            state = found.get(record_id)
            self._seen[record_id].append(Seen(began, now, None, state))
            if self.strict:
                self.require(
                    state in self._between(record_id, began),
                    f"invariant 4: a read since {began:.1f} has {record_id} = {state}, it was"
                    f" {self._between(record_id, began)}",
                )

    def _between(self, record_id: str, began: float) -> list[State]:
        """What a record was at some time since then."""
        states: list[State] = []
        for when, state in reversed(self._history[record_id]):
            states.append(state)
            if when <= began:
                break
        return states

    def acknowledged(self, began: float, request: Request, deleted: int) -> None:
        """A client has the acknowledgement of a write, and the figure in it."""
        now = self.schedule.now
        self._acknowledged.add(request.number)
        for record_id in request.ids:
            self._seen[record_id].append(Seen(began, now, request))
            if request.kind is Kind.SWEEP:  # it may have looked twice
                self._seen[record_id].append(Seen(began, inf, request))
        applied = self._applied.get(request.number, set())
        if request.kind not in CONDITIONAL:
            if self.strict:
                missing = [i for i in request.ids if i not in applied]
                self.require(
                    not missing, f"invariant 4: #{request.number} is acknowledged without {missing}"
                )
            return
        self.require(
            deleted == self._deleted[request.number],
            f"invariant 8: #{request.number} tells of {deleted} deleted,"
            f" there were {self._deleted[request.number]}",
        )
        if self.strict:
            for record_id in request.ids:
                if record_id not in applied:
                    passed = any(not matches(request, s) for s in self._between(record_id, began))
                    self.require(
                        passed, f"invariant 4: #{request.number} has passed over {record_id}"
                    )

    def unknown(self, began: float, request: Request) -> None:
        """A client gives up a write: it may have happened, or may yet."""
        for record_id in request.ids:
            self._seen[record_id].append(Seen(began, inf, request))

    # ------------------------------------------------------------------------------ at rest

    def rest(self) -> None:
        """The nodes hold what they own and nothing else, and every history makes sense."""
        for name, node in self.nodes.items():
            disk = node.disk
            self.require(not disk.fences, f"{name} is left with a fence: {disk.fences}")
            self.require(not disk.captures, f"{name} is left with a capture")
            for record_id in disk.records:
                self.require(
                    self.owner(record_id) == name, f"{name} is left with {record_id}, not its own"
                )
        for record_id in IDS:
            held = self.nodes[self.owner(record_id)].disk.records.get(record_id)
            if self.strict:
                self._same(held, record_id, "its owner, at rest, has")
            self.require(
                linearizable(self._history[record_id][0][1], self._seen[record_id]),
                f"what clients saw of {record_id} is not linearizable: {self._told(record_id)}",
            )

    def _told(self, record_id: str) -> str:
        return "\n  ".join(
            f"{s.began:.1f}..{s.ended:.1f} {s.request or 'read'} {'' if s.request else s.read}"
            for s in sorted(self._seen[record_id], key=lambda s: s.began)
        )
