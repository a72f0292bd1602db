"""What the shards hold, gathered for the planner; and what they told last, for when one is lost.

Owns nothing but `LastHeard`. Whoever plans (an operator's call, the mover that plans again) gathers
anew: a plan is of one moment, and the catalog refuses it when that has passed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import ClusterError, DeadlineExpired, Reason, Unavailable
from chroma_router.wire.slots import SLOT_COUNT
from router.catalog import Catalog
from router.cluster import Cluster, Shard
from router.concurrency import computed, settled
from router.core.model import CollectionEntry, CollectionState
from router.core.planner import CollectionLoad, ShardLoad

COUNTS_TIMEOUT = 10.0
"""Seconds for a node to tell the records of every slot; it has them in memory."""


class LastHeard:
    """How many records of each collection each shard owned when it last told."""

    def __init__(self) -> None:
        self._records: dict[str, dict[str, int]] = {}

    def hear(self, shard: str, stats: shard_pb2.GetShardStatsResponse) -> None:
        """Takes what a shard has told; one whose engine is being started has told nothing."""
        if stats.boot_id:
            self._records[shard] = {h.collection_id: h.records for h in stats.holdings}

    def records(self, shard: str, collection_id: str) -> int | None:
        """How many records it owned of a collection; None if it never told."""
        told = self._records.get(shard)
        return None if told is None else told.get(collection_id, 0)

    def forget(self, shard: str) -> None:
        """Lets go of a shard that is none any more."""
        self._records.pop(shard, None)


@dataclass(frozen=True, slots=True)
class Loads:
    """The cluster as the planner sees it."""

    collections: tuple[CollectionLoad, ...]
    """Those that are not being deleted."""
    shards: tuple[ShardLoad, ...]
    epochs: Mapping[str, int]
    """The epoch of each collection, as the catalog wants it with a plan."""


async def gather(catalog: Catalog, cluster: Cluster, heard: LastHeard) -> Loads:
    """Asks every shard what it holds, and the catalog what there is.

    Raises Unavailable, with the mend, if a shard does not answer: what it holds cannot be planned.
    """
    await cluster.refresh()
    shards = cluster.all()
    answers = await settled(_told(shard, heard) for shard in shards)
    told: dict[str, _Told] = {}
    for shard, answer in zip(shards, answers, strict=True):
        if isinstance(answer, ClusterError):
            raise _missing(shard, answer)
        told[shard.name] = answer
    entries = [
        entry
        for entry in await catalog.all_collections()
        if entry.state is CollectionState.ACTIVE
        # One on a shard that was added since: it is planned next time.
        and told.keys() >= set(entry.slot_map.shards)
    ]
    counts = {name: {c.collection_id: c for c in one.counts} for name, one in told.items()}
    return Loads(
        collections=await computed(
            len(entries) * SLOT_COUNT,
            lambda: tuple(collection_load(entry, counts) for entry in entries),
        ),
        shards=tuple(
            ShardLoad(
                shard.name,
                shard.role,
                told[shard.name].stats.memory_bytes,
                told[shard.name].stats.memory_limit_bytes,
            )
            for shard in shards
        ),
        epochs={entry.id: entry.slot_map.epoch for entry in entries},
    )


def collection_load(
    entry: CollectionEntry,
    counts: Mapping[str, Mapping[str, shard_pb2.ListSlotCountsResponse]],
) -> CollectionLoad:
    """One collection, from what each shard counts by collection: a slot has what its owner has."""
    mine = {shard: told[entry.id] for shard, told in counts.items() if entry.id in told}
    nothing = [0] * SLOT_COUNT  # of an owner that has not got it yet
    by_slot = {
        shard: list(mine[shard].counts) if shard in mine else nothing
        for shard in entry.slot_map.shards
    }
    records = tuple(by_slot[owner][slot] for slot, owner in enumerate(entry.slot_map.owners))
    assert len(records) == SLOT_COUNT
    return CollectionLoad(
        id=entry.id,
        name=entry.name,
        slot_map=entry.slot_map,
        placement_shards=entry.placement_shards,
        records=records,
        record_bytes=_record_bytes(mine.values()),
        dimension=entry.dimension,
    )


def _record_bytes(counts: Iterable[shard_pb2.ListSlotCountsResponse]) -> int:
    """The average over the shards, each by its records."""
    weights = [(sum(count.counts), count.record_bytes) for count in counts]
    records = sum(weight for weight, _ in weights)
    return sum(weight * size for weight, size in weights) // records if records else 0


@dataclass(frozen=True, slots=True)
class _Told:
    """What one shard says of itself."""

    stats: shard_pb2.GetShardStatsResponse
    counts: Sequence[shard_pb2.ListSlotCountsResponse]


async def _told(shard: Shard, heard: LastHeard) -> _Told:
    await shard.client.hello()  # a node that began anew counts nothing before it
    stats = await shard.client.stats()
    heard.hear(shard.name, stats)
    return _Told(stats, await shard.client.slot_counts(COUNTS_TIMEOUT))


def _missing(shard: Shard, error: ClusterError) -> ClusterError:
    """Why nothing can be planned. What is no matter of waiting is told as it is."""
    if not isinstance(error, Unavailable | DeadlineExpired):
        return error
    return Unavailable(
        f"nothing can be planned without shard {shard.name}, which does not say what it holds "
        f"({error.message}); bring it back, or if it is dead for good give it up with "
        f"`chroma-router shards remove {shard.name} --force-lost`",
        error.reason if isinstance(error, Unavailable) else Reason.SHARD_UNAVAILABLE,
        metadata={"shard": shard.name},
        retry_after=error.retry_after or 1.0,
    )
