"""A command's connection to a router: a channel, the stubs, calls with deadlines."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from chroma_router.address import parse_address
from chroma_router.v1 import (
    catalog_pb2_grpc,
    cluster_pb2_grpc,
    records_pb2,
    records_pb2_grpc,
    types_pb2,
    views_pb2,
)
from chroma_router.wire.errors import Unavailable
from chroma_router.wire.status import carries_details, from_rpc_error
from router.cli.command import usage

_MAX_MESSAGE_BYTES = 64 << 20

MAX_BATCH_BYTES = 8 << 20
"""Where a command cuts records into writes: a batch has about so many bytes, or one record."""

CALL_TIMEOUT = 30.0
"""Seconds for a call that an operator waits for."""

_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A command talks to its own router, not to what a proxy for the web thinks of it.
    ("grpc.enable_http_proxy", 0),
    # Every repeat is decided here, by status code.
    ("grpc.enable_retries", 0),
)

_Response = TypeVar("_Response", bound=Message)


class RouterLink:
    """The services of one router. `async with RouterLink(address) as link`."""

    def __init__(self, address: str) -> None:
        try:
            target = parse_address(address, 50051)
        except ValueError as error:
            usage(f"--router: {error}")
        if target.secure:
            usage("--router: TLS is not supported yet; use HOST:PORT")
        self.address = address
        self._channel = grpc.aio.insecure_channel(target.target, options=_OPTIONS)
        self.records = records_pb2_grpc.RecordServiceStub(self._channel)
        self.catalog = catalog_pb2_grpc.CatalogServiceStub(self._channel)
        # Records that are serialized already are sent as they are: the view has their layout.
        self.add_view = self._channel.unary_unary(
            "/chroma_router.v1.RecordService/Add",
            request_serializer=views_pb2.WriteRequestView.SerializeToString,
            response_deserializer=records_pb2.AddResponse.FromString,
        )
        self.upsert_view = self._channel.unary_unary(
            "/chroma_router.v1.RecordService/Upsert",
            request_serializer=views_pb2.WriteRequestView.SerializeToString,
            response_deserializer=records_pb2.UpsertResponse.FromString,
        )
        self.cluster = cluster_pb2_grpc.ClusterServiceStub(self._channel)

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel itself, for services that are not ours."""
        return self._channel

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._channel.close()

    async def call(
        self,
        method: Callable[..., grpc.aio.UnaryUnaryCall[Any, _Response]],
        request: Message,
        timeout: float = CALL_TIMEOUT,
    ) -> _Response:
        """One call. Raises ClusterError; Unavailable when there is no router at the address."""
        try:
            return await method(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            found = from_rpc_error(error)
            if isinstance(found, Unavailable) and not carries_details(error):
                found.message = (
                    f"no router answers at {self.address} ({found.message}); start one with "
                    "`chroma-router up`, or name it with --router HOST:PORT"
                )
            raise found from None


def collection_ref(name: str, tenant: str, database: str) -> types_pb2.CollectionRef:
    """The reference of a collection by its name."""
    return types_pb2.CollectionRef(tenant=tenant, database=database, name=name)
