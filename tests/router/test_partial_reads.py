"""Partial reads over real gRPC: who is left out and when, never two epochs, never nothing."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chroma_router.v1 import records_pb2, shard_pb2, types_pb2
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    InvalidRequest,
    Reason,
    Unavailable,
)
from router import scatter
from router.core.limits import Limits
from router.core.model import CollectionEntry
from router.record_reads import RecordReads
from router.scatter import ReadCall, ReadPath
from router.service.records import RecordService
from tests.router.scripted import Rig, Step, away, ids_on, rig, wait_for

pytestmark = pytest.mark.timeout(20)


def reads_of(router: Rig) -> RecordReads:
    return RecordReads(router.directory, ReadPath(router.cluster, router.directory), Limits())


async def count(
    reads: RecordReads, entry: CollectionEntry, seconds: float = 10.0
) -> tuple[int, types_pb2.Coverage, float]:
    """A partial count: the number, what it saw, and how many seconds it took."""
    call = ReadCall(time.monotonic() + seconds, allow_partial=True)
    began = time.monotonic()
    number = await reads.count(call, entry)
    seen = call.coverage()
    assert seen is not None
    return number, seen, time.monotonic() - began


async def test_all_answer(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        number, seen, _ = await count(reads_of(router), await router.collection())
    assert number == 20
    assert list(seen.asked_shards) == list(seen.answered_shards) == ["shard-1", "shard-2"]
    assert not seen.missing_shards
    assert seen.record_share == 1.0


async def test_an_unreachable_shard_is_left_out_at_once(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        reads = reads_of(router)
        router.shards["shard-1"].then("ShardCount", away())
        number, seen, seconds = await count(reads, entry)
        assert number == 10
        assert list(seen.missing_shards) == ["shard-1"]
        assert list(seen.answered_shards) == ["shard-2"]
        assert seen.record_share == 0.5, "as many slots, and it never told"
        assert seconds < 0.5
        assert len(router.shards["shard-1"].requests("ShardCount")) == 1
        number, seen, _ = await count(reads, entry)
        assert (number, seen.record_share) == (20, 1.0), "it is asked again by the next call"


async def test_the_share_of_a_missing_shard_is_what_it_last_told(tmp_path: Path) -> None:
    async def ninety(_: Any) -> shard_pb2.ShardCountResponse:
        return shard_pb2.ShardCountResponse(count=90)

    async with rig(tmp_path) as router:
        entry = await router.collection()
        reads = reads_of(router)
        router.shards["shard-1"].then("ShardCount", ninety, away())
        # Also a call that wants all or nothing teaches the router.
        assert await reads.count(ReadCall(time.monotonic() + 5), entry) == 100
        _, seen, _ = await count(reads, entry)
    assert seen.record_share == pytest.approx(0.1)


@pytest.mark.parametrize(("deadline", "most"), [(10.0, 2.5), (1.0, 0.8)])
async def test_a_silent_shard_takes_a_bounded_part_of_the_deadline(
    tmp_path: Path, deadline: float, most: float
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        gate = asyncio.Event()
        router.shards["shard-1"].then("ShardCount", wait_for(gate))
        number, seen, seconds = await count(reads_of(router), entry, deadline)
        gate.set()
    assert number == 10
    assert list(seen.missing_shards) == ["shard-1"]
    assert min(1.0, deadline / 2) * 0.9 <= seconds < most


async def test_a_shard_that_is_only_slower_is_waited_for(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        first_is_done = asyncio.Event()

        async def last(_: Any) -> None:
            await first_is_done.wait()
            await asyncio.sleep(0.3)

        async def first(_: Any) -> None:
            first_is_done.set()

        router.shards["shard-1"].then("ShardCount", last)
        router.shards["shard-2"].then("ShardCount", first)
        number, seen, _ = await count(reads_of(router), entry)
    assert (number, list(seen.missing_shards)) == (20, [])


async def test_without_any_answer_the_call_fails_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scatter, "UNAVAILABLE_WINDOW", 0.4)
    async with rig(tmp_path) as router:
        entry = await router.collection()
        for shard in router.shards.values():
            shard.then("ShardCount", *(away() for _ in range(50)))
        with pytest.raises(Unavailable) as failed:
            await count(reads_of(router), entry)
        assert failed.value.metadata["shard"] == "shard-1"
        assert failed.value.retry_after
        assert len(router.shards["shard-1"].requests("ShardCount")) > 1, "it was waited for"


async def test_a_shard_that_comes_back_before_any_answered_is_in_the_answer(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        for shard in router.shards.values():
            shard.then("ShardCount", away())
        number, seen, _ = await count(reads_of(router), entry)
    assert (number, list(seen.missing_shards)) == (20, [])


async def test_all_silent_ends_in_the_deadline(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        gate = asyncio.Event()
        for shard in router.shards.values():
            shard.then("ShardCount", wait_for(gate))
        with pytest.raises(DeadlineExpired) as failed:
            await count(reads_of(router), entry, 0.4)
        gate.set()
    assert "shard-1 at 127.0.0.1" in failed.value.message


@pytest.mark.parametrize(
    "error", [InvalidRequest("scripted"), ClusterError("scripted", Reason.INTERNAL)]
)
async def test_what_is_not_about_availability_is_an_error(
    tmp_path: Path, error: ClusterError
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        router.shards["shard-1"].then("ShardCount", error)
        with pytest.raises(ClusterError, match="scripted"):
            await count(reads_of(router), entry)


async def test_a_stale_refusal_repeats_the_whole_read(tmp_path: Path) -> None:
    """Invariant 3: the answer that shard-2 gave at the old epoch is not used."""
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        reassigned = entry.slot_map.reassigned([0], "shard-2")
        await router.catalog.replace_slot_map(await router.catalog.collection(entry.id), reassigned)
        answered = asyncio.Event()

        async def old_answer(_: Any) -> shard_pb2.ShardCountResponse:
            answered.set()
            return shard_pb2.ShardCountResponse(count=99)

        async def refuses(_: Any) -> None:
            await answered.wait()
            one.epochs[entry.id] = 2

        two.then("ShardCount", old_answer)
        one.then("ShardCount", refuses)
        number, seen, _ = await count(reads_of(router), entry)
        assert (number, list(seen.missing_shards)) == (20, [])
        assert [r.epoch for r in two.requests("ShardCount")][-1] == 2


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_shard_that_has_begun_anew_and_takes_no_grant_is_left_out(
    tmp_path: Path, hangs: bool
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one = router.shards["shard-1"]
        one.restart()
        gate = asyncio.Event()
        one.then("Hello", wait_for(gate) if hangs else away())
        number, seen, seconds = await count(reads_of(router), entry)
        gate.set()
        assert (number, list(seen.missing_shards)) == (10, ["shard-1"])
        assert seconds < 2.5
        number, seen, _ = await count(reads_of(router), entry)
        assert (number, list(seen.missing_shards)) == (20, [])


def page(*keys: tuple[int, str], more: bool = False) -> Step:
    """One shard's page."""

    async def step(_: Any) -> shard_pb2.ShardGetResponse:
        return shard_pb2.ShardGetResponse(
            ids=[i for _, i in keys],
            sequences=[s for s, _ in keys],
            records=[types_pb2.Record(id=i).SerializeToString() for _, i in keys],
            more=more,
        )

    return step


