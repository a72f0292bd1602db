"""Reads of owned records in the order of (sequence, id) or (slot, id): ShardGet and ShardCount.

Where a filter needs the engine, the engine says which ids match; order, ownership and paging come
from `router_record`, which alone knows them. It never writes.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from chroma_router.v1 import shard_pb2, types_pb2
from chroma_router.wire.errors import InvalidRequest, Overloaded, Reason
from chroma_router.wire.records import record_to_bytes
from chroma_router.wire.slots import slot_of
from shard_node.engine import Contents, Engine
from shard_node.holdings import Grant, Holding, Holdings
from shard_node.record_index import Keep, Key, Order, RecordIndex
from shard_node.settings import MESSAGE_BYTES

MAX_LIMIT = 1_000_000
ANSWER_BYTES = MESSAGE_BYTES - (1 << 20)  # what an answer's fields may take of a message

_FIRST_CHUNK, _LARGEST_CHUNK = 64, 1000
_LARGEST_ROW_BYTES = MESSAGE_BYTES - 1024
_ROW_BYTES = 24  # of protobuf around one row, at most

_ORDERS: dict[int, Order] = {
    shard_pb2.ROW_ORDER_UNSPECIFIED: "sequence",
    shard_pb2.ROW_ORDER_SLOT: "slot",
}

_INCLUDES = {
    types_pb2.INCLUDE_DOCUMENTS: "documents",
    types_pb2.INCLUDE_METADATAS: "metadatas",
    types_pb2.INCLUDE_EMBEDDINGS: "embeddings",
    types_pb2.INCLUDE_URIS: "uris",
}


def included(wire: Sequence[types_pb2.Include]) -> list[str]:
    """The engine's names of the record parts to include."""
    return [name for value, name in _INCLUDES.items() if value in wire]


def pack_records(found: Contents) -> dict[str, bytes]:
    """Each record of an engine's answer as a serialized Record."""
    nothing: list[None] = [None] * len(found.ids)
    columns = zip(
        found.ids, found.embeddings or nothing, found.documents or nothing, found.uris or nothing,
        found.metadatas or nothing, strict=True,
    )  # fmt: skip
    return {row[0]: record_to_bytes(*row) for row in columns}


@dataclass(slots=True)
class _Page:
    """An answer as it grows, to its bounds. It takes at least one row."""

    limit: int
    max_bytes: int
    response: shard_pb2.ShardGetResponse = field(default_factory=shard_pb2.ShardGetResponse)
    rows: int = 0
    size: int = 0

    def take(self, key: Key, record: bytes | None) -> bool:
        """False if the row is past a bound: then there is more."""
        sequence, record_id = key
        size = len(record_id.encode()) + len(record or b"") + _ROW_BYTES
        if size > _LARGEST_ROW_BYTES:
            raise Overloaded(
                f"record {record_id[:100]!r} alone takes {size} bytes, more than an answer: include"
                " less",
                Reason.ANSWER_TOO_LARGE,
            )
        if self.rows == self.limit or (self.rows and self.size + size > self.max_bytes):
            self.response.more = True
            return False
        self.response.ids.append(record_id)
        self.response.sequences.append(sequence)
        if record is not None:
            self.response.records.append(record)
        self.rows += 1
        self.size += size
        return True

    def next_chunk(self) -> int:
        """How many records to ask the engine for, by the size of those so far."""
        if not self.rows:
            return _FIRST_CHUNK
        room = (self.max_bytes - self.size) * self.rows // self.size
        return max(1, min(_LARGEST_CHUNK, room + 1, self.limit - self.rows + 1))


