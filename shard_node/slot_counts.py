"""How many records each slot has, and about how large they are: what a planner wants to know.

It owns the estimates of an incarnation, each made from a page of records and kept for a while.
"""

import time

from chroma_router.v1 import shard_pb2
from shard_node.holdings import Holding, Holdings
from shard_node.move_stream import EVERYTHING, ITEM_BYTES
from shard_node.reads import Reads
from shard_node.record_index import RecordIndex

_SAMPLED = 50
_KEPT_SECONDS = 60.0


class SlotCounts:
    """Answers ListSlotCounts, collection by collection."""

    def __init__(self, holdings: Holdings, index: RecordIndex, reads: Reads) -> None:
        self._holdings, self._index, self._reads = holdings, index, reads
        self._record_bytes: dict[str, tuple[float, int]] = {}  # until when, and how many

    async def read(self, collection_id: str) -> shard_pb2.ListSlotCountsResponse | None:
        """See the contract; None if the collection was dropped meanwhile."""
        holding = self._holdings.live.get(collection_id)
        if holding is None:
            return None
        return shard_pb2.ListSlotCountsResponse(
            collection_id=collection_id,
            epoch=holding.row.epoch,
            counts=holding.counts,
            record_bytes=await self._bytes_of_one(holding),
        )

    async def _bytes_of_one(self, holding: Holding) -> int:
        """Of the mean record; 0 for a collection that is empty, or not loaded yet."""
        if holding.grant is None or not holding.total:  # else the read would load it
            return 0
        until, size = self._record_bytes.get(holding.row.id, (0.0, 0))
        if time.monotonic() < until:
            return size
        keys = await self._index.page(holding.row.number, None, _SAMPLED, None, "slot")
        records = await self._reads.contents(holding, [i for _, i in keys], EVERYTHING)
        if records:
            size = sum(map(len, records.values())) // len(records) + ITEM_BYTES
            self._record_bytes[holding.row.id] = (time.monotonic() + _KEPT_SECONDS, size)
        return size
