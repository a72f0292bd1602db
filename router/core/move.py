"""A move of slots from one shard to another: its stages, and the protocol as a sequence of steps.

Sans-IO (model: python-websockets, patroni's quorum.py). `pursue` is the protocol of DESIGN.md,
"Moves": a generator that yields what is to be done and is sent what came of it. Whoever runs it
(router/mover, or the simulation) does each step and nothing else. It can begin at any stage that
the catalog has, and every step may be done twice.

A run ends at the first step that fails or whose outcome is not known: the generator is thrown away,
the move is read from the catalog again, and a new run begins *under a higher token*, so that
whatever the old run has still under way is refused by the nodes.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self, TypeAlias, TypeVar

from chroma_router.wire.slots import SLOT_COUNT


class Stage(StrEnum):
    """Where a move is. It is in the catalog before anything of it is done."""

    PLANNED = "planned"
    """The target is proving that it holds nothing of the slots."""
    COPYING = "copying"
    """The source captures changes, and what it had when that began is being copied."""
    CATCHING_UP = "catching_up"
    """What has changed is being copied, and everything is compared."""
    VERIFIED = "verified"
    """Both sides were equal; what changes is still copied."""
    FENCED = "fenced"
    """The source may be refusing writes and reads of the slots."""
    SWITCHED = "switched"
    """The target owns the slots; what the source has left is being deleted."""
    TRIMMED = "trimmed"
    """Done."""
    CANCELLING = "cancelling"
    """The source is being told to go on, the target is being purged."""
    CANCELLED = "cancelled"
    """Undone: the target holds nothing of it."""


_NEXT: Mapping[Stage, frozenset[Stage]] = {
    Stage.PLANNED: frozenset({Stage.COPYING, Stage.CANCELLING, Stage.CANCELLED}),
    Stage.COPYING: frozenset({Stage.CATCHING_UP, Stage.CANCELLING}),
    # Back to COPYING: the target has lost what it had (its directory was replaced).
    Stage.CATCHING_UP: frozenset({Stage.VERIFIED, Stage.COPYING, Stage.CANCELLING}),
    Stage.VERIFIED: frozenset({Stage.FENCED, Stage.COPYING, Stage.CANCELLING}),
    Stage.FENCED: frozenset({Stage.SWITCHED, Stage.CANCELLING}),
    Stage.SWITCHED: frozenset({Stage.TRIMMED}),
    Stage.TRIMMED: frozenset(),
    Stage.CANCELLING: frozenset({Stage.CANCELLED}),
    Stage.CANCELLED: frozenset(),
}

ENDED = frozenset({Stage.TRIMMED, Stage.CANCELLED})
CANCELLABLE = frozenset(
    {Stage.PLANNED, Stage.COPYING, Stage.CATCHING_UP, Stage.VERIFIED, Stage.FENCED}
)
PAUSABLE = frozenset({Stage.PLANNED, Stage.COPYING, Stage.CATCHING_UP, Stage.VERIFIED})
"""Where a run may stop for a while. Between fence and switch it may not, calls are being held."""


@dataclass(frozen=True, slots=True)
class Move:
    """One move as the catalog has it. Raises ValueError for one that makes no sense."""

    id: str
    rebalance_id: str
    number: int
    """Its place among the moves of its rebalance, from 0."""
    collection_id: str
    source: str
    target: str
    slots: frozenset[int]
    stage: Stage = Stage.PLANNED
    next_epoch: int = 0
    """The epoch that the switch makes; 0 before FENCED."""
    records: int = 0
    """As planned."""
    bytes: int = 0
    """As planned."""
    problem: str = ""
    """What stands in its way, or why it was cancelled."""
    version: int = 1

    def __post_init__(self) -> None:
        if self.source == self.target:
            raise ValueError(f"move {self.id}: from {self.source} to itself")
        if not self.slots or not all(0 <= slot < SLOT_COUNT for slot in self.slots):
            raise ValueError(f"move {self.id}: its slots are 1 or more from 0 to {SLOT_COUNT - 1}")
        if self.stage in {Stage.FENCED, Stage.SWITCHED} and self.next_epoch < 2:
            raise ValueError(f"move {self.id}: {self.stage} without the epoch of the switch")

    def entered(self, stage: Stage, *, next_epoch: int = 0, problem: str = "") -> Self:
        """The move at its next stage and version. Raises ValueError for a forbidden stage."""
        if stage not in _NEXT[self.stage]:
            raise ValueError(f"move {self.id}: from {self.stage} never to {stage}")
        return replace(
            self,
            stage=stage,
            next_epoch=next_epoch or self.next_epoch,
            problem=problem,
            version=self.version + 1,
        )

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.stage in ENDED


# ------------------------------------------------------------------------------------------ steps

Cursor: TypeAlias = object
"""A place in the source's stream; opaque here (the contract's MoveCursor). Given and handed on."""

Place: TypeAlias = tuple[int, str]
"""(slot, id): how far the comparison has come."""


@dataclass(frozen=True, slots=True)
class Enter:
    """Put the next stage into the catalog, by compare-and-swap under the token; with FENCED the
    collection's next epoch. Answer: the Move."""

    stage: Stage
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Arrive:
    """Give the target its present ownership, so that it has the collection, then BeginArrival.
    Answer: Arrived."""

    afresh: bool = False


