"""One shard node as the router sees it: a channel, the handshake, and calls with deadlines.

Owns the gRPC channel. It translates every failed call into the error tree, naming the shard, and
never decides what to do about it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from chroma_router.v1 import shard_pb2, shard_pb2_grpc
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    NotAllowed,
    Overloaded,
    Reason,
    Unavailable,
)
from chroma_router.wire.status import carries_details, from_rpc_error
from chroma_router.wire.version import PROTOCOL_VERSION, VERSION
from router.core.sequence import SequenceClock
from router.shard_moves import ShardMoves

MAX_MESSAGE_BYTES = 64 << 20
"""The largest message between router and node, and between router and client."""

HELLO_TIMEOUT = 5.0
"""Seconds for the handshake: a node answers it without its engine."""

STATS_TIMEOUT = 2.0
"""Seconds for a node's statistics, as documented in cluster.proto."""

# A node restarts within a second or so: reconnect quickly. A connection on which nothing comes back
# (a host that vanished) is given up after the ping's timeout, so that no call hangs on it.
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
)

_Response = TypeVar("_Response", bound=Message)


class ShardClient:
    """The calls of ShardService to one node, with the handshake that must come first."""

    def __init__(self, name: str, address: str, cluster_id: str, clock: SequenceClock) -> None:
        self.name = name
        self.address = address
        self._cluster_id = cluster_id
        self._clock = clock
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = shard_pb2_grpc.ShardServiceStub(self._channel)
        self.moves = ShardMoves(self._stub, self._call)
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False

    async def close(self, grace: float = 0.0) -> None:
        """Takes no more calls, and ends the channel when those under way have ended; those that
        have not within `grace` seconds fail as Unavailable. So do later ones."""
        self._closing = True
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._idle.wait()
        finally:
            await self._channel.close()

    async def hello(self) -> str:
        """Agrees on cluster and protocol with the node; returns its boot id.

        Raises NotAllowed when the node belongs elsewhere or speaks another protocol.
        """
        request = shard_pb2.HelloRequest(
            cluster_id=self._cluster_id,
            shard=self.name,
            protocol_version=PROTOCOL_VERSION,
            router_version=VERSION,
        )
        answer = await self._call(self._stub.Hello, request, HELLO_TIMEOUT)
        if answer.protocol_version != PROTOCOL_VERSION:
            raise NotAllowed(
                f"shard {self.name} at {self.address} speaks protocol {answer.protocol_version}, "
                f"this router {PROTOCOL_VERSION}; run the same version of chroma-router on both",
                Reason.PROTOCOL_MISMATCH,
            )
        self._clock.witness(answer.high_sequence)
        return answer.boot_id

    async def set_ownership(
        self, request: shard_pb2.SetOwnershipRequest, timeout: float
    ) -> shard_pb2.SetOwnershipResponse:
        """Tells the node what it owns of one collection."""
        answer = await self._call(self._stub.SetOwnership, request, timeout)
        self._clock.witness(answer.high_sequence)
        return answer

    async def drop(self, collection_id: str, epoch: int, timeout: float) -> None:
        """Drops a collection on the node for good."""
        request = shard_pb2.DropCollectionRequest(collection_id=collection_id, epoch=epoch)
        await self._call(self._stub.DropCollection, request, timeout)

    async def apply(
        self, operations: list[shard_pb2.Operation], timeout: float
    ) -> shard_pb2.ApplyResponse:
        """Applies a group of operations in their order."""
        request = shard_pb2.ApplyRequest(operations=operations)
        return await self._call(self._stub.Apply, request, timeout)

    async def query(
        self, request: shard_pb2.ShardQueryRequest, timeout: float
    ) -> shard_pb2.ShardQueryResponse:
        """Finds the nearest owned records."""
        return await self._call(self._stub.ShardQuery, request, timeout)

    async def get(
        self, request: shard_pb2.ShardGetRequest, timeout: float
    ) -> shard_pb2.ShardGetResponse:
        """Reads owned records in order."""
        return await self._call(self._stub.ShardGet, request, timeout)

    async def count(
        self, request: shard_pb2.ShardCountRequest, timeout: float
    ) -> shard_pb2.ShardCountResponse:
        """Counts owned records."""
        return await self._call(self._stub.ShardCount, request, timeout)

    async def stats(self) -> shard_pb2.GetShardStatsResponse:
        """Tells how the node is, within STATS_TIMEOUT."""
        return await self._call(
            self._stub.GetShardStats, shard_pb2.GetShardStatsRequest(), STATS_TIMEOUT
        )

    async def holdings(self, timeout: float) -> AsyncIterator[shard_pb2.ListHoldingsResponse]:
        """Tells which collections the node holds, one after another."""
        with self._under_way():
            async for holding in self._stub.ListHoldings(
                shard_pb2.ListHoldingsRequest(), timeout=timeout
            ):
                yield holding

    async def slot_counts(self, timeout: float) -> list[shard_pb2.ListSlotCountsResponse]:
        """How many records each slot of each collection has on the node, owned or not."""
        request = shard_pb2.ListSlotCountsRequest()
        with self._under_way():
            return [counts async for counts in self._stub.ListSlotCounts(request, timeout=timeout)]

    async def _call(
        self,
        method: Callable[..., Awaitable[_Response]],
        request: Message,
        timeout: float,
    ) -> _Response:
        with self._under_way():
            return await method(request, timeout=timeout)

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[None]:
        """Around each call: it is waited for when the channel is closed; its error translated."""
        if self._closing:
            raise self._closed()
        self._calls += 1
        self._idle.clear()
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from None
        except asyncio.CancelledError:
            if self._was_cut_off():
                raise self._closed() from None
            raise
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    def _was_cut_off(self) -> bool:
        """Whether the call under way ends because its channel was closed, and gRPC cancels it: it
        looks as if its task had been cancelled, which nobody has done."""
        task = asyncio.current_task()
        return self._closing and task is not None and not task.cancelling()

    def _closed(self) -> Unavailable:
        return Unavailable(
            f"shard {self.name} is no longer reached at {self.address}; repeat the request",
            metadata={"shard": self.name},
            retry_after=0.1,
        )

    def _translated(self, error: grpc.aio.AioRpcError) -> ClusterError:
        found = from_rpc_error(error)
        if isinstance(found, Unavailable) and found.retry_after is None:
            found.message = (
                f"shard {self.name} at {self.address} does not answer ({found.message}); "
                "it is being reconnected, repeat the request"
            )
            found.retry_after = 1.0
        elif isinstance(found, DeadlineExpired) and not carries_details(error):
            found.message = (
                f"shard {self.name} at {self.address} did not answer within the deadline; give the "
                "call more time"
            )
        elif isinstance(found, Overloaded) and not carries_details(error):
            found = Overloaded(
                f"shard {self.name}: a message passed the limit of {MAX_MESSAGE_BYTES >> 20} MiB "
                f"({found.message}); ask for less at once, or write smaller batches",
                Reason.ANSWER_TOO_LARGE,
            )
        found.metadata["shard"] = self.name
        return found
