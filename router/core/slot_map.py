"""Which shard owns which slot of one collection, at one epoch.

A SlotMap is a value: changing it means making another one with the next epoch and putting that into
the catalog by compare-and-swap. Model: etcd-io/raft confchange: copy, change, check, return.
"""

import base64
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from chroma_router.wire.slots import SLOT_COUNT, slots_to_bitmap

# The greatest epoch that fits the contract (uint64) and an SQLite integer.
MAX_EPOCH = 2**63 - 1

_FORMAT = 1
_PACKED = struct.Struct(f"<{SLOT_COUNT}H")


@dataclass(frozen=True, slots=True)
class SlotMap:
    """The owner of each slot. Making one that breaks invariant 1 raises ValueError."""

    epoch: int
    owners: tuple[str, ...] = field(repr=False)
    """The shard's name for each of the 1,024 slots."""
    shards: tuple[str, ...] = field(init=False, compare=False)
    """The names of the shards that own at least one slot, sorted."""

    def __post_init__(self) -> None:
        if not 1 <= self.epoch <= MAX_EPOCH:
            raise ValueError(f"an epoch is from 1 to {MAX_EPOCH}, got {self.epoch}")
        # Invariant 1: one owner for every slot.
        if len(self.owners) != SLOT_COUNT:
            raise ValueError(
                f"invariant 1: a slot map has {SLOT_COUNT} slots, got {len(self.owners)}"
            )
        shards = set(self.owners)
        if "" in shards:
            raise ValueError(f"invariant 1: slot {self.owners.index('')} has no owner")
        object.__setattr__(self, "shards", tuple(sorted(shards)))

    @classmethod
    def deal(cls, epoch: int, shards: Sequence[str]) -> Self:
        """Deals the slots evenly: the shards' counts differ by at most one.

        The order of `shards` does not matter. Raises ValueError if it is empty or names one twice.
        """
        names = sorted(set(shards))
        if not names:
            raise ValueError("slots cannot be dealt to no shards")
        if len(names) != len(shards):
            raise ValueError(f"a shard is named twice among {list(shards)}")
        return cls(epoch, tuple(names[slot % len(names)] for slot in range(SLOT_COUNT)))

    def owner(self, slot: int) -> str:
        """The name of the shard that owns `slot` (0 to 1,023)."""
        return self.owners[slot]

    def slots_of(self, shard: str) -> frozenset[int]:
        """The slots that a shard owns; empty for one that owns nothing or is not known."""
        return frozenset(slot for slot, owner in enumerate(self.owners) if owner == shard)

    def bitmap_of(self, shard: str) -> bytes:
        """The slots that a shard owns as the contract's bitmap of 128 bytes."""
        return slots_to_bitmap(self.slots_of(shard))

    def reassigned(self, slots: Iterable[int], to: str) -> Self:
        """The map of the next epoch, in which `to` owns `slots`. This map stays as it is.

        Raises ValueError for a slot that does not exist or an empty name.
        """
        owners = list(self.owners)
        for slot in slots:
            if not 0 <= slot < SLOT_COUNT:
                raise ValueError(f"a slot is from 0 to {SLOT_COUNT - 1}, got {slot}")
            owners[slot] = to
        return type(self)(self.epoch + 1, tuple(owners))

    def encode(self) -> bytes:
        """The map as bytes for the catalog: equal maps give equal bytes."""
        index_of = {name: index for index, name in enumerate(self.shards)}
        packed = _PACKED.pack(*(index_of[owner] for owner in self.owners))
        document = {
            "format": _FORMAT,
            "epoch": self.epoch,
            "shards": self.shards,
            "owners": base64.b64encode(packed).decode("ascii"),
        }
        return json.dumps(document, separators=(",", ":")).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The inverse of encode. Raises ValueError for anything that encode cannot have made."""
        try:
            return cls._from_document(json.loads(data))
        except (KeyError, TypeError, IndexError, struct.error, RecursionError) as error:
            raise ValueError(f"not an encoded slot map: {error!r}") from error

    @classmethod
    def _from_document(cls, document: dict[str, object]) -> Self:
        if not isinstance(document, dict):
            raise ValueError("not an encoded slot map: not a JSON object")
        if document["format"] != _FORMAT:
            raise ValueError(
                f"slot map of format {document['format']!r}, this version reads format {_FORMAT}; "
                "use the version of chroma-router that wrote it, or a newer one"
            )
        epoch, shards, owners = document["epoch"], document["shards"], document["owners"]
        if type(epoch) is not int or not isinstance(shards, list) or not isinstance(owners, str):
            raise ValueError("not an encoded slot map: a field has the wrong type")
        if not all(isinstance(name, str) for name in shards):
            raise ValueError("not an encoded slot map: a shard's name is not text")
        indexes = _PACKED.unpack(base64.b64decode(owners, validate=True))
        decoded = cls(epoch, tuple(shards[index] for index in indexes))
        # Names twice, out of order or without a slot: something else wrote or damaged it.
        if list(decoded.shards) != shards:
            raise ValueError("not an encoded slot map: its shards are not those of its slots")
        return decoded