class Reads:
    """ShardGet and ShardCount of one incarnation of the engine."""

    def __init__(self, engine: Engine, index: RecordIndex, holdings: Holdings) -> None:
        self._engine, self._index, self._holdings = engine, index, holdings

    def count(self, request: shard_pb2.ShardCountRequest) -> shard_pb2.ShardCountResponse:
        """How many owned records there are."""
        holding, grant = self._holdings.readable(request.collection_id, request.epoch)
        return shard_pb2.ShardCountResponse(count=holding.owned_records(grant))

    async def get(self, request: shard_pb2.ShardGetRequest) -> shard_pb2.ShardGetResponse:
        """See the contract."""
        holding, grant = self._holdings.readable(
            request.collection_id, request.epoch, request.filter
        )
        if not 1 <= request.limit <= MAX_LIMIT:
            raise InvalidRequest(f"a limit is 1 to {MAX_LIMIT}, got {request.limit}")
        if request.order not in _ORDERS:
            raise InvalidRequest(f"an order of rows is one of the contract's, got {request.order}")
        page = _Page(request.limit, min(request.max_bytes or ANSWER_BYTES, ANSWER_BYTES))
        if holding.owned_records(grant):
            await self._fill(page, request, holding, grant)
        if request.deleted_by:
            # After the records: of a delete that lands meanwhile, none counts as both still here
            # and yet to be deleted.
            known = await self._index.deleted_by(
                holding.row.number, request.deleted_by, grant.owned
            )
            page.response.deleted_before = known.deleted
            page.response.delete_complete = bool(known.slots) and grant.slots <= known.slots
        if self._holdings.granted(request.collection_id, request.epoch)[1] is not grant:
            raise self._holdings.stale(request.collection_id, request.epoch)
        page.response.owned_records = holding.owned_records(grant)
        return page.response

    async def matching(
        self, holding: Holding, grant: Grant, filter_: types_pb2.Filter
    ) -> list[str] | None:
        """Ids of all owned records that a filter chooses, unordered; None without a filter.

        Of ids that the filter names and no condition has looked at, some may not exist.
        """
        ids: list[str] | None = None
        if filter_.by_ids or filter_.ids:
            ids = [i for i in dict.fromkeys(filter_.ids) if grant.owned[slot_of(i)]]
        if filter_.where or filter_.where_document:
            ids = await self._engine.matching(
                holding.physical, ids, filter_.where, filter_.where_document
            )
            ids = [i for i in ids if grant.owned[slot_of(i)]]
        return ids

    async def contents(
        self, holding: Holding, ids: Sequence[str], include: Sequence[str]
    ) -> dict[str, bytes]:
        """Those of the records that exist, each serialized."""
        packed: dict[str, bytes] = {}
        for start in range(0, len(ids), _LARGEST_CHUNK):
            chunk = list(ids[start : start + _LARGEST_CHUNK])
            found = await self._engine.get(holding.physical, chunk, include=include)
            packed.update(await self._index.run(pack_records, found))
        return packed

    async def _fill(
        self, page: _Page, request: shard_pb2.ShardGetRequest, holding: Holding, grant: Grant
    ) -> None:
        include = included(request.include)
        async for keys in self._keys(page, request, holding, grant):
            at = 0
            while at < len(keys):
                chunk = keys[at : at + (len(keys) if request.keys_only else page.next_chunk())]
                at += len(chunk)
                if not await self._take(page, chunk, request, holding, include):
                    return

    async def _take(
        self,
        page: _Page,
        keys: Sequence[Key],
        request: shard_pb2.ShardGetRequest,
        holding: Holding,
        include: Sequence[str],
    ) -> bool:
        """Adds the records of `keys` that still exist and match; False when the page is full."""
        if request.keys_only:
            return all(page.take(key, None) for key in keys)
        packed = await self.contents(holding, [record_id for _, record_id in keys], include)
        return all(page.take(key, packed[key[1]]) for key in keys if key[1] in packed)

    async def _keys(
        self, page: _Page, request: shard_pb2.ShardGetRequest, holding: Holding, grant: Grant
    ) -> AsyncIterator[list[Key]]:
        """The keys to read, in order, in lists; one more than fits, so that `more` is exact."""
        after: Key | None = None
        if request.HasField("after"):
            after = (request.after.sequence, request.after.id)
        number, order = holding.row.number, _ORDERS[request.order]
        chosen = await self.matching(holding, grant, request.filter)
        if chosen is not None and not self._walk_is_cheaper(page, holding, len(chosen)):
            keys = await self._index.keys(number, chosen, order)
            yield sorted(key for key in keys if after is None or key > after)
            return
        keep = owned_only(holding, grant) if chosen is None else set(chosen).__contains__
        while True:
            most = ANSWER_BYTES // _ROW_BYTES if request.keys_only else _LARGEST_CHUNK * 5
            step = min(most, page.limit - page.rows + 1)
            keys = await self._index.page(number, after, step, keep, order)
            # Where all was owned a move may have brought others since (invariant 2).
            yield keys if keep is not None else [k for k in keys if grant.owned[slot_of(k[1])]]
            if len(keys) < step:
                return
            after = keys[-1]

    @staticmethod
    def _walk_is_cheaper(page: _Page, holding: Holding, chosen: int) -> bool:
        """To walk the index and stop when the page is full, than to look all keys up and sort."""
        need = page.limit + 1
        return need < chosen and need * holding.total <= 2 * chosen * chosen


def owned_only(holding: Holding, grant: Grant) -> Keep | None:
    """Which ids to keep; None when every record here is owned: then ownership costs nothing."""
    if holding.owned_records(grant) == holding.total:
        return None
    return owned_by(grant)


def owned_by(grant: Grant) -> Keep:
    """Whether an id is of an owned slot."""
    return lambda record_id: bool(grant.owned[slot_of(record_id)])
