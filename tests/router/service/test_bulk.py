"""BulkUpsert over real gRPC and scripted shards: order, bounds, refusals, ends."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from chroma_router.v1 import records_pb2, types_pb2
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    InvalidRequest,
    NotFound,
    Overloaded,
    Reason,
    Unavailable,
)
from chroma_router.wire.request_id import time_of
from chroma_router.wire.status import from_rpc_error
from router.core.identity import CallIdentity
from router.core.limits import Limits
from router.core.model import CollectionEntry
from router.ids import fresh_id
from router.record_reads import RecordReads
from router.scatter import ReadPath
from router.service.bulk import MAX_BYTES_AT_WORK, MAX_UNANSWERED, BulkUpserts
from router.service.gates import Gate, StreamBounds
from router.service.records import RecordService
from router.service.streams import Stream, bidirectional
from tests.router.scripted import Rig, ids_on, refuse, rig, wait_for

pytestmark = pytest.mark.timeout(20)

Request = records_pb2.BulkUpsertRequest
Response = records_pb2.BulkUpsertResponse
INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]


class WatchedGate(Gate):
    """Counts who passes, so that a test can wait for it and see the most at once."""

    def __init__(self, limit_bytes: int = 256 << 20) -> None:
        super().__init__(limit_bytes)
        self.passings = self.inside = self.most = self.most_bytes = 0

    @contextlib.contextmanager
    def passed(self, size: int) -> Iterator[None]:
        with super().passed(size):
            self.passings += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.most_bytes = max(self.most_bytes, self._bytes)
            try:
                yield
            finally:
                self.inside -= 1


def record_service(router: Rig) -> RecordService:
    """RecordService over the rig."""
    limits = Limits()
    reads = RecordReads(router.directory, ReadPath(router.cluster, router.directory), limits)
    return RecordService(router.directory, router.writes, reads, limits)


class Bulk:
    """A collection, and streams to it."""

    def __init__(self, router: Rig, entry: CollectionEntry, channel: grpc.aio.Channel) -> None:
        self.router = router
        self.entry = entry
        self.gate = WatchedGate()
        self.draining = asyncio.Event()
        self.bounds = StreamBounds.of(256 << 20, 10, self.draining)
        self._channel = channel

    def open(self, **options: Any) -> Any:
        """A new stream of bytes."""
        return self._channel.stream_stream("/test.Service/BulkUpsert")(**options)

    def message(self, *ids: str, **more: Any) -> bytes:
        """A batch of these ids."""
        records = [types_pb2.Record(id=i, embedding=struct.pack("<2f", 1, 2)) for i in ids]
        ref = types_pb2.CollectionRef(id=self.entry.id)
        return Request(**{"collection": ref, "records": records, **more}).SerializeToString()

    def ids(self, shard: str, number: int = 1) -> list[str]:
        """Ids that a shard owns."""
        return ids_on(self.entry.slot_map, shard, number)


@asynccontextmanager
async def bulk(
    path: Path, timeout: float = 10, idle_seconds: float = 300.0, **settings: Any
) -> AsyncIterator[Bulk]:
    """A server of BulkUpsert over two scripted shards."""
    async with rig(path, **settings) as router:
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                made = Bulk(router, await router.collection(), channel)
                service = BulkUpserts(
                    record_service(router), router.directory, router.writes, made.gate, timeout,
                    made.draining, idle_seconds,
                )  # fmt: skip
                handlers = {"BulkUpsert": bidirectional(service.bulk_upsert, made.bounds)}
                server.add_generic_rpc_handlers(
                    (grpc.method_handlers_generic_handler("test.Service", handlers),)
                )
                await server.start()
                yield made
        finally:
            await server.stop(None)


async def answer(stream: Any) -> Response:
    """The next answer."""
    return Response.FromString(await stream.read())


async def rest(stream: Any) -> list[Response]:
    """Half-closes; the remaining answers, then OK."""
    await stream.done_writing()
    return await unread(stream)


async def unread(stream: Any) -> list[Response]:
    """The remaining answers, then OK."""
    answers = []
    while (data := await stream.read()) is not grpc.aio.EOF:
        answers.append(Response.FromString(data))
    assert await stream.code() is grpc.StatusCode.OK
    return answers


async def failure(stream: Any) -> ClusterError:
    """The error with which a stream ends."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await unread(stream)
    return from_rpc_error(failed.value)


