"""The reads of a collection's records that services are made of: nearest, rows in order, contents.

Each says what to ask of which shard and merges the answers; when a shard is asked again, or left
out, is `router.scatter`'s business. A call of a client carries one ReadCall through all its reads.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chroma_router.v1 import shard_pb2, types_pb2
from chroma_router.wire.errors import Overloaded, Reason
from router.concurrency import computed
from router.core.agreement import QuerySample, QuerySamples
from router.core.limits import Limits
from router.core.merge import (
    MergedRows,
    RankedHit,
    ShardHits,
    ShardRows,
    merge_hits,
    merge_rows,
)
from router.core.model import CollectionEntry, DimensionState
from router.core.plan import ids_by_shard
from router.core.validate import dimension_refusal
from router.directory import Directory
from router.scatter import ReadCall, ReadPath
from router.shard_client import MAX_MESSAGE_BYTES

KEY_BLOCK = 100_000
"""How many keys are merged at once to pass over an offset."""

FLOAT_BYTES = 4

Key = tuple[int, str]
"""A record's place in an order of its collection: (sequence, id) or (slot, id)."""

BY_SEQUENCE = shard_pb2.ROW_ORDER_UNSPECIFIED
BY_SLOT = shard_pb2.ROW_ORDER_SLOT


@dataclass(frozen=True, slots=True)
class ShardPages:
    """The next rows of each shard that was asked, all at one epoch."""

    entry: CollectionEntry
    """With that epoch."""
    by_shard: Mapping[str, shard_pb2.ShardGetResponse]


