"""Search: candidates come from nearest-neighbour reads, scores from rank expressions over them.

One call makes up to three kinds of reads, in this order: candidates (and, for searches without a
rank, keys in insertion order); the metadata of candidates that are grouped; the contents of the
final hits. Each read is of one epoch (invariant 3). They are joined by record id, never by shard,
so that a move between two reads neither hides nor doubles a record. What a client may see of
writes that land between them: contents newer than the score, and a record that was deleted; for
the latter everything is read again, and after some attempts the record is left out.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import TypeVar

from chroma_router.v1 import records_pb2, types_pb2, views_pb2
from chroma_router.wire.errors import ClusterError, Overloaded, Reason
from router.concurrency import computed, settled
from router.core.group_by import grouped
from router.core.limits import Limits
from router.core.model import CollectionEntry
from router.core.rank import Knn, Scored, evaluate
from router.core.search import Search, Selection, check_searches
from router.directory import Directory
from router.record_reads import RecordReads
from router.scatter import ReadCall

ATTEMPTS = 3
"""How often everything is read because a record that should be a hit has been deleted meanwhile."""

CONCURRENT_READS = 8
"""Reads of one call that are under way at once, each over all shards."""

_T = TypeVar("_T")
_Include = frozenset[types_pb2.Include]


class SearchService:
    """The Search call of RecordService, free of gRPC."""

    def __init__(self, directory: Directory, reads: RecordReads, limits: Limits) -> None:
        self._directory = directory
        self._reads = reads
        self._limits = limits

    async def search(
        self, request: records_pb2.SearchRequest, deadline: float
    ) -> views_pb2.SearchResponseView:
        """Answers all searches of a request."""
        searches = check_searches(request.searches, self._limits)
        entry = await self._directory.resolve(request.collection)
        call = ReadCall(deadline, allow_partial=request.allow_partial)
        answer = _Answer(self._reads, self._limits, call, entry, searches)
        results = await answer.results()
        return views_pb2.SearchResponseView(results=results, coverage=call.coverage())


class _Answer:
    """The answer to one call, as it is made."""

    def __init__(
        self,
        reads: RecordReads,
        limits: Limits,
        call: ReadCall,
        entry: CollectionEntry,
        searches: Sequence[Search],
    ) -> None:
        self._reads, self._limits = reads, limits
        self._call, self._entry, self._searches = call, entry, searches
        self._slots = asyncio.Semaphore(CONCURRENT_READS)

    async def results(self) -> list[views_pb2.SearchResultView]:
        """One result for each search.

        Where a shard goes missing in one read that answered in another, all is read again without
        it (which the call remembers): an answer is of the same shards in all its parts.
        """
        attempts = 0
        while True:
            missing = len(self._call.missing)
            ranked, in_one_read = await self._ranked()
            if len(self._call.missing) > missing and not in_one_read:
                continue
            missing = len(self._call.missing)
            hits = [
                self._cut(search, scored)
                for search, scored in zip(
                    self._searches, await self._after_grouping(ranked), strict=True
                )
            ]
            results, complete = await self._with_contents(hits)
            if len(self._call.missing) > missing:
                continue
            attempts += 1
            if complete or attempts == ATTEMPTS:
                return results

    async def _ranked(self) -> tuple[list[list[Scored]], bool]:
        """The ranked candidates of each search, and whether all of them came from one round."""
        ranked: list[list[Scored]] = [[] for _ in self._searches]
        groups: dict[tuple[bytes, int], list[tuple[int, int, Knn]]] = {}
        found: list[list[Sequence[Scored]]] = [[()] * len(s.knns) for s in self._searches]
        reads: list[Awaitable[None]] = []

        async def nearest(parts: list[tuple[int, int, Knn]]) -> None:
            rows = await self._nearest(self._searches[parts[0][0]], [knn for _, _, knn in parts])
            for (index, part, _), row in zip(parts, rows, strict=True):
                found[index][part] = row

        async def oldest(index: int) -> None:
            ranked[index] = await self._in_order(self._searches[index])

        for index, search in enumerate(self._searches):
            if search.rank is None:
                reads.append(oldest(index))
            for part, knn in enumerate(search.knns):
                # One multi-vector query for all that ask the same of the shards.
                same = (search.filter.SerializeToString(deterministic=True), knn.limit)
                groups.setdefault(same, []).append((index, part, knn))
        reads += [nearest(parts) for parts in groups.values()]
        await self._all(reads)
        for index, search in enumerate(self._searches):
            if search.rank is not None:
                ranked[index] = await _scored(search, found[index])
        return ranked, len(groups) == len(reads) == 1

    async def _nearest(self, search: Search, knns: Sequence[Knn]) -> list[list[Scored]]:
        """The candidates of nearest-neighbour parts with one filter and one limit."""
        hits = await self._reads.nearest(
            self._call,
            self._entry,
            [knn.embedding for knn in knns],
            knns[0].limit,
            search.filter,
            (),
        )
        return [[(hit.distance, hit.id) for hit in row] for row in hits]

    async def _in_order(self, search: Search) -> list[Scored]:
        """The records of a search without a rank: offset and limit are applied, the score is the
        place."""
        limit = self._limits.max_results + 1 if search.limit is None else search.limit
        if limit == 0:
            return []
        keys = await self._reads.keys(self._call, self._entry, search.filter, search.offset, limit)
        return [(float(place), record_id) for place, (_, record_id) in enumerate(keys)]

    async def _after_grouping(self, ranked: Sequence[list[Scored]]) -> list[list[Scored]]:
        """What group_by leaves of the ranked candidates."""
        ids = {
            record_id: None
            for search, scored in zip(self._searches, ranked, strict=True)
            if search.group_by
            for _, record_id in scored
        }
        metadata = {
            record_id: types_pb2.Record.FromString(record).metadata
            for record_id, record in (
                await self._contents(list(ids), frozenset({types_pb2.INCLUDE_METADATAS}))
            ).items()
        }
        return [
            grouped([s for s in scored if s[1] in metadata], metadata, search.group_by)
            if search.group_by
            else scored
            for search, scored in zip(self._searches, ranked, strict=True)
        ]

    def _cut(self, search: Search, scored: list[Scored]) -> list[Scored]:
        """The hits from offset to limit."""
        if search.rank is not None:
            end = None if search.limit is None else search.offset + search.limit
            scored = scored[search.offset : end]
        if len(scored) > self._limits.max_results:
            raise Overloaded(
                f"a search without a limit has more than {self._limits.max_results} hits; give it "
                "a limit, and an offset to go on from",
                Reason.ANSWER_TOO_LARGE,
            )
        return scored

    async def _with_contents(
        self, hits: Sequence[list[Scored]]
    ) -> tuple[list[views_pb2.SearchResultView], bool]:
        """The results, and whether they have every hit: none has been deleted meanwhile."""
        wanted: dict[_Include, dict[str, None]] = {}
        for search, scored in zip(self._searches, hits, strict=True):
            ids = wanted.setdefault(search.selection.include, {})
            ids.update((record_id, None) for _, record_id in scored)
        records = dict(
            zip(
                wanted,
                await self._all(self._contents(list(ids), inc) for inc, ids in wanted.items()),
                strict=True,
            )
        )
        results = [
            _result(scored, records[search.selection.include], search.selection)
            for search, scored in zip(self._searches, hits, strict=True)
        ]
        sent = sum(len(result.hits) for result in results)
        return results, sent == sum(map(len, hits))

    async def _contents(self, ids: list[str], include: _Include) -> Mapping[str, bytes]:
        """Those of the records that exist, serialized, with what is included."""
        if not include:
            return {i: types_pb2.Record(id=i).SerializeToString() for i in ids}
        if not ids:
            return {}
        return await self._reads.contents(self._call, self._entry, ids, sorted(include))

    async def _all(self, reads: Iterable[Awaitable[_T]]) -> list[_T]:
        """The results of several reads, in their order. Raises the first error among them."""

        async def bounded(read: Awaitable[_T]) -> _T:
            async with self._slots:
                return await read

        outcomes = await settled([bounded(read) for read in reads])
        results: list[_T] = []
        for outcome in outcomes:
            if isinstance(outcome, ClusterError):
                raise outcome
            results.append(outcome)
        return results


async def _scored(search: Search, found: Sequence[Sequence[Scored]]) -> list[Scored]:
    assert search.rank is not None
    return await computed(sum(map(len, found)), evaluate, search.rank, found)


def _result(
    scored: Sequence[Scored], records: Mapping[str, bytes], selection: Selection
) -> views_pb2.SearchResultView:
    result = views_pb2.SearchResultView()
    for score, record_id in scored:
        record = records.get(record_id)
        if record is not None:
            result.hits.add(
                record=_narrowed(record, selection.keys),
                score=score if selection.score else None,
            )
    return result


def _narrowed(record: bytes, keys: frozenset[str] | None) -> bytes:
    """The record with these metadata keys alone; None: as it is."""
    if keys is None:
        return record
    message = types_pb2.Record.FromString(record)
    for key in [key for key in message.metadata if key not in keys]:
        del message.metadata[key]
    return message.SerializeToString()
