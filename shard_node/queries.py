"""Nearest owned records: ShardQuery.

Ownership is decided before top-k (invariant 2). While every record here is owned that is free.
Else the engine is asked for more than is wanted, doubling, and hits of foreign slots are left out;
where a scan of the owned records is cheaper, and where the engine falls short, they are scanned
exactly. The rules and their constants are measured (docs/adr/0003).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from chroma_router.v1 import shard_pb2, types_pb2
from chroma_router.wire.errors import InvalidRequest, NotFound, Overloaded, Reason
from chroma_router.wire.slots import slot_of
from shard_node.engine import Contents, Engine, EngineRefused, Nearest
from shard_node.holdings import Grant, Holding, Holdings
from shard_node.nearest import ExactScan, Scored
from shard_node.reads import ANSWER_BYTES, Reads, included, owned_by, pack_records
from shard_node.record_index import RecordIndex
from shard_node.selectivity import MAX_SCANNED, Selectivity

_SCAN_COST = 6  # a record fetched by over-fetching costs about a sixth of one scanned
_DIRECT_HITS = 5000  # more contents than the engine's variable limit allows are fetched apart
_ENGINE_IDS = range(300, 30_000)  # fewer are scanned sooner, and exactly; more it cannot take
_SCAN_CHUNK = 1000
_MOST_OVERFETCHED = 3  # times what is wanted; beyond that, contents would be fetched in vain
_ATTEMPTS = 3  # against records that vanish between finding and fetching
_HIT_BYTES = 24
_SHOWN_IDS, _SHOWN_CHARACTERS = 10, 40  # of an error's text, which travels in headers


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Search:
    """One ShardQuery, checked. `ids` are those of the filter that exist and are owned."""

    holding: Holding
    grant: Grant
    embeddings: list[bytes]
    n: int
    filter: types_pb2.Filter
    ids: list[str] | None


class Queries:
    """ShardQuery of one incarnation of the engine."""

    def __init__(
        self, shard: str, engine: Engine, index: RecordIndex, holdings: Holdings, reads: Reads
    ) -> None:
        self._shard, self._engine, self._index = shard, engine, index
        self._holdings, self._reads = holdings, reads
        self._selectivity = Selectivity()

    async def query(self, request: shard_pb2.ShardQueryRequest) -> shard_pb2.ShardQueryResponse:
        """See the contract."""
        holding, grant = self._holdings.readable(
            request.collection_id, request.epoch, request.filter
        )
        response = await self.nearest(holding, grant, request)
        if self._holdings.granted(request.collection_id, request.epoch)[1] is not grant:
            raise self._holdings.stale(request.collection_id, request.epoch)
        response.owned_records = holding.owned_records(grant)
        return response

    async def nearest(
        self, holding: Holding, grant: Grant, request: shard_pb2.ShardQueryRequest
    ) -> shard_pb2.ShardQueryResponse:
        """The nearest records in the slots of a grant, whoever has given it."""
        _check_embeddings(request.embeddings)
        for attempt in range(1, _ATTEMPTS + 1):
            response = await self._attempt(holding, grant, request, last=attempt == _ATTEMPTS)
            if response is not None:
                return response
        raise AssertionError("the last attempt answers or raises")

    async def _attempt(
        self,
        holding: Holding,
        grant: Grant,
        request: shard_pb2.ShardQueryRequest,
        *,
        last: bool,
    ) -> shard_pb2.ShardQueryResponse | None:
        """None: a record has vanished meanwhile, so that the answer would be short of its hits."""
        search = await self._search(holding, grant, request)
        answer = _Answer(self._shard, types_pb2.INCLUDE_DISTANCES in request.include)
        if search.n == 0:
            return answer.empty(len(request.embeddings))
        include = included(request.include)
        try:
            few = await self._few(search)
            if few is not None:
                scored = await self._scan_ids(search, search.embeddings, few)
            else:
                nearest = await self._with_contents(search, include)
                if nearest is not None:
                    return await self._index.run(answer.direct, nearest)
                scored = await self._scored(search)
        except EngineRefused as refused:
            chosen = search.ids is not None or search.filter.where or search.filter.where_document
            if chosen and refused.kind == "InternalError" and not last:
                # "Error finding id": a record that the filter had chosen has been deleted, by a
                # client or by a move, before the engine searched.
                return None
            raise
        records: dict[str, bytes] | None = None
        if include:
            winners = list({i for hits in scored for _, i in hits})
            records = await self._reads.contents(search.holding, winners, include)
            if len(records) < len(winners) and not last:
                return None
        return await self._index.run(answer.of, scored, records)

    async def _search(
        self, holding: Holding, grant: Grant, request: shard_pb2.ShardQueryRequest
    ) -> _Search:
        most, ids = holding.owned_records(grant), None
        wanted = request.filter
        if wanted.by_ids or wanted.ids:
            mine = [i for i in wanted.ids if grant.owned[slot_of(i)]]
            ids = [i for _, i in await self._index.keys(holding.row.number, mine)] if most else []
            if request.ids_must_exist and len(ids) < len(mine):
                raise _missing(mine, ids)
            most = len(ids)
        n = min(request.n_results, most)
        return _Search(holding, grant, list(request.embeddings), n, wanted, ids)

    @staticmethod
    def _is_free(search: _Search) -> bool:
        """Whether the engine can only find owned records, unless a move brings others meanwhile."""
        if search.ids is not None:
            conditions = search.filter.where or search.filter.where_document
            return not conditions and len(search.ids) in _ENGINE_IDS
        return search.holding.owned_records(search.grant) == search.holding.total

    async def _ask(
        self, search: _Search, embeddings: list[bytes], n: int, include: Sequence[str] = ()
    ) -> Nearest:
        wanted = search.filter
        return await self._engine.query(
            search.holding.physical, embeddings, n, search.ids, wanted.where, wanted.where_document,
            include,
        )  # fmt: skip

    async def _few(self, search: _Search) -> list[str] | None:
        """The owned records that a condition holds for, if they are few enough to scan them: the
        answer is exact then, and comes sooner. None: they are not, or there is no condition, or ids
        have been chosen besides (then they are scanned anyway)."""
        wanted, holding, grant = search.filter, search.holding, search.grant
        if search.ids is not None or not (wanted.where or wanted.where_document):
            return None
        if self._selectivity.is_broad(holding, grant, wanted):
            return None
        changed = holding.changed
        ids = await self._reads.matching(holding, grant, wanted)
        assert ids is not None
        if len(ids) <= MAX_SCANNED:
            return ids
        self._selectivity.note(holding, grant, wanted, changed, len(ids))
        return None

    async def _with_contents(self, search: _Search, include: Sequence[str]) -> Nearest | None:
        """The nearest and their contents by one call of the engine; None: it takes more than one.

        Where others than owned records are here it is asked for some more, once: while a move
        brings or leaves a share of them, that is nearly always enough.
        """
        n, free = search.n, self._is_free(search)
        if not free and search.ids is not None:
            return None
        k = n if free else self._enough(search)
        if k > n * _MOST_OVERFETCHED or k * len(search.embeddings) > _DIRECT_HITS:
            return None
        nearest = await self._ask(search, search.embeddings, k, include)
        if k == n:
            return nearest if _all_owned(search.grant, nearest) else None
        return _owned_of(nearest, search.grant, n)

    @staticmethod
    def _enough(search: _Search) -> int:
        """For how many hits to ask so that most probably as many as are wanted are owned."""
        n, owned_records = search.n, search.holding.owned_records(search.grant)
        fraction = owned_records / search.holding.total if owned_records else 1.0
        return math.ceil((n + 2.5 * math.sqrt(n * (1 - fraction)) + 1) / fraction)

    async def _scored(self, search: _Search) -> list[list[Scored]]:
        """The owned hits of each embedding, nearest first."""
        if self._is_free(search):
            found = await self._ask(search, search.embeddings, search.n)
            if _all_owned(search.grant, found):
                return [sorted(hits) for hits in _scored_of(found)]
        if search.ids is not None:
            return await self._scan(search, search.embeddings)
        return await self._overfetch(search)

    async def _overfetch(self, search: _Search) -> list[list[Scored]]:
        done: dict[int, list[Scored]] = {}
        unsure = list(range(len(search.embeddings)))
        n, owned_records = search.n, search.holding.owned_records(search.grant)
        if not owned_records:  # the last of them went while the engine was asked for all
            return [[] for _ in search.embeddings]
        k = self._enough(search)
        while unsure and k * len(unsure) <= _SCAN_COST * owned_records:
            found = await self._ask(search, [search.embeddings[i] for i in unsure], k)
            for i, hits in zip(unsure, _scored_of(found), strict=True):
                owned = [hit for hit in hits if search.grant.owned[slot_of(hit[1])]]
                if len(owned) >= n:
                    done[i] = sorted(owned)[:n]
            short = any(len(ids) < k for ids in found.ids)
            unsure = [i for i in unsure if i not in done]
            if short:  # it has no more, or its graph does not reach them: the scan tells which
                break
            k *= 2
        if unsure:
            exact = await self._scan(search, [search.embeddings[i] for i in unsure])
            done.update(zip(unsure, exact, strict=True))
        return [done[i] for i in range(len(search.embeddings))]

    async def _scan(self, search: _Search, embeddings: list[bytes]) -> list[list[Scored]]:
        """Exactly, over all owned records that the filter chooses."""
        holding = search.holding
        ids = await self._reads.matching(holding, search.grant, search.filter)
        if ids is None:
            # Not only if others are here now: a move may bring some before the index is read.
            keep = owned_by(search.grant)
            keys = await self._index.page(holding.row.number, None, holding.total, keep)
            ids = [record_id for _, record_id in keys]
        return await self._scan_ids(search, embeddings, ids)

    async def _scan_ids(
        self, search: _Search, embeddings: list[bytes], ids: Sequence[str]
    ) -> list[list[Scored]]:
        holding = search.holding
        scan = ExactScan(embeddings, search.n, holding.space)
        for start in range(0, len(ids), _SCAN_CHUNK):
            chunk = list(ids[start : start + _SCAN_CHUNK])
            found = await self._engine.get(holding.physical, chunk, include=["embeddings"])
            await self._index.run(_add_chunk, scan, found)
        return scan.best()


class _Answer:
    """Builds a ShardQueryResponse within the bound of a message."""

    def __init__(self, shard: str, with_distance: bool) -> None:
        self._shard, self._with_distance = shard, with_distance
        self._response = shard_pb2.ShardQueryResponse()
        self._size = 0

    def empty(self, embeddings: int) -> shard_pb2.ShardQueryResponse:
        """No hit for any of the embeddings."""
        for _ in range(embeddings):
            self._response.results.add()
        return self._response

    def direct(self, found: Nearest) -> shard_pb2.ShardQueryResponse:
        """From an engine's answer that has the contents."""
        scored = _scored_of(found)
        for row, ids in enumerate(found.ids):
            columns = (
                column[row] if column is not None else None
                for column in (found.embeddings, found.documents, found.uris, found.metadatas)
            )
            self._add(sorted(scored[row]), pack_records(Contents(ids, *columns)))  # type: ignore[arg-type]
        return self._response

    def of(
        self, scored: Sequence[Sequence[Scored]], records: dict[str, bytes] | None
    ) -> shard_pb2.ShardQueryResponse:
        """From hits and the records fetched for them; None: ids and distances alone."""
        for hits in scored:
            if records is None:
                bare = ((i, types_pb2.Record(id=i).SerializeToString()) for _, i in hits)
                self._add(hits, dict(bare))
            else:
                self._add([hit for hit in hits if hit[1] in records], records)
        return self._response

    def _add(self, hits: Sequence[Scored], records: dict[str, bytes]) -> None:
        result = self._response.results.add()
        for distance, record_id in hits:
            hit = types_pb2.Hit(shard=self._shard)
            hit.record.MergeFromString(records[record_id])
            if self._with_distance:
                hit.distance = distance
            packed = hit.SerializeToString()
            self._size += len(packed) + len(record_id.encode()) + _HIT_BYTES
            if self._size > ANSWER_BYTES:
                raise Overloaded(
                    f"the hits take more than {ANSWER_BYTES} bytes: ask for fewer, or include less",
                    Reason.ANSWER_TOO_LARGE,
                )
            result.ids.append(record_id)
            result.distances.append(distance)
            result.hits.append(packed)


