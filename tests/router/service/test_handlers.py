"""How a call is wrapped, over a real server: deadline, errors and their details, defects."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from chroma_router.v1 import records_pb2, types_pb2, views_pb2
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    InternalFailure,
    InvalidRequest,
    Overloaded,
    Reason,
    Unavailable,
    detail_of,
)
from chroma_router.wire.request_id import time_of
from chroma_router.wire.status import from_rpc_error
from router.service.gates import Gate, StreamBounds
from router.service.handlers import ANSWER_MARGIN, Observer, server_stream, unary
from router.write_course import MAX_REPORTED_BYTES

pytestmark = pytest.mark.timeout(10)

Call = Callable[..., Awaitable[bytes]]
DEFAULT_TIMEOUT = 40.0


@asynccontextmanager
async def serving(
    handler: Callable[[Any, float], Awaitable[records_pb2.CountResponse]],
    parse: Callable[[bytes], Any] = records_pb2.CountRequest.FromString,
    observe: Observer | None = None,
) -> AsyncIterator[Call]:
    """A server of one method; the call to it takes and gives bytes."""
    server = grpc.aio.server()
    method = unary(handler, parse, DEFAULT_TIMEOUT, Gate(1 << 20), observe)
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


async def failing(
    error: BaseException, *headers: tuple[str, str]
) -> tuple[ClusterError, grpc.aio.AioRpcError]:
    """What a client that sends these headers gets when the handler raises this."""

    async def handler(_request: Any, _deadline: float) -> records_pb2.CountResponse:
        raise error

    async with serving(handler) as call:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(b"", timeout=5, metadata=headers)
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


@pytest.mark.parametrize("error", [None, Unavailable("away"), RuntimeError("a defect")])
async def test_whoever_observes_is_told_when_a_call_ended_and_how_long_it_took(
    error: Exception | None,
) -> None:
    seen: list[tuple[float, float]] = []

    async def handler(_request: Any, _deadline: float) -> records_pb2.CountResponse:
        await asyncio.sleep(0.05)
        if error is not None:
            raise error
        return records_pb2.CountResponse()

    async with serving(handler, observe=lambda now, seconds: seen.append((now, seconds))) as call:
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) if error else contextlib.nullcontext():
            await call(b"", timeout=5)
        ended = time.monotonic()
    ((now, seconds),) = seen
    assert began + 0.05 <= now <= ended
    assert 0.05 <= seconds <= now - began


async def test_a_call_that_its_client_gives_up_is_observed_too() -> None:
    seen: asyncio.Queue[float] = asyncio.Queue()
    begun = asyncio.Event()

    async def handler(_request: Any, _deadline: float) -> records_pb2.CountResponse:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError("not reached")

    async with serving(handler, observe=lambda _, seconds: seen.put_nowait(seconds)) as call:
        under_way = call(b"", timeout=5)
        await begun.wait()
        under_way.cancel()  # type: ignore[attr-defined]
        assert 0 <= await seen.get() < 5


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
    assert "secret" in str(entry["exc_info"])
    assert {key: entry[key] for key in ("request_id", "trace_id")} == error.metadata


async def test_details_travel_in_the_trailers() -> None:
    outcome = types_pb2.WriteOutcome(request_id="r", applied_shards=["shard-1"], unknown_ids=["a"])
    sent = Overloaded("full", metadata={"shard": "shard-2"}, retry_after=1.5, details=[outcome])
    error, rpc = await failing(sent)
    assert rpc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert rpc.details() == error.message == "full"
    assert isinstance(error, Overloaded)
    assert error.reason is Reason.QUEUE_FULL
    assert set(error.metadata) == {"shard", "request_id", "trace_id"}
    assert error.metadata["shard"] == "shard-2"
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


# ------------------------------------------------------------------------------------ ids


TRACE = "0af7651916cd43dd8448eb211c80319c"


async def test_an_error_carries_the_ids_of_the_headers() -> None:
    headers = (("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"), ("x-request-id", "mine"))
    error, _ = await failing(Unavailable("away"), *headers)
    assert error.metadata == {"trace_id": TRACE, "request_id": "mine"}


async def test_an_error_of_a_call_without_headers_has_new_ids() -> None:
    one, _ = await failing(Unavailable("away"))
    two, _ = await failing(Unavailable("away"))
    assert time_of(one.metadata["request_id"]) is not None
    assert one.metadata["trace_id"] == one.metadata["request_id"].replace("-", "")
    assert one.metadata["request_id"] != two.metadata["request_id"]


@pytest.mark.parametrize("given", ["", "a-request"])
async def test_a_write_and_its_error_have_one_request_id(given: str) -> None:
    seen: list[str] = []

    async def handler(
        request: views_pb2.WriteRequestView, _deadline: float
    ) -> records_pb2.CountResponse:
        seen.append(request.request_id)
        raise Unavailable("away")

    async with serving(handler, views_pb2.WriteRequestView.FromString) as call:
        request = views_pb2.WriteRequestView(request_id=given)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(request.SerializeToString(), timeout=5)
    error = from_rpc_error(failed.value)
    assert seen == [error.metadata["request_id"]]
    assert seen == [given] or (not given and time_of(seen[0]) is not None)


async def test_a_full_gate_and_bytes_that_are_no_message_have_ids_too() -> None:
    async with serving(lambda _r, _d: None) as call:  # type: ignore[arg-type, return-value]
        for data in (bytes(2 << 20), b"\xff\xff"):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call(data, timeout=5)
            assert set(from_rpc_error(failed.value).metadata) == {"request_id", "trace_id"}


# ------------------------------------------------------------------------------------ streams

PAGE = records_pb2.ScanResponse(cursor="x" * (1 << 20))


class Pages:
    """A handler that makes pages without end, or to its error, and tells how it is."""

    def __init__(self, pages: int = 1 << 30, error: BaseException | None = None) -> None:
        self.made = 0
        self.deadlines: list[float] = []
        self.ended = asyncio.Event()
        self._pages, self._error = pages, error

    async def scan(
        self, _request: Any, deadline: Callable[[], float]
    ) -> AsyncGenerator[records_pb2.ScanResponse, None]:
        try:
            while self.made < self._pages:
                self.deadlines.append(deadline() - time.monotonic())
                self.made += 1
                yield PAGE
            if self._error is not None:
                raise self._error
        finally:
            self.ended.set()


@dataclass
class Streaming:
    """A server of one stream, and what bounds it."""

    call: Any
    bounds: StreamBounds


@asynccontextmanager
async def streaming(
    pages: Pages, page_timeout: float = 40.0, patience: float = 40.0
) -> AsyncIterator[Streaming]:
    bounds = StreamBounds.of(64 << 20, page_timeout, asyncio.Event())
    bounds = replace(bounds, patience_seconds=patience)
    method = server_stream(pages.scan, records_pb2.ScanRequest.FromString, bounds)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Service", {"Scan": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Streaming(channel.unary_stream("/test.Service/Scan"), bounds)
    finally:
        await server.stop(None)


async def is_free(bounds: StreamBounds) -> bool:
    """Whether nothing is held any more; the test's timeout bounds the wait."""
    while True:
        if bounds.open.is_free and bounds.requests.is_free and bounds.pages.is_free:
            return True
        await asyncio.sleep(0)


