"""What the reference says of errors, held against a running cluster over raw gRPC."""

import uuid
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2

from chroma_router.v1 import catalog_pb2 as catalog
from chroma_router.v1 import catalog_pb2_grpc, records_pb2_grpc
from chroma_router.v1 import records_pb2 as records
from chroma_router.v1 import types_pb2 as types
from chroma_router.wire.errors import Reason
from chroma_router.wire.status import from_rpc_error
from tests.support.cluster import RunningCluster
from tools.gen_reference import PACKAGE, PUBLIC, Reference, parsed_contract

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

CONTRACT = parsed_contract()
REFERENCE = Reference(CONTRACT)
UNARY = [
    f"{service.name}.{method.name}"
    for name in PUBLIC
    for service in CONTRACT[name].proto.service
    for method in service.method
    if not (method.client_streaming or method.server_streaming)
]

NAME = "reference-tests"
HERE, NOWHERE = types.CollectionRef(name=NAME), types.CollectionRef(name="no-such-collection")
ROW, LONG_ROW = bytes(8), bytes(12)
ONE = types.Record(id="one", embedding=ROW)
LONG = types.Record(id="long", embedding=LONG_ROW)
TWICE = types.Filter(ids=["one", "one"], by_ids=True)
USED_LONG_AGO = "00000000-0000-7000-8000-000000000000"
"""A UUID of version 7 of the year 1970."""


@pytest.fixture(scope="module")
def channel(cluster: RunningCluster) -> Iterator[grpc.Channel]:
    """To the shared cluster, with one collection that holds one record of dimension 2."""
    with grpc.insecure_channel(cluster.address) as open_channel:
        collections = catalog_pb2_grpc.CatalogServiceStub(open_channel)
        collections.CreateCollection(catalog.CreateCollectionRequest(name=NAME), timeout=30)
        records_pb2_grpc.RecordServiceStub(open_channel).Add(
            records.AddRequest(collection=HERE, records=[ONE]), timeout=30
        )
        yield open_channel
        collections.DeleteCollection(catalog.DeleteCollectionRequest(collection=HERE), timeout=30)


def refusal(channel: grpc.Channel, call: str, request: bytes) -> tuple[str, Reason]:
    """Status and reason with which a call of these bytes fails."""
    service, _, method = call.partition(".")
    path = f"/{PACKAGE.replace('/', '.')}.{service}/{method}"
    ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
    with pytest.raises(grpc.RpcError) as failed:
        ask(request, timeout=30)
    error = from_rpc_error(failed.value)
    return code_pb2.Code.Name(error.code), error.reason


@pytest.mark.parametrize("call", UNARY)
def test_every_call_refuses_what_is_no_message(channel: grpc.Channel, call: str) -> None:
    status, reason = refusal(channel, call, b"\xff")
    assert reason in REFERENCE.every_call[status]


@pytest.mark.parametrize(
    ("call", "request_", "reason"),
    [
        (
            "RecordService.Add",
            records.AddRequest(collection=NOWHERE, records=[ONE]),
            "COLLECTION_NOT_FOUND",
        ),
        (
            "RecordService.Add",
            records.AddRequest(collection=HERE, records=[LONG]),
            "DIMENSION_MISMATCH",
        ),
        (
            "RecordService.Upsert",
            records.UpsertRequest(collection=HERE, records=[ONE, ONE]),
            "DUPLICATE_IDS",
        ),
        (
            "RecordService.Update",
            records.UpdateRequest(collection=HERE, records=[ONE], request_id=USED_LONG_AGO),
            "UNKNOWN_OUTCOME",
        ),
        (
            "RecordService.Upsert",
            records.UpsertRequest(
                collection=HERE, records=[types.Record(id=str(i)) for i in range(5_462)]
            ),
            "BATCH_TOO_LARGE",
        ),
        (
            "RecordService.Delete",
            records.DeleteRequest(collection=HERE, filter=TWICE),
            "DUPLICATE_IDS",
        ),
        (
            "RecordService.Delete",
            records.DeleteRequest(
                collection=HERE,
                filter=types.Filter(ids=["one"], by_ids=True),
                request_id=USED_LONG_AGO,
            ),
            "UNKNOWN_OUTCOME",
        ),
        ("RecordService.Get", records.GetRequest(collection=HERE, filter=TWICE), "DUPLICATE_IDS"),
        ("RecordService.Get", records.GetRequest(collection=NOWHERE), "COLLECTION_NOT_FOUND"),
        (
            "RecordService.Query",
            records.QueryRequest(collection=HERE, embeddings=[LONG_ROW], n_results=1),
            "DIMENSION_MISMATCH",
        ),
        (
            "RecordService.Query",
            records.QueryRequest(collection=HERE, embeddings=[ROW], n_results=1, filter=TWICE),
            "DUPLICATE_IDS",
        ),
        ("RecordService.Count", records.CountRequest(collection=NOWHERE), "COLLECTION_NOT_FOUND"),
        (
            "CatalogService.CreateTenant",
            catalog.CreateTenantRequest(name="default_tenant"),
            "TENANT_EXISTS",
        ),
        (
            "CatalogService.GetTenant",
            catalog.GetTenantRequest(name="no-such-tenant"),
            "TENANT_NOT_FOUND",
        ),
        (
            "CatalogService.CreateDatabase",
            catalog.CreateDatabaseRequest(name="default_database"),
            "DATABASE_EXISTS",
        ),
        (
            "CatalogService.CreateDatabase",
            catalog.CreateDatabaseRequest(name="some", tenant="none"),
            "TENANT_NOT_FOUND",
        ),
        (
            "CatalogService.GetDatabase",
            catalog.GetDatabaseRequest(name="none"),
            "DATABASE_NOT_FOUND",
        ),
        (
            "CatalogService.DeleteDatabase",
            catalog.DeleteDatabaseRequest(name="none"),
            "DATABASE_NOT_FOUND",
        ),
        (
            "CatalogService.CreateCollection",
            catalog.CreateCollectionRequest(name=NAME),
            "COLLECTION_EXISTS",
        ),
        (
            "CatalogService.CreateCollection",
            catalog.CreateCollectionRequest(name=NAME, database="none"),
            "DATABASE_NOT_FOUND",
        ),
        (
            "CatalogService.GetCollection",
            catalog.GetCollectionRequest(collection=NOWHERE),
            "COLLECTION_NOT_FOUND",
        ),
        (
            "CatalogService.UpdateCollection",
            catalog.UpdateCollectionRequest(collection=NOWHERE),
            "COLLECTION_NOT_FOUND",
        ),
        (
            "CatalogService.DeleteCollection",
            catalog.DeleteCollectionRequest(
                collection=types.CollectionRef(id=str(uuid.UUID(int=1)))
            ),
            "COLLECTION_NOT_FOUND",
        ),
    ],
)
def test_a_call_fails_as_its_comment_states(
    channel: grpc.Channel, call: str, request_: Message, reason: str
) -> None:
    status, found = refusal(channel, call, request_.SerializeToString())
    assert found == reason
    assert found in REFERENCE.errors[call][status]
