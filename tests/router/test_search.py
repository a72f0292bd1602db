"""The search service over real gRPC and scripted shards: which reads it makes, and when again."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chroma_router.v1 import records_pb2, shard_pb2, types_pb2, views_pb2
from chroma_router.wire.errors import ClusterError, InvalidRequest, Overloaded, Reason
from router.core.limits import Limits
from router.core.model import CollectionEntry
from router.record_reads import RecordReads
from router.scatter import ReadPath
from router.service.search import ATTEMPTS, SearchService
from tests.router.scripted import Rig, Step, an_add, away, ids_on, rig

pytestmark = pytest.mark.timeout(20)

ROW = np.array([1, 0], "<f4").tobytes()
OTHER = np.array([0, 1], "<f4").tobytes()
TWO = ("shard-1", "shard-2")


def knn(embedding: bytes = ROW, limit: int = 16, **more: Any) -> Any:
    return {"knn": {"embedding": embedding, "limit": limit, **more}}


def nearest(hits: Mapping[bytes, list[tuple[float, str]]]) -> Step:
    """ShardQuery: these hits of each embedding, as many as are asked for."""

    async def step(request: shard_pb2.ShardQueryRequest) -> shard_pb2.ShardQueryResponse:
        answer = shard_pb2.ShardQueryResponse(owned_records=10)
        for embedding in request.embeddings:
            found = hits.get(embedding, [])[: request.n_results]
            answer.results.add(
                ids=[i for _, i in found],
                distances=[distance for distance, _ in found],
                hits=[b"" for _ in found],
            )
        return answer

    return step


def holding(*records: str, **metadata: int) -> Step:
    """ShardGet by id: those of the records, with a document and metadata."""

    async def step(request: shard_pb2.ShardGetRequest) -> shard_pb2.ShardGetResponse:
        answer = shard_pb2.ShardGetResponse(owned_records=10)
        for record_id in sorted(set(request.filter.ids) & set(records)):
            record = types_pb2.Record(id=record_id)
            if types_pb2.INCLUDE_DOCUMENTS in request.include:
                record.document = f"document {record_id}"
            if types_pb2.INCLUDE_METADATAS in request.include:
                for key, value in metadata.items():
                    record.metadata[key].int_value = value
            answer.ids.append(record_id)
            answer.sequences.append(len(answer.ids))
            answer.records.append(record.SerializeToString())
        return answer

    return step


async def collection(router: Rig) -> CollectionEntry:
    """A collection of dimension 2 on all shards."""
    entry = await router.collection()
    ids = [i for shard in router.shards for i in ids_on(entry.slot_map, shard, 1)]
    await router.writes.write(entry, an_add(ids), 2, time.monotonic() + 5)
    return await router.directory.refresh(entry.id)


def service(router: Rig, **limits: int) -> SearchService:
    chosen = Limits(**limits)
    path = ReadPath(router.cluster, router.directory)
    return SearchService(router.directory, RecordReads(router.directory, path, chosen), chosen)


async def searched(
    router: Rig, entry: CollectionEntry, *searches: Any, partial: bool = False, **limits: int
) -> views_pb2.SearchResponseView:
    request = records_pb2.SearchRequest(searches=searches, allow_partial=partial)
    request.collection.id = entry.id
    return await service(router, **limits).search(request, time.monotonic() + 5)


def ids(answer: views_pb2.SearchResponseView) -> list[list[str]]:
    return [
        [types_pb2.Record.FromString(hit.record).id for hit in result.hits]
        for result in answer.results
    ]


async def test_one_query_for_all_parts_that_ask_the_same(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await collection(router)
        (a,), (b,) = (ids_on(entry.slot_map, shard, 1) for shard in TWO)
        rows = {ROW: [(0.5, a)], OTHER: [(0.25, b)]}
        for name, mine in zip(TWO, (a, b), strict=True):
            own = {row: [hit for hit in hits if hit[1] == mine] for row, hits in rows.items()}
            router.shards[name].then("ShardQuery", *[nearest(own)] * 3)
        both = {"sum": {"parts": [knn(default_value=1), knn(OTHER, default_value=1)]}}
        answer = await searched(
            router,
            entry,
            {"rank": both, "select": ["#score"]},
            {"rank": knn(OTHER)},
            {"rank": knn(limit=3)},
            {"rank": knn(), "filter": {"where": '{"n": 1}'}},
        )
        assert ids(answer) == [[b, a], [b], [a], [a]]
        assert [hit.score for hit in answer.results[0].hits] == [1.25, 1.5]
        assert not answer.results[1].hits[0].HasField("score")
        for name in TWO:
            asked = {
                (query.n_results, query.filter.where): list(query.embeddings)
                for query in router.shards[name].requests("ShardQuery")
            }
            assert asked == {(16, ""): [ROW, OTHER, OTHER], (3, ""): [ROW], (16, '{"n": 1}'): [ROW]}
            assert not router.shards[name].requests("ShardGet"), "nothing was selected"


async def test_contents_are_fetched_once_and_for_the_hits_alone(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await collection(router)
        found = [(float(n), f"r{n}") for n in range(6)]
        shard = router.shards["shard-1"]
        shard.then("ShardQuery", *[nearest({ROW: found})] * 2)
        shard.then("ShardGet", *[holding(*(i for _, i in found), k=1, m=2)] * 3)
        answer = await searched(
            router,
            entry,
            {"rank": knn(), "offset": 1, "limit": 2, "select": ["#document"]},
            {"rank": knn(), "limit": 2, "select": ["#document", "#score"]},
            {"rank": knn(), "offset": 4, "select": ["k"]},
            {"rank": knn(), "offset": 9, "select": ["#embedding"]},
        )
        assert ids(answer) == [["r1", "r2"], ["r0", "r1"], ["r4", "r5"], []]
        asked = {tuple(get.include): sorted(get.filter.ids) for get in shard.requests("ShardGet")}
        assert asked == {
            (types_pb2.INCLUDE_DOCUMENTS,): ["r0", "r1", "r2"],
            (types_pb2.INCLUDE_METADATAS,): ["r4", "r5"],
        }
        record = types_pb2.Record.FromString(answer.results[2].hits[0].record)
        assert dict(record.metadata) == {"k": types_pb2.MetadataValue(int_value=1)}
        assert types_pb2.Record.FromString(answer.results[0].hits[0].record).document


async def test_groups_are_made_before_offset_and_limit(tmp_path: Path) -> None:
    async def parity(request: shard_pb2.ShardGetRequest) -> shard_pb2.ShardGetResponse:
        answer = shard_pb2.ShardGetResponse()
        for place, record_id in enumerate(sorted(request.filter.ids)):
            record = types_pb2.Record(id=record_id)
            record.metadata["odd"].bool_value = int(record_id[1:]) % 2 == 1
            answer.ids.append(record_id)
            answer.sequences.append(place + 1)
            answer.records.append(record.SerializeToString())
        return answer

    async with rig(tmp_path, 1) as router:
        entry = await collection(router)
        shard = router.shards["shard-1"]
        shard.then("ShardQuery", nearest({ROW: [(float(n), f"r{n}") for n in range(8)]}))
        shard.then("ShardGet", parity)
        group = {"keys": ["odd"], "order_by": ["#score"], "keep": 2}
        search = {"rank": knn(), "group_by": group, "offset": 1, "limit": 2}
        assert ids(await searched(router, entry, search)) == [["r1", "r2"]]


async def test_what_is_deleted_meanwhile_is_replaced_by_the_next(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await collection(router)
        shard = router.shards["shard-1"]
        shard.then("ShardQuery", nearest({ROW: [(1.0, "r1"), (2.0, "r2")]}))
        shard.then("ShardQuery", nearest({ROW: [(2.0, "r2"), (3.0, "r3")]}))
        shard.then("ShardGet", *[holding("r2", "r3")] * 2)
        search = {"rank": knn(), "limit": 2, "select": ["#document"]}
        assert ids(await searched(router, entry, search)) == [["r2", "r3"]]


async def test_what_keeps_being_deleted_is_left_out(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await collection(router)
        shard = router.shards["shard-1"]
        shard.then("ShardQuery", *[nearest({ROW: [(1.0, "r1"), (2.0, "r2")]})] * ATTEMPTS)
        shard.then("ShardGet", *[holding("r2")] * ATTEMPTS)
        search = {"rank": knn(), "limit": 2, "select": ["#document"]}
        assert ids(await searched(router, entry, search)) == [["r2"]]
        assert len(shard.requests("ShardQuery")) == ATTEMPTS


async def test_a_move_between_two_reads_hides_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await collection(router)
        (a,), (b,) = (ids_on(entry.slot_map, shard, 1) for shard in TWO)
        first, second = (router.shards[name] for name in TWO)
        first.then("ShardQuery", nearest({ROW: [(1.0, a)]}))
        second.then("ShardQuery", nearest({ROW: [(2.0, b)]}))

        async def moved(request: Any) -> None:
            second.epochs[entry.id] = (await router.move(entry, "shard-2")).slot_map.epoch

        async def stale(request: shard_pb2.ShardGetRequest) -> Any:
            await moved(request)
            raise first.stale(2)

        first.then("ShardGet", stale)
        second.then("ShardGet", *[holding(a, b)] * 2)
        search = {"rank": knn(), "select": ["#document"]}
        assert ids(await searched(router, entry, search)) == [[a, b]]
        last = second.requests("ShardGet")[-1]
        assert (last.epoch, set(last.filter.ids)) == (2, {a, b})


async def test_a_shard_that_goes_away_between_two_reads(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await collection(router)
        (a,), (b,) = (ids_on(entry.slot_map, shard, 1) for shard in TWO)
        first, second = (router.shards[name] for name in TWO)
        first.then("ShardQuery", *[nearest({ROW: [(1.0, a)]})] * 4)
        second.then("ShardQuery", *[nearest({ROW: [(2.0, b)]})] * 4)
        first.then("ShardGet", away())
        second.then("ShardGet", *[holding(b)] * 4)
        # The place of b is 0, not 1: the whole answer is as if the missing shard held nothing.
        search = {"rank": knn(return_rank=True), "select": ["#document", "#score"]}
        answer = await searched(router, entry, search, partial=True)
        assert ids(answer) == [[b]]
        assert answer.results[0].hits[0].score == 0
        assert list(answer.coverage.missing_shards) == ["shard-1"]
        assert len(first.requests("ShardQuery")) == 1, "it is not asked again"


async def test_a_shard_that_goes_away_when_groups_are_made(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await collection(router)
        (a,), (b,) = (ids_on(entry.slot_map, shard, 1) for shard in TWO)
        first, second = (router.shards[name] for name in TWO)
        first.then("ShardQuery", nearest({ROW: [(1.0, a)]}))
        second.then("ShardQuery", *[nearest({ROW: [(2.0, b)]})] * 2)
        first.then("ShardGet", away())
        second.then("ShardGet", *[holding(b)] * 2)
        group = {"keys": ["k"], "order_by": ["#score"], "keep": 1}
        search = {"rank": knn(return_rank=True), "group_by": group, "select": ["#score"]}
        answer = await searched(router, entry, search, partial=True)
        assert ids(answer) == [[b]]
        assert answer.results[0].hits[0].score == 0, "ranked without the missing shard's records"


async def test_a_shard_that_is_away_for_one_of_several_queries(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await collection(router)
        (a,), (b,) = (ids_on(entry.slot_map, shard, 1) for shard in TWO)
        first, second = (router.shards[name] for name in TWO)
        first.then("ShardQuery", nearest({ROW: [(1.0, a)]}), away())
        second.then("ShardQuery", *[nearest({ROW: [(2.0, b)]})] * 4)
        searches = [{"rank": knn(limit=1)}, {"rank": knn(limit=2)}]
        answer = await searched(router, entry, *searches, partial=True)
        assert ids(answer) == [[b], [b]]
        assert list(answer.coverage.missing_shards) == ["shard-1"]


async def test_a_shard_that_is_away_from_the_first_costs_no_second_round(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await collection(router)
        (b,) = ids_on(entry.slot_map, "shard-2", 1)
        first, second = (router.shards[name] for name in TWO)
        first.then("ShardQuery", away())
        second.then("ShardQuery", nearest({ROW: [(2.0, b)]}))
        answer = await searched(router, entry, {"rank": knn()}, partial=True)
        assert ids(answer) == [[b]]
        assert len(second.requests("ShardQuery")) == 1


async def test_no_limit_and_too_many_hits(tmp_path: Path) -> None:
    async with rig(tmp_path, 1) as router:
        entry = await collection(router)
        shard = router.shards["shard-1"]
        shard.then("ShardQuery", *[nearest({ROW: [(1.0, "a")], OTHER: [(1.0, "b")]})] * 2)
        parts = [knn(limit=1, default_value=0), knn(OTHER, limit=1, default_value=0)]
        either = {"maximum": {"parts": parts}}
        answer = await searched(router, entry, {"rank": either, "limit": 1}, max_results=1)
        assert ids(answer) == [["a"]]
        with pytest.raises(Overloaded, match="without a limit has more than 1 hits") as refused:
            await searched(router, entry, {"rank": either}, max_results=1)
        assert refused.value.reason is Reason.ANSWER_TOO_LARGE


async def test_a_collection_that_never_had_a_record(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        assert ids(await searched(router, entry, {"rank": knn()}, {})) == [[], []]


async def test_another_dimension(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await collection(router)
        with pytest.raises(InvalidRequest) as refused:
            await searched(router, entry, {"rank": knn(ROW * 2)})
        assert refused.value.reason is Reason.DIMENSION_MISMATCH


async def test_an_error_of_one_read_ends_the_call(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await collection(router)
        refusal: ClusterError = InvalidRequest("scripted: no such regex")
        for shard in router.shards.values():
            shard.then("ShardQuery", *[refusal] * 4)
        searches = [{"rank": knn(limit=1)}, {"rank": knn(limit=2)}]
        with pytest.raises(InvalidRequest, match="no such regex"):
            await asyncio.wait_for(searched(router, entry, *searches, partial=True), 5)