async def read_all(stream: Any) -> tuple[int, ClusterError | None]:
    """How many pages came, and the error at the end."""
    number = 0
    try:
        async for _ in stream:
            number += 1
    except grpc.aio.AioRpcError as error:
        return number, from_rpc_error(error)
    return number, None


async def test_a_stream_brings_its_pages_and_ends() -> None:
    pages = Pages(5)
    async with streaming(pages) as running:
        assert await read_all(running.call(b"", timeout=5)) == (5, None)
        assert await is_free(running.bounds)


async def test_pages_come_before_the_error_that_ends_a_stream() -> None:
    async with streaming(Pages(2, Unavailable("away", retry_after=1.0))) as running:
        number, error = await read_all(running.call(b"", metadata=(("x-request-id", "mine"),)))
    assert number == 2
    assert isinstance(error, Unavailable)
    assert error.retry_after == 1.0
    assert error.metadata["request_id"] == "mine"


async def test_pages_are_made_as_fast_as_they_are_taken() -> None:
    pages = Pages()
    async with streaming(pages) as running:
        stream = running.call(b"")
        for taken in range(1, 40):
            await stream.read()
            assert pages.made <= taken + 24
        stream.cancel()
        await asyncio.wait_for(pages.ended.wait(), 5)
        assert await is_free(running.bounds)


