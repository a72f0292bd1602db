"""Shards that come and go, and rebalances that begin: what is refused, and that nothing is changed
by it."""

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from chroma_router.v1 import cluster_pb2, shard_pb2, types_pb2
from chroma_router.wire.errors import (
    AlreadyExists,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Reason,
    Unavailable,
    Unsupported,
)
from chroma_router.wire.placement import ALL_SHARDS
from chroma_router.wire.slots import SLOT_COUNT
from router.core.lease import Lease
from router.core.limits import Limits
from router.core.model import CollectionEntry, ShardRole
from router.core.move import Stage
from router.core.rebalance import MoveProgress
from router.loads import LastHeard
from router.planning import Planning
from router.reaper import Reaper
from router.service import newcomer, scaling
from router.service.cluster import ClusterService
from router.service.scaling import ScalingService
from router.supervisor_client import SupervisorClient
from tests.router.scripted import Rig, ScriptedShard, away, rig, serving

pytestmark = pytest.mark.timeout(30)

FAR = time.monotonic() + 3600.0


@dataclass
class FakeSupervisor:
    """Starts scripted shards; `fail` is raised instead."""

    started: dict[str, ScriptedShard] = field(default_factory=dict)
    servers: list[grpc.aio.Server] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    fail: Exception | None = None

    async def start(self, name: str, known: Iterable[str], _timeout: float) -> tuple[str, str]:
        self.known = list(known)
        waiting = [n for n in self.started if n not in self.known]
        name = name or next(iter(waiting), f"shard-{len(self.known) + 1}")
        if name not in self.started:
            self.started[name] = ScriptedShard(name)
            self.servers.append(await serving(self.started[name]))
        if self.fail is not None:
            raise self.fail
        return name, self.started[name].address

    async def stop(self, name: str) -> str:
        if self.fail is not None:
            raise self.fail
        if name not in self.started:
            raise NotFound("no such node", Reason.SHARD_NOT_FOUND)
        self.stopped.append(name)
        return f"removed/{name}"


@dataclass
class World:
    """The service over scripted shards."""

    router: Rig
    service: ScalingService
    status: ClusterService
    supervisor: FakeSupervisor

    async def add(self, name: str = "", address: str = "") -> cluster_pb2.Shard:
        request = cluster_pb2.AddShardRequest(name=name, address=address)
        return (await self.service.add_shard(request, FAR)).shard

    async def remove(self, name: str, **more: bool) -> list[cluster_pb2.LostPart]:
        request = cluster_pb2.RemoveShardRequest(name=name, **more)
        return list((await self.service.remove_shard(request, FAR)).lost)

    async def start(self, **options: Any) -> cluster_pb2.Rebalance:
        request = cluster_pb2.StartRebalanceRequest(options=cluster_pb2.RebalanceOptions(**options))
        return (await self.service.start_rebalance(request, FAR)).rebalance

    async def drain(self, name: str) -> cluster_pb2.Rebalance:
        request = cluster_pb2.DrainShardRequest(name=name)
        return (await self.service.drain_shard(request, FAR)).rebalance

    async def place(self, entry: CollectionEntry, shards: int) -> cluster_pb2.Rebalance:
        request = cluster_pb2.PlaceCollectionRequest(
            collection=types_pb2.CollectionRef(id=entry.id), placement_shards=shards
        )
        return (await self.service.place_collection(request, FAR)).rebalance

    async def newest(self) -> cluster_pb2.Rebalance:
        request = cluster_pb2.GetRebalanceRequest()
        return (await self.service.get_rebalance(request, FAR)).rebalance

    async def names(self) -> list[str]:
        return [shard.name for shard in await self.router.catalog.shards()]

    async def newcomer(self, name: str = "shard-3") -> ScriptedShard:
        """A node that serves and is no shard yet."""
        shard = ScriptedShard(name)
        self.router.shards[name] = shard
        self.supervisor.servers.append(await serving(shard))
        return shard

    def holds(self, entry: CollectionEntry, per_slot: int = 10) -> None:
        """Each shard has so many records in each of its slots of the collection."""
        for name, shard in self.router.shards.items():
            owned = [owner == name for owner in entry.slot_map.owners]
            shard.slot_counts.append(
                shard_pb2.ListSlotCountsResponse(
                    collection_id=entry.id,
                    epoch=entry.slot_map.epoch,
                    counts=[per_slot * o for o in owned],
                    record_bytes=100,
                )
            )

    async def carried_out(self) -> Lease:
        """All moves of the newest rebalance are done, as a mover does it."""
        moves = self.router.catalog.moves
        lease = await moves.acquire("mover", 1, 10**9)
        assert lease is not None
        newest = await moves.newest()
        assert newest is not None
        for move, _ in newest[1]:
            for stage in (Stage.COPYING, Stage.CATCHING_UP, Stage.VERIFIED, Stage.FENCED):
                move = await moves.enter(lease, move, stage)  # noqa: PLW2901
            _, move = await moves.switch(lease, move)  # noqa: PLW2901
            await moves.enter(lease, move, Stage.TRIMMED)
        await moves.finish(lease, newest[0], 1)
        return lease


