"""The sender against a scripted router: repeats, halving, order of writes to one id, stopping."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from chroma_router.v1 import types_pb2, views_pb2
from chroma_router.wire.errors import (
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    Reason,
    Unavailable,
)
from chroma_router.wire.records import record_to_bytes
from router.cli.command import Failed
from router.cli.ingest_lines import BadLine, Batch, Line
from router.cli.ingest_run import Sender
from router.cli.link import RouterLink
from router.cli.patient import PatientLink


class ScriptedRouter:
    """Stands for a RouterLink: `answer` gets the request id and the ids of each write."""

    upsert_view = None

    def __init__(self, answer: Callable[[str, list[str]], Any]) -> None:
        self._answer = answer
        self.calls: list[tuple[str, list[str]]] = []
        self.running = self.most_running = 0

    async def call(self, _: None, view: views_pb2.WriteRequestView, __: float) -> None:
        ids = [types_pb2.Record.FromString(record).id for record in view.records]
        self.calls.append((view.request_id, ids))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(0)
            self._answer(view.request_id, ids)
        finally:
            self.running -= 1


def made(numbers: Sequence[int], floats: int = 2) -> Batch:
    lines = [
        Line(n, b"text", f"i{n}", record_to_bytes(f"i{n}", b"\0" * 4 * floats)) for n in numbers
    ]
    return Batch(lines, [], position=numbers[-1])


def sender(router: ScriptedRouter, bad: list[BadLine] | None = None, **options: Any) -> Sender:
    def on_bad(line: BadLine) -> None:
        if bad is None:
            raise Failed(f"line {line.number}: {line.reason}")
        bad.append(line)

    cluster = PatientLink(cast(RouterLink, router), options.pop("timeout", 30.0))
    settings = {"concurrency": 4, "rate": None, **options}
    return Sender(cluster, types_pb2.CollectionRef(name="c"), on_bad=on_bad, **settings)


def refuse(guilty: set[str]) -> Callable[[str, list[str]], None]:
    def answer(_: str, ids: list[str]) -> None:
        if guilty & set(ids):
            raise InvalidRequest("no good")

    return answer


async def test_a_write_is_repeated_under_its_request_id() -> None:
    failures: list[Exception] = [
        Unavailable("away", retry_after=0.001),
        Overloaded("full", retry_after=0.001),
    ]

    def answer(_: str, __: list[str]) -> None:
        if failures:
            raise failures.pop()

    router = ScriptedRouter(answer)
    run = sender(router)
    await run.send_all(iter([made([1, 2])]))
    assert (run.tally.stored, run.tally.retries, run.tally.batches) == (2, 2, 1)
    assert len({request_id for request_id, _ in router.calls}) == 1


async def test_past_the_retry_window_an_upsert_gets_a_new_identity() -> None:
    failures: list[Exception] = [OutcomeUnknown("long ago", retry_after=0.001)]

    def answer(_: str, __: list[str]) -> None:
        if failures:
            raise failures.pop()

    router = ScriptedRouter(answer)
    await sender(router).send_all(iter([made([1])]))
    assert len({request_id for request_id, _ in router.calls}) == 2


async def test_it_gives_up_at_the_timeout_and_names_the_lines() -> None:
    def answer(_: str, __: list[str]) -> None:
        raise Unavailable("away")

    with pytest.raises(Failed, match="lines 3 to 4 was not done within 0 s: away"):
        await sender(ScriptedRouter(answer), timeout=0.05).send_all(iter([made([3, 4])]))


async def test_what_is_final_is_not_repeated() -> None:
    def answer(_: str, __: list[str]) -> None:
        raise NotFound("gone")

    router = ScriptedRouter(answer)
    with pytest.raises(NotFound):
        await sender(router).send_all(iter([made([1])]))
    assert len(router.calls) == 1


@pytest.mark.parametrize("guilty", [{"i0"}, {"i9"}, {"i4", "i5"}, {f"i{n}" for n in range(10)}])
async def test_the_guilty_lines_are_found_and_the_others_stored(guilty: set[str]) -> None:
    router = ScriptedRouter(refuse(guilty))
    bad: list[BadLine] = []
    run = sender(router, bad)
    await run.send_all(iter([made(range(10))]))
    assert {f"i{line.number}" for line in bad} == guilty
    assert (run.tally.stored, run.tally.rejected) == (10 - len(guilty), len(guilty))


async def test_without_a_place_for_it_the_first_bad_line_stops() -> None:
    run = sender(ScriptedRouter(refuse({"i4", "i7"})))
    with pytest.raises(Failed, match="line 4: no good"):
        await run.send_all(iter([made(range(10)), made(range(20, 30))]))


async def test_lines_of_another_dimension_are_found_at_once() -> None:
    def answer(_: str, ids: list[str]) -> None:
        if any(int(i[1:]) >= 100 for i in ids):
            raise InvalidRequest("dims", Reason.DIMENSION_MISMATCH, metadata={"expected": "2"})

    batch = Batch(made(range(9)).lines + made([100, 101], floats=3).lines, [], 1)
    router, bad = ScriptedRouter(answer), list[BadLine]()
    await sender(router, bad).send_all(iter([batch]))
    assert [line.number for line in bad] == [100, 101]
    assert len(router.calls) == 2


async def test_concurrency_is_bounded_and_used() -> None:
    router = ScriptedRouter(lambda *_: None)
    run = sender(router, concurrency=3)
    await run.send_all(made([n]) for n in range(50))
    assert run.tally.stored == 50
    assert 1 <= router.most_running <= 3


async def test_two_writes_of_one_id_are_never_under_way_at_once() -> None:
    router = ScriptedRouter(lambda *_: None)
    await sender(router).send_all(made([7]) for _ in range(20))
    assert router.most_running == 1


async def test_a_bad_line_stops_the_reading_but_not_what_is_under_way() -> None:
    read = 0

    def batches() -> Iterator[Batch]:
        nonlocal read
        for read in range(1, 10):
            bad = [BadLine(99, b"", "why")] if read == 3 else []
            yield Batch(made([read]).lines, bad, read)

    run = sender(ScriptedRouter(lambda *_: None))
    with pytest.raises(Failed, match="line 99: why"):
        await run.send_all(batches())
    assert (read, run.tally.stored) == (3, 2)


@pytest.mark.parametrize(
    ("numbers", "said"), [([[1], [2]], [1]), ([], [None])], ids=["at the first", "of nothing"]
)
async def test_it_prepares_once_also_when_there_is_nothing_to_send(
    numbers: list[list[int]], said: list[int | None]
) -> None:
    prepared: list[int | None] = []

    async def prepare(first: Batch | None) -> None:
        prepared.append(None if first is None else first.lines[0].number)

    await sender(ScriptedRouter(lambda *_: None), prepare=prepare).send_all(map(made, numbers))
    assert prepared == said


class BreakingRouter:
    """Stands for a RouterLink whose every other upsert breaks when a part of it is stored."""

    upsert_view = "upsert"

    class Records:
        Delete = "delete"

    records = Records

    def __init__(self) -> None:
        self.stored: list[str] = []
        self.upserts = 0

    async def call(self, method: str, request: Any, _timeout: float) -> None:
        if method == "delete":
            gone = set(request.filter.ids)
            self.stored = [record_id for record_id in self.stored if record_id not in gone]
            return
        self.upserts += 1
        ids = [types_pb2.Record.FromString(record).id for record in request.records]
        breaks = self.upserts % 2 == 1
        self.stored += [i for i in (ids[1::2] if breaks else ids) if i not in self.stored]
        if breaks:
            raise Unavailable("a shard is away", retry_after=0.001)


@pytest.mark.parametrize("in_order", [True, False])
async def test_the_order_of_a_new_collection_survives_broken_writes(in_order: bool) -> None:
    router = BreakingRouter()
    run = sender(cast(ScriptedRouter, router), concurrency=1, in_order=in_order)
    await run.send_all(iter([made(range(1, 7)), made(range(7, 12))]))
    assert (run.tally.stored, run.tally.retries) == (11, 2)
    assert (router.stored == [f"i{n}" for n in range(1, 12)]) is in_order
