"""Recent queries are replayed at both sides before a switch, if that was asked for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from chroma_router.v1 import shard_pb2, types_pb2
from chroma_router.wire.errors import InvalidRequest, Unavailable
from router.core.agreement import Hits, QuerySample, QuerySamples
from router.mover.agreement import MOST_HITS, QueryComparison
from tests.router.catalog.helpers import a_rebalance
from tests.router.scripted import Rig, ScriptedShard, away, rig

pytestmark = pytest.mark.timeout(15)

REF = shard_pb2.MoveRef(move_id="m", collection_id="c", token=7, slots=b"\x01" * 128)
FILTER = types_pb2.Filter(where='{"year": 2020}')
SAMPLE = QuerySample(b"\0" * 8, 3, FILTER.SerializeToString())


def _answers(shard: ScriptedShard, *answers: Sequence[tuple[str, float]]) -> None:
    """What the shard finds, query by query."""
    for hits in answers:

        async def step(_request: object, hits: Hits = hits) -> shard_pb2.PreviewMoveResponse:
            result = shard_pb2.ShardQueryResult(
                ids=[i for i, _ in hits], distances=[distance for _, distance in hits]
            )
            return shard_pb2.PreviewMoveResponse(results=[result])

        shard.then("PreviewMove", step)


async def _compared(router: Rig, wanted: float, *samples: QuerySample) -> str:
    kept = QuerySamples()
    for sample in samples:
        kept.add("c", sample)
    return await QueryComparison(kept).compare(
        replace(a_rebalance(), query_agreement=wanted),
        REF,
        router.cluster.shard("shard-1"),
        router.cluster.shard("shard-2"),
    )


async def test_the_same_hits_agree(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        for shard in router.shards.values():
            _answers(shard, [("a", 1.0), ("b", 2.0)])
        assert await _compared(router, 1.0, SAMPLE) == ""
        for shard in router.shards.values():
            (request,) = shard.requests("PreviewMove")
            assert request.move == REF
            query = request.query
            assert (query.collection_id, list(query.embeddings)) == ("c", [SAMPLE.embedding])
            assert (query.n_results, query.filter) == (3, FILTER)
            assert list(query.include) == [types_pb2.INCLUDE_DISTANCES]


@pytest.mark.parametrize(("wanted", "passes"), [(0.75, True), (0.76, False)])
async def test_the_mean_over_the_queries_decides(
    tmp_path: Path, wanted: float, passes: bool
) -> None:
    async with rig(tmp_path) as router:
        first, second = router.shards.values()
        _answers(first, [("a", 1.0), ("b", 2.0)], [("a", 1.0), ("b", 2.0)])
        _answers(second, [("a", 1.0), ("b", 2.0)], [("a", 1.0), ("c", 3.0)])
        problem = await _compared(router, wanted, SAMPLE, SAMPLE)
        assert (problem == "") is passes
        if not passes:
            assert "2 recent queries" in problem
            assert "75.0% of their hits agree" in problem
            assert "76.0%" in problem


@pytest.mark.parametrize(
    ("wanted", "samples"), [(0.0, [SAMPLE]), (1.0, [])], ids=["not asked for", "no queries"]
)
async def test_nothing_is_asked_where_nothing_is_to_be_compared(
    tmp_path: Path, wanted: float, samples: list[QuerySample]
) -> None:
    async with rig(tmp_path) as router:
        assert await _compared(router, wanted, *samples) == ""
        assert all(not shard.requests("PreviewMove") for shard in router.shards.values())


async def test_a_deep_query_is_compared_to_a_bounded_depth(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        for shard in router.shards.values():
            _answers(shard, [])
        assert await _compared(router, 1.0, replace(SAMPLE, n_results=10_000)) == ""
        (request,) = router.shards["shard-2"].requests("PreviewMove")
        assert request.query.n_results == MOST_HITS


@pytest.mark.parametrize("side", ["shard-1", "shard-2"])
async def test_a_side_that_does_not_answer_ends_the_run(tmp_path: Path, side: str) -> None:
    async with rig(tmp_path) as router:
        for name, shard in router.shards.items():
            if name == side:
                shard.then("PreviewMove", away())
            else:
                _answers(shard, [("a", 1.0)])
        with pytest.raises(Unavailable) as refused:
            await _compared(router, 1.0, SAMPLE)
        assert refused.value.metadata["shard"] == side


async def test_a_query_that_the_source_refuses_is_passed_over(tmp_path: Path) -> None:
    """It was never answered; it must not keep the move from being verified for ever."""
    async with rig(tmp_path) as router:
        for shard in router.shards.values():
            shard.then("PreviewMove", InvalidRequest("scripted: of another dimension"))
            _answers(shard, [("a", 1.0)])
        assert await _compared(router, 1.0, SAMPLE, SAMPLE) == ""
        router.shards["shard-1"].then("PreviewMove", InvalidRequest("scripted"))
        _answers(router.shards["shard-2"], [("a", 1.0)])
        assert await _compared(router, 1.0, SAMPLE) == "", "and if there is no other, none"


async def test_a_query_that_only_the_target_refuses_is_a_problem(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        _answers(router.shards["shard-1"], [("a", 1.0)])
        router.shards["shard-2"].then("PreviewMove", InvalidRequest("scripted: the target"))
        with pytest.raises(InvalidRequest, match="the target"):
            await _compared(router, 1.0, SAMPLE)
