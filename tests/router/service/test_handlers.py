"""How a call is wrapped, over a real server: deadline, errors and their details, defects."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from chroma_router.v1 import records_pb2, types_pb2
from chroma_router.wire.errors import (
    ClusterError,
    InternalFailure,
    InvalidRequest,
    Overloaded,
    Reason,
    Unavailable,
    detail_of,
)
from chroma_router.wire.status import from_rpc_error
from router.service.handlers import ANSWER_MARGIN, Gate, unary
from router.write_path import MAX_REPORTED_BYTES

pytestmark = pytest.mark.timeout(10)

Call = Callable[..., Awaitable[bytes]]
DEFAULT_TIMEOUT = 40.0


@asynccontextmanager
async def serving(
    handler: Callable[[Any, float], Awaitable[records_pb2.CountResponse]],
) -> AsyncIterator[Call]:
    """A server of one method; the call to it takes and gives bytes."""
    server = grpc.aio.server()
    method = unary(handler, records_pb2.CountRequest.FromString, DEFAULT_TIMEOUT, Gate(1 << 20))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Service", {"Count": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_unary("/test.Service/Count")
            yield call
    finally:
        await server.stop(None)


async def failing(error: BaseException) -> tuple[ClusterError, grpc.aio.AioRpcError]:
    """What a client gets when the handler raises this."""

    async def handler(_request: Any, _deadline: float) -> records_pb2.CountResponse:
        raise error

    async with serving(handler) as call:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(b"", timeout=5)
    return from_rpc_error(failed.value), failed.value


async def test_the_message_and_its_answer() -> None:
    async def handler(
        request: records_pb2.CountRequest, _deadline: float
    ) -> records_pb2.CountResponse:
        return records_pb2.CountResponse(count=len(request.collection.id))

    async with serving(handler) as call:
        request = records_pb2.CountRequest(collection={"id": "abc"})
        answer = await call(request.SerializeToString(), timeout=5)
    assert records_pb2.CountResponse.FromString(answer).count == 3


@pytest.mark.parametrize(
    ("timeout", "seconds", "margin"),
    [(8.0, 8.0, ANSWER_MARGIN), (1.0, 1.0, 0.1), (None, DEFAULT_TIMEOUT, ANSWER_MARGIN)],
)
async def test_the_handler_has_the_clients_time_less_a_margin(
    timeout: float | None, seconds: float, margin: float
) -> None:
    given: list[float] = []

    async def handler(_request: Any, deadline: float) -> records_pb2.CountResponse:
        given.append(deadline - time.monotonic())
        return records_pb2.CountResponse()

    async with serving(handler) as call:
        began = time.monotonic()
        await call(b"", timeout=timeout)
        spent = time.monotonic() - began
    assert seconds - margin - spent - 0.01 <= given[0] <= seconds - margin + 0.01


async def test_within_the_margin_an_error_reaches_the_client_before_it_gives_up() -> None:
    async def handler(_request: Any, deadline: float) -> records_pb2.CountResponse:
        await asyncio.sleep(deadline - time.monotonic())
        raise Unavailable("too late", retry_after=1.0)

    async with serving(handler) as call:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(b"", timeout=1.0)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x0a\x05ab", b"\x0a\x03\x1a\x01\xff"])
async def test_bytes_that_are_no_message_are_the_clients_fault(data: bytes) -> None:
    async def handler(_request: Any, _deadline: float) -> records_pb2.CountResponse:
        raise AssertionError("not reached")

    async with serving(handler) as call:
        with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(data, timeout=5)
    error = from_rpc_error(failed.value)
    assert isinstance(error, InvalidRequest)
    assert "not a message" in error.message
    assert not logs


async def test_a_defect_is_logged_here_and_told_without_its_inside() -> None:
    with capture_logs() as logs:
        error, rpc = await failing(RuntimeError("secret: /etc/passwd"))
    assert isinstance(error, InternalFailure)
    assert error.reason is Reason.INTERNAL
    assert rpc.code() is grpc.StatusCode.INTERNAL
    everything = f"{rpc.details()} {rpc.trailing_metadata()} {rpc.debug_error_string()}"
    for inside in ("secret", "RuntimeError", "Traceback", "test_handlers"):
        assert inside not in everything
    (entry,) = logs
    assert entry["event"] == "defect"
    assert entry["log_level"] == "error"
    assert "failing.<locals>.handler" in entry["method"]


async def test_details_travel_in_the_trailers() -> None:
    outcome = types_pb2.WriteOutcome(request_id="r", applied_shards=["shard-1"], unknown_ids=["a"])
    sent = Overloaded("full", metadata={"shard": "shard-2"}, retry_after=1.5, details=[outcome])
    error, rpc = await failing(sent)
    assert rpc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert rpc.details() == error.message == "full"
    assert isinstance(error, Overloaded)
    assert error.reason is Reason.QUEUE_FULL
    assert error.metadata == {"shard": "shard-2"}
    assert error.retry_after == 1.5
    assert detail_of(error, types_pb2.WriteOutcome) == outcome


async def test_the_largest_outcome_fits_the_headers_of_a_client_with_default_settings() -> None:
    ids = ["é" * 32] * (MAX_REPORTED_BYTES // 64)
    shards = [f"shard-{n}" for n in range(16)]
    outcome = types_pb2.WriteOutcome(
        request_id="r" * 128, refused_shards=shards, unknown_shards=shards,
        refused_ids=ids, unknown_ids=ids,
    )  # fmt: skip
    message = "the shard did not say in time what became of the write " + ", ".join(shards * 2)
    error, _ = await failing(Unavailable(message, retry_after=1.0, details=[outcome]))
    assert detail_of(error, types_pb2.WriteOutcome) == outcome


async def test_a_client_that_goes_away_cancels_the_handler() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(_request: Any, _deadline: float) -> records_pb2.CountResponse:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    async with serving(handler) as call:
        with capture_logs() as logs:
            running: Any = call(b"", timeout=5)
            await begun.wait()
            running.cancel()
            await cancelled.wait()
    assert not logs, "no defect"
