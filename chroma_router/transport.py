"""The client's end of the wire: one gRPC channel, deadlines, repeats. It knows no operation.

One channel carries every call of a System and is shared by all threads. It belongs to a process: a
forked child opens its own at its first call, with connections of its own, and leaves the inherited
one alone (closing it would speak on the parent's connection). forking.py sees to it that no call is
in flight at a fork, which is all that gRPC then needs.
"""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message

from chroma_router.errors import BatchSizeExceededError, RouterError, exception_for
from chroma_router.forking import GATE
from chroma_router.requests import Call, Method, Operation
from chroma_router.retry import Failure, RetryPolicy, pause_before_repeat
from chroma_router.v1 import catalog_pb2_grpc, cluster_pb2_grpc, records_pb2_grpc
from chroma_router.wire.errors import ClusterError
from chroma_router.wire.request_id import RANDOM_BYTES, new_request_id
from chroma_router.wire.status import from_rpc_error
from chroma_router.wire.version import VERSION

R = TypeVar("R")

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024

CHANNEL_OPTIONS: Final = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A peer that vanished without a word (a pulled cable, a dropped NAT entry) is noticed 40 s
    # into a call that waits for it, and not only at the call's deadline. Idle connections are not
    # pinged: a server counts such pings as abuse, and an application at rest should be at rest.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # gRPC waits 1 s after a refused connection, then up to 2 min, and meanwhile fails every call at
    # once. The pauses between our own repeats only help if it dials as often as we ask.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # gRPC keeps connections by address, for all channels of a process. A forked child must not find
    # those of its parent there.
    ("grpc.use_local_subchannel_pool", 1),
    # Repeats are decided in retry.py alone, not by what a DNS record may say.
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.primary_user_agent", f"chroma-router-python/{VERSION}"),
)

_STATUS_DETAILS_KEY = "grpc-status-details-bin"