class RecordReads:
    """Reads over all shards of a collection, each from one epoch."""

    def __init__(
        self,
        directory: Directory,
        path: ReadPath,
        limits: Limits,
        samples: QuerySamples | None = None,
    ) -> None:
        """`samples` are given the queries that can be replayed, if anyone wants them."""
        self._directory = directory
        self._path = path
        self._limits = limits
        self._samples = samples

    async def nearest(
        self,
        call: ReadCall,
        entry: CollectionEntry,
        embeddings: Sequence[bytes],
        n_results: int,
        chosen: types_pb2.Filter,
        include: Sequence[types_pb2.Include],
        *,
        ids_must_exist: bool = False,
    ) -> list[list[RankedHit]]:
        """For each embedding the nearest `n_results` of the chosen records, by distance, then id.

        Embeddings, number and filter are checked by the caller; the dimension is checked here
        (InvalidRequest). `ids_must_exist`: an id of the filter that does not is NotFound
        (RECORD_NOT_FOUND), else it is passed over.
        """
        if entry.dimension_state is not DimensionState.FIXED:
            # Another router may have fixed it since this entry was read.
            entry = await self._directory.refresh(entry.id)
        if entry.dimension is None:
            return [[] for _ in embeddings]
        dimension = len(embeddings[0]) // FLOAT_BYTES
        if entry.dimension_state is DimensionState.FIXED and entry.dimension != dimension:
            raise dimension_refusal(entry.dimension, dimension)
        if self._samples is not None and not chosen.by_ids:
            sample = QuerySample(embeddings[0], n_results, chosen.SerializeToString())
            self._samples.add(entry.id, sample)

        def requests(entry: CollectionEntry) -> dict[str, shard_pb2.ShardQueryRequest]:
            return {
                shard: shard_pb2.ShardQueryRequest(
                    collection_id=entry.id,
                    epoch=entry.slot_map.epoch,
                    embeddings=embeddings,
                    n_results=n_results,
                    filter=part,
                    include=include,
                    ids_must_exist=ids_must_exist,
                )
                for shard, part in _filters(entry, chosen).items()
            }

        answers = await self._path.read(
            call,
            entry,
            requests,
            lambda shard, part, seconds: shard.client.query(part, seconds),
            lambda answer: answer.owned_records,
        )
        found = list(answers.values())
        rows = sum(len(part.ids) for answer in found for part in answer.results)
        return await computed(rows, _merged, found, len(embeddings), n_results)

    async def contents(
        self,
        call: ReadCall,
        entry: CollectionEntry,
        ids: Sequence[str],
        include: Sequence[types_pb2.Include],
    ) -> dict[str, bytes]:
        """Those of the records that exist, each a serialized Record, by id.

        `ids` are distinct. Raises Overloaded (ANSWER_TOO_LARGE) when all of them together are more
        than one message takes: they could not be answered with.
        """
        chosen = types_pb2.Filter(ids=ids, by_ids=True)
        found: dict[str, bytes] = {}
        after: Key | None = None
        size = 0
        while True:
            rows = await self.rows(
                call, entry, chosen, after, self._limits.max_page_records, include
            )
            found.update(zip((i for _, i in rows.keys), rows.records, strict=True))
            size += sum(map(len, rows.records))
            if size > MAX_MESSAGE_BYTES:
                raise Overloaded(
                    f"the records take more than the {MAX_MESSAGE_BYTES} bytes of a message; ask "
                    "for fewer, or for less of each",
                    Reason.ANSWER_TOO_LARGE,
                )
            if not rows.more or not rows.keys:
                return found
            after = rows.keys[-1]

    async def count(self, call: ReadCall, entry: CollectionEntry) -> int:
        """How many records there are."""

        def requests(entry: CollectionEntry) -> dict[str, shard_pb2.ShardCountRequest]:
            part = shard_pb2.ShardCountRequest(collection_id=entry.id, epoch=entry.slot_map.epoch)
            return dict.fromkeys(entry.slot_map.shards, part)

        answers = await self._path.read(
            call,
            entry,
            requests,
            lambda shard, part, seconds: shard.client.count(part, seconds),
            lambda answer: answer.count,
        )
        return sum(answer.count for answer in answers.values())

    async def keys(
        self,
        call: ReadCall,
        entry: CollectionEntry,
        chosen: types_pb2.Filter,
        offset: int,
        limit: int,
    ) -> list[Key]:
        """At most `limit` keys of the chosen records after the first `offset` of them, in order.

        What is passed over is read block by block, so that no offset holds more than a block.
        """
        after: Key | None = None
        while offset > KEY_BLOCK:
            rows = await self.rows(call, entry, chosen, after, KEY_BLOCK, None)
            if not rows.more:
                return []
            offset -= len(rows.keys)
            after = rows.keys[-1]
        keys: list[Key] = []
        while len(keys) < offset + limit:
            wanted = offset + limit - len(keys)
            rows = await self.rows(call, entry, chosen, after, wanted, None)
            keys += rows.keys
            if not rows.more:
                break
            after = rows.keys[-1]
        return keys[offset:]

    async def rows(
        self,
        call: ReadCall,
        entry: CollectionEntry,
        chosen: types_pb2.Filter,
        after: Key | None,
        limit: int,
        include: Sequence[types_pb2.Include] | None,
        order: shard_pb2.RowOrder = BY_SEQUENCE,
    ) -> MergedRows:
        """The next rows of the chosen records over all shards; keys only if `include` is None."""
        of = await self.shard_pages(call, entry, chosen, after, limit, include, order=order)
        pages = [ShardRows(a.sequences, a.ids, a.records, a.more) for a in of.by_shard.values()]
        return await computed(sum(len(page.ids) for page in pages), merge_rows, pages, limit)

    async def shard_pages(
        self,
        call: ReadCall,
        entry: CollectionEntry,
        chosen: types_pb2.Filter,
        after: Key | None,
        limit: int,
        include: Sequence[types_pb2.Include] | None,
        deleted_by: str = "",
        order: shard_pb2.RowOrder = BY_SEQUENCE,
    ) -> ShardPages:
        """The next rows of each shard; `deleted_by` is the contract's."""
        place = shard_pb2.Position(sequence=after[0], id=after[1]) if after else None
        used = entry

        def requests(entry: CollectionEntry) -> dict[str, shard_pb2.ShardGetRequest]:
            nonlocal used
            used = entry
            parts = _filters(entry, chosen)
            # A slot's records are all on one shard, and slots are dealt evenly: where the order is
            # theirs, each shard has about its part of a page, and more would be read in vain.
            most = limit if order == BY_SEQUENCE else math.ceil(limit * 1.25 / max(1, len(parts)))
            return {
                shard: shard_pb2.ShardGetRequest(
                    collection_id=entry.id,
                    epoch=entry.slot_map.epoch,
                    filter=part,
                    after=place,
                    limit=min(limit, most, self._limits.max_shard_get_records),
                    keys_only=include is None,
                    include=include or (),
                    max_bytes=self._limits.max_page_bytes // max(1, len(parts)),
                    deleted_by=deleted_by,
                    order=order,
                )
                for shard, part in parts.items()
            }

        answers = await self._path.read(
            call,
            entry,
            requests,
            lambda shard, part, seconds: shard.client.get(part, seconds),
            lambda answer: answer.owned_records,
        )
        return ShardPages(used, answers)


def _merged(
    answers: Sequence[shard_pb2.ShardQueryResponse], embeddings: int, n_results: int
) -> list[list[RankedHit]]:
    """The nearest hits of all shards for each of so many embeddings."""
    return [
        merge_hits(
            [
                ShardHits(part.distances, part.ids, part.hits)
                for part in (answer.results[i] for answer in answers)
            ],
            n_results,
        )
        for i in range(embeddings)
    ]


def _filters(entry: CollectionEntry, chosen: types_pb2.Filter) -> dict[str, types_pb2.Filter]:
    """The filter for each shard that a read must ask: with ids, their owners and only theirs."""
    if not chosen.by_ids:
        return dict.fromkeys(entry.slot_map.shards, chosen)
    return {
        shard: types_pb2.Filter(
            ids=ids, by_ids=True, where=chosen.where, where_document=chosen.where_document
        )
        for shard, ids in ids_by_shard(entry.slot_map, chosen.ids).items()
    }