async def test_a_client_that_takes_nothing_holds_what_its_window_has() -> None:
    """gRPC lets the window grow to some MiB; without a bound a second makes hundreds of pages."""
    pages = Pages()
    async with streaming(pages) as running:
        with capture_logs() as logs:
            stalled = running.call(b"", timeout=1.0)
            await asyncio.wait_for(pages.ended.wait(), 5)
        assert not logs, "no defect"
        assert pages.made <= 24
        assert await stalled.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await is_free(running.bounds)


async def test_a_stream_whose_pages_nobody_takes_lets_go_of_its_request() -> None:
    pages = Pages()
    async with streaming(pages, patience=0.3) as running:
        stalled = running.call(records_pb2.ScanRequest(cursor="x" * 1000).SerializeToString())
        await asyncio.wait_for(pages.ended.wait(), 5)
        while True:
            if running.bounds.requests.is_free:
                break
            await asyncio.sleep(0)
        assert not running.bounds.open.is_free, "gRPC still has it"
        assert not running.bounds.pages.is_free
        number, error = await read_all(stalled)
        assert number == pages.made, "what was sent can still be read"
        assert isinstance(error, DeadlineExpired)
        assert "go on from the cursor" in error.message
        assert await is_free(running.bounds)


async def test_a_stream_has_no_deadline_but_the_clients_and_each_page_has_its_own() -> None:
    pages = Pages(3)
    async with streaming(pages, page_timeout=2.0) as running:
        await read_all(running.call(b""))
        assert all(1.9 < seconds <= 2.0 for seconds in pages.deadlines)
        pages.made, pages.deadlines = 0, []
        await read_all(running.call(b"", timeout=1.0))
        assert all(0.4 < seconds <= 0.91 for seconds in pages.deadlines)


async def test_a_page_that_takes_too_long_is_no_deadline_of_the_client() -> None:
    late = DeadlineExpired("shard-2 said nothing", metadata={"shard": "shard-2"})
    async with streaming(Pages(1, late)) as running:
        _, error = await read_all(running.call(b"", timeout=30))
    assert isinstance(error, Unavailable)
    assert "shard-2 said nothing; go on from the cursor" in error.message
    assert error.metadata["shard"] == "shard-2"
    assert error.retry_after


async def test_a_router_that_stops_ends_its_streams() -> None:
    pages = Pages()
    async with streaming(pages) as running:
        stream = aiter(running.call(b""))
        await anext(stream)
        running.bounds.draining.set()
        _, error = await read_all(stream)
    assert isinstance(error, Unavailable)
    assert error.reason is Reason.DRAINING
    assert "cursor" in error.message


async def test_a_defect_in_a_stream_is_logged_with_its_ids() -> None:
    async with streaming(Pages(1, RuntimeError("secret"))) as running:
        with capture_logs() as logs:
            number, error = await read_all(running.call(b""))
    assert number == 1
    assert isinstance(error, InternalFailure)
    assert "secret" not in error.message
    assert logs[0]["trace_id"] == error.metadata["trace_id"]
