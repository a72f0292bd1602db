"""The check of histories: known ones, a brute-force twin, and a register that is one."""

import heapq
import itertools
import random
import time
from collections.abc import Generator, Iterator, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.elastic.linearizability import History, Kind, Operation, Value, check

Spec = tuple[Kind, float, float | None, Value]


def history(*specs: Spec) -> list[Operation]:
    """Operations by (kind, invoked, returned, value), each of a client of its own."""
    return [Operation(f"c{n}", *spec) for n, spec in enumerate(specs)]


def fine(*specs: Spec, initial: Value = None) -> bool:
    """Whether such a history is linearizable."""
    return check(history(*specs), initial) is None


def test_reads_of_what_was_acknowledged() -> None:
    assert fine((Kind.UPSERT, 0, 1, 7), (Kind.READ, 2, 3, 7))
    assert not fine((Kind.UPSERT, 0, 1, 7), (Kind.READ, 2, 3, None))  # lost
    assert not fine((Kind.DELETE, 0, 1, None), (Kind.READ, 2, 3, 5), initial=5)  # resurrected
    assert not fine(  # stale
        (Kind.UPSERT, 0, 1, 1), (Kind.UPSERT, 2, 3, 2), (Kind.READ, 4, 5, 1)
    )


def test_a_read_beside_a_write_sees_either_but_never_goes_back() -> None:
    assert fine((Kind.UPSERT, 0, 10, 1), (Kind.READ, 1, 2, None), (Kind.READ, 3, 4, 1))
    assert not fine((Kind.UPSERT, 0, 10, 1), (Kind.READ, 1, 2, 1), (Kind.READ, 3, 4, None))
    assert fine((Kind.UPSERT, 0, 10, 1), (Kind.READ, 1, 5, 1), (Kind.READ, 3, 6, None))


def test_operations_that_touch_are_not_one_after_the_other() -> None:
    assert fine((Kind.UPSERT, 0, 1, 1), (Kind.READ, 1, 2, None))


def test_two_writers_beside_each_other_leave_one_value_for_all() -> None:
    writes: list[Spec] = [(Kind.UPSERT, 0, 5, 1), (Kind.UPSERT, 0, 5, 2)]
    assert fine(*writes, (Kind.READ, 6, 7, 1), (Kind.READ, 8, 9, 1))
    assert not fine(*writes, (Kind.READ, 6, 7, 1), (Kind.READ, 8, 9, 2))


def test_updates_of_what_is_missing_and_adds_of_what_exists_do_nothing() -> None:
    assert fine((Kind.UPDATE, 0, 1, 1), (Kind.READ, 2, 3, None))
    assert not fine((Kind.UPDATE, 0, 1, 1), (Kind.READ, 2, 3, 1))
    assert fine((Kind.ADD, 0, 1, 1), (Kind.READ, 2, 3, 9), initial=9)
    assert not fine((Kind.ADD, 0, 1, 1), (Kind.READ, 2, 3, 1), initial=9)
    assert fine((Kind.ADD, 0, 1, 1), (Kind.READ, 2, 3, 1))


def test_an_unknown_write_takes_effect_late_or_never_but_once() -> None:
    unknown: Spec = (Kind.UPSERT, 0, None, 1)
    assert fine(unknown, (Kind.READ, 2, 3, None))
    assert fine(unknown, (Kind.READ, 2, 3, None), (Kind.READ, 100, 101, 1))
    assert fine(unknown, (Kind.UPSERT, 2, 3, 2), (Kind.READ, 4, 5, 2), (Kind.READ, 6, 7, 1))
    assert not fine(unknown, (Kind.READ, 2, 3, 1), (Kind.READ, 4, 5, None))
    assert not fine(  # twice
        unknown,
        (Kind.READ, 2, 3, 1),
        (Kind.UPSERT, 4, 5, 2),
        (Kind.READ, 6, 7, 2),
        (Kind.READ, 8, 9, 1),
    )


def test_no_effect_before_the_invocation() -> None:
    assert not fine((Kind.READ, 0, 1, 1), (Kind.UPSERT, 2, 3, 1))
    assert not fine((Kind.READ, 0, 1, 1), (Kind.UPSERT, 2, None, 1))