STUBS: Final[dict[str, Callable[[Any], Any]]] = {
    "RecordService": records_pb2_grpc.RecordServiceStub,
    "CatalogService": catalog_pb2_grpc.CatalogServiceStub,
    "ClusterService": cluster_pb2_grpc.ClusterServiceStub,
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to call and as whom. `credentials` None: without TLS."""

    target: str
    credentials: grpc.ChannelCredentials | None = None
    api_key: str | None = None

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        return () if self.api_key is None else (("authorization", f"Bearer {self.api_key}"),)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a logical call is, over all its repeats: one UUIDv7, which is its trace id too."""

    request_id: str

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits, as W3C trace context has them."""
        return self.request_id.replace("-", "")

    def metadata(self) -> tuple[str, str]:
        """The W3C header. Its flags are 00: we ask nobody to record this trace."""
        trace_id = self.trace_id
        return ("traceparent", f"00-{trace_id}-{trace_id[16:]}-00")


def new_identity() -> Identity:
    """The identity of a call that begins now."""
    return Identity(new_request_id(time.time_ns() // 1_000_000, os.urandom(RANDOM_BYTES)))


def call_metadata(
    call: Call, always: tuple[tuple[str, str], ...]
) -> tuple[Identity, tuple[tuple[str, str], ...]]:
    """Gives a call its identity: into a write's request, and into the metadata to send."""
    identity = new_identity()
    if call.method.write:
        call.request.request_id = identity.request_id  # type: ignore[attr-defined]
    return identity, (identity.metadata(), *always)


class _Link:
    """A channel of one process, and the callables of its stubs."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        stubs = {service: stub(channel) for service, stub in STUBS.items()}
        self._callables: dict[Method, Callable[..., Message]] = {}
        self._stubs = stubs

    def callable_of(self, method: Method) -> Callable[..., Message]:
        known = self._callables.get(method)
        if known is None:
            known = getattr(self._stubs[method.service], method.name)
            self._callables[method] = known
        return known


class Transport:
    """Drives operations over a channel, from any thread. `timeout` bounds one operation's call."""

    def __init__(self, endpoint: Endpoint, timeout: float, policy: RetryPolicy) -> None:
        self._endpoint = endpoint
        self._timeout = timeout
        self._policy = policy
        self._metadata = endpoint.metadata()
        # By process. No lock: at a fork another thread could hold it, for ever in the child.
        self._links: dict[int, _Link] = {}
        self._closed = False

    def open(self) -> None:
        """Allows calls again after close()."""
        self._closed = False

    def close(self) -> None:
        """Ends the calls in flight and refuses further ones. Idempotent."""
        self._closed = True
        link = self._links.pop(os.getpid(), None)
        if link is not None:
            with GATE.call():
                link.channel.close()

    def run(self, operation: Operation[R]) -> R:
        """Talks an operation through and gives its result. Raises RouterError."""
        try:
            call = next(operation)
            while True:
                call = operation.send(self._call(call))
        except StopIteration as done:
            result: R = done.value
            return result

    def _call(self, call: Call) -> Message:
        identity, metadata = call_metadata(call, self._metadata)
        deadline = time.monotonic() + self._timeout
        remaining = self._timeout
        attempt = 1
        while True:
            try:
                return self._send(call, remaining, metadata)
            except grpc.RpcError as rpc_error:
                error, failure = read_failure(rpc_error)
                remaining = deadline - time.monotonic()
                pause = pause_before_repeat(
                    self._policy, failure, call.method.repeat, attempt, remaining, random.random()
                )
                if pause is None:
                    raise final_exception(error, failure, call, identity) from rpc_error
            except ValueError:
                if self._closed:  # gRPC's word for a channel that close() took away
                    raise RouterError("the client is closed") from None
                raise
            time.sleep(pause)
            remaining = deadline - time.monotonic()
            attempt += 1

    def _send(self, call: Call, timeout: float, metadata: tuple[tuple[str, str], ...]) -> Message:
        with GATE.call():
            send = self._link().callable_of(call.method)
            try:
                return send(call.request, timeout=timeout, metadata=metadata)
            except grpc.RpcError as rpc_error:
                # Its frames would keep gRPC's call alive past the gate, for as long as anybody
                # keeps the exception; they say nothing that a reader needs.
                rpc_error.__traceback__ = None
                raise

    def _link(self) -> _Link:
        pid = os.getpid()
        link = self._links.get(pid)
        if link is not None:
            return link
        if self._closed:
            raise RouterError("the client is closed")
        mine = _Link(_open_channel(self._endpoint))
        link = self._links.setdefault(pid, mine)
        if link is not mine:  # another thread was first
            mine.channel.close()
        return link


def _open_channel(endpoint: Endpoint) -> grpc.Channel:
    if endpoint.credentials is None:
        return grpc.insecure_channel(endpoint.target, options=CHANNEL_OPTIONS)
    return grpc.secure_channel(endpoint.target, endpoint.credentials, options=CHANNEL_OPTIONS)


def read_failure(error: grpc.RpcError) -> tuple[ClusterError, Failure]:
    """What a failed try reports, for the exception and for the decision to repeat."""
    cluster_error = from_rpc_error(error)
    code: grpc.StatusCode = error.code()
    trailers: Any = error.trailing_metadata() or ()  # typed as opaque, is pairs
    told = any(key == _STATUS_DETAILS_KEY for key, _ in trailers)
    return cluster_error, Failure(code, cluster_error.reason, told, cluster_error.retry_after)


def final_exception(
    error: ClusterError, failure: Failure, call: Call, identity: Identity
) -> RouterError:
    """The exception for a call that is given up."""
    if failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED and not failure.told:
        size = call.request.ByteSize()
        if size > MAX_MESSAGE_BYTES:
            return BatchSizeExceededError(
                f"the request has {size} bytes, more than the {MAX_MESSAGE_BYTES} of one message; "
                "send fewer records at a time"
            )
    return exception_for(
        error,
        failure,
        request_id=identity.request_id,
        trace_id=identity.trace_id,
        write=call.method.write,
    )
