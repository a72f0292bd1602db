"""The calls of ClusterService for scaling out: shards that come and go, rebalances, placements.

Here it is decided what may be begun, and it is put into the catalog; the mover carries it out. What
is refused has changed nothing.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from chroma_router.v1 import cluster_pb2
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Reason,
    Unavailable,
)
from chroma_router.wire.placement import ALL_SHARDS
from chroma_router.wire.slots import SLOT_COUNT
from router.catalog import Catalog
from router.cluster import Cluster
from router.concurrency import computed
from router.core.model import CollectionEntry, CollectionState, ShardEntry
from router.core.planner import seconds
from router.core.rebalance import Rebalance, RebalanceKind
from router.directory import Directory
from router.loads import LastHeard
from router.planning import Planning, new_rebalance
from router.service.newcomer import check_address, check_name, check_new, check_node
from router.service.rebalance_message import (
    UNMEASURED_RATE,
    planned_message,
    rebalance_message,
    recent_rate,
    shares,
)
from router.service.shard_status import described
from router.supervisor_client import SupervisorClient

log = structlog.get_logger(__name__)

PROBE_SECONDS = 3.0
"""How long a shard that is called lost may take to show that it is not."""

_PROBE_PAUSE = 0.2


class ScalingService:
    """These calls, free of gRPC."""

    def __init__(
        self,
        catalog: Catalog,
        cluster: Cluster,
        directory: Directory,
        heard: LastHeard,
        planning: Planning,
        supervisor: SupervisorClient | None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`changed` is called when there is something new for a mover to look at."""
        self._catalog = catalog
        self._cluster = cluster
        self._directory = directory
        self._heard = heard
        self._planning = planning
        self._supervisor = supervisor
        self._changed = changed
        self._adding = asyncio.Lock()

    # --------------------------------------------------------------------------------- shards

    async def add_shard(
        self, request: cluster_pb2.AddShardRequest, deadline: float
    ) -> cluster_pb2.AddShardResponse:
        """Makes a shard known whose node serves, or has one started."""
        if request.name:
            check_name(request.name)
        if request.address:
            check_address(request.address)
            if not request.name:
                raise InvalidRequest("name: a node with an address of its own needs a shard's name")
        # One after the other: two that name none are to get two nodes.
        async with self._adding:
            entry = await self._added(request.name, request.address, deadline)
        log.info("shard_added", shard=entry.name, address=entry.address)
        await self._cluster.refresh()
        shown = await described(self._cluster, await self._active(), self._heard)
        (shard,) = (shard for shard in shown if shard.name == entry.name)
        return cluster_pb2.AddShardResponse(shard=shard)

    async def _added(self, name: str, address: str, deadline: float) -> ShardEntry:
        present = await self._catalog.shards()
        check_new(name, address, present)
        if not address:
            known = [shard.name for shard in present]
            name, address = await self._started(name, known, deadline)
        await check_node(self._cluster, name, address)
        return await self._catalog.add_shard(name, address)

    async def _started(self, name: str, known: Sequence[str], deadline: float) -> tuple[str, str]:
        if self._supervisor is None:
            raise NotAllowed(
                "only `chroma-router up` starts nodes, and this router is not one of its; start a "
                "node and give its address",
                Reason.NO_SUPERVISOR,
            )
        return await self._supervisor.start(name, known, max(0.0, deadline - time.monotonic()))

    async def remove_shard(
        self, request: cluster_pb2.RemoveShardRequest, _deadline: float
    ) -> cluster_pb2.RemoveShardResponse:
        """Forgets a shard that owns nothing, or a dead one with what it owns."""
        name = request.name
        known = {shard.name for shard in await self._catalog.shards()}
        if name not in known:
            if not request.dry_run and await self._put_aside(name):
                # Removed before, or started and never added: what was left to do is done.
                return cluster_pb2.RemoveShardResponse()
            raise NotFound(
                f"there is no shard {name[:80]!r}; there are {', '.join(sorted(known))}",
                Reason.SHARD_NOT_FOUND,
            )
        if request.force_lost:
            await self._check_dead(name)
        lost = _owned(await self._active(), name) if request.force_lost else {}
        if not request.dry_run:
            if request.force_lost:
                lost = await self._give_up(name)
            else:
                await self._catalog.remove_shard(name)
        parts = [self._lost(name, entry, slots) for entry, slots in lost.values()]
        if not request.dry_run:
            log.info("shard_removed", shard=name, lost_collections=len(lost))
            self._heard.forget(name)
            await self._cluster.refresh()
            await self._put_aside(name)
        return cluster_pb2.RemoveShardResponse(lost=parts)

    async def _check_dead(self, name: str) -> None:
        """Raises NotAllowed (SHARD_IN_USE) for a shard whose node answers."""
        await self._cluster.refresh()
        client = self._cluster.shard(name).client
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                while True:
                    with contextlib.suppress(Unavailable, DeadlineExpired):
                        stats = await client.stats()
                        break
                    await asyncio.sleep(_PROBE_PAUSE)  # it may be about to serve again
        except (ClusterError, TimeoutError):
            return
        raise NotAllowed(
            f"shard {name} is not lost: its node answers"
            + ("" if stats.boot_id else ", although its engine does not serve yet")
            + f"; empty it with `chroma-router shards drain {name}`, or stop its node for good "
            "first",
            Reason.SHARD_IN_USE,
            metadata={"shard": name},
        )

    async def _give_up(self, name: str) -> dict[str, tuple[CollectionEntry, int]]:
        given_up = await self._catalog.remove_lost_shard(name)
        for entry, _ in given_up:
            self._directory.remember(entry)
        return {entry.id: (entry, slots) for entry, slots in given_up}

    def _lost(self, name: str, entry: CollectionEntry, slots: int) -> cluster_pb2.LostPart:
        return cluster_pb2.LostPart(
            collection_id=entry.id,
            name=entry.name,
            slots=slots,
            records=self._heard.records(name, entry.id),
        )

    async def _put_aside(self, name: str) -> bool:
        """Has the supervisor stop the node of a shard that is none; False if it has none."""
        if self._supervisor is None:
            return False
        try:
            directory = await self._supervisor.stop(name)
        except NotFound:
            return False
        except ClusterError as error:
            raise Unavailable(
                f"{name} is no shard any more, but its node was not put aside: {error.message}; "
                f"repeat `chroma-router shards remove {name}`",
                retry_after=1.0,
            ) from error
        log.info("node_put_aside", shard=name, directory=directory)
        return True

    # ----------------------------------------------------------------------------- rebalances

    async def plan_rebalance(
        self, request: cluster_pb2.PlanRebalanceRequest, _deadline: float
    ) -> cluster_pb2.PlanRebalanceResponse:
        """What a rebalance would move, and what comes of it."""
        loads, planned = await self._planning.plan(request.drain)
        names = {load.id: load.name for load in loads.collections}
        rows = len(loads.collections) * SLOT_COUNT
        told = await computed(rows, shares, loads.collections, loads.shards, planned.moves)
        return cluster_pb2.PlanRebalanceResponse(
            rebalance=planned_message(planned.moves, names),
            shares=[
                cluster_pb2.PlannedShare(
                    shard=share.shard,
                    records_before=share.records_before,
                    records_after=share.records_after,
                    slots_before=share.slots_before,
                    slots_after=share.slots_after,
                )
                for share in told
            ],
            seconds=seconds(planned, await self._measured_rate()),
        )

    async def start_rebalance(
        self, request: cluster_pb2.StartRebalanceRequest, _deadline: float
    ) -> cluster_pb2.StartRebalanceResponse:
        """Begins to even out the shards."""
        asked = _asked(RebalanceKind.BALANCE, "", request.options)
        return cluster_pb2.StartRebalanceResponse(rebalance=await self._begun(asked))

    async def drain_shard(
        self, request: cluster_pb2.DrainShardRequest, _deadline: float
    ) -> cluster_pb2.DrainShardResponse:
        """Begins to empty a shard."""
        asked = _asked(RebalanceKind.DRAIN, request.name, request.options)
        return cluster_pb2.DrainShardResponse(rebalance=await self._begun(asked))

    async def place_collection(
        self, request: cluster_pb2.PlaceCollectionRequest, _deadline: float
    ) -> cluster_pb2.PlaceCollectionResponse:
        """Begins to move a collection to another number of shards."""
        if not request.placement_shards:
            raise InvalidRequest(
                f"placement_shards: on how many shards, from 1, or {ALL_SHARDS} for all; got 0"
            )
        wanted = 0 if request.placement_shards == ALL_SHARDS else request.placement_shards
        entry = await self._directory.resolve(request.collection)
        asked = _asked(RebalanceKind.PLACE, entry.id, request.options)
        begun = await self._begun(asked, wanted)
        await self._directory.refresh(entry.id)
        return cluster_pb2.PlaceCollectionResponse(rebalance=begun)

    async def _begun(self, asked: Rebalance, placement: int | None = None) -> cluster_pb2.Rebalance:
        """Plans and begins it; the mover of this router need not be looked for."""
        begun = await self._planning.begin(asked, placement, self._changed)
        return await self._message(begun)

    async def get_rebalance(
        self, _request: cluster_pb2.GetRebalanceRequest, _deadline: float
    ) -> cluster_pb2.GetRebalanceResponse:
        """How the newest rebalance is going."""
        return cluster_pb2.GetRebalanceResponse(rebalance=await self._message(None))

    async def pause_rebalance(
        self, _request: cluster_pb2.PauseRebalanceRequest, _deadline: float
    ) -> cluster_pb2.PauseRebalanceResponse:
        """Stops it where a move may wait."""
        paused = await self._catalog.moves.pause()
        return cluster_pb2.PauseRebalanceResponse(rebalance=await self._message(paused))

    async def resume_rebalance(
        self, request: cluster_pb2.ResumeRebalanceRequest, _deadline: float
    ) -> cluster_pb2.ResumeRebalanceResponse:
        """Goes on with it."""
        rate, agreement = None, None
        if request.HasField("options"):
            _check_options(request.options)
            rate = request.options.records_per_second
            agreement = request.options.query_agreement
        resumed = await self._catalog.moves.resume(rate, agreement)
        self._changed()
        return cluster_pb2.ResumeRebalanceResponse(rebalance=await self._message(resumed))

    async def cancel_rebalance(
        self, _request: cluster_pb2.CancelRebalanceRequest, _deadline: float
    ) -> cluster_pb2.CancelRebalanceResponse:
        """Takes back what was not switched."""
        cancelled = await self._catalog.moves.cancel(_now_us())
        self._changed()
        await self._cluster.refresh()  # a shard that was being drained takes new data again
        return cluster_pb2.CancelRebalanceResponse(rebalance=await self._message(cancelled))

    async def _message(self, expected: Rebalance | None) -> cluster_pb2.Rebalance:
        """The newest rebalance as it is now; at least as new as `expected`."""
        newest = await self._catalog.moves.newest()
        if newest is None:
            raise NotFound(
                "there has been no rebalance; `chroma-router rebalance start` begins one",
                Reason.NO_REBALANCE,
            )
        rebalance, rows = newest
        if expected is not None and rebalance.id != expected.id:  # another has begun already
            rebalance, rows = expected, []
        names = await self._catalog.collection_names()  # asked often: `rebalance status --watch`
        return rebalance_message(
            rebalance, rows, names, await self._catalog.moves.holder(_now_us())
        )

    async def _measured_rate(self) -> float:
        """Records a second, as the newest rebalance measured it."""
        newest = await self._catalog.moves.newest()
        return (recent_rate(newest[1]) if newest else 0.0) or UNMEASURED_RATE

    async def _active(self) -> list[CollectionEntry]:
        entries = await self._catalog.all_collections()
        return [entry for entry in entries if entry.state is CollectionState.ACTIVE]


def _owned(
    entries: Sequence[CollectionEntry], shard: str
) -> Mapping[str, tuple[CollectionEntry, int]]:
    """The collections of which a shard owns slots, and how many."""
    counts = ((entry, entry.slot_map.owners.count(shard)) for entry in entries)
    return {entry.id: (entry, slots) for entry, slots in counts if slots}


def _asked(kind: RebalanceKind, subject: str, options: cluster_pb2.RebalanceOptions) -> Rebalance:
    """A rebalance that is about to be planned. Raises InvalidRequest for its options."""
    _check_options(options)
    return new_rebalance(
        kind,
        subject,
        records_per_second=options.records_per_second,
        query_agreement=options.query_agreement,
    )


def _check_options(options: cluster_pb2.RebalanceOptions) -> None:
    if not 0.0 <= options.query_agreement <= 1.0:  # false for NaN too
        raise InvalidRequest(
            "options.query_agreement: which share of the hits must agree, from 0 (do not compare) "
            f"to 1, got {options.query_agreement}"
        )


def _now_us() -> int:
    return time.time_ns() // 1000
