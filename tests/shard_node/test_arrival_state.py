"""The SQL of arrivals: what overlaps, which records and outcomes are of moving slots."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_router.wire.slots import slot_of
from shard_node import arrival_state
from shard_node.arrival_state import Arrival, OutcomeKey, OwnKey
from shard_node.state import Outcome, StagedRow, State, connect
from tests.shard_node.test_state import make, push, row

IDS = [f"r{n}" for n in range(300)]
SLOTS = st.frozensets(st.sampled_from(sorted({slot_of(i) for i in IDS})), min_size=1)
PLACES = st.none() | st.sampled_from(IDS).map(lambda i: (slot_of(i), i))


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    """Two collections, each with all of IDS."""
    path = tmp_path_factory.mktemp("state") / "chroma.sqlite3"
    make(path)
    made = State(path)
    for number, name in ((1, "a"), (2, "b")):
        made.put_collection(row(name))
        rows = [StagedRow(i, slot_of(i), number * 1000 + n) for n, i in enumerate(IDS)]
        made.stage(number, f"p-{name}", rows, [], 0)
        push(path, f"p-{name}", "add", IDS)
    yield made
    made.close()


def test_an_arrival_takes_the_place_of_those_it_overlaps(state: State) -> None:
    link = state._link
    for move, collection, slots in (("m1", 1, {1, 2}), ("m2", 1, {3}), ("m3", 2, {1})):
        arrival_state.begin(state, move, collection, frozenset(slots))
        arrival_state.make_ready(state, move, collection, frozenset(slots))
    arrival_state.make_ready(state, "m4", 1, frozenset({4}))  # there is none: nothing happens
    arrival_state.begin(state, "m4", 1, frozenset({2, 4}))
    arrival_state.make_ready(state, "m4", 1, frozenset({4}))  # nor for other slots
    found = {move: arrival_state.find(link, move) for move in ("m1", "m2", "m3", "m4")}
    assert found == {
        "m1": None,
        "m2": Arrival("m2", 1, frozenset({3}), True, b""),
        "m3": Arrival("m3", 2, frozenset({1}), True, b""),
        "m4": Arrival("m4", 1, frozenset({2, 4}), False, b""),
    }
    arrival_state.restart(state, 1, frozenset({3, 4}))
    assert arrival_state.find(link, "m2") == Arrival("m2", 1, frozenset({3}), False, b"")
    assert arrival_state.find(link, "m3") == found["m3"]
    assert arrival_state.takes_part(link, "m3", 2)
    assert not arrival_state.takes_part(link, "m3", 1)
    for move in found:
        arrival_state.end(state, move)
        assert arrival_state.find(link, move) is None


@given(slots=SLOTS, after=PLACES, upto=PLACES, limit=st.integers(1, 320))
def test_own_keys_are_the_naive_twin(
    state: State,
    slots: frozenset[int],
    after: tuple[int, str] | None,
    upto: tuple[int, str] | None,
    limit: int,
) -> None:
    expected = [
        OwnKey(slot_of(i), i, 1000 + n)
        for n, i in enumerate(IDS)
        if slot_of(i) in slots
        and (after is None or (slot_of(i), i) > after)
        and (upto is None or (slot_of(i), i) <= upto)
    ]
    found = arrival_state.own_keys(state._link, 1, slots, after, upto, limit)
    assert found == sorted(expected)[:limit]


def test_outcomes_lose_the_slots_as_in_the_naive_twin(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    path = tmp_path / "chroma.sqlite3"
    make(path)
    state = State(path)
    twin: dict[tuple[int, str, int], tuple[frozenset[int], Counter[int]]] = {}
    for number, name in ((1, "a"), (2, "b")):
        state.put_collection(row(name))
        for n in range(60):
            covered = frozenset(chance.sample(range(8), chance.randint(0, 4)))
            deleted = tuple(chance.choices(range(8), k=chance.randint(not covered, 3)))
            outcome = Outcome(f"q{n // 2}", n % 2, 4, covered, deleted)
            state.stage(number, f"p-{name}", [], [outcome], 1)
            state.land()
            twin[number, outcome.request_id, outcome.index] = (covered, Counter(deleted))
    gone, touched = frozenset({1, 5}), 0
    link, after = connect(path, read_only=True), None
    while True:
        found, after = arrival_state.outcomes_of(link, 1, gone, after, limit=7)
        touched += len(found)
        arrival_state.strip_outcomes(state, found, gone)
        if after is None:
            break
    link.close()
    mine = [what for (number, *_), what in twin.items() if number == 1]
    assert touched == sum(1 for covered, counts in mine if gone & (covered | counts.keys()))
    nothing: list[OutcomeKey] = []
    assert arrival_state.outcomes_of(state._link, 1, gone, None, 1000) == (nothing, None)
    for (number, request_id, index), (covered, counts) in twin.items():
        left = covered if number == 2 else covered - gone
        figures = [n for slot, n in counts.items() if number == 2 or slot not in gone]
        (known,) = state.remembered(number, [(request_id, index)])
        assert (known.slots, known.deleted) == (left, sum(figures))
    (rows,) = state._link.execute("SELECT count(*) FROM router_outcome").fetchone()
    left_over = [1 for covered, counts in mine if (covered | counts.keys()) - gone]
    assert rows == 60 + len(left_over)
    state.close()