@asynccontextmanager
async def world(path: Path, number: int = 2, *, supervised: bool = False) -> AsyncIterator[World]:
    async with rig(path, number) as router:
        heard, supervisor = LastHeard(), FakeSupervisor()
        service = ScalingService(
            router.catalog,
            router.cluster,
            router.directory,
            heard,
            Planning(router.catalog, router.cluster, heard),
            cast(SupervisorClient, supervisor) if supervised else None,
        )
        reaper = cast(Reaper, None)
        status = ClusterService(
            router.catalog,
            router.cluster,
            router.directory,
            reaper,
            Limits(),
            heard,
            allow_reset=False,
        )
        try:
            yield World(router, service, status, supervisor)
        finally:
            for server in supervisor.servers:
                await server.stop(None)


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomer, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(newcomer, "_POLL_SECONDS", 0.01)


# -------------------------------------------------------------------------------- adding a shard


async def test_a_node_that_serves_becomes_a_shard(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        node = await here.newcomer()
        starting = Unavailable("scripted: starting", Reason.ENGINE_STARTING)
        node.then("Hello", starting, starting)  # a node that starts gets a little patience
        shard = await here.add("shard-3", node.address)
        assert (shard.name, shard.address) == ("shard-3", node.address)
        assert (shard.role, shard.slots) == (cluster_pb2.SHARD_ROLE_ACTIVE, 0)
        assert here.router.cluster.shard("shard-3").role is ShardRole.ACTIVE
        assert [s.name for s in await here.router.catalog.shards()][-1] == "shard-3"


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b", "x" * 64, "ä", "a=b"], ids=["none", "space", "/", "long", "ä", "="]
)
async def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    async with world(tmp_path) as here:
        with pytest.raises(InvalidRequest, match=r"name: .*shard's name"):
            await here.add(name, "127.0.0.1:1")


@pytest.mark.parametrize(
    "address", ["h", "h:", ":1", "h:0", "h:65536", "h:x", "http://h:1", "unix:", "unix:a", "a b:1"]
)
async def test_an_address_that_is_none_is_refused(tmp_path: Path, address: str) -> None:
    async with world(tmp_path) as here:
        with pytest.raises(InvalidRequest, match=r"HOST:PORT or unix:PATH"):
            await here.add("shard-3", address)