# ---------------------------------------------------------------------------------------- order


async def test_each_batch_is_answered_in_its_turn_under_its_identity(tmp_path: Path) -> None:
    async with bulk(tmp_path) as made:
        stream = made.open()
        await stream.write(made.message("a", "b", request_id="mine"))
        for number in range(1, 40):
            await stream.write(made.message(f"r{number}", collection=None))
        answers = await rest(stream)
    assert [a.batch for a in answers] == list(range(40))
    assert [a.records for a in answers] == [2] + [1] * 39
    assert not any(a.HasField("error") for a in answers)
    assert answers[0].request_id == "mine"
    assert all(time_of(a.request_id) for a in answers[1:]), "a UUIDv7 is minted"
    assert len({a.request_id for a in answers}) == 40


async def test_batches_without_a_common_id_are_worked_on_together(tmp_path: Path) -> None:
    async with bulk(tmp_path) as made:
        one, two = made.router.shards.values()
        gate = asyncio.Event()
        one.then("Apply", wait_for(gate))
        stream = made.open()
        await stream.write(made.message(*made.ids("shard-1")))
        await stream.write(made.message(*made.ids("shard-2")))
        await two.arrival("Apply")
        assert not one.applied
        gate.set()
        assert [a.batch for a in await rest(stream)] == [0, 1]


async def test_a_batch_waits_for_the_one_with_an_id_of_its_own(tmp_path: Path) -> None:
    async with bulk(tmp_path) as made:
        one, two = made.router.shards.values()
        gate = asyncio.Event()
        one.then("Apply", wait_for(gate))
        (a,), (b, c) = made.ids("shard-1"), made.ids("shard-2", 2)
        stream = made.open()
        for ids in ((a,), (a, b), (c,), (b,)):
            await stream.write(made.message(*ids))
        seen = [await two.arrival("Apply")]
        gate.set()
        assert [x.batch for x in await rest(stream)] == [0, 1, 2, 3]
        assert list(seen[0].operations[0].ids) == [c], "the second and the fourth wait"
        assert [list(operation.ids) for operation in two.applied] == [[c], [b], [b]]
        # Sequences are the stream's order, also of those that waited.
        sequences = {
            sequence: record_id
            for operation in two.applied + one.applied
            for sequence, record_id in zip(operation.sequences, operation.ids, strict=True)
        }
        assert [sequences[s] for s in sorted(sequences)] == [a, a, b, c, b]


# --------------------------------------------------------------------------------------- bounds


async def write_until(stream: Any, messages: list[bytes]) -> None:
    """Writes as fast as the stream takes it, then half-closes."""
    for message in messages:
        await stream.write(message)
    await stream.done_writing()


async def in_time(condition: Callable[[], bool]) -> None:
    """Lets everything else run until the condition holds; the test's timeout bounds it."""
    while True:
        if condition():
            return
        await asyncio.sleep(0)


async def test_no_more_batches_are_read_than_may_be_unanswered(tmp_path: Path) -> None:
    async with bulk(tmp_path) as made:
        (one, _), gate = made.router.shards.values(), asyncio.Event()
        one.then("Apply", wait_for(gate))
        stream = made.open()
        ids = made.ids("shard-1", 10 * MAX_UNANSWERED)
        writing = asyncio.create_task(write_until(stream, [made.message(i) for i in ids]))
        await in_time(lambda: made.gate.inside == MAX_UNANSWERED)
        gate.set()
        answers = await unread(stream)
        await writing
        assert [a.batch for a in answers] == list(range(len(ids)))
        assert made.gate.most == MAX_UNANSWERED
        assert made.gate.inside == 0


async def test_no_more_bytes_are_read_than_may_be_at_work(tmp_path: Path) -> None:
    async with bulk(tmp_path) as made:
        (one, _), gate = made.router.shards.values(), asyncio.Event()
        one.then("Apply", wait_for(gate))
        stream = made.open()
        # An unknown field makes a batch large, and is not sent to the shards.
        padding = types_pb2.Record(document="x" * (3 << 20)).SerializeToString()
        padding = b"\xa2\x06" + padding[padding.index(b"\x1a") + 1 :]
        messages = [made.message(i) + padding for i in made.ids("shard-1", 9)]
        writing = asyncio.create_task(write_until(stream, messages))
        await in_time(lambda: made.gate.most_bytes >= MAX_BYTES_AT_WORK)
        gate.set()
        answers = await unread(stream)
        await writing
        assert [(a.batch, a.HasField("error")) for a in answers] == [(n, False) for n in range(9)]
        assert made.gate.most_bytes < MAX_BYTES_AT_WORK + len(messages[0])


