"""Two movers and an operator on one catalog: it does what a naive twin says.

A mover that was taken over writes nothing, whatever it believes.
"""

import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from chroma_router.wire.errors import ClusterError, Reason
from router.catalog import Catalog, check
from router.core.lease import Lease
from router.core.model import CollectionEntry, ShardRole
from router.core.move import Move, Stage
from router.core.rebalance import MoveProgress, Rebalance, RebalanceKind, RebalanceState
from tests.router.catalog.helpers import SHARDS, a_move, a_rebalance, new, opened

_T = TypeVar("_T")

TTL = 10
SLOTS = range(6)
"""The slots that are moved about; a few, so that moves meet."""

RUNS = 15
STEPS = 250

NEXT = {
    "planned": "copying cancelling cancelled",
    "copying": "catching_up cancelling",
    "catching_up": "verified copying cancelling",
    "verified": "fenced copying cancelling",
    "fenced": "cancelling",
    "switched": "trimmed",
    "trimmed": "",
    "cancelling": "cancelled",
    "cancelled": "",
}
EARLY = ("planned", "copying", "catching_up", "verified", "fenced")
ENDED = ("trimmed", "cancelled")


@dataclass
class TwinMove:
    """A move as the twin has it."""

    id: str
    collection: str
    slots: frozenset[int]
    source: str
    target: str
    stage: str = "planned"
    next_epoch: int = 0
    changes: int = 0

    @classmethod
    def of(cls, move: Move) -> "TwinMove":
        """The part of a move that the twin knows."""
        return cls(
            *(move.id, move.collection_id, move.slots, move.source, move.target),
            *(move.stage.value, move.next_epoch, move.version - 1),
        )


@dataclass
class Twin:
    """What the catalog ought to hold, in the plainest form."""

    holder: str = ""
    token: int = 0
    expires: int = 0
    owners: list[str] = field(default_factory=list)
    epoch: int = 1
    placement: int = 0
    draining: set[str] = field(default_factory=set)
    kind: str = ""
    subject: str = ""
    placement_before: int = 0
    state: str = ""
    failed: bool = False
    moves: list[TwinMove] = field(default_factory=list)

    @property
    def unended(self) -> bool:
        """Whether there is a rebalance that has not ended."""
        return self.state in ("running", "paused", "cancelling")

    def undo(self, failed: bool) -> None:
        """A cancel or a failure."""
        if self.state != "cancelling":
            for move in self.moves:
                if move.stage in EARLY:
                    move.stage = "cancelled" if move.stage == "planned" else "cancelling"
                    move.changes += 1
            if self.kind == "drain":
                self.draining.discard(self.subject)
            if self.kind == "place":
                self.placement = self.placement_before
            self.state, self.failed = "cancelling", failed
        self.conclude()

    def conclude(self) -> None:
        """The end, if it has come."""
        if all(move.stage in ENDED for move in self.moves):
            ways = {(True, True): "failed", (True, False): "cancelled"}
            self.state = ways.get((self.state == "cancelling", self.failed), "done")

    def plan_holds(self, planned: list[Move], epoch: int, drained: str = "") -> bool:
        """Whether these moves may begin."""
        taken = [s for m in self.moves if m.stage not in ENDED for s in m.slots]
        taken += [slot for move in planned for slot in move.slots]
        return (
            epoch == self.epoch
            and len(taken) == len(set(taken))
            and all(m.target in SHARDS for m in planned)
            and all(m.target not in self.draining | {drained} for m in planned)
            and all(self.owners[slot] == move.source for move in planned for slot in move.slots)
        )