def _scored_of(found: Nearest) -> list[list[Scored]]:
    assert found.distances is not None  # Engine.query always asks for them
    return [
        list(zip(distances, ids, strict=True))
        for distances, ids in zip(found.distances, found.ids, strict=True)
    ]


def _owned_of(found: Nearest, grant: Grant, n: int) -> Nearest | None:
    """The first `n` owned hits for each embedding, or None if there are too few for one."""
    rows: list[list[int]] = []
    for ids in found.ids:
        owned = [at for at, record_id in enumerate(ids) if grant.owned[slot_of(record_id)]][:n]
        if len(owned) < n:
            return None
        rows.append(owned)

    def of(column: list[list[_T]] | None) -> list[list[_T]] | None:
        if column is None:
            return None
        return [[row[at] for at in owned] for row, owned in zip(column, rows, strict=True)]

    return Nearest(
        of(found.ids) or [], of(found.embeddings), of(found.documents), of(found.uris),
        of(found.metadatas), of(found.distances),
    )  # fmt: skip


def _all_owned(grant: Grant, found: Nearest) -> bool:
    """Whether no move has brought records of slots that are not owned while the engine searched:
    they would be in the place of owned ones (invariant 2)."""
    return all(grant.owned[slot_of(i)] for ids in found.ids for i in ids)


def _add_chunk(scan: ExactScan, found: Contents) -> None:
    if found.ids and found.embeddings is not None:
        scan.add(found.ids, [vector or b"" for vector in found.embeddings])


def _missing(asked: Sequence[str], found: Sequence[str]) -> NotFound:
    """Chroma's own words, and which ids they are about."""
    present = set(found)
    missing = [i for i in asked if i not in present]
    shown = ", ".join(repr(i[:_SHOWN_CHARACTERS]) for i in missing[:_SHOWN_IDS])
    more = len(missing) - _SHOWN_IDS
    return NotFound(
        f"Error finding id: the filter names records that do not exist: {shown}"
        + (f" and {more} more" if more > 0 else "")
        + "; leave them out, or give a condition as well",
        Reason.RECORD_NOT_FOUND,
    )


def _check_embeddings(embeddings: Sequence[bytes]) -> None:
    sizes = {len(embedding) for embedding in embeddings}
    if len(sizes) > 1 or any(size == 0 or size % 4 for size in sizes):
        raise InvalidRequest("query embeddings are rows of float32 of one dimension")