def test_a_conditional_delete_tells_the_truth() -> None:
    def told(hit: bool, initial: Value) -> bool:
        return check([Operation("c", Kind.DELETE_IF, 0, 1, 5, hit)], initial) is None

    assert told(True, 5)
    assert told(False, 6)
    assert told(False, None)
    assert not told(True, 6)
    assert not told(False, 5)


def test_the_report_is_the_smallest_piece() -> None:
    noise: list[Spec] = [(Kind.UPSERT, n, n + 0.5, n) for n in range(100)]
    noise += [(Kind.READ, n + 0.6, n + 0.7, n) for n in range(100)]
    bad: list[Spec] = [
        (Kind.UPSERT, 200, 201, 1000),
        (Kind.READ, 200.5, 202.5, 1000),
        (Kind.UPSERT, 202, 204, 2000),
        (Kind.READ, 203, 205, 1000),
        (Kind.READ, 204.5, 206, 1000),
        (Kind.READ, 204.6, 206, 2000),
    ]
    violation = check(history(*noise, *bad))
    assert violation is not None
    told = [(o.kind, o.value) for o in violation.operations]
    # At 204 the write of 2000 was acknowledged; the read that began at 204.5 saw 1000.
    assert told == [(Kind.UPSERT, 1000), (Kind.UPSERT, 2000), (Kind.READ, 1000)]
    assert violation.before == (99,)
    assert "it held 99; no order explains" in str(violation)


def test_a_history_is_collected_as_it_happens() -> None:
    seen = History()
    write = seen.invoke("a", Kind.UPSERT, 0.0, 4)
    lost = seen.invoke("b", Kind.READ, 0.5)
    refused = seen.invoke("b", Kind.UPSERT, 0.6, 5)
    unknown = seen.invoke("b", Kind.DELETE, 0.7)
    conditional = seen.invoke("c", Kind.DELETE_IF, 1.0, 4)
    running = seen.invoke("c", Kind.READ, 1.0)
    seen.ok(write, 2.0)
    seen.unknown(lost)
    seen.failed(refused)
    seen.unknown(unknown)
    seen.told(conditional, 3.0, True)
    assert len(seen) == 4
    assert seen.operations() == [
        Operation("a", Kind.UPSERT, 0.0, 2.0, 4),
        Operation("b", Kind.DELETE, 0.7, None),
        Operation("c", Kind.DELETE_IF, 1.0, 3.0, 4, True),
    ]
    seen.read(running, 4.0, None)
    assert seen.operations()[-1] == Operation("c", Kind.READ, 1.0, 4.0, None)


# ---------------------------------------------------------------------------------- the naive twin


def explained(operations: Sequence[Operation], initial: Value) -> bool:
    """By trying all orders of all subsets that leave out only unknown writes."""
    certain = [o for o in operations if o.returned is not None]
    unknown = [o for o in operations if o.returned is None]
    for count in range(len(unknown) + 1):
        for some in itertools.combinations(unknown, count):
            for order in itertools.permutations([*certain, *some]):
                if _in_time(order) and _runs(order, initial):
                    return True
    return False


def _in_time(order: Sequence[Operation]) -> bool:
    return not any(
        later.returned is not None and later.returned < earlier.invoked
        for n, earlier in enumerate(order)
        for later in order[n + 1 :]
    )


def _runs(order: Sequence[Operation], value: Value) -> bool:
    for o in order:
        holds = value is not None and value == o.value
        if o.kind is Kind.READ and value != o.value:
            return False
        if o.kind is Kind.DELETE_IF and o.hit is not None and o.hit != holds:
            return False
        if (
            o.kind is Kind.UPSERT
            or (o.kind is Kind.UPDATE and value is not None)
            or (o.kind is Kind.ADD and value is None)
        ):
            value = o.value
        elif o.kind is Kind.DELETE or (o.kind is Kind.DELETE_IF and holds):
            value = None
    return True


@st.composite
def _operation(draw: st.DrawFn) -> Operation:
    kind = draw(st.sampled_from(Kind))
    invoked = draw(st.integers(0, 8))
    returned = draw(st.none() | st.integers(0, 5).map(lambda length: invoked + length))
    if kind is Kind.READ and returned is None:
        returned = invoked + 1
    value: Value = draw(st.integers(1, 3))
    if kind is Kind.DELETE or (kind is Kind.READ and draw(st.booleans())):
        value = None
    hit = draw(st.sampled_from([None, False, True])) if kind is Kind.DELETE_IF else None
    return Operation("c", kind, invoked, returned, value, hit if returned is not None else None)


