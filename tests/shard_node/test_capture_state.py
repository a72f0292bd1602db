"""The tables of a move's source against what was written, with an engine that is only its queue."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from chroma_router.wire.slots import slot_of, slots_to_bitmap
from shard_node import capture_state
from shard_node.capture_state import Capture, Change, StoredFence
from shard_node.state import Outcome, StagedRow, State
from tests.shard_node.moving import EVEN, ODD, names
from tests.shard_node.test_state import make, push, row

HERE, THERE = names(4), names(4, ODD)
BEGINNING = Change(0, "")


class Bench:
    """A state with the collections "a" and "b", numbers 1 and 2, and its engine."""

    def __init__(self, path: Path) -> None:
        make(path)
        self.path, self.state = path, State(path)
        for name in "ab":
            self.state.put_collection(row(name, owned=b"\xff" * 128))

    def write(self, kind: str, *ids: str, name: str = "a", lands: bool = True) -> None:
        rows = [StagedRow(i, slot_of(i), 1) for i in ids]
        self.state.stage(" ab".index(name), f"p-{name}", rows, [], 0)
        push(self.path, f"p-{name}", kind, list(ids), commit=lands)
        assert self.state.settle() is lands

    def remember(self, collection: int, *outcomes: Outcome, at: int = 1) -> None:
        """As one batch."""
        self.state.stage(collection, "p-a", [], outcomes, at)
        self.state.land()

    def begin(self, move: str = "m", slots: frozenset[int] = EVEN, collection: int = 1) -> None:
        capture_state.begin(self.state, Capture(move, collection, f"c-{move}", slots))

    def changed(self, move: str = "m", after: Change = BEGINNING, limit: int = 99) -> list[str]:
        return [change.id for change in capture_state.changes(self.state, move, after, limit)]

    def moves(self, table: str) -> list[str]:
        return [m for (m,) in self.state.rows(f"SELECT DISTINCT move FROM router_{table}")]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "chroma.sqlite3")
    yield made
    made.state.close()


def test_changes_are_marked_in_the_order_of_the_last_ones(bench: Bench) -> None:
    a, b, c, d = HERE
    bench.write("add", a)
    bench.begin()
    assert bench.changed() == []
    bench.write("add", c, b, THERE[0])
    bench.write("update", d)
    bench.write("upsert", a, name="b")  # another collection
    bench.write("delete", a, lands=False)
    assert bench.changed() == [*sorted([b, c]), d]
    bench.write("delete", b)
    assert bench.changed() == [c, d, b]
    (first, *_) = capture_state.changes(bench.state, "m", BEGINNING, 1)
    assert bench.changed(after=first) == [d, b]
    assert bench.changed(after=first, limit=1) == [d]
    assert capture_state.sequences(bench.state, 1, HERE) == {a: 1, c: 1}


def test_captures_apart_go_on_beside_one_another(bench: Bench) -> None:
    bench.begin("even")
    bench.begin("odd", ODD)
    bench.begin("other", EVEN, collection=2)
    bench.write("add", HERE[0], THERE[0])
    bench.write("add", HERE[1], name="b")
    assert [bench.changed(move) for move in ("even", "odd", "other")] == [
        [HERE[0]], [THERE[0]], [HERE[1]],
    ]  # fmt: skip
    bench.begin("one", frozenset({slot_of(HERE[2])}))
    assert capture_state.find(bench.state, "even") is None
    bench.write("add", HERE[2], HERE[3])
    assert bench.changed("one") == [HERE[2]]
    assert sorted(bench.moves("capture")) == sorted(bench.moves("capture_slot"))
    found = capture_state.find(bench.state, "odd")
    assert found == Capture("odd", 1, "c-odd", ODD)


def test_what_ended_captures_have_marked_is_swept(bench: Bench) -> None:
    for move in ("p", "q", "r"):
        bench.begin(move)
        bench.write("upsert", *HERE)
    assert bench.moves("capture") == ["r"]
    swept = [capture_state.sweep(bench.state, 3) for _ in range(5)]
    assert swept == [3, 1, 3, 1, 0]
    assert bench.moves("dirty") == ["r"]
    capture_state.end(bench.state, "r")
    bench.begin("r")  # the same move again: what it had marked is of no use
    assert bench.changed("r") == []


@pytest.mark.parametrize("seed", range(5))
def test_outcomes_come_in_whole_batches_once_each(bench: Bench, seed: int) -> None:
    print(f"seed {seed}")
    rng, expected = random.Random(seed), []
    for batch in range(30):
        mine = rng.random() < 0.7
        outcomes = [_outcome(rng, f"q{batch}-{n}") for n in range(rng.choice([0, 1, 1, 3, 9]))]
        bench.remember(1 if mine else 2, *outcomes, at=batch)
        for outcome in outcomes if mine else ():
            slots = outcome.slots & EVEN
            deleted = tuple(slot for slot in outcome.deleted_slots if slot in EVEN)
            if slots or deleted:
                expected.append((outcome.request_id, slots, deleted, batch))
    found, upto, limit = [], 0, rng.choice([1, 4, 10])
    while True:
        page = capture_state.outcomes(bench.state, 1, EVEN, upto, limit)
        found += [(o.request_id, o.slots, o.deleted_slots, at) for o, at in page.found]
        assert len(page.found) <= max(limit, 9)
        assert page.upto > upto or page.last
        upto = page.upto
        if page.last:
            break
    assert sorted(found) == sorted(expected)
    bench.state.stage(1, "p-a", [], [_outcome(rng, "staged only")], 0)
    page = capture_state.outcomes(bench.state, 1, EVEN, upto, 10)
    assert (page.found, page.upto, page.last) == ([], upto, True)


def _outcome(rng: random.Random, request_id: str) -> Outcome:
    slots = frozenset(rng.sample(range(1024), rng.choice([0, 1, 5])))
    deleted = tuple(rng.choices(range(1024), k=rng.choice([0, 0, 3])))
    return Outcome(request_id, 0, 4, slots, deleted, -1)


def test_ownership_ends_what_it_is_the_end_of(bench: Bench) -> None:
    bench.begin("kept", frozenset({0, 2}))
    bench.begin("lost", frozenset({4, 6}))
    bench.begin("elsewhere", frozenset({4}), collection=2)
    for move, epoch in (("kept", 3), ("lost", 2)):
        slots = frozenset({0, 2}) if move == "kept" else frozenset({4, 6})
        capture_state.put_fence(bench.state, StoredFence(move, 1, slots, epoch, 9))
    with bench.state.transaction() as link:
        for move, slot in (("got", 2), ("coming", 6)):
            link.execute(
                "INSERT INTO router_arrival VALUES (?, 1, ?, 1, x'', NULL, 0)",
                (move, slots_to_bitmap(frozenset({slot}))),
            )
    owned = slots_to_bitmap(frozenset({0, 2, 4}))
    stored = capture_state.put_owned(bench.state, row("a", epoch=2, owned=owned))
    assert bench.state.collections()[0] == stored
    assert sorted(bench.moves("capture")) == ["elsewhere", "kept"]
    assert sorted(bench.moves("capture_slot")) == ["elsewhere", "kept"]
    assert bench.moves("arrival") == ["coming"]
    assert capture_state.fences(bench.state, 1) == [StoredFence("kept", 1, frozenset({0, 2}), 3, 9)]
    capture_state.put_dropped(bench.state, row("a", epoch=3, dropped=True))
    assert bench.moves("capture") == bench.moves("capture_slot") == ["elsewhere"]
    assert bench.moves("fence") == bench.moves("arrival") == []
