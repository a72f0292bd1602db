"""ClusterService: what an operator asks of a cluster, and a client before it begins.

Its calls for scaling out are in scaling.py.
"""

import asyncio
import time

from chroma_router.v1 import cluster_pb2
from chroma_router.wire.errors import NotAllowed, Reason
from chroma_router.wire.version import CHROMA_VERSION, VERSION
from router.catalog import Catalog
from router.cluster import Cluster
from router.core.limits import Limits
from router.core.model import CollectionEntry, CollectionState
from router.directory import Directory
from router.loads import LastHeard
from router.reaper import Reaper
from router.service.shard_status import described
from router.shard_client import MAX_MESSAGE_BYTES


class ClusterService:
    """The calls of ClusterService, free of gRPC."""

    def __init__(
        self,
        catalog: Catalog,
        cluster: Cluster,
        directory: Directory,
        reaper: Reaper,
        limits: Limits,
        heard: LastHeard,
        *,
        allow_reset: bool,
    ) -> None:
        self._catalog = catalog
        self._cluster = cluster
        self._directory = directory
        self._reaper = reaper
        self._limits = limits
        self._heard = heard
        self._allow_reset = allow_reset
        self._started = time.monotonic()

    async def get_version(
        self, _request: cluster_pb2.GetVersionRequest, _deadline: float
    ) -> cluster_pb2.GetVersionResponse:
        """Versions and limits, without asking any shard."""
        return cluster_pb2.GetVersionResponse(
            router_version=VERSION,
            chroma_version=CHROMA_VERSION,
            max_batch_size=self._limits.max_batch_records,
            max_message_bytes=MAX_MESSAGE_BYTES,
            now_nanoseconds=time.time_ns(),
            allow_reset=self._allow_reset,
        )

    async def get_status(
        self, _request: cluster_pb2.GetStatusRequest, _deadline: float
    ) -> cluster_pb2.GetStatusResponse:
        """How the cluster is."""
        shards = await self._shards()
        return cluster_pb2.GetStatusResponse(
            cluster_id=self._catalog.cluster_id,
            router_version=VERSION,
            collections=len(await self._active()),
            records=sum(shard.records for shard in shards),
            shards=shards,
            uptime_seconds=time.monotonic() - self._started,
        )

    async def list_shards(
        self, _request: cluster_pb2.ListShardsRequest, _deadline: float
    ) -> cluster_pb2.ListShardsResponse:
        """How the shards are."""
        return cluster_pb2.ListShardsResponse(shards=await self._shards())

    async def reset(
        self, _request: cluster_pb2.ResetRequest, deadline: float
    ) -> cluster_pb2.ResetResponse:
        """Deletes everything, where that is allowed."""
        if not self._allow_reset:
            raise NotAllowed(
                "reset is not allowed here; start the router with CHROMA_ROUTER_ALLOW_RESET=true "
                "if every collection may be deleted",
                Reason.RESET_DISABLED,
            )
        doomed = await self._catalog.reset()
        for entry in doomed:
            self._directory.forget(entry.id)
        async with asyncio.TaskGroup() as group:
            for entry in doomed:
                group.create_task(self._reaper.finish(entry, max(0.0, deadline - time.monotonic())))
        return cluster_pb2.ResetResponse()

    async def _active(self) -> list[CollectionEntry]:
        entries = await self._catalog.all_collections()
        return [entry for entry in entries if entry.state is CollectionState.ACTIVE]

    async def _shards(self) -> list[cluster_pb2.Shard]:
        return await described(self._cluster, await self._active(), self._heard)