@settings(max_examples=600)
@given(st.lists(_operation(), max_size=6), st.sampled_from([None, 1, 2]))
def test_as_the_naive_twin(operations: list[Operation], initial: Value) -> None:
    violation = check(operations, initial)
    assert (violation is None) == explained(operations, initial)
    if violation is not None:
        # What is reported is impossible by itself, whatever of it was there before.
        assert not any(explained(violation.operations, value) for value in violation.before)


# ----------------------------------------------------------------------------- a simulated register


class SimulatedRegister:
    """A register whose calls and answers are delayed, and sometimes lost.

    `defect`: "stale" answers some reads with an older value, "lost" acknowledges some writes
    without doing them, "twice" does some once more, later.
    """

    def __init__(self, seed: int, unknown: float = 0.02, defect: str = "") -> None:
        self._dice = random.Random(seed)
        self._unknown, self._defect = unknown, defect
        self._value: Value = None
        self._values: list[Value] = [None]
        self.seen = History()

    def run(self, clients: int, steps: int) -> list[Operation]:
        """What so many clients see in about so many steps."""
        dice, tokens = self._dice, itertools.count(1)
        calls = {client: self._call(client, tokens) for client in range(clients)}
        agenda = [(dice.random(), client) for client in calls]
        for _ in range(steps):
            now, client = heapq.heappop(agenda)
            pause = calls[client].send(now)
            heapq.heappush(agenda, (now + pause, client))
        return self.seen.operations()

    def _call(self, client: int, tokens: Iterator[int]) -> Generator[float, float, None]:
        """A client: yields for how long it waits, is sent the time."""

        def client_of() -> Generator[float, float, None]:
            now = yield 0.0
            while True:
                kind = self._dice.choice(list(Kind))
                wanted = next(tokens) if kind in {Kind.UPSERT, Kind.UPDATE, Kind.ADD} else None
                if kind is Kind.DELETE_IF:
                    wanted = self._value
                handle = self.seen.invoke(str(client), kind, now, wanted)
                now = yield self._dice.expovariate(1)
                answer, hit = self._take_effect(kind, wanted)
                now = yield self._dice.expovariate(1)
                self._end(handle, kind, now, answer, hit)
                now = yield self._dice.expovariate(2)

        calls = client_of()
        next(calls)
        return calls

    def _take_effect(self, kind: Kind, wanted: Value) -> tuple[Value, bool]:
        """What an answer then tells: the value, and whether it was the wanted one."""
        if self._defect == "twice" and self._dice.random() < 0.05:
            self._value = self._dice.choice(self._values)
        value = self._value
        hit = value is not None and value == wanted
        if self._defect == "stale" and self._dice.random() < 0.1:
            return self._dice.choice(self._values), hit
        if self._defect == "lost" and self._dice.random() < 0.05:
            return value, hit
        if (
            kind is Kind.UPSERT
            or (kind is Kind.UPDATE and value is not None)
            or (kind is Kind.ADD and value is None)
        ):
            self._value = wanted
        elif kind is Kind.DELETE or (kind is Kind.DELETE_IF and hit):
            self._value = None
        self._values.append(self._value)
        return value, hit

    def _end(self, handle: int, kind: Kind, now: float, answer: Value, hit: bool) -> None:
        if self._dice.random() < self._unknown:
            self.seen.unknown(handle)
        elif kind is Kind.READ:
            self.seen.read(handle, now, answer)
        elif kind is Kind.DELETE_IF:
            self.seen.told(handle, now, hit)
        else:
            self.seen.ok(handle, now)


def test_a_register_with_delays_is_linearizable() -> None:
    for seed in range(30):
        operations = SimulatedRegister(seed).run(clients=1 + seed % 6, steps=900)
        assert check(operations) is None, seed


def test_a_register_with_a_defect_is_found_out() -> None:
    for defect in ("stale", "lost", "twice"):
        runs = [SimulatedRegister(n, 0.002, defect).run(clients=2, steps=1500) for n in range(10)]
        found = [check(operations) for operations in runs]
        assert sum(violation is not None for violation in found) >= 8, defect


def test_a_long_history_with_many_unknown_outcomes_is_checked_in_time() -> None:
    operations = SimulatedRegister(1, unknown=0.003).run(clients=4, steps=15_000)
    begun = time.monotonic()
    assert check(operations) is None
    assert time.monotonic() - begun < 20
