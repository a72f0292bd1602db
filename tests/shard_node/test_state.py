"""The node's tables against a naive twin, with an engine that is only its queue's transaction."""

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chroma_router.wire.slots import slot_of
from shard_node import arrival_state
from shard_node.arrival_state import Arrival
from shard_node.state import (
    SCHEMA,
    ArrivalCursor,
    CollectionRow,
    Outcome,
    StagedRow,
    State,
    StateBroken,
    connect,
    topic_of,
)

QUEUE = """CREATE TABLE embeddings_queue(
  seq_id INTEGER PRIMARY KEY, topic TEXT, operation INTEGER, id TEXT)"""
EMBEDDINGS = "CREATE TABLE embeddings(id INTEGER PRIMARY KEY)"
CODES = {"add": 0, "update": 1, "upsert": 2, "delete": 3}


def make(path: Path) -> None:
    link = connect(path)
    link.execute("PRAGMA journal_mode=WAL")
    link.execute(QUEUE)
    link.execute(EMBEDDINGS)
    for statement in SCHEMA.values():
        link.execute(statement)
    link.execute("INSERT INTO router_batch VALUES (1, 0, 0, 0, '')")
    link.close()


def push(path: Path, physical: str, kind: str, ids: list[str], *, commit: bool = True) -> None:
    """What the engine does: all rows of one call in one transaction."""
    link = sqlite3.connect(path, isolation_level=None)
    try:
        link.execute("BEGIN")
        link.executemany(
            "INSERT INTO embeddings_queue(topic, operation, id) VALUES (?, ?, ?)",
            [(topic_of(physical), CODES[kind], i) for i in ids],
        )
        link.execute("COMMIT" if commit else "ROLLBACK")
    finally:
        link.close()


def row(collection_id: str, **changes: object) -> CollectionRow:
    fields: dict[str, object] = {
        "number": 0, "id": collection_id, "physical": f"p-{collection_id}", "epoch": 1,
        "owned": bytes(128), "definition": b"", "definition_version": 1, "dropped": False,
    }  # fmt: skip
    return CollectionRow(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make(tmp_path / "chroma.sqlite3")
    return tmp_path / "chroma.sqlite3"


class StateMachine(RuleBasedStateMachine):
    """Groups that land, are refused, or are broken off by a kill, on two collections."""

    directory: Path  # set by the test, a fresh one for each example

    def __init__(self) -> None:
        super().__init__()
        StateMachine.example += 1
        self.path = self.directory / f"{StateMachine.example}.sqlite3"
        make(self.path)
        self.records: dict[int, dict[str, int]] = {}
        self.outcomes: dict[tuple[int, str], set[int]] = {}
        self.request = 0

    example = 0

    @initialize()
    def open(self) -> None:
        self.state = State(self.path)
        for name in ("a", "b"):
            self.records[self.state.put_collection(row(name)).number] = {}
        arrival_state.begin(self.state, "move", 1, frozenset({1}))
        arrival_state.make_ready(self.state, "move", 1, frozenset({1}))
        self.cursor = b""

    @rule(
        number=st.sampled_from([1, 2]),
        kind=st.sampled_from(list(CODES)),
        ids=st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True),
        fate=st.sampled_from(["lands", "lands", "refused", "killed before", "killed after"]),
        of_move=st.booleans(),
    )
    def group(self, number: int, kind: str, ids: list[str], fate: str, of_move: bool) -> None:
        self.request += 1
        rows = [StagedRow(i, slot_of(i), self.request) for i in ids]
        slots = frozenset(r.slot for r in rows)
        outcome = Outcome(f"q{self.request}", 0, CODES[kind], slots)
        cursor = ArrivalCursor("move", b"%d" % self.request) if of_move else None
        existing = self.state.stage(
            number, f"p-{'ab'[number - 1]}", rows, [outcome], self.request, cursor
        )
        assert existing == set(ids) & set(self.records[number])
        if fate not in {"killed before", "refused"}:
            push(self.path, f"p-{'ab'[number - 1]}", kind, ids)
            self._landed(number, kind, ids)
            self.outcomes[number, f"q{self.request}"] = set(slots)
            self.cursor = cursor.cursor if cursor else self.cursor
        elif fate == "refused":
            push(self.path, f"p-{'ab'[number - 1]}", kind, ids, commit=False)
            assert self.state.settle() is False
        if fate.startswith("killed"):
            self.state.close()
            self.state = State(self.path)
            assert self.state.settle() is (fate == "killed after")

    def _landed(self, number: int, kind: str, ids: list[str]) -> None:
        for record_id in ids:
            if kind == "delete":
                self.records[number].pop(record_id, None)
            elif kind != "update":
                self.records[number].setdefault(record_id, self.request)

    @invariant()
    def agrees(self) -> None:
        link = connect(self.path, read_only=True)
        for number, records in self.records.items():
            sql = "SELECT id, sequence FROM router_record WHERE collection = ?"
            assert dict(link.execute(sql, (number,))) == records
            counts = self.state.slot_counts(number)
            assert sum(counts) == len(records)
            assert all(counts[slot_of(i)] for i in records)
        arrival = arrival_state.find(link, "move")
        assert arrival == Arrival("move", 1, frozenset({1}), True, self.cursor)
        link.close()
        sequences = [s for records in self.records.values() for s in records.values()]
        assert self.state.high_sequence() == max(sequences, default=0)
        for number in self.records:
            asked = [(f"q{n}", 0) for n in range(1, self.request + 1)]
            known = self.state.remembered(number, asked)
            assert {q: set(r.slots) for (q, _), r in zip(asked, known, strict=True) if r.slots} == {
                q: slots for (n, q), slots in self.outcomes.items() if n == number
            }

    def teardown(self) -> None:
        self.state.close()


