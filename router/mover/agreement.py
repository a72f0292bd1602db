"""Whether the target of a move answers recent queries as the source does, before it is switched.

Owns nothing: the samples are those of this router's reads (router/core/agreement.py).
"""

import math

import structlog

from chroma_router.v1 import shard_pb2, types_pb2
from chroma_router.wire.errors import InvalidRequest
from router.cluster import Shard
from router.concurrency import settled
from router.core.agreement import Hits, QuerySample, QuerySamples, agreement
from router.core.rebalance import Rebalance

log = structlog.get_logger(__name__)

MOST_HITS = 100
"""How deep a sampled query is compared, at most."""


class QueryComparison:
    """Replays samples on both sides of a move."""

    def __init__(self, samples: QuerySamples) -> None:
        self._samples = samples

    async def compare(
        self, rebalance: Rebalance, ref: shard_pb2.MoveRef, source: Shard, target: Shard
    ) -> str:
        """What disagrees, in words; empty if nothing does, or if that was not asked for.

        Only records of the moving slots are looked at, on both sides. Raises ClusterError when a
        node does not answer.
        """
        if not rebalance.query_agreement:
            return ""
        samples = self._samples.of(ref.collection_id)
        compared = [await _agreement(ref, sample, source, target) for sample in samples]
        shares = [share for share in compared if share is not None]
        if not shares:
            log.info("no_queries_to_compare", move=ref.move_id, collection=ref.collection_id)
            return ""
        share = math.fsum(shares) / len(shares)
        log.info("queries_compared", move=ref.move_id, queries=len(shares), agreement=share)
        if share >= rebalance.query_agreement:
            return ""
        return (
            f"{len(shares)} recent queries were replayed, and {share:.1%} of their hits agree on "
            f"source and target, less than the {rebalance.query_agreement:.1%} that were asked "
            "for; nothing was switched"
        )


async def _agreement(
    ref: shard_pb2.MoveRef, sample: QuerySample, source: Shard, target: Shard
) -> float | None:
    """Which share of the hits agrees; None for a query that cannot be asked.

    A sample is taken before its query is answered: it may be one that the source refuses, too.
    """
    query = shard_pb2.ShardQueryRequest(
        collection_id=ref.collection_id,
        embeddings=[sample.embedding],
        n_results=min(sample.n_results, MOST_HITS),
        filter=types_pb2.Filter.FromString(sample.filter),
        include=[types_pb2.INCLUDE_DISTANCES],
    )
    hits: list[Hits] = []
    answers = await settled(side.client.moves.preview_move(ref, query) for side in (source, target))
    if isinstance(answers[0], InvalidRequest):
        return None
    for answer in answers:
        if not isinstance(answer, shard_pb2.PreviewMoveResponse):
            raise answer
        (result,) = answer.results
        hits.append(list(zip(result.ids, result.distances, strict=True)))
    return agreement(*hits)
