"""Scan: all chosen records of a collection in the order of (slot, id), page by page."""

import bisect
from collections.abc import AsyncGenerator, Callable

from chroma_router.v1 import records_pb2, types_pb2, views_pb2
from router.core.limits import Limits
from router.core.model import CollectionEntry
from router.core.paging import ScanCursor
from router.core.validate import check_filter, check_include
from router.directory import Directory
from router.record_reads import BY_SLOT, KEY_BLOCK, Key, RecordReads
from router.scatter import ReadCall


class ScanService:
    """The Scan call of RecordService, free of gRPC."""

    def __init__(self, directory: Directory, reads: RecordReads, limits: Limits) -> None:
        self._directory = directory
        self._reads = reads
        self._limits = limits

    async def scan(
        self, request: records_pb2.ScanRequest, deadline: Callable[[], float]
    ) -> AsyncGenerator[views_pb2.ScanResponseView, None]:
        """The pages; `deadline` gives that of the page whose work begins.

        Each page is of one epoch (invariant 3), and begins behind a place in an order that no epoch
        changes: a record that stays comes exactly once, also when it moves meanwhile.
        """
        check_filter(request.filter, self._limits)
        check_include(request.include)
        after = ScanCursor.decode(request.cursor) if request.cursor else None
        entry = await self._directory.resolve(request.collection)
        scan = _Scan(self._reads, self._limits.max_page_records, request, after)
        while not scan.done:
            # By id from here on: another collection may come to bear the name.
            entry = await self._directory.resolve(types_pb2.CollectionRef(id=entry.id))
            records = await scan.next_page(ReadCall(deadline()), entry)
            if records:
                yield views_pb2.ScanResponseView(records=records, cursor=scan.cursor)


class _Scan:
    """How far one scan has come."""

    def __init__(
        self,
        reads: RecordReads,
        page_records: int,
        request: records_pb2.ScanRequest,
        after: ScanCursor | None,
    ) -> None:
        self._reads = reads
        self._page_records = page_records
        self._filter = request.filter
        self._include = list(request.include)
        self._after: Key | None = (after.after_slot, after.after_id) if after else None
        self._more = True
        # With a condition: the keys that it chose and whose records are yet to be read. A node
        # tries a condition on all its records, whichever part of them is asked for.
        self._ahead: list[Key] = []
        self._conditional = bool(request.filter.where or request.filter.where_document)

    @property
    def done(self) -> bool:
        """Whether the last page was the last."""
        return not self._more and not self._ahead

    @property
    def cursor(self) -> str:
        """The place behind the last page."""
        assert self._after is not None
        return ScanCursor(*self._after).encode()

    async def next_page(self, call: ReadCall, entry: CollectionEntry) -> list[bytes]:
        """The records of the next page. None may come although the scan is not done."""
        if self._conditional:
            return await self._chosen_before(call, entry)
        rows = await self._reads.rows(
            call, entry, self._filter, self._after, self._page_records, self._include, BY_SLOT
        )
        self._more = rows.more
        if rows.keys:
            self._after = rows.keys[-1]
        return rows.records

    async def _chosen_before(self, call: ReadCall, entry: CollectionEntry) -> list[bytes]:
        if not self._ahead:
            found = await self._reads.rows(
                call, entry, self._filter, self._after, KEY_BLOCK, None, BY_SLOT
            )
            self._ahead, self._more = found.keys, found.more
            if not self._ahead:
                return []
        part = self._ahead[: self._page_records]
        chosen = types_pb2.Filter(ids=[record_id for _, record_id in part], by_ids=True)
        rows = await self._reads.rows(
            call, entry, chosen, self._after, len(part), self._include, BY_SLOT
        )
        # Without `more` all of the part was looked up, and what did not come is deleted.
        self._after = rows.keys[-1] if rows.more else part[-1]
        self._ahead = self._ahead[bisect.bisect_right(self._ahead, self._after) :]
        return rows.records
