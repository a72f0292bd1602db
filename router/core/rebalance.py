"""What a rebalance is. (The planner is in planner.py.)"""

from dataclasses import dataclass
from enum import StrEnum


class RebalanceKind(StrEnum):
    """What it is for."""

    BALANCE = "balance"
    """Even shares of each collection on its home shards."""
    DRAIN = "drain"
    """Emptying the shard that `subject` names."""
    PLACE = "place"
    """Another number of home shards for the collection whose UUID `subject` is."""


class RebalanceState(StrEnum):
    """How it is."""

    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    """Its unswitched moves are being undone, by request or because one of them failed."""
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"
    """It gave up by itself; `problem` says why."""


REBALANCE_ENDED = frozenset({RebalanceState.DONE, RebalanceState.CANCELLED, RebalanceState.FAILED})


@dataclass(frozen=True, slots=True)
class Rebalance:
    """One rebalance as the catalog has it. There is at most one that has not ended."""

    id: str
    kind: RebalanceKind
    subject: str
    """The shard that is drained, or the collection that is placed; else empty."""
    placement_before: int
    """PLACE: the collection's placement_shards before, for a cancel; else 0."""
    state: RebalanceState
    records_per_second: int
    """The most records copied a second; 0: no bound of its own."""
    query_agreement: float
    """Above 0: which share of replayed queries' hits must agree before each switch."""
    problem: str
    started_at: int
    """Microseconds since the Unix epoch."""
    ended_at: int
    """The same; 0: it has not ended."""
    version: int

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.state in REBALANCE_ENDED


@dataclass(frozen=True, slots=True)
class MoveProgress:
    """How far a move has come. For people: nothing is decided by it."""

    copied_records: int = 0
    """Changed ones are counted each time."""
    compared_records: int = 0
    trimmed_records: int = 0
    copy_microseconds: int = 0
    """For how long it has been copying."""
    write_pause_microseconds: int = 0
    """For how long writes to its slots were held at the switch."""
    read_pause_microseconds: int = 0
