"""What the catalog's tests make again and again."""

import uuid
from collections.abc import Sequence
from pathlib import Path

from router.catalog import DEFAULT_DATABASE, DEFAULT_TENANT, Catalog, NewCollection
from router.catalog.codec import Metadata
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
