"""Whether what a plan brings fits into the shards' memory.

The model is of what is certain to be in memory: the engine's HNSW index of each collection.
Documents and metadata are on disk.
"""

from collections.abc import Sequence

from router.core.planner import CollectionLoad, Plan, ShardLoad

# Measured on Chroma 1.5.9: 6.1 to 7.9 KB for a vector of 1,536 dimensions, of which 6,144 bytes are
# its float32. The upper figure, as a part for each dimension and one for each record: arrays of
# vectors grow ahead of need; and a record has links to some 32 neighbours, and its id in several
# maps, whatever its dimension is.
_BYTES_PER_DIMENSION = 4.48
_BYTES_PER_RECORD = 1_024

SAFETY = 1.2
"""What a shard has afterwards must fit with so much to spare: an index that grows is in memory
twice for a moment, and queries and batches need room as well."""


def bytes_per_record(dimension: int | None) -> int:
    """About how many bytes of memory a record with such a vector takes; 7,905 for 1,536."""
    return round(_BYTES_PER_RECORD + _BYTES_PER_DIMENSION * (dimension or 0))


def fits(planned: Plan, collections: Sequence[CollectionLoad], shards: Sequence[ShardLoad]) -> str:
    """What does not fit after the plan, in words for the operator; "" if everything does.

    What leaves a shard is not counted: the engine gives its memory back only when a collection is
    rebuilt. Nor is a shard asked about to which nothing goes, or whose limit is not known. The plan
    must be of these loads.
    """
    sizes = {load.id: bytes_per_record(load.dimension) for load in collections}
    records = dict.fromkeys((shard.name for shard in shards), 0)
    arriving = dict.fromkeys(records, 0)
    for move in planned.moves:
        records[move.target] += move.records
        arriving[move.target] += move.records * sizes[move.collection_id]
    problems = [
        f"{shard.name} has no room for {records[shard.name]:,} more records: it holds "
        f"{_text(shard.memory_bytes)} of memory, about {_text(arriving[shard.name])} would come, "
        f"and with {SAFETY - 1:.0%} to spare that passes its limit of "
        f"{_text(shard.memory_limit_bytes)}"
        for shard in sorted(shards, key=lambda shard: shard.name)
        if shard.memory_limit_bytes
        and arriving[shard.name]
        and (shard.memory_bytes + arriving[shard.name]) * SAFETY > shard.memory_limit_bytes
    ]
    return "; ".join(problems) + "; add a shard, or raise the limit" if problems else ""


def _text(size: int) -> str:
    mebibytes = size / 2**20
    return f"{mebibytes:,.1f} MiB" if mebibytes < 1_024 else f"{mebibytes / 1_024:,.2f} GiB"
