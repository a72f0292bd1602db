"""A simulated shard node: the calls of a move, as shard.proto states them."""

from dataclasses import dataclass, field
from typing import NamedTuple

from router.core.move import Move
from tests.sim.disk import NOTHING, Arrival, Capture, Cursor, Fence, Outcome
from tests.sim.node import NodeBase
from tests.sim.records import IDS, RANK, SLOT, Record
from tests.sim.schedule import Process, Refused

CHUNK = 2
"""Records in a chunk, at most; as many again to compare."""

DROP_LIMIT = 2
"""Records that one DropSlots deletes at most."""

SOON = 12.0
"""Ticks after a fence within which its node dies, if Options.fence_crash has it so."""

_END = len(IDS)


class Comparison(NamedTuple):
    """The source's records with a rank in (after, upto]."""

    after: int
    upto: int
    records: dict[str, Record]


@dataclass(slots=True)
class Chunk:
    """The contract's MoveChunk, and what ReadMove says about it."""

    begin: Cursor | None
    end: Cursor
    put: dict[str, Record] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    outcomes: dict[int, list[Outcome]] = field(default_factory=dict)
    comparison: Comparison | None = None
    caught_up: bool = False
    compare_done: bool = False
    records: int = -1
    """Of FenceSlots: how many records the moving slots have."""

    @property
    def items(self) -> int:
        """How many records and removals it has."""
        return len(self.put) + len(self.removed)


class Applied(NamedTuple):
    """The contract's ApplyMoveResponse."""

    records: int
    differences: str


_OUT_OF_STEP = "MOVE_OUT_OF_STEP"