class UnreadStream(Stream):
    """A client that sends without end and takes no answer."""

    def __init__(self, message: bytes) -> None:
        self.deadline = None
        self.message = message
        self.reads = 0
        self.takes_answers = asyncio.Event()
        self.answers: list[Response] = []

    def identity(self, request_id: str) -> CallIdentity:
        return CallIdentity.of([], request_id, fresh_id())

    async def read(self) -> bytes | None:
        self.reads += 1
        return self.message if self.reads <= 3 * MAX_UNANSWERED else None

    async def write(self, message: Any) -> None:
        await self.takes_answers.wait()
        self.answers.append(message)


async def test_a_client_that_takes_no_answers_is_not_read_from(tmp_path: Path) -> None:
    async with rig(tmp_path) as router:
        entry = await router.collection()
        record = types_pb2.Record(id="a", embedding=struct.pack("<2f", 1, 2))
        ref = types_pb2.CollectionRef(id=entry.id)
        stream = UnreadStream(Request(collection=ref, records=[record]).SerializeToString())
        gate = WatchedGate()
        service = BulkUpserts(
            record_service(router), router.directory, router.writes, gate, 10, asyncio.Event()
        )
        serving = asyncio.create_task(service.bulk_upsert(stream))
        await in_time(lambda: gate.passings == MAX_UNANSWERED and gate.inside == 0)
        assert stream.reads == MAX_UNANSWERED, "all are done, none is answered: nothing is read"
        stream.takes_answers.set()
        await serving
        assert [a.batch for a in stream.answers] == list(range(3 * MAX_UNANSWERED))


async def test_a_full_router_refuses_the_batch_and_goes_on(tmp_path: Path) -> None:
    async with bulk(tmp_path) as made:
        stream = made.open()
        await stream.write(made.message("a"))
        assert not (await answer(stream)).HasField("error")
        with made.gate.passed(256 << 20):
            await stream.write(made.message("b"))
            refused = await answer(stream)
        assert refused.error.reason == Reason.QUEUE_FULL
        assert refused.error.code == Overloaded.code
        assert refused.error.retry_after_milliseconds > 0
        await stream.write(made.message("b"))
        assert [a.HasField("error") for a in await rest(stream)] == [False]


async def test_a_stream_that_brings_nothing_ends_and_leaves_its_place(tmp_path: Path) -> None:
    async with bulk(tmp_path, idle_seconds=0.2) as made:
        error = await failure(made.open())
        assert isinstance(error, DeadlineExpired)
        assert "nothing came on this stream" in error.message
        assert error.metadata["trace_id"]
        await in_time(lambda: made.bounds.open.is_free)


async def test_a_client_that_waits_for_its_answer_is_not_idle(tmp_path: Path) -> None:
    async with bulk(tmp_path, idle_seconds=0.1) as made:
        (one, _), gate = made.router.shards.values(), asyncio.Event()
        one.then("Apply", wait_for(gate))
        stream = made.open()
        await stream.write(made.message(*made.ids("shard-1")))
        await one.arrival("Apply")
        asyncio.get_running_loop().call_later(0.5, gate.set)
        assert not (await answer(stream)).HasField("error")
        error = await failure(stream)
        assert "nothing came on this stream" in error.message, "then it is"


async def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    async with bulk(tmp_path, queue_operations=1) as made:
        stream = made.open()
        for record_id in made.ids("shard-1", 5):
            await stream.write(made.message(record_id))
        answers = await rest(stream)
        assert [(a.batch, a.HasField("error")) for a in answers] == [(n, False) for n in range(5)]
        assert len(made.router.shards["shard-1"].applied) == 5


# ------------------------------------------------------------------------------------- refusals


