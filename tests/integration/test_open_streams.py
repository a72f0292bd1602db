"""Streams that are opened and left to stand keep no other call out (a real router and shards)."""

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from threading import Event
from typing import Any

import grpc
import pytest

from chroma_router.v1 import (
    catalog_pb2,
    catalog_pb2_grpc,
    records_pb2,
    records_pb2_grpc,
    types_pb2,
)
from chroma_router.wire.errors import Overloaded, Reason
from chroma_router.wire.status import from_rpc_error
from router.service.gates import MAX_OPEN_STREAMS
from tests.support.cluster import RunningCluster, running_cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

MIB = 1 << 20
OPTIONS = [
    ("grpc.max_send_message_length", 64 * MIB),
    ("grpc.use_local_subchannel_pool", 1),  # a connection for each channel
]


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A router that works on no more than 64 MiB of requests."""
    env = {"CHROMA_ROUTER_REQUEST_BYTES": str(64 * MIB)}
    with running_cluster(tmp_path_factory.mktemp("streams") / "data", 1, env) as running:
        yield running


def collection(channel: grpc.Channel) -> types_pb2.CollectionRef:
    catalog = catalog_pb2_grpc.CatalogServiceStub(channel)
    made = catalog.CreateCollection(catalog_pb2.CreateCollectionRequest(name="open-streams"))
    return types_pb2.CollectionRef(id=made.collection.id)


def upsert(ref: types_pb2.CollectionRef, name: str, number: int, size: int) -> Any:
    """Records with documents of so many bytes."""
    records = [
        types_pb2.Record(id=f"{name}-{n}", embedding=struct.pack("<2f", n, 1), document="x" * size)
        for n in range(number)
    ]
    return records_pb2.UpsertRequest(collection=ref, records=records)


def refusal(call: Any) -> Overloaded:
    """The error of a stream that is refused."""
    with pytest.raises(grpc.RpcError) as refused:
        next(call)
    error = from_rpc_error(refused.value)
    assert isinstance(error, Overloaded), error
    assert error.reason is Reason.QUEUE_FULL
    assert error.retry_after, "has a RetryInfo"
    assert error.metadata["trace_id"]
    return error


def test_idle_bulk_upserts_keep_no_other_call_out(small: RunningCluster) -> None:
    with ExitStack() as held:
        idle, other = (
            held.enter_context(grpc.insecure_channel(small.address, OPTIONS)) for _ in range(2)
        )
        ref = collection(other)
        calls = idle.stream_stream(
            "/chroma_router.v1.RecordService/BulkUpsert",
            request_serializer=records_pb2.BulkUpsertRequest.SerializeToString,
            response_deserializer=records_pb2.BulkUpsertResponse.FromString,
        )
        ended = Event()
        held.callback(ended.set)

        def nothing() -> Iterator[Any]:
            ended.wait()
            yield from ()

        streams = [calls(nothing()) for _ in range(MAX_OPEN_STREAMS // 2)]
        held.callback(lambda: [stream.cancel() for stream in streams])
        # One connection's streams begin in their order: when this is refused, those are open.
        assert "this connection holds" in refusal(calls(nothing())).message
        records = records_pb2_grpc.RecordServiceStub(other)
        records.Upsert(upsert(ref, "a", 3, 10), timeout=30)
        assert records.Count(records_pb2.CountRequest(collection=ref), timeout=30).count == 3
        batch = records_pb2.BulkUpsertRequest(
            collection=ref, records=upsert(ref, "b", 2, 1).records
        )
        (answer,) = records.BulkUpsert(iter([batch]), timeout=30)
        assert not answer.HasField("error"), "another connection has its streams too"
        same = records_pb2_grpc.RecordServiceStub(idle)
        assert same.Count(records_pb2.CountRequest(collection=ref), timeout=30).count == 5


def test_scans_that_are_never_read_keep_no_write_out(small: RunningCluster) -> None:
    with ExitStack() as held:
        writer, *channels = (
            held.enter_context(grpc.insecure_channel(small.address, OPTIONS)) for _ in range(4)
        )
        ref = collection(writer)
        records = records_pb2_grpc.RecordServiceStub(writer)
        for part in range(3):
            records.Upsert(upsert(ref, f"big{part}", 50, 200_000), timeout=60)
        # 25 MiB of ids, of which 150 are there: 30 MB of documents, more than a window takes.
        ids = [f"big{part}-{n}" for part in range(3) for n in range(50)]
        ids += [f"{n:0500}" for n in range(52_000)]
        request = records_pb2.ScanRequest(
            collection=ref,
            filter=types_pb2.Filter(ids=ids, by_ids=True),
            include=[types_pb2.INCLUDE_DOCUMENTS],
        )
        stubs = [records_pb2_grpc.RecordServiceStub(channel) for channel in channels]
        for stub in stubs[:2]:
            scan = stub.Scan(request)
            held.callback(scan.cancel)
            scan.initial_metadata()  # it is open, and holds its filter
        assert "this connection holds" in refusal(stubs[0].Scan(request)).message
        assert "the router holds" in refusal(stubs[2].Scan(request)).message
        for part in range(3):
            records.Upsert(upsert(ref, f"more{part}", 40, 500_000), timeout=60)
        whole = records_pb2.ScanRequest(collection=ref)
        assert sum(len(page.records) for page in stubs[2].Scan(whole, timeout=60)) == 270
