"""What the shard holds, in memory: each collection's grant and how many records each slot has.

Derived from the state at each start of the engine. Grants are never derived: they begin empty, and
only a router gives them (DESIGN.md, "Ownership"). Changed on the event loop only, and by the single
writer; but a new epoch, and a fence of reads, take effect at once. A reader takes a Grant, which is
a value, and works with that one to its end (invariant 3).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import compress

from chroma_router.v1 import shard_pb2, types_pb2
from chroma_router.wire.errors import NotFound, Reason, Stale
from chroma_router.wire.slots import SLOT_COUNT, slot_of, slots_from_bitmap
from shard_node.engine import EngineRefused
from shard_node.state import CollectionRow


@dataclass(frozen=True, slots=True)
class Grant:
    """What a router has said this shard owns of a collection: `owned[slot]` is 1 or 0."""

    epoch: int
    owned: bytes

    @classmethod
    def of(cls, epoch: int, bitmap: bytes) -> "Grant":
        """From the 128-byte bitmap of the contract. Raises ValueError for another length."""
        owned = bytearray(SLOT_COUNT)
        for slot in slots_from_bitmap(bitmap):
            owned[slot] = 1
        return cls(epoch, bytes(owned))

    @property
    def slots(self) -> frozenset[int]:
        """The owned slots."""
        return frozenset(slot for slot, owned in enumerate(self.owned) if owned)


@dataclass(frozen=True, slots=True)
class Fence:
    """A move has silenced these slots here: writes, and with `reads` those too, until the shard is
    given its next epoch. It is durable, but for `reads`."""

    slots: frozenset[int]
    next_epoch: int
    token: int
    reads: bool

    def touches(self, grant: Grant, slots: Iterable[int] | None) -> bool:
        """Whether one of these owned slots is fenced; None: of all that are owned."""
        fenced = self.slots if slots is None else self.slots.intersection(slots)
        return any(grant.owned[slot] for slot in fenced)


@dataclass(slots=True)
class Holding:
    """One collection that the shard holds: its row, its counts, the fences of moves, by move; its
    grant and space once given."""

    row: CollectionRow
    physical: str
    counts: list[int]
    grant: Grant | None = None
    space: str = "l2"
    fences: dict[str, Fence] = field(default_factory=dict)
    total: int = field(init=False)
    changed: int = 0
    """How many records have been written or deleted since the engine began, each time counted."""

    def __post_init__(self) -> None:
        self.total = sum(self.counts)

    @property
    def definition(self) -> shard_pb2.CollectionDefinition:
        """As the node last got it."""
        return shard_pb2.CollectionDefinition.FromString(self.row.definition)

    def owned_records(self, grant: Grant) -> int:
        """How many records there are in the slots of a grant."""
        return sum(compress(self.counts, grant.owned))

    def lift_fences(self, epoch: int) -> None:
        """At a new epoch: those that were to hold until it."""
        self.fences = {m: fence for m, fence in self.fences.items() if fence.next_epoch > epoch}

    def add(self, slots: Iterable[int], change: int) -> None:
        """Counts records in (`change` 1) or out (-1)."""
        for slot in slots:
            self.counts[slot] += change
            self.total += change


class Holdings:
    """All collections of the shard by UUID, and the UUIDs that were dropped for good."""

    def __init__(self, boot_id: str, high_sequence: int) -> None:
        self.boot_id = boot_id
        self.high_sequence = high_sequence
        self.live: dict[str, Holding] = {}
        self.dropped: dict[str, CollectionRow] = {}

    def granted(self, collection_id: str, epoch: int) -> tuple[Holding, Grant]:
        """The collection and its grant, if that was given at this epoch since the engine began.

        Raises Stale (STALE_EPOCH) with the node's epoch, and NotFound for a dropped collection.
        """
        if collection_id in self.dropped:
            raise NotFound(f"collection {collection_id} was dropped")
        holding = self.live.get(collection_id)
        grant = holding.grant if holding else None
        if holding is None or grant is None or grant.epoch != epoch:
            raise self.stale(collection_id, epoch)
        return holding, grant

    def given(self, collection_id: str) -> tuple[Holding, Grant]:
        """The collection and its grant, at whichever epoch, if one was given since the engine
        began: then the collection is loaded. Raises Stale (STALE_EPOCH) and NotFound."""
        holding = self.live.get(collection_id)
        epoch = holding.grant.epoch if holding and holding.grant else 0
        return self.granted(collection_id, epoch)

    def readable(
        self, collection_id: str, epoch: int, filter_: types_pb2.Filter | None = None
    ) -> tuple[Holding, Grant]:
        """As `granted`, for a read that begins. Raises Stale (SLOTS_FENCED) if a move has silenced
        reads of a slot that it needs: those of the filter's ids, without ids all that are owned.

        A read that is under way when the fence comes may end: it began before any write that the
        slots' next owner will take.
        """
        holding, grant = self.granted(collection_id, epoch)
        if any(fence.reads for fence in holding.fences.values()):
            by_ids = filter_ is not None and (filter_.by_ids or filter_.ids)
            slots = [slot_of(i) for i in filter_.ids] if filter_ is not None and by_ids else None
            self.refuse_fenced(holding, grant, slots, read=True)
        return holding, grant

    def refuse_fenced(
        self, holding: Holding, grant: Grant, slots: Sequence[int] | None, *, read: bool = False
    ) -> None:
        """Raises Stale (SLOTS_FENCED) if one of these slots is fenced; None: of all owned ones."""
        for fence in holding.fences.values():
            if (fence.reads or not read) and fence.touches(grant, slots):
                raise Stale(
                    f"collection {holding.row.id}: slots of it are being moved away, which makes"
                    f" epoch {fence.next_epoch}: repeat at that epoch",
                    Reason.SLOTS_FENCED,
                    metadata={
                        "boot_id": self.boot_id,
                        "epoch": str(grant.epoch),
                        "next_epoch": str(fence.next_epoch),
                    },
                )

    @contextmanager
    def read(self, collection_id: str, epoch: int) -> Iterator[None]:
        """Around a read: what the engine says of a collection that is dropped under it (such as
        "Missing metadata segment") becomes the NotFound, or the Stale, that it is."""
        try:
            yield
        except EngineRefused:
            self.granted(collection_id, epoch)
            raise

    def stale(self, collection_id: str, epoch: int) -> Stale:
        """The refusal of a call at another epoch than the grant's."""
        holding = self.live.get(collection_id)
        here = holding.grant.epoch if holding and holding.grant else 0
        return self.stale_at(collection_id, here, f"asked at epoch {epoch}")

    def stale_at(self, collection_id: str, here: int, why: str) -> Stale:
        """A refusal that tells the epoch `here` at which the node is."""
        return Stale(
            f"collection {collection_id}: {why}, the node is at epoch {here}",
            Reason.STALE_EPOCH,
            metadata={"boot_id": self.boot_id, "epoch": str(here)},
        )
