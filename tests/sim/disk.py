"""What a simulated node has on its disk: all that survives its death.

Whatever is here was committed and fsynced in one step; everything else that a node knows is in
attributes of the node, which a death clears.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from tests.sim.records import RANK, SLOT, Record

NOTHING: frozenset[int] = frozenset()


class Cursor(NamedTuple):
    """The contract's MoveCursor."""

    capture: int
    copied: int = -1
    """The rank (order of (slot, id)) of the last record that was copied."""
    copy_done: bool = False
    changed: tuple[int, str] = (0, "")
    """(batch, id) of the last captured change that was sent."""
    outcome_batch: int = 0


class Outcome(NamedTuple):
    """What is remembered of a request: which slots it covered, and the slot of each deleted one."""

    batch: int
    slots: frozenset[int]
    deleted: tuple[int, ...]

    def within(self, slots: frozenset[int], batch: int) -> "Outcome":
        """The part of it that is about these slots."""
        return Outcome(batch, self.slots & slots, tuple(s for s in self.deleted if s in slots))

    @property
    def empty(self) -> bool:
        """Whether it says nothing."""
        return not self.slots and not self.deleted


@dataclass(slots=True)
class Fence:
    """Refuses writes to some slots, until the node is given the epoch."""

    slots: frozenset[int]
    next_epoch: int
    token: int


@dataclass(slots=True)
class Capture:
    """Marks what changes in some slots: id -> the batch of its latest change."""

    number: int
    slots: frozenset[int]
    dirty: dict[str, int] = field(default_factory=dict)
    listed: tuple[str, ...] | None = None
    """Mutation ids_before_capture: what is copied."""


@dataclass(slots=True)
class Arrival:
    """How far a move has come here."""

    slots: frozenset[int]
    ready: bool
    cursor: Cursor | None = None


@dataclass(slots=True)
class Disk:
    """One data directory."""

    epoch: int = 0
    owned: frozenset[int] = NOTHING
    token: int = 0
    batch: int = 0
    records: dict[str, Record] = field(default_factory=dict)
    outcomes: dict[int, list[Outcome]] = field(default_factory=dict)
    fences: dict[str, Fence] = field(default_factory=dict)
    captures: dict[str, Capture] = field(default_factory=dict)
    arrivals: dict[str, Arrival] = field(default_factory=dict)

    def held(self, slots: frozenset[int]) -> list[str]:
        """The ids of records in some slots, in the order of (slot, id)."""
        return sorted((i for i in self.records if SLOT[i] in slots), key=RANK.__getitem__)

    def has_outcomes(self, slots: frozenset[int]) -> bool:
        """Whether anything is remembered about some slots."""
        return any(
            not row.within(slots, 0).empty for rows in self.outcomes.values() for row in rows
        )

    def changed(self, ids: list[str]) -> int:
        """Counts a batch that names these ids, captured where that was asked for; its number."""
        self.batch += 1
        for capture in self.captures.values():
            for record_id in ids:
                if SLOT[record_id] in capture.slots:
                    capture.dirty[record_id] = self.batch
        return self.batch
