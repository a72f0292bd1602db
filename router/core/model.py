"""What the catalog holds, as values.

Entries are immutable; a change is another entry with the next `version`, which the catalog takes by
compare-and-swap. How they are stored is the catalog's business, not theirs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from router.core.slot_map import SlotMap


class CollectionState(StrEnum):
    """Where a collection is in its life."""

    ACTIVE = "active"
    DELETING = "deleting"
    """Not there any more for clients; nodes are being told to drop it, and then it is forgotten."""


class DimensionState(StrEnum):
    """How sure the dimension of a collection is."""

    NONE = "none"
    """No write has been tried yet."""
    PROPOSED = "proposed"
    """The first writes carry it, but none of them is known to be applied: it may be replaced."""
    FIXED = "fixed"
    """A write of it was applied. It stays for the collection's life, even when it is emptied."""


@dataclass(frozen=True, slots=True)
class DatabaseEntry:
    """A database of a tenant."""

    id: str
    name: str
    tenant: str


class ShardRole(StrEnum):
    """Whether a shard takes new data."""

    ACTIVE = "active"
    DRAINING = "draining"
    """No collection is placed on it; its slots move away, or have gone."""


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """A shard and where its node listens ("HOST:PORT" or "unix:PATH")."""

    name: str
    address: str
    version: int
    role: ShardRole = ShardRole.ACTIVE


@dataclass(frozen=True, slots=True)
class CollectionEntry:
    """A collection. Raises ValueError if dimension and dimension_state contradict each other."""

    id: str
    """The UUID in its usual text form."""
    name: str
    tenant: str
    database: str
    database_id: str
    metadata: Mapping[str, str | int | float | bool] | None
    configuration_json: str
    """Chroma's configuration; as the engine reports it once a shard has described it."""
    schema_json: str
    """Chroma's schema; empty if there is none."""
    dimension: int | None
    dimension_state: DimensionState
    dimension_joiners: int
    """How many writes lean on a proposed dimension; it can be replaced only while none does."""
    placement_shards: int
    """On how many shards it is placed; 0 means all."""
    created_at: int
    """Microseconds since the Unix epoch."""
    slot_map: SlotMap
    state: CollectionState
    version: int
    """Rises by 1 at each change of the entry."""

    def __post_init__(self) -> None:
        if (self.dimension is None) != (self.dimension_state is DimensionState.NONE):
            raise ValueError(
                f"collection {self.id}: dimension {self.dimension} contradicts its state "
                f"{self.dimension_state.value!r}"
            )