def test_the_tables_are_the_naive_twin(tmp_path: Path) -> None:
    from hypothesis import settings
    from hypothesis.stateful import run_state_machine_as_test

    StateMachine.directory = tmp_path
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        StateMachine, settings=settings(max_examples=40, stateful_step_count=15, deadline=None)
    )


def test_a_write_that_was_not_staged_is_refused(path: Path) -> None:
    state = State(path)
    state.put_collection(row("a"))
    for physical, ids in (("p-a", ["x"]), ("p-a", ["s", "x"]), ("p-b", ["s"])):
        state.stage(1, "p-a", [StagedRow("s", 1, 1)], [], 0)
        with pytest.raises(sqlite3.IntegrityError, match="did not stage"):
            push(path, physical, "add", ids)
        assert state.settle() is False
    assert sum(state.slot_counts(1)) == 0
    state.close()


def test_a_batch_that_was_not_settled_is_noticed(path: Path) -> None:
    state = State(path)
    state.put_collection(row("a"))
    outcome = Outcome("q", 0, 1, frozenset({1}))
    state.stage(1, "p-a", [StagedRow("s", 1, 1)], [outcome], 0)
    with pytest.raises(StateBroken):
        state.stage(1, "p-a", [StagedRow("t", 1, 1)], [], 0)
    state.close()


def test_a_cursor_that_was_not_settled_is_noticed(path: Path) -> None:
    state = State(path)
    state.put_collection(row("a"))
    arrival_state.begin(state, "move", 1, frozenset({1}))
    cursor = ArrivalCursor("move", b"1")
    with pytest.raises(StateBroken, match="no arrival"):  # it is not ready
        state.stage(1, "p-a", [], [], 0, cursor)
    arrival_state.make_ready(state, "move", 1, frozenset({1}))
    state.stage(1, "p-a", [StagedRow("s", 1, 1)], [], 0, cursor)
    with pytest.raises(StateBroken, match="settled"):
        state.stage(1, "p-a", [StagedRow("t", 1, 1)], [], 0)
    assert state.settle() is False
    state.stage(1, "p-a", [StagedRow("t", 1, 1)], [], 0)
    push(path, "p-a", "add", ["t"])
    link = connect(path, read_only=True)
    assert arrival_state.find(link, "move") == Arrival("move", 1, frozenset({1}), True, b"")
    link.close()
    state.close()


def test_an_outcome_without_an_engine_call_is_kept(path: Path) -> None:
    state = State(path)
    state.put_collection(row("a"))
    state.stage(1, "p-a", [StagedRow("s", 7, 1)], [Outcome("q", 2, 4, frozenset({7}))], 0)
    state.land()
    assert state.settle() is True
    (known,) = state.remembered(1, [("q", 2)])
    assert (known.slots, known.deleted) == (frozenset({7}), 0)
    state.close()


@given(st.lists(st.integers(0, 1023), max_size=30), st.lists(st.integers(0, 1023), max_size=30))
def test_outcomes_say_what_was_deleted(covered: list[int], deleted: list[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chroma.sqlite3"
        make(path)
        state = State(path)
        state.put_collection(row("a"))
        state.stage(1, "p-a", [], [Outcome("q", 0, 4, frozenset(covered), tuple(deleted))], 0)
        state.land()
        (known,) = state.remembered(1, [("q", 0)])
        state.close()
    assert (known.slots, known.deleted) == (frozenset(covered), len(deleted))


def test_old_outcomes_are_forgotten_in_small_batches(path: Path) -> None:
    state = State(path)
    state.put_collection(row("a"))
    for at in range(10):
        state.stage(1, "p-a", [], [Outcome(f"q{at}", 0, 4, frozenset({1}))], at)
        state.land()
    assert state.prune_outcomes(6, limit=4) == 4
    assert state.prune_outcomes(6, limit=4) == 2
    assert state.prune_outcomes(6, limit=4) == 0
    known = state.remembered(1, [(f"q{at}", 0) for at in range(10)])
    assert [bool(k.slots) for k in known] == [False] * 6 + [True] * 4
    state.close()


def test_collections_and_the_cluster_are_kept(path: Path) -> None:
    state = State(path)
    assert state.cluster_id() == ""
    state.adopt_cluster("c1")
    first = state.put_collection(row("a"))
    second = state.put_collection(row("b", epoch=4, owned=b"\xff" * 128, definition=b"d"))
    dropped = state.put_collection(row("a", dropped=True, physical=None, epoch=9))
    assert (first.number, second.number, dropped.number) == (1, 2, 1)
    state.close()
    state = State(path)
    assert state.cluster_id() == "c1"
    assert state.collections() == [dropped, second]
    state.close()