async def test_a_name_or_address_twice_is_refused_before_the_node_is_asked(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        node = await here.newcomer()
        first = here.router.shards["shard-1"]
        for name, address in (("shard-1", node.address), ("shard-3", first.address)):
            with pytest.raises(AlreadyExists, match="shard-1") as refused:
                await here.add(name, address)
            assert refused.value.reason is Reason.SHARD_EXISTS
        assert node.requests("Hello") == first.requests("Hello") == []


@pytest.mark.parametrize(
    ("answer", "reason", "mend"),
    [
        (NotAllowed("of another cluster", Reason.WRONG_CLUSTER), Reason.WRONG_CLUSTER, "another"),
        (NotAllowed("of shard-9", Reason.WRONG_SHARD), Reason.WRONG_SHARD, "shard-9"),
        (NotAllowed("protocol 7", Reason.PROTOCOL_MISMATCH), Reason.PROTOCOL_MISMATCH, "7"),
        (Unsupported("no such method"), Reason.WRONG_SHARD, "no shard node"),
    ],
    ids=["cluster", "shard", "protocol", "no node"],
)
async def test_a_node_that_belongs_elsewhere_is_refused(
    tmp_path: Path, answer: Any, reason: Reason, mend: str
) -> None:
    async with world(tmp_path) as here:
        node = await here.newcomer()
        node.then("Hello", answer)
        with pytest.raises(NotAllowed, match=mend) as refused:
            await here.add("shard-3", node.address)
        assert refused.value.reason is reason
        assert await here.names() == ["shard-1", "shard-2"]


async def test_a_node_that_does_not_answer_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        with pytest.raises(Unavailable, match=r"no shard node served .*can be reached") as refused:
            await here.add("shard-3", "127.0.0.1:1")
        assert refused.value.reason is Reason.SHARD_UNAVAILABLE
        node = await here.newcomer()
        node.then("Hello", *[Unavailable("broken", Reason.ENGINE_FAILED)] * 1000)
        with pytest.raises(Unavailable, match="broken") as refused:
            await here.add("shard-3", node.address)
        assert refused.value.reason is Reason.ENGINE_FAILED
        assert await here.names() == ["shard-1", "shard-2"]


async def test_a_node_that_the_catalog_is_behind_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        node = await here.newcomer()
        unknown = shard_pb2.CollectionDefinition(
            collection=types_pb2.Collection(id="c-9", name="lost", epoch=3)
        )
        node.holdings.append(shard_pb2.ListHoldingsResponse(definition=unknown))
        with pytest.raises(NotAllowed, match="lost") as refused:
            await here.add("shard-3", node.address)
        assert refused.value.reason is Reason.CATALOG_BEHIND
        assert await here.names() == ["shard-1", "shard-2"]


async def test_without_a_supervisor_an_address_is_needed(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        with pytest.raises(NotAllowed, match="give its address") as refused:
            await here.add()
        assert refused.value.reason is Reason.NO_SUPERVISOR


async def test_the_supervisor_starts_a_node_and_a_repeat_takes_the_same(tmp_path: Path) -> None:
    async with world(tmp_path, supervised=True) as here:
        here.supervisor.fail = Unavailable("the router was killed in between")
        with pytest.raises(Unavailable):
            await here.add()
        here.supervisor.fail = None
        assert (await here.add()).name == "shard-3"
        assert here.supervisor.known == ["shard-1", "shard-2"]
        assert (await here.add("shard-7")).name == "shard-7"
        with pytest.raises(AlreadyExists):
            await here.add("shard-7")
        assert list(here.supervisor.started) == ["shard-3", "shard-7"]


# ------------------------------------------------------------------------------ removing a shard


async def test_a_shard_that_owns_something_is_not_removed(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.router.collection()
        with pytest.raises(NotAllowed, match=r"512 slots of 1 collection.*drain") as refused:
            await here.remove("shard-1")
        assert refused.value.reason is Reason.SHARD_IN_USE
        with pytest.raises(NotFound, match=r"shard-9.*shard-1, shard-2"):
            await here.remove("shard-9")
        assert await here.names() == ["shard-1", "shard-2"]


async def test_an_empty_shard_is_removed_and_its_node_put_aside(tmp_path: Path) -> None:
    async with world(tmp_path, supervised=True) as here:
        await here.add()
        assert await here.remove("shard-3", dry_run=True) == []
        assert here.supervisor.stopped == []
        assert await here.remove("shard-3") == []
        assert (here.router.cluster.names, here.supervisor.stopped) == (
            ("shard-1", "shard-2"),
            ["shard-3"],
        )
        assert await here.remove("shard-1") == [], "no node of the supervisor's"
        with pytest.raises(NotAllowed) as refused:
            await here.remove("shard-2")
        assert refused.value.reason is Reason.LAST_SHARD


async def test_a_removal_that_was_cut_off_is_finished_by_a_repeat(tmp_path: Path) -> None:
    async with world(tmp_path, supervised=True) as here:
        await here.add()
        here.supervisor.fail = Unavailable("the disk refuses")
        with pytest.raises(Unavailable, match=r"not put aside: the disk .* shards remove shard-3"):
            await here.remove("shard-3")
        here.supervisor.fail = None
        assert await here.remove("shard-3") == []
        assert here.supervisor.stopped == ["shard-3"]


async def test_a_shard_that_answers_is_not_lost(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.router.collection()
        with pytest.raises(NotAllowed, match="is not lost") as refused:
            await here.remove("shard-1", force_lost=True)
        assert refused.value.reason is Reason.SHARD_IN_USE
        assert await here.names() == ["shard-1", "shard-2"]


async def test_a_shard_that_is_just_being_started_again_is_not_lost(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.router.shards["shard-1"].then("GetShardStats", away(), away())
        with pytest.raises(NotAllowed, match="is not lost"):
            await here.remove("shard-1", force_lost=True)
        assert await here.names() == ["shard-1", "shard-2"]


async def test_what_is_lost_is_told_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "PROBE_SECONDS", 0.3)
    async with world(tmp_path) as here:
        papers = await here.router.collection(name="papers")
        notes = await here.router.collection("shard-2", name="notes")
        shard = here.router.shards["shard-1"]

        async def told(_request: Any) -> shard_pb2.GetShardStatsResponse:
            holding = shard_pb2.HoldingStats(collection_id=papers.id, slots=512, records=77)
            return shard_pb2.GetShardStatsResponse(boot_id="b", holdings=[holding])

        shard.then("GetShardStats", told, *(away() for _ in range(50)))
        unheard = await here.status.list_shards(cluster_pb2.ListShardsRequest(), FAR)
        assert unheard.shards[0].records == 77
        for dry_run in (True, False):
            (lost,) = await here.remove("shard-1", force_lost=True, dry_run=dry_run)
            assert (lost.name, lost.slots, lost.records) == ("papers", 512, 77)
        now = await here.router.catalog.collection(papers.id)
        assert now.slot_map.shards == ("shard-2",)
        assert now.slot_map.epoch == papers.slot_map.epoch + 1
        assert (await here.router.catalog.collection(notes.id)).slot_map == notes.slot_map
        assert here.router.cluster.names == ("shard-2",)


async def test_what_was_never_heard_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "PROBE_SECONDS", 0.3)
    async with world(tmp_path) as here:
        await here.router.collection()
        here.router.shards["shard-1"].then("GetShardStats", *(away() for _ in range(50)))
        (lost,) = await here.remove("shard-1", force_lost=True, dry_run=True)
        assert (lost.slots, lost.HasField("records")) == (512, False)
        assert await here.names() == ["shard-1", "shard-2"]


# ------------------------------------------------------------------------------------ rebalances


async def test_a_plan_is_what_start_begins(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        entry = await here.router.collection()
        node = await here.newcomer()
        await here.add("shard-3", node.address)
        here.holds(entry)
        plan = await here.service.plan_rebalance(cluster_pb2.PlanRebalanceRequest(), FAR)
        assert [s.records_before for s in plan.shares] == [5120, 5120, 0]
        assert [s.records_after for s in plan.shares] == pytest.approx([3413] * 3, abs=200)
        assert sum(s.slots_after for s in plan.shares) == SLOT_COUNT
        assert plan.seconds > 0
        assert await here.router.catalog.moves.newest() is None, "nothing is changed by a plan"
        begun = await here.start(records_per_second=500, query_agreement=0.5)
        assert begun.state == cluster_pb2.REBALANCE_STATE_RUNNING
        assert (begun.options.records_per_second, begun.options.query_agreement) == (500, 0.5)
        parts = [
            [(m.collection, m.source, m.target, m.slots, m.records, m.bytes) for m in r.moves]
            for r in (begun, plan.rebalance)
        ]
        assert parts[0] == parts[1]
        assert all(m.target == "shard-3" and m.bytes == 100 * m.records for m in begun.moves)
        assert len({m.id for m in begun.moves}) == len(begun.moves) > 0
        assert begun.seconds_left < 0, "not known: nothing was copied yet"
        with pytest.raises(NotAllowed, match="has not ended") as refused:
            await here.start()
        assert refused.value.reason is Reason.REBALANCE_RUNNING


async def test_nothing_to_move_is_done_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.holds(await here.router.collection())
        begun = await here.start()
        assert (begun.state, len(begun.moves)) == (cluster_pb2.REBALANCE_STATE_DONE, 0)
        assert (begun.ended_at > 0, begun.seconds_left) == (True, 0.0)


async def test_no_plan_without_a_shard_that_does_not_answer(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        for method, error, reason in (
            ("Hello", away(), Reason.SHARD_UNAVAILABLE),
            ("GetShardStats", away(), Reason.SHARD_UNAVAILABLE),
            ("Hello", Unavailable("s", Reason.ENGINE_STARTING), Reason.ENGINE_STARTING),
        ):
            here.router.shards["shard-2"].then(method, error)
            with pytest.raises(Unavailable, match=r"shard-2.* --force-lost") as refused:
                await here.start()
            assert refused.value.reason is reason
        assert await here.router.catalog.moves.newest() is None


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
async def test_options_that_make_no_sense_are_refused(tmp_path: Path, share: float) -> None:
    async with world(tmp_path) as here:
        with pytest.raises(InvalidRequest, match="query_agreement"):
            await here.start(query_agreement=share)


async def test_a_plan_that_the_catalog_has_overtaken_is_made_again(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        entry = await here.router.collection()
        node = await here.newcomer()
        await here.add("shard-3", node.address)
        here.holds(entry)
        begin = here.router.catalog.moves.begin
        tries: list[int] = []

        async def overtaken(*args: Any, **more: Any) -> Any:
            tries.append(1)
            if len(tries) == 1:
                present = await here.router.catalog.collection(entry.id)
                slot_map = present.slot_map.reassigned([0], present.slot_map.owner(0))
                await here.router.catalog.replace_slot_map(present, slot_map)
            return await begin(*args, **more)

        here.router.catalog.moves.begin = overtaken  # type: ignore[method-assign]
        assert (await here.start()).state == cluster_pb2.REBALANCE_STATE_RUNNING
        assert len(tries) == 2


async def test_a_drain_moves_only_what_the_shard_owns(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as here:
        both = await here.router.collection("shard-1", "shard-2", name="both")
        other = await here.router.collection("shard-2", "shard-3", name="other")
        for entry in (both, other):
            here.holds(entry)
        request = cluster_pb2.PlanRebalanceRequest(drain="shard-1")
        plan = await here.service.plan_rebalance(request, FAR)
        assert plan.shares[0].records_after == 0
        assert sum(s.records_after for s in plan.shares) == 2 * 10_240
        begun = await here.drain("shard-1")
        assert {move.collection for move in begun.moves} == {"both"}
        assert (begun.kind, begun.subject) == (cluster_pb2.REBALANCE_KIND_DRAIN, "shard-1")
        assert here.router.cluster.shard("shard-1").role is ShardRole.DRAINING
        with pytest.raises(NotAllowed) as refused:
            await here.remove("shard-1")
        assert refused.value.reason is Reason.SHARD_IN_USE
        await here.carried_out()
        assert (await here.newest()).state == cluster_pb2.REBALANCE_STATE_DONE
        assert await here.remove("shard-1") == []


async def test_what_cannot_be_drained(tmp_path: Path) -> None:
    async with world(tmp_path, 2) as here:
        here.holds(await here.router.collection())
        with pytest.raises(NotFound, match=r"shard-9.*there are shard-1, shard-2") as missing:
            await here.drain("shard-9")
        assert missing.value.reason is Reason.SHARD_NOT_FOUND

        async def full(_request: Any) -> shard_pb2.GetShardStatsResponse:
            return shard_pb2.GetShardStatsResponse(
                boot_id="b", memory_bytes=100 << 20, memory_limit_bytes=101 << 20
            )

        here.router.shards["shard-2"].then("GetShardStats", full)
        with pytest.raises(NotAllowed, match="shard-2 has no room for 5,120 more") as refused:
            await here.drain("shard-1")
        assert refused.value.reason is Reason.NO_ROOM
        assert here.router.cluster.shard("shard-1").role is ShardRole.ACTIVE
        await here.drain("shard-1")
        await here.carried_out()
        for call in (
            here.drain("shard-2"),
            here.service.plan_rebalance(cluster_pb2.PlanRebalanceRequest(drain="shard-2"), FAR),
        ):
            with pytest.raises(NotAllowed, match="add one first") as refused:
                await call
            assert refused.value.reason is Reason.LAST_SHARD
        roles = {shard.name: shard.role for shard in here.router.cluster.all()}
        assert roles == {"shard-1": ShardRole.DRAINING, "shard-2": ShardRole.ACTIVE}


async def test_a_collection_is_placed_on_another_number_of_shards(tmp_path: Path) -> None:
    async with world(tmp_path, 3) as here:
        entry = await here.router.collection("shard-1")
        other = await here.router.collection("shard-1", name="other")
        for one in (entry, other):
            here.holds(one)
        with pytest.raises(InvalidRequest, match=r"placement_shards.*got 0"):
            await here.place(entry, 0)
        begun = await here.place(entry, ALL_SHARDS)
        assert {m.collection_id for m in begun.moves} == {entry.id}, "the other is not placed"
        assert {m.target for m in begun.moves} == {"shard-2", "shard-3"}
        await here.carried_out()
        for shard in here.router.shards.values():
            shard.slot_counts.clear()
        here.holds(await here.router.catalog.collection(entry.id))
        begun = await here.place(entry, 1)
        assert (await here.router.catalog.collection(entry.id)).placement_shards == 1
        assert len({m.target for m in begun.moves}) == 1
        assert (begun.kind, begun.subject) == (cluster_pb2.REBALANCE_KIND_PLACE, entry.id)
        cancel = cluster_pb2.CancelRebalanceRequest()
        cancelled = (await here.service.cancel_rebalance(cancel, FAR)).rebalance
        assert cancelled.state == cluster_pb2.REBALANCE_STATE_CANCELLED, "nothing had begun"
        assert (await here.router.catalog.collection(entry.id)).placement_shards == 0


async def test_pause_resume_and_cancel(tmp_path: Path) -> None:
    async with world(tmp_path, 2) as here:
        service = here.service
        with pytest.raises(NotFound) as none:
            await here.newest()
        assert none.value.reason is Reason.NO_REBALANCE
        here.holds(await here.router.collection())
        await here.drain("shard-1")
        paused = await service.pause_rebalance(cluster_pb2.PauseRebalanceRequest(), FAR)
        assert paused.rebalance.state == cluster_pb2.REBALANCE_STATE_PAUSED
        request = cluster_pb2.ResumeRebalanceRequest()
        request.options.records_per_second = 7
        resumed = (await service.resume_rebalance(request, FAR)).rebalance
        assert resumed.options.records_per_second == 7
        await service.resume_rebalance(cluster_pb2.ResumeRebalanceRequest(), FAR)
        assert (await here.newest()).options.records_per_second == 7, "as before"
        await service.cancel_rebalance(cluster_pb2.CancelRebalanceRequest(), FAR)
        assert here.router.cluster.shard("shard-1").role is ShardRole.ACTIVE
        with pytest.raises(NotAllowed) as ended:
            await service.cancel_rebalance(cluster_pb2.CancelRebalanceRequest(), FAR)
        assert ended.value.reason is Reason.REBALANCE_ENDED


async def test_how_fast_it_is_and_how_long_it_takes(tmp_path: Path) -> None:
    async with world(tmp_path, 2) as here:
        here.holds(await here.router.collection())
        begun = await here.drain("shard-1")
        moves = here.router.catalog.moves
        lease = await moves.acquire("router-a", time.time_ns() // 1000, 10**9)
        newest = await moves.newest()
        assert lease is not None
        assert newest is not None
        move = await moves.enter(lease, newest[1][0][0], Stage.COPYING)
        progress = MoveProgress(copied_records=1000, copy_microseconds=2_000_000)
        await moves.note(lease, move.id, progress)
        now = await here.newest()
        assert (now.records_per_second, now.mover) == (500.0, "router-a")
        left = sum(m.records for m in begun.moves) - 1000
        assert now.seconds_left == pytest.approx(left / 500 + 0.3 * len(begun.moves))
        assert now.moves[0].stage == cluster_pb2.MOVE_STAGE_COPYING
        await here.service.resume_rebalance(
            cluster_pb2.ResumeRebalanceRequest(
                options=cluster_pb2.RebalanceOptions(records_per_second=100)
            ),
            FAR,
        )
        assert (await here.newest()).seconds_left > 10 * 1.0
        assert (await here.newest()).records_per_second == 100.0