@dataclass(frozen=True, slots=True)
class Arrived:
    """Answer to Arrive."""

    applied: Cursor
    ready: bool
    copy_done: bool
    """Of `applied`: everything that was there when the capture began has come. A target whose
    directory was replaced is ready too, to be brought everything again."""

    @property
    def kept(self) -> bool:
        """Whether the target still has what COPYING brought. Else nothing that was compared counts:
        what is copied anew has to be compared anew."""
        return self.ready and self.copy_done


@dataclass(frozen=True, slots=True)
class Drop:
    """DropSlots at `shard`, once. Answer: whether nothing is left there."""

    shard: str


@dataclass(frozen=True, slots=True)
class Capture:
    """BeginCapture at the source. Answer: None."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Read the chunk at the source that begins at `begin`, and apply it at the target.
    Answer: Transferred, or OutOfStep if a node refused the cursor."""

    begin: Cursor
    compare: bool = False
    compared: Place | None = None


@dataclass(frozen=True, slots=True)
class Transferred:
    """Answer to Transfer and Fence: the chunk is applied at the target."""

    end: Cursor
    copy_done: bool
    caught_up: bool
    """Everything that was captured when the chunk was read has been applied."""
    items: int = 0
    compared: Place | None = None
    compare_done: bool = False
    differences: str = ""
    """What differs, in words; empty: nothing does."""
    source_records: int = -1
    """Of Fence: how many records the slots have at the source, for good."""
    target_records: int = -1
    """How many they have at the target, after the chunk."""


@dataclass(frozen=True, slots=True)
class OutOfStep:
    """Answer to Transfer and Fence: source and target do not know the same place in the stream."""


@dataclass(frozen=True, slots=True)
class CompareQueries:
    """Replay sampled queries at both sides, if that was asked for. Answer: what disagrees, in
    words; empty: nothing does."""


@dataclass(frozen=True, slots=True)
class Fence:
    """FenceSlots at the source, and apply the tail that it gives at the target.
    Answer: Transferred, or OutOfStep."""

    begin: Cursor


@dataclass(frozen=True, slots=True)
class FenceReads:
    """FenceReads at the source. Answer: None."""


@dataclass(frozen=True, slots=True)
class Switch:
    """One compare-and-swap in the catalog: slot map at the next epoch, and stage SWITCHED.
    Answer: the Move."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Give every shard of the collection its ownership: source and target must take it, the others
    may be away. Answer: None."""


@dataclass(frozen=True, slots=True)
class EndArrival:
    """EndArrival at the target. Answer: None."""


@dataclass(frozen=True, slots=True)
class EndCapture:
    """EndCapture at the source. Answer: None."""


Step: TypeAlias = (
    Enter | Arrive | Drop | Capture | Transfer | CompareQueries | Fence | FenceReads | Switch
    | Grant | EndArrival | EndCapture
)  # fmt: skip
Answer: TypeAlias = Move | Arrived | bool | Transferred | OutOfStep | str | None
Run: TypeAlias = Generator[Step, Answer, Move]

_A = TypeVar("_A")

FENCE_BELOW = 50
"""How few changes a chunk must have had for the tail to be short enough to fence: writes to the
slots are held while what is left is copied."""

MOST_CATCH_UPS = 50
"""How often the tail is copied before it is fenced whatever its length: under so many writes it
does not get shorter."""


def pursue(move: Move) -> Run:
    """Carries a move on from its stage to its end; returns it as it then is."""
    while not move.ended:
        move = yield from _STAGES[move.stage](move)
    return move


def _planned(move: Move) -> Run:
    yield from _arrive(move)
    return _is(Move, (yield Enter(Stage.COPYING)))