class Node(NodeBase):
    """See the head of this file."""

    def _take_token(self, token: int) -> None:
        """Keeps the highest token, refuses a lower one; under the writer."""
        if token < self.disk.token and not self.mutations.no_token:
            raise Refused("STALE_TOKEN")
        self.disk.token = max(token, self.disk.token)

    def _check_unowned(self, slots: frozenset[int]) -> None:
        if slots & self.disk.owned or (self.grant is not None and slots & self.grant.owned):
            raise Refused(_OUT_OF_STEP)

    # ------------------------------------------------------------------------------ source

    def begin_capture(self, token: int, move: Move) -> Process:
        """From its commit on, every change is captured."""
        self._take_token(token)
        if move.id in self.disk.captures:
            return
        yield 0.5
        if self.mutations.ids_before_capture:
            later = self._capture_later(move, tuple(self.disk.held(move.slots)))
            self.schedule.at(
                6.0, self._later, self.life, later
            )  # in a turn of its own: the writer does what waits meanwhile
        else:
            self.disk.captures[move.id] = Capture(self.checks.fresh_number(), move.slots)

    def _later(self, life: int, turn: Process) -> None:
        if life == self.life:
            self.enqueue("begin_capture", turn, lambda v, e: None)

    def _capture_later(self, move: Move, listed: tuple[str, ...]) -> Process:
        if move.id not in self.disk.captures:
            yield 0.5
            capture = Capture(self.checks.fresh_number(), move.slots, listed=listed)
            self.disk.captures[move.id] = capture

    def read_move(
        self, token: int, move: Move, begin: Cursor | None, compare: bool, compared: int
    ) -> Process:
        """The next chunk of the stream, as things are in this turn."""
        self._take_token(token)
        yield 0.2
        return self._chunk(move, begin, compare, compared)

    def _chunk(self, move: Move, begin: Cursor | None, compare: bool, compared: int) -> Chunk:
        disk, capture = self.disk, self.disk.captures.get(move.id)
        if capture is None or (begin is not None and begin.capture != capture.number):
            raise Refused(_OUT_OF_STEP)
        at = begin or Cursor(capture.number)
        chunk = Chunk(begin, at)
        if not self.mutations.no_outcomes:
            self._add_outcomes(chunk, move.slots, at.outcome_batch)
        copied, copy_done, changed = at.copied, at.copy_done, at.changed
        if not copy_done:
            ids = capture.listed if capture.listed is not None else disk.held(move.slots)
            left = [i for i in ids if RANK[i] > copied]
            for record_id in left[:CHUNK]:
                copied = RANK[record_id]
                if record_id in disk.records:
                    chunk.put[record_id] = disk.records[record_id]
            copy_done = len(left) <= CHUNK
        dirty: list[tuple[int, str]] = []
        if copy_done:
            dirty = sorted((b, i) for i, b in capture.dirty.items() if (b, i) > changed)
            while dirty and chunk.items < CHUNK:
                changed = dirty.pop(0)
                self._add_change(chunk, changed[1])
        chunk.end = Cursor(capture.number, copied, copy_done, changed, disk.batch)
        chunk.caught_up = copy_done and not dirty
        if compare and chunk.caught_up:
            held = [i for i in disk.held(move.slots) if RANK[i] > compared]
            part, rest = held[:CHUNK], held[CHUNK:]
            upto = RANK[part[-1]] if rest else _END
            chunk.comparison = Comparison(compared, upto, {i: disk.records[i] for i in part})
            chunk.compare_done = not rest
        return chunk

    def _add_change(self, chunk: Chunk, record_id: str) -> None:
        """A captured record as it is now. One that was copied in this very chunk is sent once."""
        record = self.disk.records.get(record_id)
        if record is not None:
            chunk.put[record_id] = record
        else:
            chunk.put.pop(record_id, None)
            chunk.removed.append(record_id)

    def _add_outcomes(self, chunk: Chunk, slots: frozenset[int], sent: int) -> None:
        for number, rows in self.disk.outcomes.items():
            parts = [row.within(slots, row.batch) for row in rows if row.batch > sent]
            parts = [part for part in parts if not part.empty]
            if parts:
                chunk.outcomes[number] = parts

    def fence_slots(self, token: int, move: Move, next_epoch: int, begin: Cursor | None) -> Process:
        """Refuses writes from here on, and reads the rest of the stream."""
        self._take_token(token)
        chunk = self._chunk(move, begin, compare=False, compared=-1)
        chunk.records = len(self.disk.held(move.slots))
        yield 0.3
        if not self.mutations.no_fence:
            self.disk.fences[move.id] = Fence(move.slots, next_epoch, token)
        if self.schedule.chance(self.options.fence_crash):
            self.schedule.at(self.schedule.rng.random() * SOON, self.fall, self.life)
        if self.schedule.tracing:
            self.schedule.say(f"{self.name} fences {sorted(move.slots)} before {next_epoch}")
        return chunk

    def fence_reads(self, token: int, move: Move) -> None:
        """At once, without a turn."""
        fence = self.disk.fences.get(move.id)
        if self.mutations.no_fence or self.mutations.volatile_fence:
            self.read_fenced.add(move.id)
        elif fence is None or (fence.token != token and not self.mutations.no_token):
            raise Refused(_OUT_OF_STEP)
        elif not self.mutations.no_read_fence:
            self.read_fenced.add(move.id)
        self._dies("fence_reads")

    def end_capture(self, token: int, move: Move) -> Process:
        """Ends capture and fence of a move that is cancelled."""
        self._take_token(token)
        yield 0.3
        self.disk.captures.pop(move.id, None)
        self.disk.fences.pop(move.id, None)
        self.read_fenced.discard(move.id)

    # ------------------------------------------------------------------------------ target

    def begin_arrival(self, token: int, move: Move, afresh: bool) -> Process:
        """(cursor, ready): how far the move has come, and whether nothing else is there."""
        self._take_token(token)
        self._check_unowned(move.slots)
        yield 0.3
        disk = self.disk
        for other in [m for m, a in disk.arrivals.items() if m != move.id]:
            if disk.arrivals[other].slots & move.slots:
                del disk.arrivals[other]
        arrival = disk.arrivals.get(move.id)
        if arrival is None or afresh or not arrival.ready:
            empty = not disk.held(move.slots) and not disk.has_outcomes(move.slots)
            arrival = disk.arrivals[move.id] = Arrival(move.slots, ready=empty)
        return arrival.cursor, arrival.ready

    def apply_move(self, token: int, move: Move, chunk: Chunk) -> Process:
        """Puts what the source has in the place of what is here: deletes, then adds."""
        self._take_token(token)
        self._check_unowned(move.slots)
        disk, arrival = self.disk, self.disk.arrivals.get(move.id)
        if arrival is None or not arrival.ready or arrival.cursor != chunk.begin:
            raise Refused(_OUT_OF_STEP)
        gone = [i for i in (*chunk.put, *chunk.removed) if i in disk.records]
        if gone and not self.mutations.merging_put:
            yield 0.3
            disk.changed(gone)
            for record_id in gone:
                del disk.records[record_id]
        yield 0.3
        batch = disk.changed([*chunk.put, *chunk.removed])
        self._store(chunk)
        for number, rows in chunk.outcomes.items():
            here = disk.outcomes.setdefault(number, [])
            here.extend(Outcome(batch, row.slots, row.deleted) for row in rows)
        arrival.cursor = chunk.end
        return Applied(len(disk.held(move.slots)), self._differences(chunk, move))

    def _store(self, chunk: Chunk) -> None:
        records = self.disk.records
        first_copy = chunk.begin is None or not chunk.begin.copy_done
        for record_id in chunk.removed:
            records.pop(record_id, None)
        for record_id, record in chunk.put.items():
            if self.mutations.merging_put and record_id in records:
                old = records[record_id]
                kept = tuple(
                    o if n is None else n for o, n in zip(old[1:], record[1:], strict=True)
                )
                records[record_id] = (record[0], kept[0], kept[1], kept[2])
            elif first_copy and self.schedule.chance(self.options.copy_fault):
                if self.schedule.rng.random() < 0.5:  # else it gets lost altogether
                    records[record_id] = (record[0], None, record[2], record[3])
            else:
                records[record_id] = record

    def _differences(self, chunk: Chunk, move: Move) -> str:
        comparison = chunk.comparison
        if comparison is None:
            return ""
        here = {
            i: self.disk.records[i]
            for i in self.disk.held(move.slots)
            if comparison.after < RANK[i] <= comparison.upto
        }
        return "" if here == comparison.records else f"{comparison.records} became {here}"

    def end_arrival(self, token: int, move: Move) -> Process:
        """Forgets how far the move has come."""
        self._take_token(token)
        yield 0.3
        self.disk.arrivals.pop(move.id, None)

    # ------------------------------------------------------------------------------ both

    def drop_slots(self, token: int, move: Move) -> Process:
        """Deletes some records of slots that are not owned. Answers whether nothing is left."""
        self._take_token(token)
        if not self.mutations.unchecked_trim:
            self._check_unowned(move.slots)
        disk = self.disk
        held = disk.held(move.slots)
        yield 0.4
        chosen = held[:DROP_LIMIT]
        disk.changed(chosen)
        for record_id in chosen:
            del disk.records[record_id]
        if len(held) > DROP_LIMIT:
            return False
        for number, rows in list(disk.outcomes.items()):
            kept = [row.within(ALL - move.slots, row.batch) for row in rows]
            disk.outcomes[number] = [row for row in kept if not row.empty]
            if not disk.outcomes[number]:
                del disk.outcomes[number]
        return True


ALL: frozenset[int] = frozenset(SLOT.values())
assert ALL != NOTHING
