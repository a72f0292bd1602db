"""The last check: the collection is read whole, and must be what the model says and no more."""

from collections import Counter
from collections.abc import AsyncIterator

import grpc
import numpy as np

from chroma_router.v1 import records_pb2, records_pb2_grpc, types_pb2
from chroma_router.wire.records import metadata_from_wire
from tests.elastic.answers import Fault, Finding, Row, judge_row, same
from tests.elastic.clients import Client
from tests.elastic.measure import Record
from tests.elastic.model import Model
from tests.elastic.shared import CELL, Shared

_INCLUDE = (
    types_pb2.INCLUDE_DOCUMENTS,
    types_pb2.INCLUDE_METADATAS,
    types_pb2.INCLUDE_EMBEDDINGS,
)
_PAGE = 5000
_SECONDS = 120.0
_CHANNEL_OPTIONS = (("grpc.max_receive_message_length", -1),)


async def check_whole(
    address: str, collection_id: str, client: Client, model: Model, shared: Shared, record: Record
) -> int:
    """Reads everything by a scan, all ids by pages, and the count, while nothing is written; what
    differs from the model is recorded. How many records there are."""
    await shared.read_all(client)
    ids: list[str] = []
    present = set()
    async for row in scanned(address, collection_id):
        ids.append(row.id)
        if row.metadata.get("cell") == CELL:
            shared.value_of(row.id, [row])
            present.add(row.id)
        else:
            record.found(_judged(row, model), "scan")
    record.found(_doubled(ids), "scan")
    record.found(_lost(set(ids), model), "scan")
    record.found(_shared(present, shared), "scan")
    paged = await _paged(client)
    record.found(_doubled(paged), "paged get")
    if set(paged) != set(ids):
        differ = sorted(set(paged) ^ set(ids))
        text = f"{len(differ)} ids differ from the scan's: {differ[:5]}"
        record.found([Finding(Fault.MISMATCH, text)], "paged get")
    count = await client.call("count", client.collection.count())
    if count != len(set(ids)):
        record.found([Finding(Fault.COUNT, f"count {count}, scanned {len(set(ids))}")], "count")
    return len(ids)


async def scanned(address: str, collection_id: str) -> AsyncIterator[Row]:
    """Every record of a collection. Raises grpc.RpcError."""
    async with grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS) as channel:
        request = records_pb2.ScanRequest(
            collection=types_pb2.CollectionRef(id=collection_id), include=_INCLUDE
        )
        stub = records_pb2_grpc.RecordServiceStub(channel)
        async for page in stub.Scan(request, timeout=_SECONDS):
            for record in page.records:
                yield Row(
                    record.id,
                    record.document if record.HasField("document") else None,
                    metadata_from_wire(record.metadata),
                    np.frombuffer(record.embedding, np.float32),
                )


async def _paged(client: Client) -> list[str]:
    ids: list[str] = []
    while True:
        getting = client.collection.get(limit=_PAGE, offset=len(ids), include=[])
        page = (await client.call("page", getting))["ids"]
        ids += page
        if len(page) < _PAGE:
            return ids


def _judged(row: Row, model: Model) -> list[Finding]:
    cell = model.cell_of(row.id)
    entry = None if cell is None else cell.entries.get(row.id)
    possible = [None] if entry is None else [entry.now, *entry.maybe]
    findings = judge_row(row, possible, model.vectors)
    if findings or cell is None or entry is None:
        return findings
    for content in possible:
        if content is not None and same(content, row, model.vectors):
            cell.saw(row.id, content)
            break
    return []


def _doubled(ids: list[str]) -> list[Finding]:
    return [
        Finding(Fault.DOUBLED, f"{record_id} came {times} times")
        for record_id, times in Counter(ids).items()
        if times > 1
    ]


def _lost(ids: set[str], model: Model) -> list[Finding]:
    return [
        Finding(Fault.LOST, f"{record_id} did not come; it holds {entry.now}")
        for record_id, entry in model.entries()
        if record_id not in ids and None not in [entry.now, *entry.maybe]
    ]


def _shared(present: set[str], shared: Shared) -> list[Finding]:
    unknown = present - set(shared.histories)
    return [Finding(Fault.RESURRECTED, f"{record_id} was never written") for record_id in unknown]
