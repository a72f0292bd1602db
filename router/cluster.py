"""The shards of the cluster as this router reaches them: one client and one write queue each.

Owns the clients and the queues' tasks. Which shards there are is read from the catalog at start.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import ClusterError, NotAllowed, Reason, Unavailable
from router.catalog import Catalog, behind
from router.core.batching import AdaptiveBatch, BatchLimits
from router.core.model import ShardEntry
from router.core.sequence import SequenceClock
from router.settings import RouterSettings
from router.shard_client import ShardClient
from router.write_queue import QueueLimits, WriteQueue

log = structlog.get_logger(__name__)

HOLDINGS_TIMEOUT = 10.0
"""Seconds to list what a node holds when a router first meets it."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard: how to talk to it and what waits for it."""

    client: ShardClient
    queue: WriteQueue

    @property
    def name(self) -> str:
        """The shard's name."""
        return self.client.name


class Cluster:
    """The shards by name."""

    def __init__(
        self,
        catalog: Catalog,
        settings: RouterSettings,
        clock: SequenceClock,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._catalog = catalog
        self._settings = settings
        self._clock = clock
        self._tasks = tasks
        self._shards: dict[str, Shard] = {}
        self._workers: list[asyncio.Task[None]] = []

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all shards, sorted."""
        return tuple(sorted(self._shards))

    def all(self) -> tuple[Shard, ...]:
        """All shards, by name."""
        return tuple(self._shards[name] for name in self.names)

    def shard(self, name: str) -> Shard:
        """The shard of a name that a slot map gave."""
        try:
            return self._shards[name]
        except KeyError:
            raise Unavailable(
                f"shard {name} owns a part of this collection but this router does not know its "
                "address; add it again with its address, or restart the router",
                metadata={"shard": name},
            ) from None

    def connect(self, entries: Iterable[ShardEntry]) -> None:
        """Makes client and queue of each shard; connections are made when they are first used."""
        limits = QueueLimits(self._settings.queue_operations, self._settings.queue_bytes)
        for entry in entries:
            client = ShardClient(entry.name, entry.address, self._catalog.cluster_id, self._clock)
            batch = AdaptiveBatch(
                BatchLimits(target_apply_seconds=self._settings.target_apply_seconds)
            )
            queue = WriteQueue(entry.name, client.apply, limits, batch)
            self._shards[entry.name] = Shard(client, queue)
            self._workers.append(
                self._tasks.create_task(queue.run(), name=f"write-queue-{entry.name}")
            )

    async def check_catalog(self) -> None:
        """Refuses to serve with a catalog that is behind a node that answers.

        Raises NotAllowed (CATALOG_BEHIND, WRONG_CLUSTER, WRONG_SHARD, PROTOCOL_MISMATCH). A shard
        that does not answer is passed over: it cannot be served from either, and its node refuses
        epochs below its own.
        """
        for shard in self.all():
            try:
                await shard.client.hello()
                # What another router changes between two readings may look like a catalog that is
                # behind: only what is seen twice is believed.
                problem = await self._behind(shard) and await self._behind(shard)
            except NotAllowed:
                raise
            except ClusterError as error:
                log.warning("shard_not_checked", shard=shard.name, error=error.message)
                continue
            if problem:
                raise NotAllowed(
                    f"the catalog is behind shard {shard.name}: {problem}; restore the newest "
                    "catalog, or make one from the nodes with `chroma-router catalog rebuild`",
                    Reason.CATALOG_BEHIND,
                )

    async def _behind(self, shard: Shard) -> str | None:
        """Why the catalog is behind this shard, if it is (`behind` says what to read first)."""
        holdings: list[shard_pb2.ListHoldingsResponse] = [
            holding async for holding in shard.client.holdings(HOLDINGS_TIMEOUT)
        ]
        entries = {entry.id: entry for entry in await self._catalog.all_collections()}
        return behind(entries, shard.name, holdings)

    async def drain(self, grace: float) -> None:
        """Lets the queues deliver what they hold, at most `grace` seconds, then ends them."""
        for shard in self.all():
            shard.queue.close()
        if self._workers:
            _, late = await asyncio.wait(self._workers, timeout=grace)
            for worker in late:
                worker.cancel()
        for shard in self.all():
            await shard.client.close()
