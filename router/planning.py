"""Plans rebalances from what the shards hold, and begins them in the catalog.

For whoever begins one: an operator's call, the mover that finds more to move off a shard that is
being emptied, and a collection that has outgrown its shard. One planner serves plan and start, so
that they cannot disagree. What is refused has changed nothing.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace

import structlog

from chroma_router.wire.errors import ClusterError, NotAllowed, NotFound, Reason, Stale
from router.catalog import Catalog
from router.cluster import Cluster
from router.concurrency import computed
from router.core.capacity import fits
from router.core.lease import Lease
from router.core.model import ShardRole
from router.core.planner import Plan, as_moves, plan
from router.core.rebalance import Rebalance, RebalanceKind, RebalanceState
from router.ids import fresh_id
from router.loads import LastHeard, Loads, gather

log = structlog.get_logger(__name__)

PLAN_ROUNDS = 5
"""How often a rebalance is planned again because the catalog changed before it was begun."""


def new_rebalance(
    kind: RebalanceKind, subject: str, *, records_per_second: int = 0, query_agreement: float = 0.0
) -> Rebalance:
    """A rebalance that is about to be planned, under a fresh id."""
    return Rebalance(
        id=fresh_id(),
        kind=kind,
        subject=subject,
        placement_before=0,
        state=RebalanceState.RUNNING,
        records_per_second=records_per_second,
        query_agreement=query_agreement,
        problem="",
        started_at=time.time_ns() // 1000,
        ended_at=0,
        version=1,
    )


class Planning:
    """Gathers, plans, and puts what was planned into the catalog. Owns nothing."""

    def __init__(self, catalog: Catalog, cluster: Cluster, heard: LastHeard) -> None:
        self._catalog, self._cluster, self._heard = catalog, cluster, heard

    async def plan(self, drained: str = "") -> tuple[Loads, Plan]:
        """What a rebalance would move now, or what emptying a shard would.

        Raises NotFound (SHARD_NOT_FOUND), NotAllowed (NO_ROOM, LAST_SHARD), Unavailable.
        """
        loads = await gather(self._catalog, self._cluster, self._heard)
        if drained:
            loads = _draining(loads, drained)
        return loads, await _plan(loads, drained)

    async def begin(
        self,
        asked: Rebalance,
        placement: int | None = None,
        began: Callable[[], None] = lambda: None,
    ) -> Rebalance:
        """Plans and begins; again, if the catalog has changed in between. `placement` is for PLACE.

        `began` is called when something is to be moved. Raises as `plan`, and as the catalog's
        `begin`.
        """
        for attempt in range(1, PLAN_ROUNDS + 1):
            loads = await gather(self._catalog, self._cluster, self._heard)
            planned = await _planned_for(asked, placement, loads)
            moves = as_moves(planned, asked.id, (fresh_id() for _ in planned.moves))
            epochs = {move.collection_id: loads.epochs[move.collection_id] for move in moves}
            try:
                begun = await self._catalog.moves.begin(
                    asked, moves, epochs, placement_after=placement
                )
            except Stale:
                if attempt == PLAN_ROUNDS:
                    raise
                continue
            log.info("rebalance_begun", rebalance=begun.id, kind=begun.kind, moves=len(moves))
            if moves:
                began()
            # A shard's role may have changed. That it has begun is true whatever comes of this, and
            # the cluster looks after the catalog by itself.
            with contextlib.suppress(ClusterError):
                await self._cluster.refresh()
            return begun
        raise AssertionError("the last round returns or raises")

    async def more(self, lease: Lease, rebalance: Rebalance) -> bool:
        """Appends what has come to a shard since it was to be emptied; False if nothing has.

        A router that did not know yet may have placed a collection on it.
        """
        if rebalance.kind is not RebalanceKind.DRAIN:
            return False
        entries = await self._catalog.all_collections()
        if all(rebalance.subject not in entry.slot_map.shards for entry in entries):
            return False
        loads, planned = await self.plan(rebalance.subject)
        moves = as_moves(planned, rebalance.id, (fresh_id() for _ in planned.moves))
        if moves:
            epochs = {move.collection_id: loads.epochs[move.collection_id] for move in moves}
            await self._catalog.moves.append(lease, rebalance, moves, epochs)
        return bool(moves)


async def _planned_for(asked: Rebalance, placement: int | None, loads: Loads) -> Plan:
    match asked.kind:
        case RebalanceKind.BALANCE:
            return await _plan(loads)
        case RebalanceKind.DRAIN:
            return await _plan(_draining(loads, asked.subject), asked.subject)
        case RebalanceKind.PLACE:
            assert placement is not None
            return await _plan(_placing(loads, asked.subject, placement))


def _draining(loads: Loads, name: str) -> Loads:
    """The loads once the shard takes no new data. Raises NotFound, NotAllowed (LAST_SHARD)."""
    known = {shard.name: shard.role for shard in loads.shards}
    if name not in known:
        raise NotFound(
            f"there is no shard {name[:80]!r}; there are {', '.join(sorted(known))}",
            Reason.SHARD_NOT_FOUND,
        )
    if all(role is not ShardRole.ACTIVE for other, role in known.items() if other != name):
        raise NotAllowed(
            f"shard {name} cannot be drained: no other shard takes new data; add one first with "
            "`chroma-router shards add`",
            Reason.LAST_SHARD,
            metadata={"shard": name},
        )
    drained = (
        replace(shard, role=ShardRole.DRAINING) if shard.name == name else shard
        for shard in loads.shards
    )
    return replace(loads, shards=tuple(drained))


def _placing(loads: Loads, collection_id: str, placement: int) -> Loads:
    """The loads of this one collection, placed anew. Raises NotFound."""
    found = [load for load in loads.collections if load.id == collection_id]
    if not found:
        raise NotFound(f"collection {collection_id} does not exist any more")
    return replace(loads, collections=(replace(found[0], placement_shards=placement),))


async def _plan(loads: Loads, drained: str = "") -> Plan:
    """The plan; to drain a shard, of the collections that are on it. Raises NotAllowed."""
    collections = [
        load for load in loads.collections if not drained or drained in load.slot_map.shards
    ]
    rows = sum(len(load.records) for load in collections)
    planned = await computed(rows, plan, collections, loads.shards)
    if problem := fits(planned, collections, loads.shards):
        raise NotAllowed(problem, Reason.NO_ROOM)
    return planned