async def got(
    service: RecordService, entry: CollectionEntry, **fields: Any
) -> tuple[list[str], records_pb2.GetResponse]:
    request = records_pb2.GetRequest(collection={"id": entry.id}, allow_partial=True, **fields)
    view = await service.get(request, time.monotonic() + 10)
    answer = records_pb2.GetResponse.FromString(view.SerializeToString())
    return [record.id for record in answer.records], answer


Made = Callable[[Rig], RecordService]


@pytest.fixture
def service() -> Made:
    return lambda router: RecordService(router.directory, router.writes, reads_of(router), Limits())


async def test_only_the_owners_of_the_ids_are_asked_and_counted(
    tmp_path: Path, service: Made
) -> None:
    async with rig(tmp_path, 3) as router:
        entry = await router.collection()
        ids = ids_on(entry.slot_map, "shard-2", 1)
        router.shards["shard-1"].then("ShardGet", away())
        router.shards["shard-2"].then("ShardGet", page((1, ids[0])))
        found, answer = await got(service(router), entry, filter={"ids": ids, "by_ids": True})
        assert found == ids
        assert list(answer.coverage.asked_shards) == ["shard-2"]
        assert answer.coverage.record_share == 1.0
        nothing, answer = await got(service(router), entry, filter={"by_ids": True})
        assert nothing == []
        assert answer.HasField("coverage")
        assert not answer.coverage.asked_shards
        assert answer.coverage.record_share == 1.0
        assert not router.shards["shard-1"].requests("ShardGet")


