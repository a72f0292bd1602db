"""Spreads a collection that has outgrown its one shard, without anyone asking: `auto_spread_at`."""

import time
from collections.abc import Awaitable, Callable

import structlog

from chroma_router.wire.errors import ClusterError
from router.catalog import Catalog
from router.cluster import Cluster
from router.concurrency import settled
from router.core.model import CollectionEntry, CollectionState, ShardRole
from router.core.rebalance import RebalanceKind, RebalanceState

log = structlog.get_logger(__name__)

LOOK_SECONDS = 5.0
"""How often it is looked for collections to spread."""

Spread = Callable[[str], Awaitable[None]]
"""Begins to place a collection, by its UUID, on all shards."""


class AutoSpread:
    """Looks for grown collections now and then. Owns when it looks next."""

    def __init__(self, catalog: Catalog, cluster: Cluster, at: int, spread: Spread) -> None:
        """`at`: from how many records on a collection of one shard is spread; 0: never."""
        self._catalog, self._cluster = catalog, cluster
        self._at, self._spread = at, spread
        self._next = 0.0

    async def look(self) -> None:
        """Spreads the first grown collection, if it is time to look. Raises ClusterError."""
        if not self._at or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LOOK_SECONDS
        grown = await self._grown()
        if grown is not None:
            log.info("collection_outgrew_its_shard", collection=grown.id, at=self._at)
            await self._spread(grown.id)

    async def _grown(self) -> CollectionEntry | None:
        if sum(shard.role is ShardRole.ACTIVE for shard in self._cluster.all()) < 2:
            return None  # there is nowhere to go
        answers = await settled(shard.client.stats() for shard in self._cluster.all())
        records: dict[str, int] = {}
        for answer in answers:
            if isinstance(answer, ClusterError):
                continue  # what it holds is looked at when it is back
            for holding in answer.holdings:
                known = records.get(holding.collection_id, 0)
                records[holding.collection_id] = known + holding.records
        grown = {collection for collection, count in records.items() if count >= self._at}
        if not grown:
            return None
        given_up = await self._given_up()
        for entry in await self._catalog.all_collections():
            alone = entry.placement_shards == 1 and entry.state is CollectionState.ACTIVE
            if alone and entry.id in grown and entry.id != given_up:
                return entry
        return None

    async def _given_up(self) -> str:
        """The collection, if any, whose spreading was the last thing to be cancelled, or to fail:
        nobody wants it to be begun again at once. An operator may, and another rebalance is a
        reason to try it once more."""
        newest = await self._catalog.moves.newest()
        if newest is None or newest[0].kind is not RebalanceKind.PLACE:
            return ""
        undone = newest[0].state in {RebalanceState.CANCELLED, RebalanceState.FAILED}
        return newest[0].subject if undone else ""