async def test_a_refused_batch_is_told_under_its_ids(tmp_path: Path) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    header = (("traceparent", f"00-{trace}-b7ad6b7169203331-01"),)
    async with bulk(tmp_path) as made:
        for metadata in ((), header):
            stream = made.open(metadata=metadata)
            await stream.write(made.message("a"))
            await stream.write(made.message("b", "b", request_id="mine"))
            await stream.write(made.message("b", "b"))
            await stream.write(b"\xff\xff\xff")
            _, named, unnamed, unread = await rest(stream)
            assert named.request_id == "mine"
            assert time_of(unnamed.request_id), "it is given one"
            assert unread.request_id == ""
            told = [named.error.trace_id, unnamed.error.trace_id, unread.error.trace_id]
            if metadata:
                assert told == [trace] * 3
            else:
                assert told[1] == unnamed.request_id.replace("-", "")
                assert all(len(trace_id) == 32 for trace_id in told)


async def test_a_request_id_of_the_stream_is_that_of_no_batch(tmp_path: Path) -> None:
    async with bulk(tmp_path) as made:
        stream = made.open(metadata=(("x-request-id", "all"),))
        await stream.write(made.message("a"))
        await stream.write(made.message("b"))
        answers = await rest(stream)
        assert not any(a.HasField("error") for a in answers)
        assert len({a.request_id for a in answers} | {"all"}) == 3


async def test_a_request_id_is_that_of_one_batch_also_across_shards(tmp_path: Path) -> None:
    async with bulk(tmp_path) as made:
        (one,), (two,) = made.ids("shard-1"), made.ids("shard-2")
        stream = made.open()
        for record_id in (one, two, one):
            await stream.write(made.message(record_id, request_id="same"))
        answers = await rest(stream)
        assert [a.HasField("error") for a in answers] == [False, True, False]
        assert "request_id: same was used for another" in answers[1].error.message
        assert not made.router.shards["shard-2"].applied


async def test_a_bad_batch_is_answered_with_its_error_and_the_stream_goes_on(
    tmp_path: Path,
) -> None:
    async with bulk(tmp_path) as made:
        other = types_pb2.CollectionRef(name="another")
        stream = made.open()
        await stream.write(made.message("a"))
        bad = {
            "not a BulkUpsertRequest": b"\xff\xff\xff",
            "collection: not the one": made.message("b", collection=other),
            "no records": made.message(),
            "duplicates": made.message("b", "b"),
            "request_id has 129 bytes": made.message("b", request_id="x" * 129),
            "not a valid Record": b"\x12\x02\xff\xff",
        }
        for message in bad.values():
            await stream.write(message)
        await stream.write(made.message("c", collection=types_pb2.CollectionRef()))
        answers = await rest(stream)
        assert [a.batch for a in answers] == list(range(len(bad) + 2))
        assert not answers[0].HasField("error")
        assert not answers[-1].HasField("error")
        for text, refused in zip(bad, answers[1:-1], strict=True):
            assert refused.error.code == INVALID
            assert text in refused.error.message
            assert not refused.error.HasField("retry_after_milliseconds")
            assert len(refused.request_id) <= 128


async def test_what_a_shard_refuses_is_told_with_its_outcome(tmp_path: Path) -> None:
    async with bulk(tmp_path) as made:
        made.router.shards["shard-1"].then("Apply", refuse(Reason.UNKNOWN_OUTCOME))
        stream = made.open()
        (one,), (two,) = made.ids("shard-1"), made.ids("shard-2")
        await stream.write(made.message(one, two, request_id="r"))
        await stream.write(made.message(one, request_id="s"))
        failed, good = await rest(stream)
        assert failed.error.reason == Reason.UNKNOWN_OUTCOME
        assert failed.error.outcome.request_id == failed.request_id == "r"
        assert list(failed.error.outcome.applied_shards) == ["shard-2"]
        assert list(failed.error.outcome.unknown_ids) == [one]
        assert not good.HasField("error"), "those that waited for it go on"


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        ({"collection": None}, InvalidRequest),
        ({"collection": types_pb2.CollectionRef(name="nowhere")}, NotFound),
        (b"\xff", InvalidRequest),
    ],
)
async def test_a_stream_about_no_collection_fails(
    tmp_path: Path, first: Any, kind: type[ClusterError]
) -> None:
    async with bulk(tmp_path) as made:
        stream = made.open()
        await stream.write(first if isinstance(first, bytes) else made.message("a", **first))
        assert isinstance(await failure(stream), kind)
        assert made.gate.inside == 0


