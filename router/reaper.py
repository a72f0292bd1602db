"""Finishes the deletion of collections: shards drop it and remember, then the catalog forgets.

A shard that is away is tried again in the background, also after a restart of the router: the
catalog keeps the collection as DELETING until every shard has confirmed.
"""

import asyncio
import contextlib

import structlog

from chroma_router.wire.errors import ClusterError, NotFound
from router.catalog import Catalog
from router.cluster import Cluster
from router.core.model import CollectionEntry

log = structlog.get_logger(__name__)

DROP_TIMEOUT = 20.0
"""Seconds for one node to drop a collection."""

RETRY_SECONDS = 2.0
"""Seconds between two rounds for the shards that did not confirm."""


class Reaper:
    """Drops doomed collections on the nodes."""

    def __init__(self, catalog: Catalog, cluster: Cluster) -> None:
        self._catalog = catalog
        self._cluster = cluster
        self._left = asyncio.Event()
        self._left.set()

    async def reap(self, doomed: CollectionEntry) -> bool:
        """Tries to finish one deletion now; whether every shard confirmed. Never raises for a shard
        that is away: the background loop goes on with it."""
        answers = await asyncio.gather(
            *(
                shard.client.drop(doomed.id, doomed.slot_map.epoch, DROP_TIMEOUT)
                for shard in self._cluster.all()
            ),
            return_exceptions=True,
        )
        confirmed = True
        for shard, answer in zip(self._cluster.all(), answers, strict=True):
            if isinstance(answer, ClusterError):
                confirmed = False
                log.warning(
                    "drop_delayed", shard=shard.name, collection=doomed.id, error=answer.message
                )
            elif isinstance(answer, BaseException):
                raise answer
        if confirmed:
            with contextlib.suppress(NotFound):  # another router finished it
                await self._catalog.finish_delete(doomed.id)
        else:
            self._left.set()
        return confirmed

    async def run(self) -> None:
        """Finishes what is left, for ever; idle while nothing is."""
        while True:
            await self._left.wait()
            self._left.clear()
            try:
                for doomed in await self._catalog.deleting():
                    await self.reap(doomed)
            except ClusterError as error:
                log.warning("reaper_delayed", error=error.message)
                self._left.set()
            if self._left.is_set():
                await asyncio.sleep(RETRY_SECONDS)
