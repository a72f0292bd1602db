"""How shards are, as the contract says it: what they tell, and what the catalog says of them."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from chroma_router.v1 import cluster_pb2, shard_pb2
from chroma_router.wire.errors import ClusterError
from chroma_router.wire.slots import SLOT_COUNT
from router.cluster import Cluster, Shard
from router.concurrency import computed
from router.core.model import CollectionEntry, ShardRole
from router.loads import LastHeard

ROLES: Mapping[ShardRole, cluster_pb2.ShardRole] = {
    ShardRole.ACTIVE: cluster_pb2.SHARD_ROLE_ACTIVE,
    ShardRole.DRAINING: cluster_pb2.SHARD_ROLE_DRAINING,
}


async def described(
    cluster: Cluster, entries: Sequence[CollectionEntry], heard: LastHeard
) -> list[cluster_pb2.Shard]:
    """All shards, by name. `entries` are the collections that are not being deleted."""
    names = {entry.id: entry.name for entry in entries}
    slots = await computed(len(entries) * SLOT_COUNT, _slots, entries)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_described(shard, names, slots[shard.name], heard))
            for shard in cluster.all()
        ]
    return [task.result() for task in tasks]


def _slots(entries: Iterable[CollectionEntry]) -> Counter[str]:
    """How many slots each shard owns, over all collections."""
    slots: Counter[str] = Counter()
    for entry in entries:
        slots.update(entry.slot_map.owners)
    return slots


async def _described(
    shard: Shard, names: Mapping[str, str], slots: int, heard: LastHeard
) -> cluster_pb2.Shard:
    answer = cluster_pb2.Shard(
        name=shard.name,
        address=shard.client.address,
        role=ROLES[shard.role],
        slots=slots,
        queued_operations=shard.queue.operations,
        queued_bytes=shard.queue.bytes,
    )
    try:
        stats = await shard.client.stats()
    except ClusterError as error:
        answer.state = cluster_pb2.SHARD_STATE_UNREACHABLE
        answer.problem = error.message
        return answer
    heard.hear(shard.name, stats)
    serving = bool(stats.boot_id)
    answer.state = cluster_pb2.SHARD_STATE_SERVING if serving else cluster_pb2.SHARD_STATE_STARTING
    answer.data_bytes = stats.data_bytes
    answer.memory_bytes = stats.memory_bytes
    for holding in stats.holdings:
        # What a node still holds of a collection that is being deleted counts no more.
        if holding.collection_id in names:
            answer.records += holding.records
            answer.unowned_records += holding.unowned_records
            answer.collections.append(_part(holding, names[holding.collection_id]))
    return answer


def _part(holding: shard_pb2.HoldingStats, name: str) -> cluster_pb2.ShardCollection:
    return cluster_pb2.ShardCollection(
        collection_id=holding.collection_id,
        name=name,
        slots=holding.slots,
        records=holding.records,
    )
