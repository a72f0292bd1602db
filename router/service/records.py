"""RecordService: a request is validated, routed by its ids, and the shards' answers are merged.

Records pass through as bytes: views.proto has the layouts that leave them unopened.
"""

import os
import time

import mmh3

from chroma_router.v1 import records_pb2, shard_pb2, types_pb2, views_pb2
from chroma_router.wire.errors import InvalidRequest
from chroma_router.wire.request_id import RANDOM_BYTES, new_request_id
from router.core.limits import Limits
from router.core.merge import MergedRows, ShardHits, ShardRows, merge_hits, merge_rows
from router.core.model import CollectionEntry, DimensionState
from router.core.paging import PageToken
from router.core.plan import ids_by_shard
from router.core.validate import (
    WriteKind,
    check_embeddings,
    check_filter,
    check_n_results,
    check_request_id,
    check_write,
    dimension_refusal,
)
from router.directory import Directory
from router.scatter import ReadPath
from router.write_path import Write, WritePath

_OPERATIONS = {
    WriteKind.ADD: shard_pb2.OPERATION_KIND_ADD,
    WriteKind.UPDATE: shard_pb2.OPERATION_KIND_UPDATE,
    WriteKind.UPSERT: shard_pb2.OPERATION_KIND_UPSERT,
}

KEY_BLOCK = 100_000
"""How many keys are merged at once to pass over an offset."""

Key = tuple[int, str]
"""A record's place in the order of its collection: (sequence, id)."""


