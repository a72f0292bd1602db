"""Groups on a real state that SQLite cannot always write, with an engine that is only its queue."""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_router.wire.errors import Reason, Unavailable
from chroma_router.wire.records import RecordColumns
from chroma_router.wire.slots import slot_of
from shard_node import committer
from shard_node.committer import Committer
from shard_node.engine import Engine, EngineRefused
from shard_node.holdings import Grant, Holding, Holdings
from shard_node.operations import Kind, Write
from shard_node.record_index import RecordIndex
from shard_node.state import Outcome, StagedRow, State
from tests.shard_node.running import uuid7
from tests.shard_node.test_state import make, push, row


class QueueEngine:
    """Does what the engine does to the queue. `refusal` is raised before or after that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refusal, self.commits = "", True
        self.before_reply: Any = None

    async def write(self, method: str, physical: str, ids: list[str], *columns: Any) -> None:
        if self.commits:
            push(self.path, physical, method, ids)
        if self.before_reply:
            self.before_reply()
        if self.refusal:
            raise EngineRefused("InternalError", self.refusal)

    async def matching(
        self, physical: str, ids: Sequence[str] | None, where: str, where_document: str
    ) -> list[str]:
        assert ids
        return list(ids)


class Bench:
    """A committer, its collection "a" with all slots owned, and faults for its SQLite."""

    def __init__(self, path: Path) -> None:
        make(path)
        self.state = State(path)
        self.engine = QueueEngine(path)
        self.holdings = Holdings("boot", 0)
        self.holding = Holding(self.state.put_collection(row("a")), "p-a", [0] * 1024)
        self.holding.grant = Grant.of(1, b"\xff" * 128)
        self.holdings.live["a"] = self.holding
        self.pool = ThreadPoolExecutor(1)
        self.committer = Committer(
            cast("Engine", self.engine), self.state, self.pool, self.holdings, 900
        )
        self.path = path
        self.locker = sqlite3.connect(path, isolation_level=None)
        self.state._link.execute("PRAGMA busy_timeout=1")

    def lock(self) -> None:
        self.locker.execute("BEGIN IMMEDIATE")

    def unlock(self) -> None:
        self.locker.execute("ROLLBACK")

    async def delete(self, *ids: str, request_id: str = "", where: str = "") -> Any:
        return await self._apply(Kind.DELETE, ids, request_id, where)

    async def upsert(self, *ids: str, request_id: str = "") -> Any:
        return await self._apply(Kind.UPSERT, ids, request_id)

    async def _apply(self, kind: Kind, ids: Sequence[str], request_id: str, where: str = "") -> Any:
        upsert = kind is Kind.UPSERT
        write = Write(
            "a", 1, kind, request_id or uuid7(), 0, ids, [slot_of(i) for i in ids],
            [RecordColumns(i, b"1234", None, None, None) for i in ids] if upsert else [],
            [1] * len(ids) if upsert else [], where,
        )  # fmt: skip
        (result,) = await self.committer.apply([write])
        return result


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "chroma.sqlite3")
    yield made
    made.locker.close()
    made.pool.shutdown()
    made.state.close()


async def test_a_state_that_cannot_be_staged(bench: Bench) -> None:
    bench.lock()
    with pytest.raises(Unavailable) as refused:
        await bench.upsert("x")
    assert refused.value.reason is Reason.ENGINE_FAILED
    assert refused.value.retry_after
    bench.unlock()
    assert (await bench.upsert("x")).refused_reason == ""
    assert bench.holding.total == 1


async def test_a_full_disk_ends_no_transaction_twice(bench: Bench) -> None:
    link = bench.state._link
    (pages,) = link.execute("PRAGMA page_count").fetchone()
    link.execute(f"PRAGMA max_page_count={pages}")
    many = [f"{n:0200}" for n in range(500)]
    for _ in range(2):
        with pytest.raises(Unavailable, match="full"):
            await bench.upsert(*many)
        assert not link.in_transaction
    link.execute("PRAGMA max_page_count=1000000")
    assert (await bench.upsert(*many)).refused_reason == ""


async def test_a_delete_of_nothing_that_cannot_land(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    request_id = uuid7()
    with monkeypatch.context() as patched:
        patched.setattr(bench.state, "land", full)
        with pytest.raises(Unavailable, match="full"):
            await bench.delete("x", request_id=request_id)
        patched.setattr(bench.state, "settle", full)
        with pytest.raises(Unavailable, match="full"):  # not taken for remembered either
            await bench.delete("x", request_id=request_id)
    assert (await bench.delete("x", request_id=request_id)).deleted == 1
    assert (await bench.upsert("x")).refused_reason == ""


@pytest.mark.parametrize("landed", [True, False])
async def test_a_refused_write_that_cannot_be_settled(bench: Bench, landed: bool) -> None:
    request_id = uuid7()
    bench.engine.refusal, bench.engine.commits = "database or disk is full", landed
    bench.engine.before_reply = bench.lock
    with pytest.raises(Unavailable, match="locked"):
        await bench.upsert("x", request_id=request_id)
    with pytest.raises(Unavailable, match="locked"):
        await bench.upsert("y")
    bench.unlock()
    bench.engine.refusal, bench.engine.before_reply, bench.engine.commits = "", None, True
    await bench.upsert("y")
    (known,) = bench.state.remembered(1, [(request_id, 0)])
    assert bool(known.slots) is landed
    assert bench.holding.total == 1 + landed
    assert sum(bench.state.slot_counts(1)) == 1 + landed


async def test_outcomes_that_cannot_be_pruned_are_kept(bench: Bench) -> None:
    bench.lock()
    await bench.committer.prune()
    bench.unlock()
    await bench.committer.prune()


async def test_what_cannot_be_looked_up_is_not_applied(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    with monkeypatch.context() as patched:
        patched.setattr(bench.state, "remembered", locked)
        with pytest.raises(Unavailable, match="locked"):
            await bench.upsert("x")
    assert bench.holding.total == 0


async def test_a_conditional_delete_of_remembered_ids_asks_the_engine_nothing(
    bench: Bench,
) -> None:
    await bench.upsert("x", "y")
    mine = frozenset({slot_of("x")})
    bench.state.stage(1, "p-a", [], [Outcome("q", 0, 4, mine, (slot_of("x"),))], 0)
    bench.state.land()
    result = await bench.delete("x", request_id="q", where="{}")  # `matching` asserts ids
    assert result.deleted == 1
    assert bench.holding.total == 2


async def test_what_is_only_staged_is_not_told(bench: Bench) -> None:
    index = RecordIndex(bench.path, 1)
    try:
        staged = Outcome("q", 0, Kind.DELETE, frozenset({1}), (1,), digest=-5)
        bench.state.stage(1, "p-a", [StagedRow("x", 1, 1)], [staged], time.time_ns() // 1000)
        assert (await index.deleted_by(1, "q")).deleted == 0
        bench.state.land()
        known = await index.deleted_by(1, "q")
        assert (known.slots, known.deleted, known.digest) == (frozenset({1}), 1, -5)
    finally:
        index.close()


@given(
    slots=st.lists(st.integers(0, 6), max_size=60),
    most=st.integers(1, 12),
)
def test_a_delete_in_steps_completes_slot_by_slot(slots: list[int], most: int) -> None:
    rows = [(f"r{n}", slot) for n, slot in enumerate(slots)]
    covers = frozenset(range(8))
    with mock.patch.object(committer, "ENGINE_ROWS", most):
        steps = list(committer._steps(rows, covers))
    assert sorted(row for step, _ in steps for row in step) == sorted(rows)
    assert all(len(step) <= most for step, _ in steps)
    assert steps[-1][1] == covers
    for at, (step, completed) in enumerate(steps[:-1]):
        later = {slot for rest, _ in steps[at + 1 :] for _, slot in rest}
        done = {slot for _, slot in step} - later
        assert completed == done
        # Only one slot is in two pieces, and only because it alone is too large for one.
        in_two = {slot for _, slot in step} & later
        assert not in_two or (len(step) == most and {slot for _, slot in step} == in_two)
