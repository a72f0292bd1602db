"""Errors on the wire: to and from a google.rpc.Status and the trailing metadata of a call."""

from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from chroma_router.wire.errors import (
    CLASS_BY_CODE,
    ClusterError,
    InternalFailure,
    error_for,
    unpack,
)

DOMAIN = "chroma-router"

_NOTHING: Mapping[str, str] = {}
_DETAILS_KEY = "grpc-status-details-bin"
_STATUS_BY_CODE = {status.value[0]: status for status in grpc.StatusCode}


MAX_TEXT_BYTES = 1000
"""Bytes of an error's message, and of a metadata value: a status travels in HTTP/2 headers, of
which gRPC takes 8 KiB by default, and the message travels twice."""


def bounded(text: str) -> str:
    """A text cut to MAX_TEXT_BYTES of UTF-8."""
    data = text.encode("utf-8", "replace")
    if len(data) <= MAX_TEXT_BYTES:
        return text
    return data[: MAX_TEXT_BYTES - 3].decode("utf-8", "ignore") + "…"


def carries_details(error: grpc.RpcError) -> bool:
    """Whether a failed call's error was told by one of ours, and not by gRPC on the way."""
    call: Any = error
    return any(key == _DETAILS_KEY for key, _ in call.trailing_metadata() or ())


def grpc_status(error: ClusterError) -> grpc.StatusCode:
    """The gRPC status of an error's class."""
    return _STATUS_BY_CODE[error.code]


def to_status(error: ClusterError, also: Mapping[str, str] = _NOTHING) -> status_pb2.Status:
    """The google.rpc.Status that carries an error over the wire; `also` joins its metadata."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason.value,
        domain=DOMAIN,
        metadata={key: bounded(value) for key, value in {**error.metadata, **also}.items()},
    )
    messages: list[Message] = [info]
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        messages.append(error_details_pb2.RetryInfo(retry_delay=delay))
    messages.extend(error.details)
    status = status_pb2.Status(code=error.code, message=bounded(error.message))
    for message in messages:
        if isinstance(message, any_pb2.Any):  # received from elsewhere and passed on unopened
            status.details.add().CopyFrom(message)
        else:
            status.details.add().Pack(message)
    return status


def status_metadata(
    error: ClusterError, also: Mapping[str, str] = _NOTHING
) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata with which a server sends an error's details, as to_status."""
    return ((_DETAILS_KEY, to_status(error, also).SerializeToString()),)


def from_status(status: status_pb2.Status) -> ClusterError:
    """The error that a google.rpc.Status carries; details that are not ours are kept unopened."""
    reason: str | None = None
    metadata: dict[str, str] = {}
    retry_after: float | None = None
    others: list[Message] = []
    for detail in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if unpack(detail, info) and info.domain == DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif unpack(detail, retry):
            retry_after = retry.retry_delay.ToMilliseconds() / 1000
        else:
            others.append(detail)
    if reason is None:
        error = CLASS_BY_CODE.get(status.code, InternalFailure)(status.message, metadata=metadata)
    else:
        error = error_for(reason, status.message, metadata)
    error.retry_after = retry_after
    error.details = tuple(others)
    return error


def from_rpc_error(error: grpc.RpcError) -> ClusterError:
    """The error behind a failed call, synchronous or asyncio; transport failures included."""
    call: Any = error  # grpc's two kinds of failed calls share these methods, but no type
    for key, value in call.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
    code: grpc.StatusCode = call.code()
    kind = CLASS_BY_CODE.get(code.value[0], InternalFailure)
    return kind(call.details() or f"gRPC status {code.name}")