class RecordService:
    """The calls of RecordService, free of gRPC."""

    def __init__(
        self, directory: Directory, writes: WritePath, reads: ReadPath, limits: Limits
    ) -> None:
        self._directory = directory
        self._writes = writes
        self._reads = reads
        self._limits = limits

    async def add(
        self, view: views_pb2.WriteRequestView, deadline: float
    ) -> records_pb2.AddResponse:
        """Adds records."""
        return records_pb2.AddResponse(request_id=await self._write(WriteKind.ADD, view, deadline))

    async def upsert(
        self, view: views_pb2.WriteRequestView, deadline: float
    ) -> records_pb2.UpsertResponse:
        """Adds or changes records."""
        return records_pb2.UpsertResponse(
            request_id=await self._write(WriteKind.UPSERT, view, deadline)
        )

    async def update(
        self, view: views_pb2.WriteRequestView, deadline: float
    ) -> records_pb2.UpdateResponse:
        """Changes records."""
        return records_pb2.UpdateResponse(
            request_id=await self._write(WriteKind.UPDATE, view, deadline)
        )

    async def _write(
        self, kind: WriteKind, view: views_pb2.WriteRequestView, deadline: float
    ) -> str:
        request_id = self._request_id(view.request_id)
        records = list(view.records)
        checked = check_write(kind, records, self._limits)
        entry = await self._directory.resolve(view.collection)
        may_be_new = kind is not WriteKind.UPDATE
        write = Write(
            kind=_OPERATIONS[kind],
            request_id=request_id,
            ids=checked.ids,
            records=records,
            sequences=self._writes.sequences(len(records)) if may_be_new else (),
            digest=_digest(*records),
        )
        await self._writes.write(entry, write, checked.dimension, deadline)
        return request_id

    async def delete(
        self, request: records_pb2.DeleteRequest, deadline: float
    ) -> records_pb2.DeleteResponse:
        """Deletes records by id, by condition, or by both."""
        request_id = self._request_id(request.request_id)
        chosen = request.filter
        check_filter(chosen, self._limits)
        conditional = bool(chosen.where or chosen.where_document)
        if not chosen.by_ids and not conditional:
            raise InvalidRequest(
                "filter: a delete needs ids or a condition; to remove every record delete the "
                "collection"
            )
        limited = request.HasField("limit")
        if limited and not conditional:
            raise InvalidRequest("limit: can only be specified when a where clause is given")
        entry = await self._directory.resolve(request.collection)
        ids, before = list(chosen.ids), 0
        if limited:
            ids, before = await self._oldest(entry, request, request_id, deadline)
            if not ids:
                return records_pb2.DeleteResponse(deleted=before, request_id=request_id)
        write = Write(
            kind=shard_pb2.OPERATION_KIND_DELETE,
            request_id=request_id,
            ids=ids,
            where=chosen.where,
            where_document=chosen.where_document,
            digest=_digest(chosen.SerializeToString(deterministic=True), request.limit),
            to_all_shards=not chosen.by_ids and not limited,
        )
        deleted = await self._writes.write(entry, write, None, deadline)
        return records_pb2.DeleteResponse(deleted=before + deleted, request_id=request_id)

    async def _oldest(
        self,
        entry: CollectionEntry,
        request: records_pb2.DeleteRequest,
        request_id: str,
        deadline: float,
    ) -> tuple[list[str], int]:
        """The oldest records that a limited delete has still to delete, and how many it has deleted
        on shards that are done with it: a repeat counts what is already gone (invariant 8)."""
        answers = await self._shard_pages(
            entry, request.filter, None, max(1, request.limit), deadline, None, request_id
        )
        before = sum(answer.deleted_before for answer in answers)
        pages = [
            ShardRows(a.sequences, a.ids, (), a.more) for a in answers if not a.delete_complete
        ]
        left = request.limit - before
        if left <= 0 or not pages:
            return [], before
        # A shard that is not done counts what it has deleted before in its own answer.
        started = sum(a.deleted_before for a in answers if not a.delete_complete)
        return [record_id for _, record_id in merge_rows(pages, left).keys], before - started

    async def get(
        self, request: records_pb2.GetRequest, deadline: float
    ) -> views_pb2.GetResponseView:
        """Reads one page of records in insertion order."""
        check_filter(request.filter, self._limits)
        entry = await self._directory.resolve(request.collection)
        token = PageToken.decode(request.page_token) if request.page_token else None
        remaining = request.limit if request.HasField("limit") else None
        if token is not None:
            remaining = token.remaining
        if remaining == 0:
            return views_pb2.GetResponseView()
        after: Key | None = (token.after_sequence, token.after_id) if token else None
        chosen, wanted = (
            request.filter,
            min(remaining or self._limits.max_page_records, self._limits.max_page_records),
        )
        more_keys = False
        if token is None and request.offset:
            # The place of the offset is only known when all shards' keys are merged; the contents
            # of the page are then fetched by id.
            keys = await self._keys(entry, chosen, request.offset, wanted + 1, deadline)
            page = keys[:wanted]
            more_keys = len(keys) > wanted
            if not page:
                return views_pb2.GetResponseView()
            chosen = types_pb2.Filter(ids=[record_id for _, record_id in page], by_ids=True)
        rows = await self._rows(entry, chosen, after, wanted, deadline, list(request.include))
        answer = views_pb2.GetResponseView(records=rows.records)
        left = None if remaining is None else remaining - len(rows.keys)
        if rows.keys and (rows.more or more_keys) and left != 0:
            answer.next_page_token = PageToken(*rows.keys[-1], left).encode()
        return answer

    async def query(
        self, request: records_pb2.QueryRequest, deadline: float
    ) -> views_pb2.QueryResponseView:
        """Finds the nearest records to each query embedding."""
        embeddings = list(request.embeddings)
        dimension = check_embeddings(embeddings, self._limits)
        check_n_results(request.n_results, self._limits)
        check_filter(request.filter, self._limits)
        entry = await self._directory.resolve(request.collection)
        if entry.dimension_state is not DimensionState.FIXED:
            # Another router may have fixed it since this entry was read.
            entry = await self._directory.refresh(entry.id)
        if entry.dimension is None:
            return views_pb2.QueryResponseView(
                results=[views_pb2.QueryResultView() for _ in embeddings]
            )
        if entry.dimension_state is DimensionState.FIXED and entry.dimension != dimension:
            raise dimension_refusal(entry.dimension, dimension)

        async def read(entry: CollectionEntry) -> list[shard_pb2.ShardQueryResponse]:
            requests = {
                shard: shard_pb2.ShardQueryRequest(
                    collection_id=entry.id,
                    epoch=entry.slot_map.epoch,
                    embeddings=embeddings,
                    n_results=request.n_results,
                    filter=part,
                    include=request.include,
                )
                for shard, part in _filters(entry, request.filter).items()
            }
            return await self._reads.scatter(
                requests, lambda shard, part: shard.client.query(part, _left(deadline))
            )

        answers = await self._reads.consistently(entry, deadline, read)
        return views_pb2.QueryResponseView(
            results=[
                views_pb2.QueryResultView(
                    hits=merge_hits(
                        [
                            ShardHits(part.distances, part.ids, part.hits)
                            for part in (answer.results[i] for answer in answers)
                        ],
                        request.n_results,
                    )
                )
                for i in range(len(embeddings))
            ]
        )

    async def count(
        self, request: records_pb2.CountRequest, deadline: float
    ) -> records_pb2.CountResponse:
        """Counts the records of a collection."""
        entry = await self._directory.resolve(request.collection)

        async def read(entry: CollectionEntry) -> list[shard_pb2.ShardCountResponse]:
            part = shard_pb2.ShardCountRequest(collection_id=entry.id, epoch=entry.slot_map.epoch)
            return await self._reads.scatter(
                dict.fromkeys(entry.slot_map.shards, part),
                lambda shard, part: shard.client.count(part, _left(deadline)),
            )

        answers = await self._reads.consistently(entry, deadline, read)
        return records_pb2.CountResponse(count=sum(answer.count for answer in answers))

    def _request_id(self, given: str) -> str:
        """The client's request id, or a new one."""
        check_request_id(given, self._limits)
        return given or new_request_id(time.time_ns() // 1_000_000, os.urandom(RANDOM_BYTES))

    async def _keys(
        self,
        entry: CollectionEntry,
        chosen: types_pb2.Filter,
        offset: int,
        limit: int,
        deadline: float,
    ) -> list[Key]:
        """At most `limit` keys of the chosen records after the first `offset` of them, in order.

        What is passed over is read block by block, so that no offset holds more than a block.
        """
        after: Key | None = None
        while offset > KEY_BLOCK:
            rows = await self._rows(entry, chosen, after, KEY_BLOCK, deadline, None)
            if not rows.more:
                return []
            offset -= len(rows.keys)
            after = rows.keys[-1]
        keys: list[Key] = []
        while len(keys) < offset + limit:
            wanted = offset + limit - len(keys)
            rows = await self._rows(entry, chosen, after, wanted, deadline, None)
            keys += rows.keys
            if not rows.more:
                break
            after = rows.keys[-1]
        return keys[offset:]

    async def _rows(
        self,
        entry: CollectionEntry,
        chosen: types_pb2.Filter,
        after: Key | None,
        limit: int,
        deadline: float,
        include: list[types_pb2.Include] | None,
    ) -> MergedRows:
        """The next rows of the chosen records over all shards; keys only if `include` is None."""
        answers = await self._shard_pages(entry, chosen, after, limit, deadline, include)
        return merge_rows(
            [ShardRows(a.sequences, a.ids, a.records, a.more) for a in answers], limit
        )

    async def _shard_pages(
        self,
        entry: CollectionEntry,
        chosen: types_pb2.Filter,
        after: Key | None,
        limit: int,
        deadline: float,
        include: list[types_pb2.Include] | None,
        deleted_by: str = "",
    ) -> list[shard_pb2.ShardGetResponse]:
        """The next rows of each shard, from one epoch."""
        place = shard_pb2.Position(sequence=after[0], id=after[1]) if after else None

        async def read(entry: CollectionEntry) -> list[shard_pb2.ShardGetResponse]:
            parts = _filters(entry, chosen)
            requests = {
                shard: shard_pb2.ShardGetRequest(
                    collection_id=entry.id,
                    epoch=entry.slot_map.epoch,
                    filter=part,
                    after=place,
                    limit=min(limit, self._limits.max_shard_get_records),
                    keys_only=include is None,
                    include=include or (),
                    max_bytes=self._limits.max_page_bytes // max(1, len(parts)),
                    deleted_by=deleted_by,
                )
                for shard, part in parts.items()
            }
            return await self._reads.scatter(
                requests, lambda shard, part: shard.client.get(part, _left(deadline))
            )

        return await self._reads.consistently(entry, deadline, read)


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


def _digest(*parts: bytes | int) -> int:
    """63 bits that stand for the contents of a request, so that one request id is one request."""
    text = b"".join(
        part if isinstance(part, bytes) else part.to_bytes(8, "little") for part in parts
    )
    first: int = mmh3.mmh3_x64_128_utupledigest(text)[0]
    return first >> 1


def _left(deadline: float) -> float:
    """Seconds until the deadline."""
    return max(0.001, deadline - time.monotonic())