async def test_pages_go_on_in_order_when_shards_come_and_go(tmp_path: Path, service: Made) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        a, b = ids_on(entry.slot_map, "shard-1", 4), ids_on(entry.slot_map, "shard-2", 4)
        get = service(router)
        # Page 1 without shard-1; page 2 with both; page 3 without shard-2.
        one.then("ShardGet", away(), page((5, a[2]), (7, a[3]), more=True), page((9, a[0])))
        two.then("ShardGet", page((2, b[0]), (4, b[1]), more=True))
        two.then("ShardGet", page((6, b[2]), (8, b[3])), away())
        first, answer = await got(get, entry)
        assert first == [b[0], b[1]]
        assert list(answer.coverage.missing_shards) == ["shard-1"]
        second, answer = await got(get, entry, page_token=answer.next_page_token)
        assert list(answer.coverage.missing_shards) == []
        after = one.requests("ShardGet")[-1].after
        assert (after.sequence, after.id) == (4, b[1]), "nothing before the token comes"
        assert second == [a[2], b[2], a[3]]
        third, answer = await got(get, entry, page_token=answer.next_page_token)
        assert third == [a[0]]
        assert list(answer.coverage.missing_shards) == ["shard-2"]
        assert not answer.next_page_token


async def test_a_page_after_an_offset_is_of_the_same_shards_in_all_its_reads(
    tmp_path: Path, service: Made
) -> None:
    """Keys come first, then contents: of a shard that goes away in between no key counts."""
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        a, b = ids_on(entry.slot_map, "shard-1", 4), ids_on(entry.slot_map, "shard-2", 4)
        limits = Limits(max_page_records=2)
        get = RecordService(
            router.directory,
            router.writes,
            RecordReads(router.directory, ReadPath(router.cluster, router.directory), limits),
            limits,
        )

        def keys(*them: tuple[int, str]) -> Step:
            async def step(_: Any) -> shard_pb2.ShardGetResponse:
                return shard_pb2.ShardGetResponse(
                    ids=[i for _, i in them], sequences=[s for s, _ in them]
                )

            return step

        b_keys = [(3, b[0]), (4, b[1]), (6, b[2]), (7, b[3])]
        one.then("ShardGet", keys((1, a[0]), (2, a[1]), (5, a[2])), away())
        two.then("ShardGet", keys(*b_keys), page(b_keys[0]))
        two.then("ShardGet", keys(*b_keys), page(*b_keys[1:3]))
        found, answer = await got(get, entry, offset=1)
        assert found == [b[1], b[2]]
        assert list(answer.coverage.missing_shards) == ["shard-1"]
        assert len(one.requests("ShardGet")) == 2
        one.then("ShardGet", page())
        two.then("ShardGet", page(b_keys[3]))
        found, answer = await got(get, entry, offset=1, page_token=answer.next_page_token)
        assert found == [b[3]]
        after = one.requests("ShardGet")[-1].after
        assert (after.sequence, after.id) == (6, b[2])
        assert not answer.next_page_token


async def test_a_shard_missed_once_is_not_asked_by_the_rest_of_the_call(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        reads = reads_of(router)
        call = ReadCall(time.monotonic() + 5, allow_partial=True)
        router.shards["shard-1"].then("ShardCount", away())
        assert await reads.count(call, entry) == 10
        assert await reads.count(call, entry) == 10
        assert len(router.shards["shard-1"].requests("ShardCount")) == 1


async def test_without_allow_partial_there_is_no_coverage(tmp_path: Path, service: Made) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        request = records_pb2.CountRequest(collection={"id": entry.id})
        answer = await service(router).count(request, time.monotonic() + 5)
        assert not answer.HasField("coverage")