async def test_a_stream_of_nothing_is_ok(tmp_path: Path) -> None:
    async with bulk(tmp_path) as made:
        assert await rest(made.open()) == []


# ----------------------------------------------------------------------------------------- ends


async def test_a_client_that_goes_away_leaves_nothing(tmp_path: Path) -> None:
    async with bulk(tmp_path) as made:
        (one, _), gate = made.router.shards.values(), asyncio.Event()
        one.then("Apply", wait_for(gate))
        first, second = made.ids("shard-1", 2)
        stream = made.open()
        with capture_logs() as logs:
            await stream.write(made.message(first))
            await one.arrival("Apply")
            await stream.write(made.message(second))
            await stream.write(made.message(first))
            await in_time(lambda: made.gate.inside == 3)
            stream.cancel()
            await in_time(lambda: made.gate.inside == 0)
            gate.set()
        assert not [entry for entry in logs if entry["event"] == "defect"]
        after = made.open()
        await after.write(made.message(second))
        assert len(await rest(after)) == 1
        applied = [list(operation.ids) for operation in one.applied]
        assert applied == [[first], [second]], "what waited was not sent any more"


async def test_a_deadline_ends_batches_with_their_outcome_and_then_the_stream(
    tmp_path: Path,
) -> None:
    async with bulk(tmp_path) as made:
        (one, _), gate = made.router.shards.values(), asyncio.Event()
        one.then("Apply", wait_for(gate))
        stream = made.open(timeout=1.0)
        await stream.write(made.message(*made.ids("shard-1")))
        refused = await answer(stream)
        assert refused.error.reason == Reason.SHARD_UNAVAILABLE
        assert list(refused.error.outcome.unknown_shards) == ["shard-1"]
        error = await failure(stream)
        assert isinstance(error, DeadlineExpired)
        assert error.metadata["trace_id"], "a stream's error has the ids of a call"
        gate.set()


async def test_without_a_deadline_a_batch_has_the_time_of_a_call(tmp_path: Path) -> None:
    async with bulk(tmp_path, timeout=0.2) as made:
        (one, _), gate = made.router.shards.values(), asyncio.Event()
        one.then("Apply", wait_for(gate))
        stream = made.open()
        await stream.write(made.message(*made.ids("shard-1")))
        assert (await answer(stream)).error.reason == Reason.SHARD_UNAVAILABLE
        await stream.write(made.message(*made.ids("shard-2")))
        assert not (await answer(stream)).HasField("error")
        gate.set()
        assert await rest(stream) == []


async def test_a_router_that_stops_ends_what_has_begun_and_begins_nothing(tmp_path: Path) -> None:
    async with bulk(tmp_path) as made:
        (one, _), gate = made.router.shards.values(), asyncio.Event()
        one.then("Apply", wait_for(gate))
        (record_id,) = made.ids("shard-1")
        stream, idle = made.open(), made.open()
        await stream.write(made.message(record_id))
        await one.arrival("Apply")
        await stream.write(made.message(record_id))
        await in_time(lambda: made.gate.inside == 2)
        made.draining.set()
        assert isinstance(await failure(idle), Unavailable)
        gate.set()
        begun, refused = await answer(stream), await answer(stream)
        assert not begun.HasField("error")
        assert refused.error.code == UNAVAILABLE
        assert refused.error.reason == Reason.DRAINING
        assert refused.error.retry_after_milliseconds > 0
        error = await failure(stream)
        assert error.reason is Reason.DRAINING
        assert error.retry_after
        assert len(one.applied) == 1


async def test_a_defect_is_logged_and_told_without_its_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bulk(tmp_path) as made:

        async def broken(*_: object) -> int:
            raise RuntimeError("secret")

        stream = made.open()
        await stream.write(made.message("a"))
        await answer(stream)
        with capture_logs() as logs:
            monkeypatch.setattr(made.router.writes, "write", broken)
            await stream.write(made.message("a"))
            refused = await answer(stream)
            monkeypatch.undo()
        await stream.write(made.message("a"))
        assert [a.HasField("error") for a in await rest(stream)] == [False]
    assert refused.error.reason == Reason.INTERNAL
    assert "secret" not in refused.error.message
    assert [entry["event"] for entry in logs] == ["defect"]
