"""The planner: which slots a rebalance moves, from which shard to which, in which order.

One function serves the dry run and the real one, so that they cannot disagree. It decides for each
collection by itself: its home shards are those of placement.py among the ACTIVE shards, what is
elsewhere leaves, and its homes get even shares of its records and slots (evening.py says how even,
and why as little as can be moves). The same loads give the same plan, in whatever order they come.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from chroma_router.wire.slots import SLOT_COUNT
from router.core.evening import Layout
from router.core.model import ShardRole
from router.core.move import Move
from router.core.placement import home_shards
from router.core.slot_map import SlotMap

MAX_MOVE_RECORDS = 100_000
"""The most records of one move, but for a single slot that has more. If a target loses its
directory, or a move is cancelled, so much is copied again at most; and the source is relieved of
what has been copied after so much, not at the very end."""

SECONDS_PER_MOVE = 0.3
"""What a move takes besides its records: about twenty calls, most of which wait for an fsync."""


@dataclass(frozen=True, slots=True)
class CollectionLoad:
    """A collection as the planner sees it. Raises ValueError for one that makes no sense."""

    id: str
    name: str
    slot_map: SlotMap
    placement_shards: int
    """On how many shards it is placed; 0 means all."""
    records: tuple[int, ...]
    """How many each of its 1,024 slots has."""
    record_bytes: int
    """About how many bytes one record takes on the wire."""
    dimension: int | None
    """None: it has never had a record."""

    def __post_init__(self) -> None:
        if len(self.records) != SLOT_COUNT or min(self.records) < 0:
            raise ValueError(f"collection {self.id}: records are {SLOT_COUNT} counts from 0 on")
        if self.record_bytes < 0:
            raise ValueError(f"collection {self.id}: a record of {self.record_bytes} bytes")


@dataclass(frozen=True, slots=True)
class ShardLoad:
    """A shard as the planner sees it."""

    name: str
    role: ShardRole
    memory_bytes: int
    memory_limit_bytes: int
    """0: not known."""


@dataclass(frozen=True, slots=True)
class PlannedMove:
    """Slots of one collection that go from one shard to another in one move."""

    collection_id: str
    source: str
    target: str
    slots: frozenset[int]
    records: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Share:
    """What one shard has, over all the collections, before and after."""

    shard: str
    records_before: int
    records_after: int
    slots_before: int
    slots_after: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be moved, and what comes of it."""

    moves: tuple[PlannedMove, ...]
    """In the order in which they shall be done."""
    shares: tuple[Share, ...]
    """One for each shard, by name."""

    @property
    def records(self) -> int:
        """How many records are moved."""
        return sum(move.records for move in self.moves)

    @property
    def bytes(self) -> int:
        """About how many bytes are moved."""
        return sum(move.bytes for move in self.moves)


def plan(collections: Sequence[CollectionLoad], shards: Sequence[ShardLoad]) -> Plan:
    """The moves after which each collection is on its home shards, in even shares.

    A shard that is DRAINING is nobody's home. Nothing moves where no shard is ACTIVE. Raises
    ValueError if a shard or collection comes twice, or a slot is owned by a shard that is missing.
    """
    roles = {shard.name: shard.role for shard in shards}
    if len(roles) != len(shards) or len({load.id for load in collections}) != len(collections):
        raise ValueError("a shard or a collection is among the loads twice")
    active = [name for name, role in roles.items() if role is ShardRole.ACTIVE]
    tally = _Tally(roles)
    moves: list[PlannedMove] = []
    for load in collections:
        if strangers := set(load.slot_map.shards) - roles.keys():
            raise ValueError(f"collection {load.id}: no load of its shards {sorted(strangers)}")
        homes = home_shards(load.id, active, load.placement_shards) or load.slot_map.shards
        layout = Layout(load.slot_map.owners, load.records, homes)
        tally.before(layout)
        if active:
            layout.even_out()
            moves += _moves(load, layout.moved)
        tally.after(layout)
    moves.sort(key=lambda move: _rank(move, roles))
    return Plan(tuple(moves), tally.shares())


def as_moves(
    planned: Plan, rebalance_id: str, ids: Iterable[str], first_number: int = 0
) -> list[Move]:
    """The plan as moves for the catalog: numbered in order from `first_number`, with these ids.

    Raises ValueError if there are fewer ids than moves.
    """
    fresh = iter(ids)
    moves = []
    for number, move in enumerate(planned.moves, first_number):
        if (move_id := next(fresh, None)) is None:
            raise ValueError(f"{len(planned.moves)} moves need as many ids")
        moves.append(
            Move(
                id=move_id,
                rebalance_id=rebalance_id,
                number=number,
                collection_id=move.collection_id,
                source=move.source,
                target=move.target,
                slots=move.slots,
                records=move.records,
                bytes=move.bytes,
            )
        )
    return moves


def seconds(planned: Plan, records_per_second: float) -> float:
    """About how long it takes, if so many records (above 0) are copied a second."""
    if not records_per_second > 0:
        raise ValueError(f"a rate must be above 0, got {records_per_second}")
    return planned.records / records_per_second + len(planned.moves) * SECONDS_PER_MOVE


def _rank(move: PlannedMove, roles: dict[str, ShardRole]) -> tuple[object, ...]:
    """The order of moves: what is being emptied first, for someone waits for it; then what relieves
    its source most. The rest only makes the order total."""
    return (
        roles[move.source] is not ShardRole.DRAINING,
        -move.bytes,
        -move.records,
        -len(move.slots),
        move.collection_id,
        move.source,
        move.target,
        min(move.slots),
    )


def _moves(load: CollectionLoad, moved: dict[int, str]) -> Iterator[PlannedMove]:
    """The moves of one collection whose slots get these owners."""
    owners = load.slot_map.owners
    pairs: dict[tuple[str, str], list[int]] = defaultdict(list)
    for slot in sorted(moved):
        pairs[owners[slot], moved[slot]].append(slot)
    for (source, target), slots in pairs.items():
        for part in _parts(slots, load.records):
            records = sum(load.records[slot] for slot in part)
            yield PlannedMove(
                collection_id=load.id,
                source=source,
                target=target,
                slots=frozenset(part),
                records=records,
                bytes=records * load.record_bytes,
            )


def _parts(slots: list[int], records: Sequence[int]) -> Iterator[list[int]]:
    """The slots in runs of at most MAX_MOVE_RECORDS records; in one with a heavier slot the others
    are empty."""
    part: list[int] = []
    total = 0
    for slot in slots:
        if total and records[slot] and total + records[slot] > MAX_MOVE_RECORDS:
            yield part
            part, total = [], 0
        part.append(slot)
        total += records[slot]
    yield part


class _Tally:
    """What the shards have over all collections, before and after."""

    def __init__(self, shards: Iterable[str]) -> None:
        self._figures = {name: [0, 0, 0, 0] for name in sorted(shards)}

    def before(self, layout: Layout) -> None:
        self._add(layout, 0)

    def after(self, layout: Layout) -> None:
        self._add(layout, 1)

    def _add(self, layout: Layout, at: int) -> None:
        for name, records in layout.records.items():
            figures = self._figures[name]
            figures[at] += records
            figures[at + 2] += layout.slots(name)

    def shares(self) -> tuple[Share, ...]:
        return tuple(Share(name, *figures) for name, figures in self._figures.items())
