"""The shards of the cluster as this router reaches them: one client and one write queue each.

Owns the clients, the queues' tasks, and the task that watches the catalog: shards are added, given
another address and removed while the router serves.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import ClusterError, NotAllowed, Reason, Unavailable
from router.catalog import Catalog, behind
from router.concurrency import Flights
from router.core.batching import AdaptiveBatch, BatchLimits
from router.core.model import ShardEntry, ShardRole
from router.core.sequence import SequenceClock
from router.settings import RouterSettings
from router.shard_client import ShardClient
from router.write_queue import QueueLimits, WriteQueue

log = structlog.get_logger(__name__)

HOLDINGS_TIMEOUT = 10.0
"""Seconds to list what a node holds when a router first meets it."""

WATCH_SECONDS = 1.0
"""How often the catalog is asked whether anything has changed. What a call needs to know of a new
shard it finds out at once (`Directory.usable`)."""

RETIRE_SECONDS = 10.0
"""How long calls to a shard's former address may go on before they fail, and are repeated."""


@dataclass(eq=False, slots=True)
class Shard:
    """One shard: what the catalog says of it, how to talk to it, and what waits for it.

    The same object for as long as the shard is known; with its address its client is another.
    """

    entry: ShardEntry
    client: ShardClient
    queue: WriteQueue

    @property
    def name(self) -> str:
        """The shard's name."""
        return self.entry.name

    @property
    def role(self) -> ShardRole:
        """Whether it takes new data."""
        return self.entry.role


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
        self._workers: set[asyncio.Task[None]] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        """Each waits for the last calls of a client that nobody uses any more, and closes it."""
        self._refreshes = Flights[None]()
        self._revision = -1
        """That of the catalog when the shards were last read."""
        self._watching: asyncio.Task[None] | None = None
        self._draining = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all shards, sorted."""
        return tuple(sorted(self._shards))

    def all(self) -> tuple[Shard, ...]:
        """All shards, by name."""
        return tuple(self._shards[name] for name in self.names)

    def knows(self, names: Iterable[str]) -> bool:
        """Whether all these shards are known."""
        return all(name in self._shards for name in names)

    def shard(self, name: str) -> Shard:
        """The shard of a name that a slot map gave. Raises Unavailable if there is none.

        `Directory.usable` sees to it that there is, wherever the catalog knows one.
        """
        try:
            return self._shards[name]
        except KeyError:
            raise Unavailable(
                f"shard {name} owns a part of this collection but is not in the catalog; add it "
                "again with its address",
                metadata={"shard": name},
                retry_after=1.0,
            ) from None

    # ------------------------------------------------------------------ shards come and go

    def connect(self, entries: Iterable[ShardEntry]) -> None:
        """Has just these shards from here on; connections are made when they are first used.

        One with another address keeps its queue, which delivers what waits to the new one. What
        waits for one that is gone is routed anew (WriteQueue.abandon).
        """
        if self._draining:
            return
        wanted = {entry.name: entry for entry in entries}
        for name in self._shards.keys() - wanted.keys():
            gone = self._shards.pop(name)
            gone.queue.abandon()
            self._retire(gone.client)
            log.info("shard_removed", shard=name)
        for entry in wanted.values():
            known = self._shards.get(entry.name)
            if known is None:
                self._meet(entry)
                log.info("shard_known", shard=entry.name, address=entry.address)
            elif known.entry != entry:
                if known.entry.address != entry.address:
                    self._retire(known.client)
                    known.client = self.client(entry.name, entry.address)
                    log.info("shard_readdressed", shard=entry.name, address=entry.address)
                known.entry = entry

    async def refresh(self) -> None:
        """Has the shards that the catalog has now. Raises what the catalog does."""
        await self._refreshes.join("shards", self._refresh)

    async def _refresh(self) -> None:
        revision = await self._catalog.revision()  # first: what changes meanwhile is seen later
        self.connect(await self._catalog.shards())
        self._revision = revision

    def watch(self) -> None:
        """Begins to look after the catalog, until `drain`."""
        self._watching = self._tasks.create_task(self._watch(), name="watch-shards")

    async def _watch(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                if await self._catalog.revision() != self._revision:
                    await self.refresh()
            except Exception as error:  # it must outlive whatever is wrong for now
                if not failing:
                    known = isinstance(error, ClusterError)
                    log.warning(
                        "shards_not_watched", error=str(error), exc_info=None if known else error
                    )
                failing = True
            else:
                if failing:
                    log.info("shards_watched_again")
                failing = False

    def _meet(self, entry: ShardEntry) -> None:
        limits = QueueLimits(self._settings.queue_operations, self._settings.queue_bytes)
        batch = AdaptiveBatch(BatchLimits(target_apply_seconds=self._settings.target_apply_seconds))

        async def apply(
            operations: list[shard_pb2.Operation], timeout: float
        ) -> shard_pb2.ApplyResponse:
            return await shard.client.apply(operations, timeout)  # whichever it is by then

        queue = WriteQueue(entry.name, apply, limits, batch)
        shard = self._shards[entry.name] = Shard(
            entry, self.client(entry.name, entry.address), queue
        )
        worker = self._tasks.create_task(queue.run(), name=f"write-queue-{entry.name}")
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)

    def client(self, name: str, address: str) -> ShardClient:
        """A client of a node that may be no shard yet; who asks for it closes it."""
        return ShardClient(name, address, self._catalog.cluster_id, self._clock)

    def _retire(self, client: ShardClient) -> None:
        task = self._tasks.create_task(client.close(RETIRE_SECONDS), name=f"retire-{client.name}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    # ---------------------------------------------------------------------- beginning, end

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
                problem = await self.behind(shard.client) and await self.behind(shard.client)
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

    async def behind(self, client: ShardClient) -> str | None:
        """Why the catalog is behind this node, if it is (`behind` says what to read first)."""
        holdings: list[shard_pb2.ListHoldingsResponse] = [
            holding async for holding in client.holdings(HOLDINGS_TIMEOUT)
        ]
        entries = {entry.id: entry for entry in await self._catalog.all_collections()}
        return behind(entries, client.name, holdings)

    async def drain(self, grace: float) -> None:
        """Lets the queues deliver what they hold, at most `grace` seconds, then ends everything."""
        self._draining = True
        if self._watching is not None:
            self._watching.cancel()
        for shard in self.all():
            shard.queue.close()
        if self._workers:
            _, late = await asyncio.wait(self._workers, timeout=grace)
            for worker in late:
                worker.cancel()
        for task in self._retiring:
            task.cancel()
        for shard in self.all():
            await shard.client.close()
