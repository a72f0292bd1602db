"""Which shards a request touches: ids to slots to shards."""

from collections.abc import Sequence

from chroma_router.wire.slots import slot_of
from router.core.slot_map import SlotMap


def split_by_shard(slot_map: SlotMap, ids: Sequence[str]) -> dict[str, list[int]]:
    """The positions in `ids` by the shard that owns the id, each list ascending.

    A shard that owns none of them is left out. Raises UnicodeEncodeError for an id that is not
    valid Unicode.
    """
    owners = slot_map.owners
    parts: dict[str, list[int]] = {}
    for position, record_id in enumerate(ids):
        parts.setdefault(owners[slot_of(record_id)], []).append(position)
    return parts


def ids_by_shard(slot_map: SlotMap, ids: Sequence[str]) -> dict[str, list[str]]:
    """As split_by_shard, with the ids themselves in the order in which they were given."""
    return {
        shard: [ids[position] for position in positions]
        for shard, positions in split_by_shard(slot_map, ids).items()
    }
