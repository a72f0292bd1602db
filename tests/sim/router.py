"""A simulated router: requests of clients by a slot map that may be old, and what mends it.

As router/write_path.py, router/scatter.py and router/directory.py have it: a refused call refreshes
the map or brings the node up to date, then the whole read, or what is left of a write under the
same identity, is repeated.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from router.core.plan import ids_by_shard
from router.core.slot_map import SlotMap
from tests.sim.catalog import Catalog, owned_by
from tests.sim.checks import Checks
from tests.sim.node import Answer
from tests.sim.node_moves import Node
from tests.sim.options import Options
from tests.sim.records import CONDITIONAL, IDS, Kind, Request, State
from tests.sim.schedule import Call, CallError, Peer, Process, Refused, Schedule, Unheard


class Router(Peer):
    """See the head of this file."""

    def __init__(
        self, schedule: Schedule, name: str, checks: Checks, catalog: Catalog,
        nodes: Mapping[str, Node], options: Options,
    ) -> None:  # fmt: skip
        super().__init__(schedule, name)
        self.checks, self.catalog, self.nodes, self.options = checks, catalog, nodes, options
        self._known: SlotMap | None = None

    def begin(self) -> None:
        """Nothing survives."""
        self._known = None

    def may_die(self) -> bool:
        """Dies perhaps; what runs here must then wait, and never hears anything again."""
        if not self.schedule.chance(self.options.router_crash):
            return False
        self.die(0.5 + self.schedule.rng.random() * 2.0 * self.options.down)
        return True

    # ------------------------------------------------------------------------------ requests

    def write(self, request: Request) -> Process:
        """Applies a write; the sum of what the shards say they deleted."""
        until = self.schedule.now + self.options.budget
        slot_map = yield from self._map()
        left: Sequence[str] = request.ids
        while self.schedule.now < until:
            parts: Mapping[str, Sequence[str]]
            if request.kind is Kind.SWEEP:
                parts = dict.fromkeys(slot_map.shards, ())
            else:
                parts = ids_by_shard(slot_map, left)
            answers = yield [
                Call(self.nodes[shard], "apply", (slot_map.epoch, request, ids))
                for shard, ids in parts.items()
            ]
            failed = [
                (shard, answer)
                for shard, answer in zip(parts, answers, strict=True)
                if isinstance(answer, CallError)
            ]
            if not failed:
                return sum(answers)
            # Counts of different epochs are never added: then all parts are repeated.
            if request.kind not in CONDITIONAL:
                left = [record_id for shard, _ in failed for record_id in parts[shard]]
            slot_map = yield from self._recover(slot_map, failed)
        raise Unheard("out of time")

    def read(self, ids: Sequence[str] | None) -> Process:
        """Some records by their ids, or all there are; whole, at one epoch."""
        until = self.schedule.now + self.options.budget
        slot_map = yield from self._map()
        while self.schedule.now < until:
            epoch = slot_map.epoch
            if ids is None:
                calls = [Call(self.nodes[s], "get_all", (epoch,)) for s in slot_map.shards]
            else:
                parts = ids_by_shard(slot_map, ids)
                calls = [Call(self.nodes[s], "get", (epoch, p)) for s, p in parts.items()]
            answers = yield calls
            failed = [
                (call.peer.name, answer)
                for call, answer in zip(calls, answers, strict=True)
                if isinstance(answer, CallError)
            ]
            if not failed:
                return self._joined(answers)
            slot_map = yield from self._recover(slot_map, failed)
        raise Unheard("out of time")

    def _joined(self, answers: Sequence[Answer]) -> dict[str, State]:
        found: dict[str, State] = {}
        for answer in answers:
            twice = found.keys() & answer.found.keys()
            self.checks.require(not twice, f"invariant 2: {sorted(twice)} twice in one answer")
            found |= answer.found
        if self.checks.strict:
            epochs = {answer.epoch for answer in answers}
            self.checks.require(len(epochs) <= 1, f"invariant 3: one answer of epochs {epochs}")
        return found

    # ------------------------------------------------------------------------------ mending

    def _map(self) -> Process:
        """The slot map as this router knows it, however old."""
        known = self._known
        if known is None or self.schedule.rng.random() < self.options.refresh:
            known = yield from self._refresh()
        return known

    def _refresh(self) -> Process:
        read: SlotMap = yield Call(self.catalog, "read")
        if self._known is None or self._known.epoch < read.epoch:
            self._known = read
        return self._known

    def _recover(self, used: SlotMap, failed: Sequence[tuple[str, CallError]]) -> Process:
        """Mends what the failures tell of, as far as it can be; the map to try again with."""
        if self.may_die():
            yield 0.0
        slot_map = used
        for shard, error in failed:
            try:
                if isinstance(error, Refused):
                    slot_map = yield from self._reconcile(slot_map, shard, error)
                else:
                    yield self._pause()
            except CallError:
                yield self._pause()
        return slot_map

    def _reconcile(self, used: SlotMap, shard: str, refused: Refused) -> Process:
        self.checks.require(
            refused.reason in {"STALE_EPOCH", "SLOTS_FENCED"},
            f"a client would see {refused.reason} from {shard}",
        )
        fresh: SlotMap = yield from self._refresh()
        node_epoch = refused.metadata["epoch"]
        self.checks.require(node_epoch <= fresh.epoch, f"{shard} is ahead of the catalog")
        if refused.reason == "SLOTS_FENCED":
            if fresh.epoch < refused.metadata["next_epoch"]:
                yield self._pause()
        elif fresh.epoch == used.epoch or node_epoch < fresh.epoch:
            yield from self.give(shard)
        return fresh

    def give(self, shard: str) -> Process:
        """Tells a node what it owns; the catalog is read after its boot id is known."""
        node = self.nodes[shard]
        boot_id: int = yield Call(node, "hello")
        slot_map: SlotMap = yield Call(self.catalog, "read")
        owned = owned_by(slot_map, shard)
        yield Call(node, "set_ownership", (slot_map.epoch, owned, boot_id))

    def _pause(self) -> float:
        return 1.0 + self.schedule.rng.random() * 4.0


class Client(Peer):
    """Asks one thing after another through whichever router, and says to the checks what it saw."""

    def __init__(
        self, schedule: Schedule, name: str, checks: Checks, routers: Sequence[Router],
        options: Options,
    ) -> None:  # fmt: skip
        super().__init__(schedule, name)
        self.checks, self.routers, self.options = checks, routers, options

    def work(self) -> Process:
        """All that this client does."""
        rng = self.schedule.rng
        for _ in range(self.options.operations):
            yield rng.random() * 2.0 * self.options.think
            draw = rng.random()
            if draw < 0.25:
                yield from self.read(self._ids())
            elif draw < 0.4:
                yield from self.read(None)
            else:
                request = self._request()
                yield from self._write(request)
                if rng.random() < self.options.look:
                    yield from self.read(request.ids)

    def _ids(self) -> tuple[str, ...]:
        rng = self.schedule.rng
        return tuple(rng.sample(IDS, rng.choice((1, 1, 2, 3))))

    def _request(self) -> Request:
        rng = self.schedule.rng
        number, tag = self.checks.fresh_number(), rng.randrange(2)
        draw = rng.random()
        if draw < 0.06:
            return Request(number, Kind.SWEEP, IDS, tag=tag)
        if draw < 0.14:
            return Request(number, Kind.DELETE_WHERE, self._ids(), tag=tag)
        if draw < 0.26:
            return Request(number, Kind.DELETE, self._ids())
        patch = (number, None, tag) if rng.random() < 0.5 else (None, number, tag)
        kind = rng.choice((Kind.UPSERT, Kind.UPSERT, Kind.UPSERT, Kind.ADD, Kind.UPDATE))
        return Request(number, kind, self._ids(), patch)

    def _write(self, request: Request) -> Process:
        began = self.schedule.now
        while True:
            try:
                deleted = yield self._call("write", request)
            except CallError:
                if self.schedule.chance(self.options.give_up):
                    self.checks.unknown(began, request)
                    return
                yield self._pause()
            else:
                if self.schedule.tracing:
                    self.schedule.say(f"{self.name}: #{request.number} is acknowledged")
                self.checks.acknowledged(began, request, deleted)
                return

    def read(self, ids: Sequence[str] | None) -> Process:
        """Reads some ids, or everything."""
        while True:
            began = self.schedule.now
            try:
                found = yield self._call("read", ids)
            except CallError:
                yield self._pause()
            else:
                if self.schedule.tracing:
                    self.schedule.say(
                        f"{self.name}: read {ids or 'all'} since {began:.1f}: {found}"
                    )
                self.checks.read(began, IDS if ids is None else ids, found)
                return

    def _call(self, method: str, argument: Any) -> Call:
        # A client's patience is a little longer than its router's, or shorter than that.
        patience = self.schedule.rng.choice((20.0, self.options.budget + 10.0))
        return Call(self.schedule.rng.choice(self.routers), method, (argument,), patience)

    def _pause(self) -> float:
        return 2.0 * self.options.repeat * self.schedule.rng.random()
