"""What the planner is told, from what the shards tell; and what they told last."""

from pathlib import Path
from typing import Any

import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import DeadlineExpired, NotAllowed, Reason, Unavailable
from chroma_router.wire.slots import SLOT_COUNT
from router.core.model import CollectionEntry, ShardRole
from router.loads import LastHeard, collection_load, gather
from tests.router.scripted import Rig, away, rig

pytestmark = pytest.mark.timeout(15)


def counts(entry: CollectionEntry, per_slot: int, record_bytes: int) -> Any:
    return shard_pb2.ListSlotCountsResponse(
        collection_id=entry.id,
        epoch=entry.slot_map.epoch,
        counts=[per_slot] * SLOT_COUNT,
        record_bytes=record_bytes,
    )


def stats(records: dict[str, int], boot_id: str = "b") -> shard_pb2.GetShardStatsResponse:
    holdings = [shard_pb2.HoldingStats(collection_id=i, records=n) for i, n in records.items()]
    return shard_pb2.GetShardStatsResponse(
        boot_id=boot_id, memory_bytes=7, memory_limit_bytes=9, holdings=holdings
    )


async def gathered(router: Rig, heard: LastHeard | None = None) -> Any:
    return await gather(router.catalog, router.cluster, heard or LastHeard())


async def test_a_slot_has_what_its_owner_has(tmp_path: Path) -> None:
    async with rig(tmp_path, 3) as router:
        entry = await router.collection("shard-1", "shard-2")
        shards = router.shards
        shards["shard-1"].slot_counts = [counts(entry, 3, 100)]
        shards["shard-2"].slot_counts = [counts(entry, 5, 200)]
        shards["shard-3"].slot_counts = [counts(entry, 9, 100)]  # a copy that nobody asks for

        async def told(_request: Any) -> shard_pb2.GetShardStatsResponse:
            return stats({entry.id: 1536})

        shards["shard-1"].then("GetShardStats", told)
        heard = LastHeard()
        loads = await gathered(router, heard)
        (load,) = loads.collections
        owners = entry.slot_map.owners
        assert load.records == tuple(3 if owner == "shard-1" else 5 for owner in owners)
        assert load.record_bytes == (3 * 100 + 5 * 200 + 9 * 100) // 17
        assert loads.epochs == {entry.id: 1}
        first = loads.shards[0]
        assert (first.name, first.role) == ("shard-1", ShardRole.ACTIVE)
        assert (first.memory_bytes, first.memory_limit_bytes) == (7, 9)
        assert heard.records("shard-1", entry.id) == 1536


async def test_a_collection_that_is_going_or_that_no_shard_has_yet(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        doomed = await router.collection(name="doomed")
        await router.catalog.begin_delete(doomed.id)
        entry = await router.collection(name="fresh")
        (load,) = (await gathered(router)).collections
        assert (load.id, sum(load.records), load.record_bytes) == (entry.id, 0, 0)


@pytest.mark.parametrize(
    ("method", "error", "reason"),
    [
        ("Hello", away(), Reason.SHARD_UNAVAILABLE),
        ("GetShardStats", DeadlineExpired("slow"), Reason.SHARD_UNAVAILABLE),
        ("Hello", Unavailable("s", Reason.ENGINE_FAILED), Reason.ENGINE_FAILED),
    ],
)
async def test_a_shard_that_does_not_say_is_named_with_the_mend(
    tmp_path: Path, method: str, error: Any, reason: Reason
) -> None:
    async with rig(tmp_path) as router:
        router.shards["shard-2"].then(method, error)
        with pytest.raises(Unavailable, match=r"without shard shard-2.*--force-lost") as refused:
            await gathered(router)
        assert (refused.value.reason, refused.value.metadata["shard"]) == (reason, "shard-2")


async def test_what_waiting_does_not_mend_is_told_as_it_is(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        router.shards["shard-1"].then("Hello", NotAllowed("elsewhere", Reason.WRONG_CLUSTER))
        with pytest.raises(NotAllowed, match="elsewhere"):
            await gathered(router)


async def test_a_collection_on_a_shard_that_came_meanwhile_is_left_for_the_next_plan(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection("shard-1")

        async def comes(_request: Any) -> None:
            await router.catalog.add_shard("shard-9", "127.0.0.1:9")
            present = await router.catalog.collection(entry.id)
            slot_map = present.slot_map.reassigned([0], "shard-9")
            await router.catalog.replace_slot_map(present, slot_map)

        router.shards["shard-1"].then("GetShardStats", comes)
        loads = await gathered(router)
        assert (loads.collections, loads.epochs) == ((), {})


def test_only_a_shard_that_serves_is_heard() -> None:
    heard = LastHeard()
    assert heard.records("a", "c") is None
    heard.hear("a", stats({"c": 5}))
    heard.hear("a", stats({}, boot_id=""))
    assert (heard.records("a", "c"), heard.records("a", "d")) == (5, 0)
    heard.hear("a", stats({"d": 1}))
    assert heard.records("a", "c") == 0
    heard.forget("a")
    assert heard.records("a", "d") is None


async def test_owners_that_tell_nothing_count_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        load = collection_load(entry, {"shard-1": {entry.id: counts(entry, 2, 10)}})
        assert sum(load.records) == 2 * len(entry.slot_map.slots_of("shard-1"))
