"""RecordService: a request is validated, routed by its ids, and the shards' answers are merged.

Records pass through as bytes: views.proto has the layouts that leave them unopened.
"""

from collections.abc import Sequence

import mmh3

from chroma_router.v1 import records_pb2, shard_pb2, types_pb2, views_pb2
from chroma_router.wire.errors import InvalidRequest, Reason
from router.concurrency import computed
from router.core.limits import Limits
from router.core.merge import RankedHit, ShardRows, merge_rows
from router.core.model import CollectionEntry
from router.core.paging import PageToken
from router.core.plan import ids_by_shard
from router.core.validate import (
    WriteKind,
    check_embeddings,
    check_filter,
    check_include,
    check_n_results,
    check_request_id,
    check_write,
)
from router.directory import Directory
from router.ids import fresh_id
from router.record_reads import Key, RecordReads
from router.scatter import ReadCall
from router.shard_client import MAX_MESSAGE_BYTES
from router.write_course import Write
from router.write_path import WritePath

_OPERATIONS = {
    WriteKind.ADD: shard_pb2.OPERATION_KIND_ADD,
    WriteKind.UPDATE: shard_pb2.OPERATION_KIND_UPDATE,
    WriteKind.UPSERT: shard_pb2.OPERATION_KIND_UPSERT,
}


