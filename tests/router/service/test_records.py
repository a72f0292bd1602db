"""RecordService over scripted nodes: what a real cluster cannot be brought to do on request."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chroma_router.v1 import records_pb2, shard_pb2
from chroma_router.wire.errors import InvalidRequest
from router import record_reads
from router.concurrency import INLINE_ROWS
from router.core.limits import Limits
from router.core.merge import RankedHit, ShardHits, merge_hits
from router.record_reads import RecordReads
from router.scatter import ReadPath
from router.service.records import RecordService
from shard_node.operations import MAX_DELETED_IDS
from tests.router.scripted import Rig, Step, ids_on, rig

pytestmark = pytest.mark.timeout(15)


def service_of(router: Rig) -> RecordService:
    limits = Limits()
    reads = RecordReads(router.directory, ReadPath(router.cluster, router.directory), limits)
    return RecordService(router.directory, router.writes, reads, limits)


def keys(*them: tuple[int, str], **memory: Any) -> Step:
    """One shard's page of keys, and what it remembers of the delete."""

    async def step(_: Any) -> shard_pb2.ShardGetResponse:
        return shard_pb2.ShardGetResponse(
            ids=[i for _, i in them], sequences=[s for s, _ in them], **memory
        )

    return step


async def test_a_limited_delete_counts_anew_when_an_earlier_try_lands_between_its_pages(
    tmp_path: Path,
) -> None:
    """The earlier try deleted a[0] and a[1], which the first page had still seen."""
    async with rig(tmp_path) as router:
        entry = await router.collection()
        one, two = router.shards.values()
        a, b = ids_on(entry.slot_map, "shard-1", 2), ids_on(entry.slot_map, "shard-2", 3)
        done = {"deleted_before": 2, "delete_complete": True}
        one.then("ShardGet", keys((1, a[0]), (2, a[1]), more=True), keys(**done), keys(**done))
        one_page = keys((3, b[0]), (4, b[1]), (5, b[2]))
        two.then("ShardGet", one_page, one_page, one_page)
        request = records_pb2.DeleteRequest(
            collection={"id": entry.id}, filter={"where": '{"a": 1}'}, limit=4, request_id="again"
        )
        answer = await service_of(router).delete(request, time.monotonic() + 10)
        assert answer.deleted == 4
        assert [r.HasField("after") for r in one.requests("ShardGet")] == [False, True, False]
        (operation,) = two.applied
        assert list(operation.ids) == b[:2]
        assert not one.applied


async def test_a_delete_whose_limit_no_node_takes_is_refused_by_the_fields_name(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        request = records_pb2.DeleteRequest(
            collection={"id": entry.id}, filter={"where": '{"a": 1}'}, limit=MAX_DELETED_IDS
        )
        service = service_of(router)
        assert (await service.delete(request, time.monotonic() + 10)).deleted == 0
        request.limit += 1
        with pytest.raises(InvalidRequest, match="limit: 100001, at most 100000"):
            await service.delete(request, time.monotonic() + 10)


async def test_the_contents_after_an_offset_are_read_with_the_condition_too(
    tmp_path: Path,
) -> None:
    """A record that was changed between the two reads would else come though it matches no more."""
    async with rig(tmp_path) as router:
        entry = await router.collection("shard-1")
        one = router.shards["shard-1"]
        one.then("ShardGet", keys((1, "a"), (2, "b")), keys())
        request = records_pb2.GetRequest(
            collection={"id": entry.id},
            filter={"where": '{"a": 1}', "where_document": '{"$contains": "x"}'},
            offset=1,
        )
        await service_of(router).get(request, time.monotonic() + 10)
        contents = one.requests("ShardGet")[1].filter
        assert list(contents.ids) == ["b"]
        assert contents.where == request.filter.where
        assert contents.where_document == request.filter.where_document


@pytest.mark.parametrize("hits", [1, INLINE_ROWS // 2 + 1])
async def test_wide_answers_are_merged_off_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hits: int
) -> None:
    threads: set[threading.Thread] = set()

    def watched(per_shard: Sequence[ShardHits], limit: int) -> list[RankedHit]:
        threads.add(threading.current_thread())
        return merge_hits(per_shard, limit)

    monkeypatch.setattr(record_reads, "merge_hits", watched)
    async with rig(tmp_path) as router:
        entry = await router.collection()
        await router.catalog.claim_dimension(entry.id, 1)
        router.directory.remember(await router.catalog.fix_dimension(entry.id, 1))
        for name, shard in router.shards.items():
            shard.then("ShardQuery", nearest(name, hits))
        request = records_pb2.QueryRequest(
            collection={"id": entry.id}, embeddings=[bytes(4)], n_results=2 * hits
        )
        view = await service_of(router).query(request, time.monotonic() + 10)
        assert len(view.results[0].hits) == 2 * hits
    assert (threads == {threading.main_thread()}) is (hits == 1)
    assert threads


def nearest(shard: str, hits: int) -> Step:
    """One shard's answer to a query of one embedding."""
    ids = [f"{shard}-{n:06}" for n in range(hits)]

    async def step(_: Any) -> shard_pb2.ShardQueryResponse:
        result = shard_pb2.ShardQueryResult(ids=ids, distances=[0.0] * hits, hits=[b""] * hits)
        return shard_pb2.ShardQueryResponse(results=[result])

    return step