class Machine:
    """Does at random what routers and operators may do, here and in the twin."""

    def __init__(self, catalogs: list[Catalog], entry: CollectionEntry, chosen: random.Random):
        self.catalogs = catalogs
        self.entry = entry
        self.chosen = chosen
        self.twin = Twin(owners=list(entry.slot_map.owners))
        self.now = 100
        # What each mover believes: its lease, and the rebalance with its moves as it saw them last.
        self.leases = [Lease("a", 0, 0), Lease("b", 0, 0)]
        self.seen: list[tuple[Rebalance, list[Move]] | None] = [None, None]
        self.happened: Counter[str] = Counter()

    async def step(self) -> None:
        """One thing, done by either mover or by an operator."""
        mover = self.chosen.randrange(2)
        if not self.leads(mover) and self.leads(1 - mover) and self.chosen.random() < 0.6:
            mover = 1 - mover
        # Movers act on what they see more often than anything else happens.
        doing = self.chosen.choices(
            [
                lambda: self.enter(mover),
                lambda: self.switch(mover),
                lambda: self.look(mover),
                lambda: self.acquire(mover),
                lambda: self.renew(mover),
                lambda: self.release(mover),
                lambda: self.append(mover),
                lambda: self.conclude(mover),
                lambda: self.note(mover),
                self.wait,
                self.begin,
                self.hold,
                self.cancel,
                self.delete,
                self.reactivate,
            ],
            weights=(60, 15, 18, 6, 1, 1, 3, 5, 1, 2, 18, 1, 1, 0.5, 3),
        )[0]
        await doing()
        await self.agree()

    async def result(self, call: Coroutine[Any, Any, _T], *, allowed: bool) -> _T | ClusterError:
        """What came of a call, which the twin allows or not."""
        result: _T | ClusterError
        try:
            result = await call
        except ClusterError as error:
            result = error
        assert isinstance(result, ClusterError) != allowed, result
        return result

    def leads(self, mover: int) -> bool:
        lease = self.leases[mover]
        return (lease.holder, lease.token) == (self.twin.holder, self.twin.token)

    async def by_mover(
        self, mover: int, what: str, call: Coroutine[Any, Any, _T], *, allowed: bool
    ) -> bool:
        """A write of a mover, and whether it was done; it never is when its token is stale."""
        leads = self.leads(mover)
        result = await self.result(call, allowed=allowed and leads)
        if isinstance(result, ClusterError):
            assert leads or result.reason is Reason.STALE_TOKEN
            self.happened[f"{what} {result.reason}"] += 1
            return False
        self.happened[what] += 1
        if isinstance(result, tuple):  # of a switch
            result = result[1]
        if isinstance(result, Move):
            seen = self.seen[mover]
            assert seen is not None
            self.seen[mover] = seen[0], [result if m.id == result.id else m for m in seen[1]]
        return True

    def pick(self, mover: int) -> tuple[Move, TwinMove, bool] | None:
        """A move as a mover saw it, as it is, and whether that is still the same."""
        seen = self.seen[mover]
        known = {move.id: move for move in self.twin.moves}
        there = [move for move in seen[1] if move.id in known] if seen is not None else []
        if not there:
            return None
        # Most often the one that a mover is at.
        begun = [m for m in there if not m.ended] if self.chosen.random() < 0.7 else []
        move = begun[0] if begun else self.chosen.choice(there)
        return move, known[move.id], move.version == 1 + known[move.id].changes

    def planned(self, rebalance: Rebalance) -> list[Move]:
        """A plan, which may be impossible."""
        moves = []
        for _ in range(self.chosen.randrange(4)):
            slots = set(self.chosen.sample(SLOTS, self.chosen.choice((1, 1, 1, 2))))
            source = self.twin.owners[min(slots)]
            target = self.chosen.choice([*SHARDS * 5, "shard-9"])
            if source != target:
                moves.append(a_move(rebalance, self.entry, slots, source, target))
        return moves

    # ------------------------------------------------------------------------------ the lease

    async def acquire(self, mover: int) -> None:
        name = self.leases[mover].holder
        twin = self.twin
        free = twin.holder in ("", name) or twin.expires <= self.now
        lease = await self.catalogs[mover].moves.acquire(name, self.now, TTL)
        assert (lease is not None) == free
        if lease is not None:
            assert lease.token > twin.token
            self.leases[mover] = lease
            twin.holder, twin.token, twin.expires = name, lease.token, self.now + TTL
            await self.look(mover)

    async def renew(self, mover: int) -> None:
        call = self.catalogs[mover].moves.renew(self.leases[mover], self.now, TTL)
        if await self.by_mover(mover, "renew", call, allowed=True):
            self.twin.expires = self.now + TTL

    async def release(self, mover: int) -> None:
        await self.catalogs[mover].moves.release(self.leases[mover])
        if self.leads(mover):
            self.twin.holder, self.twin.expires = "", 0

    async def wait(self) -> None:
        self.now += self.chosen.randint(1, TTL)

    async def look(self, mover: int) -> None:
        newest = await self.catalogs[mover].moves.newest()
        if newest is not None:
            self.seen[mover] = newest[0], [move for move, _ in newest[1]]

    # ------------------------------------------------------------------------------ operators

    async def begin(self) -> None:
        twin = self.twin
        kind = self.chosen.choice(list(RebalanceKind))
        drained = self.chosen.choice(SHARDS) if kind is RebalanceKind.DRAIN else ""
        placed = self.entry.id if kind is RebalanceKind.PLACE else ""
        placement = self.chosen.randrange(4) if placed else None
        rebalance = a_rebalance(kind, drained or placed)
        planned = self.planned(rebalance)
        epoch = twin.epoch - (self.chosen.random() < 0.1)
        call = self.catalogs[0].moves.begin(
            rebalance, planned, {self.entry.id: epoch}, placement_after=placement
        )
        last = drained != "" and not set(SHARDS) - twin.draining - {drained}
        holds = twin.plan_holds(planned, epoch, drained)
        allowed = holds and not twin.unended and not last
        await self.result(call, allowed=allowed)
        if not allowed:
            return
        self.happened[f"begin {kind}"] += 1
        twin.kind, twin.subject, twin.state, twin.failed = kind, rebalance.subject, "running", False
        twin.moves = [TwinMove.of(move) for move in planned]
        twin.draining |= {drained} - {""}
        if placement is not None:
            twin.placement_before, twin.placement = twin.placement, placement
        twin.conclude()

    async def hold(self) -> None:
        moves = self.catalogs[0].moves
        allowed = self.twin.state in ("running", "paused")
        pause = self.chosen.random() < 0.5
        await self.result(moves.pause() if pause else moves.resume(7, None), allowed=allowed)
        if allowed:
            self.twin.state = "paused" if pause else "running"

    async def cancel(self) -> None:
        stages = {move.stage for move in self.twin.moves}
        fixed = "switched" in stages and not stages & set(EARLY)
        going = self.twin.state == "cancelling"
        allowed = self.twin.unended and (going or not fixed)
        await self.result(self.catalogs[0].moves.cancel(self.now), allowed=allowed)
        if allowed and not going:
            self.happened["cancel"] += 1
            self.twin.undo(failed=False)

    async def delete(self) -> None:
        """The collection goes, and another one comes in its place."""
        await self.catalogs[0].begin_delete(self.entry.id)
        await self.catalogs[0].finish_delete(self.entry.id)
        twin = self.twin
        for move in twin.moves:
            if move.stage not in ENDED:
                move.stage = "trimmed" if move.stage == "switched" else "cancelled"
                move.changes += 1
        homes = sorted(set(SHARDS) - twin.draining)
        self.entry, _ = await self.catalogs[1].create_collection(new(shards=homes), False)
        twin.owners, twin.epoch, twin.placement = list(self.entry.slot_map.owners), 1, 0
        # Of a placement nothing is given back to the one that is gone.
        twin.placement_before = 0

    async def reactivate(self) -> None:
        """A drained shard takes new data again, so that there is always something to move."""
        for shard in await self.catalogs[0].shards():
            if shard.role is ShardRole.DRAINING and not self.twin.unended:
                await self.catalogs[0].set_shard_role(shard, ShardRole.ACTIVE)
                self.twin.draining.discard(shard.name)

    # --------------------------------------------------------------------------------- movers

    async def enter(self, mover: int) -> None:
        picked = self.pick(mover)
        if picked is None:
            return
        move, twin, same = picked
        ways = NEXT[move.stage].split()
        if not ways:
            return
        stage = Stage(ways[0] if self.chosen.random() < 0.93 else self.chosen.choice(ways))
        if move.stage is Stage.FENCED and self.chosen.random() < 0.9:
            return  # it is for `switch`
        call = self.catalogs[mover].moves.enter(self.leases[mover], move, stage)
        if await self.by_mover(mover, _enter(stage), call, allowed=same):
            twin.stage, twin.changes = stage.value, twin.changes + 1
            if stage is Stage.FENCED:
                twin.next_epoch = self.twin.epoch + 1

    async def switch(self, mover: int) -> None:
        picked = self.pick(mover)
        if picked is None or picked[0].stage is not Stage.FENCED:
            return
        move, twin, same = picked
        # (Two moves may be fenced at once here: the second one's epoch is gone then.)
        allowed = same and twin.next_epoch == self.twin.epoch + 1
        call = self.catalogs[mover].moves.switch(self.leases[mover], move)
        if await self.by_mover(mover, "switch", call, allowed=allowed):
            twin.stage, twin.changes = "switched", twin.changes + 1
            for slot in twin.slots:
                self.twin.owners[slot] = twin.target
            self.twin.epoch += 1

    async def append(self, mover: int) -> None:
        seen, twin = self.seen[mover], self.twin
        if seen is None:
            return
        planned = self.planned(seen[0])
        epoch = twin.epoch - (self.chosen.random() < 0.1)
        call = self.catalogs[mover].moves.append(
            self.leases[mover], seen[0], planned, {self.entry.id: epoch}
        )
        allowed = (
            await self.is_newest(seen[0])
            and twin.state in ("running", "paused")
            and twin.plan_holds(planned, epoch)
        )
        if await self.by_mover(mover, "append", call, allowed=allowed):
            twin.moves += [TwinMove.of(move) for move in planned]

    async def conclude(self, mover: int) -> None:
        seen, twin = self.seen[mover], self.twin
        if seen is None:
            return
        rebalance, moves, lease = seen[0], self.catalogs[mover].moves, self.leases[mover]
        mine = await self.is_newest(rebalance)
        what = self.chosen.choices(["set_problem", "fail", "finish"], weights=(2, 2, 10))[0]
        if what == "set_problem":
            call = moves.set_problem(lease, rebalance.id, "no answer")
            await self.by_mover(mover, what, call, allowed=mine and twin.unended)
        elif what == "fail":
            failing = moves.fail(lease, rebalance, "they differ", self.now)
            if await self.by_mover(mover, what, failing, allowed=mine and twin.unended):
                twin.undo(failed=True)
        else:
            over = all(move.stage in ENDED for move in twin.moves)
            ending = moves.finish(lease, rebalance, self.now)
            if await self.by_mover(mover, what, ending, allowed=mine and over) and twin.unended:
                twin.conclude()

    async def note(self, mover: int) -> None:
        picked = self.pick(mover)
        if picked is not None:
            progress = MoveProgress(copied_records=self.chosen.randrange(9))
            call = self.catalogs[mover].moves.note(self.leases[mover], picked[0].id, progress)
            await self.by_mover(mover, "note", call, allowed=True)

    async def is_newest(self, rebalance: Rebalance) -> bool:
        newest = await self.catalogs[0].moves.newest()
        return newest is not None and newest[0].id == rebalance.id

    # ------------------------------------------------------------------------------ agreement

    async def agree(self) -> None:
        """The catalog holds what the twin does."""
        twin, catalog = self.twin, self.catalogs[self.chosen.randrange(2)]
        entry = await catalog.collection(self.entry.id)
        assert list(entry.slot_map.owners) == twin.owners
        assert (entry.slot_map.epoch, entry.placement_shards) == (twin.epoch, twin.placement)
        shards = await catalog.shards()
        assert {s.name for s in shards if s.role is ShardRole.DRAINING} == twin.draining
        newest = await catalog.moves.newest()
        assert (newest is None) == (twin.state == "")
        if newest is None:
            return
        rebalance, moves = newest
        assert rebalance.state.value == twin.state
        assert rebalance.ended == (not twin.unended)
        assert await catalog.moves.running() == (newest if twin.unended else None)
        if rebalance.state is RebalanceState.FAILED:
            assert rebalance.problem == "they differ"
        assert [move.number for move, _ in moves] == list(range(len(moves)))
        assert [TwinMove.of(move) for move, _ in moves] == twin.moves


async def test_at_random(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    happened: Counter[str] = Counter()
    for run in range(RUNS):
        path = tmp_path / f"catalog-{run}.db"
        catalogs = [await opened(path), await Catalog.open(path)]
        entry, _ = await catalogs[0].create_collection(new(), False)
        machine = Machine(catalogs, entry, random.Random(seed + run))
        for _ in range(STEPS):
            await machine.step()
        for catalog in catalogs:
            await catalog.close()
        assert check(path) == []
        happened += machine.happened
    # Else this has tested little.
    for reason in (Reason.STALE_TOKEN, Reason.CONFLICT):
        assert sum(count for what, count in happened.items() if reason in what) > 20
    for what in (
        *("switch", _enter(Stage.TRIMMED), _enter(Stage.CANCELLED)),
        *("begin drain", "begin place", "append", "finish", "fail", "cancel"),
    ):
        assert happened[what] > 0, (what, happened)


def _enter(stage: Stage) -> str:
    return f"enter {stage}"
