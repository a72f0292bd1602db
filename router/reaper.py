"""Finishes the deletion of collections: shards drop it and remember, then the catalog forgets.

One task for each doomed collection asks the shards until every one has confirmed; the catalog keeps
the collection as DELETING until then, so that a restarted router goes on where this one stopped.
"""

import asyncio
import contextlib
from collections.abc import Sequence

import structlog

from chroma_router.wire.errors import ClusterError, NotFound
from router.catalog import Catalog
from router.cluster import Cluster, Shard
from router.concurrency import settled
from router.core.model import CollectionEntry
from router.core.retry import backoff

log = structlog.get_logger(__name__)

DROP_TIMEOUT = 20.0
"""Seconds for one node to drop a collection."""

RETRY_BASE, RETRY_CAP = 0.5, 10.0
"""Seconds of back-off before a shard that did not confirm is asked again."""

AT_ONCE = 8
"""Collections that are dropped at the same time."""


class Reaper:
    """Drops doomed collections on the nodes."""

    def __init__(self, catalog: Catalog, cluster: Cluster, tasks: asyncio.TaskGroup) -> None:
        self._catalog = catalog
        self._cluster = cluster
        self._tasks = tasks
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._running: dict[str, asyncio.Task[None]] = {}

    async def resume(self) -> None:
        """Goes on with the deletions that an earlier router left."""
        for doomed in await self._catalog.deleting():
            self._begin(doomed)

    async def finish(self, doomed: CollectionEntry, seconds: float) -> None:
        """Deletes a collection that the catalog has as DELETING; waits at most so long for it.

        A shard that is away, or a caller that goes away, does not stop it.
        """
        await asyncio.wait({self._begin(doomed)}, timeout=seconds)

    def stop(self) -> None:
        """Ends the tasks; the catalog knows what is left."""
        for task in self._running.values():
            task.cancel()

    def _begin(self, doomed: CollectionEntry) -> asyncio.Task[None]:
        task = self._running.get(doomed.id)
        if task is None:
            task = self._tasks.create_task(self._drop(doomed), name=f"reaper-{doomed.id}")
            self._running[doomed.id] = task
            task.add_done_callback(lambda _: self._running.pop(doomed.id, None))
        return task

    async def _drop(self, doomed: CollectionEntry) -> None:
        confirmed: set[str] = set()
        attempt = 0
        while True:
            try:
                async with self._turns:
                    # Each time: another router may have placed it on a shard that this one has not
                    # met yet, and nobody waits for one that has been removed.
                    await self._cluster.refresh()
                    left = [shard for shard in self._cluster.all() if shard.name not in confirmed]
                    confirmed |= await self._ask(doomed, left)
                    if confirmed >= set(self._cluster.names):
                        with contextlib.suppress(NotFound):  # another router finished it
                            await self._catalog.finish_delete(doomed.id)
                        return
            except ClusterError as error:
                log.warning("reaper_delayed", collection=doomed.id, error=error.message)
            await asyncio.sleep(backoff(attempt, RETRY_BASE, RETRY_CAP, jitter=0.5))
            attempt += 1

    async def _ask(self, doomed: CollectionEntry, shards: Sequence[Shard]) -> set[str]:
        """Has these shards drop a collection; the names of those that confirmed."""
        answers = await settled(
            shard.client.drop(doomed.id, doomed.slot_map.epoch, DROP_TIMEOUT) for shard in shards
        )
        confirmed = set()
        for shard, answer in zip(shards, answers, strict=True):
            if isinstance(answer, ClusterError):
                log.warning(
                    "drop_delayed", shard=shard.name, collection=doomed.id, error=answer.message
                )
            else:
                confirmed.add(shard.name)
        return confirmed