class RecordService:
    """The calls of RecordService, free of gRPC."""

    def __init__(
        self, directory: Directory, writes: WritePath, reads: RecordReads, limits: Limits
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
        write, dimension = self.checked(kind, view)
        entry = await self._directory.resolve(view.collection)
        await self._writes.write(entry, write, dimension, deadline)
        return write.request_id

    def checked(
        self, kind: WriteKind, view: views_pb2.WriteRequestView
    ) -> tuple[Write, int | None]:
        """The write that a request asks for, found good, and the dimension of its embeddings.

        Its new records take their place in insertion order here. Raises InvalidRequest.
        """
        request_id = self._request_id(view.request_id)
        records = list(view.records)
        checked = check_write(kind, records, self._limits)
        may_be_new = kind is not WriteKind.UPDATE
        write = Write(
            kind=_OPERATIONS[kind],
            request_id=request_id,
            ids=checked.ids,
            records=records,
            sequences=self._writes.sequences(len(records)) if may_be_new else (),
            digest=_digest(*records),
            metadata_types=checked.metadata_types,
        )
        return write, checked.dimension

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
        if request.limit > self._limits.max_delete_limit:
            raise InvalidRequest(
                f"limit: {request.limit}, at most {self._limits.max_delete_limit} records can be "
                "deleted by one limited delete; send several, each with its own request id"
            )
        digest = _digest(chosen.SerializeToString(deterministic=True), request.limit)

        def of(ids: Sequence[str], elsewhere: int) -> Write:
            return Write(
                kind=shard_pb2.OPERATION_KIND_DELETE,
                request_id=request_id,
                ids=ids,
                where=chosen.where,
                where_document=chosen.where_document,
                digest=digest,
                to_all_shards=not chosen.by_ids and not limited,
                deleted_elsewhere=elsewhere,
            )

        async def oldest(entry: CollectionEntry) -> tuple[CollectionEntry, Write]:
            at, ids, elsewhere = await self._oldest(entry, request, request_id, deadline)
            return at, of(ids, elsewhere)

        entry = await self._directory.resolve(request.collection)
        if limited:
            entry, write = await oldest(entry)
        else:
            write = of(list(chosen.ids), 0)
        deleted = await self._writes.write(
            entry, write, None, deadline, oldest if limited else None
        )
        return records_pb2.DeleteResponse(deleted=deleted, request_id=request_id)

    async def _oldest(
        self,
        entry: CollectionEntry,
        request: records_pb2.DeleteRequest,
        request_id: str,
        deadline: float,
    ) -> tuple[CollectionEntry, list[str], int]:
        """The oldest records that a limited delete has still to delete, and how many it has deleted
        on shards that own none of these: a repeat counts what is already gone (invariant 8).

        All as it is at one epoch, that of the entry that is returned. A shard that owns some of the
        records counts what it has deleted before in its own answer to the delete.
        """
        call = ReadCall(deadline)
        memory: tuple[int, dict[str, tuple[int, bool]]] | None = None
        keys: list[Key] = []
        before = size = 0
        while True:
            found = await self._reads.shard_pages(
                call,
                entry,
                request.filter,
                keys[-1] if keys else None,
                max(1, request.limit - before - len(keys)),
                None,
                request_id,
            )
            entry, answers = found.entry, found.by_shard
            remembered = {s: (a.deleted_before, a.delete_complete) for s, a in answers.items()}
            if (entry.slot_map.epoch, remembered) != memory:
                # The first page, or an earlier try landed between two of them, or slots moved: what
                # is left to delete must be counted with one memory.
                if memory is not None:
                    memory, keys, before, size = None, [], 0, 0
                    continue
                memory = (entry.slot_map.epoch, remembered)
                before = sum(deleted for deleted, _ in remembered.values())
            left = request.limit - before - len(keys)
            pages = [
                ShardRows(a.sequences, a.ids, (), a.more)
                for a in answers.values()
                if not a.delete_complete
            ]
            if left <= 0 or not pages:
                return entry, [], before
            rows = await computed(sum(len(p.ids) for p in pages), merge_rows, pages, left)
            keys += rows.keys
            size += sum(len(record_id.encode()) for _, record_id in rows.keys)
            if size > MAX_MESSAGE_BYTES:
                raise InvalidRequest(
                    f"limit: the ids of the {len(keys)} oldest records alone have {size} bytes, "
                    f"more than the {MAX_MESSAGE_BYTES} of a message; give a lower limit",
                    Reason.BATCH_TOO_LARGE,
                )
            if len(rows.keys) == left or not rows.more:
                ids = [record_id for _, record_id in keys]
                asked = ids_by_shard(entry.slot_map, ids)
                elsewhere = [n for shard, (n, _) in remembered.items() if shard not in asked]
                return entry, ids, sum(elsewhere)

    async def get(
        self, request: records_pb2.GetRequest, deadline: float
    ) -> views_pb2.GetResponseView:
        """Reads one page of records in insertion order."""
        check_filter(request.filter, self._limits)
        check_include(request.include)
        entry = await self._directory.resolve(request.collection)
        token = PageToken.decode(request.page_token) if request.page_token else None
        call = ReadCall(deadline, allow_partial=request.allow_partial)
        records, next_token = await self._page(call, entry, request, token)
        return views_pb2.GetResponseView(
            records=records,
            next_page_token=next_token.encode() if next_token else "",
            coverage=call.coverage(),
        )

    async def _page(
        self,
        call: ReadCall,
        entry: CollectionEntry,
        request: records_pb2.GetRequest,
        token: PageToken | None,
    ) -> tuple[list[bytes], PageToken | None]:
        """The records of one page, and where the next one begins if there may be one.

        A page begins after a place in the order of records, whichever shards answer: of one that
        comes back between two pages the later records are in the next, of one that goes away there
        are no more, and no record comes twice.

        A page after an offset takes several reads. Where a shard goes missing in one of them all
        are repeated without it (which the call remembers): place and contents are of the same
        shards.
        """
        while True:
            missing = len(call.missing)
            page = await self._page_once(call, entry, request, token)
            if token is not None or not request.offset or len(call.missing) == missing:
                return page

    async def _page_once(
        self,
        call: ReadCall,
        entry: CollectionEntry,
        request: records_pb2.GetRequest,
        token: PageToken | None,
    ) -> tuple[list[bytes], PageToken | None]:
        """As _page, of whichever shards answer each read."""
        remaining = request.limit if request.HasField("limit") else None
        if token is not None:
            remaining = token.remaining
        if remaining == 0:
            return [], None
        most = self._limits.max_page_records
        wanted = most if remaining is None else min(remaining, most)
        after: Key | None = (token.after_sequence, token.after_id) if token else None
        chosen, last_key, more_keys = request.filter, None, False
        if token is None and request.offset:
            # The place of the offset is only known when all shards' keys are merged; the contents
            # of the page are then fetched by id.
            keys = await self._reads.keys(call, entry, chosen, request.offset, wanted + 1)
            page = keys[:wanted]
            if not page:
                return [], None
            more_keys, last_key = len(keys) > wanted, page[-1]
            # The condition stays: a record may have been changed since and hold it no more.
            chosen = types_pb2.Filter(
                ids=[record_id for _, record_id in page],
                by_ids=True,
                where=chosen.where,
                where_document=chosen.where_document,
            )
        rows = await self._reads.rows(call, entry, chosen, after, wanted, list(request.include))
        if rows.more or last_key is None:  # else all keys of the page were looked up: some are gone
            last_key = rows.keys[-1] if rows.keys else None
        left = None if remaining is None else remaining - len(rows.keys)
        if last_key is None or left == 0 or not (rows.more or more_keys):
            return rows.records, None
        return rows.records, PageToken(*last_key, left)

    async def query(
        self, request: records_pb2.QueryRequest, deadline: float
    ) -> views_pb2.QueryResponseView:
        """Finds the nearest records to each query embedding."""
        embeddings = list(request.embeddings)
        check_embeddings(embeddings, self._limits)
        check_n_results(request.n_results, self._limits, len(embeddings))
        check_filter(request.filter, self._limits)
        check_include(request.include)
        entry = await self._directory.resolve(request.collection)
        call = ReadCall(deadline, allow_partial=request.allow_partial)
        chosen = request.filter
        found = await self._reads.nearest(
            call,
            entry,
            embeddings,
            request.n_results,
            chosen,
            request.include,
            ids_must_exist=not (chosen.where or chosen.where_document),
        )
        return await computed(sum(map(len, found)), _query_view, found, call.coverage())

    async def count(
        self, request: records_pb2.CountRequest, deadline: float
    ) -> records_pb2.CountResponse:
        """Counts the records of a collection."""
        entry = await self._directory.resolve(request.collection)
        call = ReadCall(deadline, allow_partial=request.allow_partial)
        count = await self._reads.count(call, entry)
        return records_pb2.CountResponse(count=count, coverage=call.coverage())

    def _request_id(self, given: str) -> str:
        """The client's request id, or a new one."""
        check_request_id(given, self._limits)
        return given or fresh_id()


def _query_view(
    found: Sequence[Sequence[RankedHit]], coverage: types_pb2.Coverage | None
) -> views_pb2.QueryResponseView:
    return views_pb2.QueryResponseView(
        results=[views_pb2.QueryResultView(hits=[hit.hit for hit in hits]) for hits in found],
        coverage=coverage,
    )


def _digest(*parts: bytes | int) -> int:
    """63 bits that stand for the contents of a request, so that one request id is one request."""
    text = b"".join(
        part if isinstance(part, bytes) else part.to_bytes(8, "little") for part in parts
    )
    first: int = mmh3.mmh3_x64_128_utupledigest(text)[0]
    return first >> 1