def _copying(move: Move) -> Run:
    yield Capture()
    cursor = yield from _arrive(move)
    while True:
        seen = yield Transfer(cursor)
        if isinstance(seen, OutOfStep):
            cursor = yield from _arrive(move, afresh=True)
            continue
        seen = _is(Transferred, seen)
        cursor = seen.end
        if seen.copy_done:
            return _is(Move, (yield Enter(Stage.CATCHING_UP)))


def _catching_up(move: Move) -> Run:
    arrived = _is(Arrived, (yield Arrive()))
    if not arrived.kept:
        return _is(Move, (yield Enter(Stage.COPYING)))
    cursor, compared = arrived.applied, None
    while True:
        seen = yield Transfer(cursor, compare=True, compared=compared)
        if isinstance(seen, OutOfStep):
            return _is(Move, (yield Enter(Stage.COPYING)))
        seen = _is(Transferred, seen)
        if seen.differences:
            return _is(Move, (yield Enter(Stage.CANCELLING, _differ(seen.differences))))
        cursor, compared = seen.end, seen.compared or compared
        if seen.compare_done:
            break
    if disagreement := _is(str, (yield CompareQueries())):
        return _is(Move, (yield Enter(Stage.CANCELLING, disagreement)))
    return _is(Move, (yield Enter(Stage.VERIFIED)))


def _verified(move: Move) -> Run:
    arrived = _is(Arrived, (yield Arrive()))
    if not arrived.kept:  # what was compared is gone
        return _is(Move, (yield Enter(Stage.COPYING)))
    cursor = arrived.applied
    for _ in range(MOST_CATCH_UPS):
        seen = yield Transfer(cursor)
        if isinstance(seen, OutOfStep):
            return _is(Move, (yield Enter(Stage.COPYING)))
        seen = _is(Transferred, seen)
        cursor = seen.end
        if seen.caught_up and seen.items < FENCE_BELOW:
            break
    return _is(Move, (yield Enter(Stage.FENCED)))


def _fenced(move: Move) -> Run:
    arrived = _is(Arrived, (yield Arrive()))
    if not arrived.kept:
        return _is(Move, (yield Enter(Stage.CANCELLING, _LOST)))
    source_records = -1
    seen = yield Fence(arrived.applied)
    while True:
        if isinstance(seen, OutOfStep):
            return _is(Move, (yield Enter(Stage.CANCELLING, _LOST)))
        tail = _is(Transferred, seen)
        if tail.source_records >= 0:
            source_records = tail.source_records  # only Fence tells; no write changes it any more
        if tail.caught_up:
            break
        seen = yield Transfer(tail.end)
    if tail.target_records != source_records:
        counts = f"{source_records} records at the source, {tail.target_records} at the target"
        return _is(Move, (yield Enter(Stage.CANCELLING, _differ(counts))))
    yield FenceReads()
    return _is(Move, (yield Switch()))


def _switched(move: Move) -> Run:
    # The source's fence holds until it has been given the new epoch; only then may it be trimmed.
    yield Grant()
    while not _is(bool, (yield Drop(move.source))):
        pass
    return _is(Move, (yield Enter(Stage.TRIMMED)))


def _cancelling(move: Move) -> Run:
    yield EndCapture()  # first, so that writes to fenced slots go on
    while not _is(bool, (yield Drop(move.target))):
        pass
    yield EndArrival()
    return _is(Move, (yield Enter(Stage.CANCELLED, move.problem)))  # which says why


_STAGES = {
    Stage.PLANNED: _planned,
    Stage.COPYING: _copying,
    Stage.CATCHING_UP: _catching_up,
    Stage.VERIFIED: _verified,
    Stage.FENCED: _fenced,
    Stage.SWITCHED: _switched,
    Stage.CANCELLING: _cancelling,
}

_LOST = "the target lost what the move had brought; start the rebalance again"


def _differ(what: str) -> str:
    return f"source and target differ: {what}; nothing was switched"


def _arrive(move: Move, *, afresh: bool = False) -> Generator[Step, Answer, Cursor]:
    """The target is ready, and holds nothing of the slots but what this move has brought."""
    arrived = _is(Arrived, (yield Arrive(afresh)))
    while not arrived.ready:
        while not _is(bool, (yield Drop(move.target))):
            pass
        arrived = _is(Arrived, (yield Arrive()))
    return arrived.applied


def _is(kind: type[_A], answer: object) -> _A:
    assert isinstance(answer, kind), f"a step was answered with {answer!r}, not a {kind.__name__}"
    return answer
