"""What the catalog's tests make again and again."""

import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from router.catalog import DEFAULT_DATABASE, DEFAULT_TENANT, Catalog, NewCollection
from router.catalog.codec import Metadata
from router.core.lease import Lease
from router.core.model import CollectionEntry
from router.core.move import Move
from router.core.rebalance import Rebalance, RebalanceKind, RebalanceState
from router.core.slot_map import SlotMap

SHARDS = ("shard-1", "shard-2", "shard-3")


async def opened(path: Path, shards: Sequence[str] = SHARDS) -> Catalog:
    """A new catalog with shards."""
    catalog = await Catalog.open(path)
    for number, shard in enumerate(shards):
        await catalog.add_shard(shard, f"127.0.0.1:{7000 + number}")
    return catalog


def files(directory: Path) -> list[str]:
    """The names of the files in a directory."""
    return sorted(file.name for file in directory.iterdir())


def new(
    name: str = "papers",
    *,
    tenant: str = DEFAULT_TENANT,
    database: str = DEFAULT_DATABASE,
    shards: Sequence[str] = SHARDS,
    metadata: Metadata | None = None,
    created_at: int = 1_000,
) -> NewCollection:
    """A collection that is about to be made, with an id of its own."""
    return NewCollection(
        id=str(uuid.uuid4()),
        name=name,
        tenant=tenant,
        database=database,
        metadata=metadata,
        configuration_json='{"hnsw": {"space": "l2"}}',
        schema_json="",
        placement_shards=0,
        created_at=created_at,
        slot_map=SlotMap.deal(1, shards),
    )


def a_rebalance(
    kind: RebalanceKind = RebalanceKind.BALANCE, subject: str = "", *, started_at: int = 1_000
) -> Rebalance:
    """A rebalance that is about to begin, with an id of its own."""
    return Rebalance(
        id=str(uuid.uuid4()),
        kind=kind,
        subject=subject,
        placement_before=0,
        state=RebalanceState.RUNNING,
        records_per_second=0,
        query_agreement=0.0,
        problem="",
        started_at=started_at,
        ended_at=0,
        version=1,
    )


def a_move(
    rebalance: Rebalance, entry: CollectionEntry, slots: Iterable[int], source: str, target: str
) -> Move:
    """A planned move, with an id of its own."""
    return Move(
        id=str(uuid.uuid4()),
        rebalance_id=rebalance.id,
        number=0,
        collection_id=entry.id,
        source=source,
        target=target,
        slots=frozenset(slots),
        records=10,
        bytes=5_000,
    )


async def leased(catalog: Catalog, holder: str = "router-1", now_us: int = 0) -> Lease:
    """The lease, which must be free."""
    lease = await catalog.moves.acquire(holder, now_us, 1_000)
    assert lease is not None
    return lease
