"""Whether what several clients saw of one record can have happened one operation after another.

A record is a register whose value is a token, or None while the record does not exist. Pure: the
times are given. The check is Lowe's just-in-time linearization ("Testing for linearizability",
2017): operations are put in order only when one of them returns. What it keeps after each return is
the set of all pasts that can have been, each a value and which of the running operations have
already had their effect; where nothing is running that is a set of values, so a history costs what
its longest stretch without such a quiescent point costs. A write whose outcome is unknown runs for
ever: it may have its effect at any time after its invocation, or never.
"""

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import TypeAlias

Value: TypeAlias = int | None
"""What a record holds; None: it does not exist."""


class Kind(StrEnum):
    """What an operation does with its record."""

    READ = "read"
    UPSERT = "upsert"
    UPDATE = "update"
    """Nothing where the record does not exist."""
    ADD = "add"
    """Nothing where the record exists."""
    DELETE = "delete"
    DELETE_IF = "delete if"
    """Deletes the record if it holds `value`, and tells in `hit` whether it did."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on one record, with its times on one clock (any unit)."""

    client: str
    kind: Kind
    invoked: float
    returned: float | None
    """None: its outcome is unknown. It may have had its effect, or may have it yet."""
    value: Value = None
    """What it wrote, expected or, a read, saw."""
    hit: bool | None = None
    """Of DELETE_IF: whether it deleted the record; None: it did not tell."""

    def __str__(self) -> str:
        until = "outcome unknown" if self.returned is None else f"{self.returned:.6f}"
        what = f"{self.kind} {'nothing' if self.value is None else self.value}"
        if self.kind is Kind.DELETE:
            what = str(self.kind)
        if self.hit is not None:
            what += " (did)" if self.hit else " (did not)"
        return f"{self.invoked:.6f} - {until}  {self.client}: {what}"


@dataclass(frozen=True, slots=True)
class Violation:
    """A piece of a history that cannot have happened, as small as it was made."""

    before: tuple[Value, ...]
    """What the record can have held at the beginning of the piece."""
    operations: tuple[Operation, ...]
    """In the order of their invocations."""

    def __str__(self) -> str:
        values = " or ".join("nothing" if v is None else str(v) for v in self.before)
        lines = "\n".join(f"  {operation}" for operation in self.operations)
        return f"it held {values}; no order explains\n{lines}"


class History:
    """Collects the operations on one record as they begin and end. Not for several threads."""

    def __init__(self) -> None:
        self._operations: dict[int, Operation] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._operations)

    def invoke(self, client: str, kind: Kind, time: float, value: Value = None) -> int:
        """Notes that an operation begins; the handle by which its end is told."""
        self._next += 1
        self._operations[self._next] = Operation(client, kind, time, None, value)
        return self._next

    def ok(self, handle: int, time: float) -> None:
        """A write was acknowledged."""
        self._operations[handle] = replace(self._operations[handle], returned=time)

    def read(self, handle: int, time: float, value: Value) -> None:
        """A read saw a value."""
        self._operations[handle] = replace(self._operations[handle], returned=time, value=value)

    def told(self, handle: int, time: float, hit: bool) -> None:
        """A DELETE_IF was acknowledged."""
        self._operations[handle] = replace(self._operations[handle], returned=time, hit=hit)

    def failed(self, handle: int) -> None:
        """An operation that certainly had no effect, or a read that saw nothing at all."""
        del self._operations[handle]

    def unknown(self, handle: int) -> None:
        """The operation's outcome is not known."""
        if self._operations[handle].kind is Kind.READ:
            self.failed(handle)

    def operations(self) -> list[Operation]:
        """The operations so far; one that has not ended counts as unknown."""
        return [
            operation
            for operation in self._operations.values()
            if operation.kind is not Kind.READ or operation.returned is not None
        ]


class Undecided(Exception):
    """Too many writes of unknown outcome run at once for the search to end in time."""


def check(operations: Iterable[Operation], initial: Value = None) -> Violation | None:
    """None if the operations are linearizable for a record that held `initial`; else a small piece
    of them that is not. One operation is before another if it returned before the other began.

    Raises Undecided where that cannot be told in reasonable time.
    """
    history = sorted(operations, key=lambda operation: operation.invoked)
    # First as if an unknown write that nobody sees had its effect soon or never: that is quicker by
    # far where there are many. Only if this explains nothing are they kept for longer.
    for patience in (0, 16, 128):
        if _first_bad_piece(history, frozenset({initial}), _given_up(history, patience)) is None:
            return None
    piece = _first_bad_piece(history, frozenset({initial}))
    return None if piece is None else _smaller(*piece)


# ----------------------------------------------------------------------------------- the search

_Past: TypeAlias = tuple[Value, int]
"""A value, and which of the running operations have had their effect: a bit for each."""

_Piece: TypeAlias = tuple[frozenset[Value], list[Operation]]

_MOST_PASTS = 200_000


def _first_bad_piece(
    history: Sequence[Operation],
    values: frozenset[Value],
    given_up: Mapping[int, float] | None = None,
    most: int = _MOST_PASTS,
) -> _Piece | None:
    """The operations up to the return that nothing explains, and the values that the record can
    have held before them; None if all is explained.

    `given_up`: unknown writes that are not looked at after a time. Raises Undecided if one return
    leaves more than `most` pasts to look at.
    """
    search = _Search(most)
    pasts: set[_Past] = {(value, 0) for value in values}
    quiet: _Piece = (values, [])
    begin = 0
    for at, event, number in _events(history, given_up or {}):
        if event is _Event.INVOKED:
            if not search.certain:
                quiet = frozenset(value for value, _ in pasts), list(search.running.values())
                begin = number
            search.begin(number, history[number])
        elif event is _Event.GIVEN_UP:
            pasts = search.give_up(pasts, number)
        else:
            pasts = search.end(pasts, number)
            if not pasts:
                # What began after this return has no part in it.
                last = [o for o in history[begin:] if o.invoked <= at]
                return quiet[0], quiet[1] + last
    return None


class _Event(IntEnum):
    # In the order in which they count at one time: operations that touch were not one after the
    # other, and a write that is seen for the last time is looked at until then.
    INVOKED = 0
    RETURNED = 1
    GIVEN_UP = 2


def _events(
    history: Sequence[Operation], given_up: Mapping[int, float]
) -> list[tuple[float, _Event, int]]:
    events = [(operation.invoked, _Event.INVOKED, n) for n, operation in enumerate(history)]
    for number, operation in enumerate(history):
        if operation.returned is not None:
            events.append((operation.returned, _Event.RETURNED, number))
    events += [(at, _Event.GIVEN_UP, number) for number, at in given_up.items()]
    return sorted(events)


def _given_up(history: Sequence[Operation], patience: int) -> dict[int, float]:
    """For each unknown write that names a value, when the last operation that tells of it returned,
    but not before so many others returned after its invocation."""
    told: dict[Value, float] = {}
    for operation in history:
        if operation.kind in {Kind.READ, Kind.DELETE_IF} and operation.returned is not None:
            told[operation.value] = max(told.get(operation.value, 0.0), operation.returned)
    returns = sorted(o.returned for o in history if o.returned is not None)
    given_up = {}
    for number, operation in enumerate(history):
        if operation.returned is not None or operation.kind is Kind.DELETE:
            continue  # unknown deletes are alike: many cost no more than one
        soon = bisect.bisect(returns, operation.invoked) + patience - 1
        soon_at = returns[min(soon, len(returns) - 1)] if returns and soon >= 0 else 0.0
        given_up[number] = max(operation.invoked, soon_at, told.get(operation.value, 0.0))
    return given_up


_WRITES_OF_VALUES = frozenset({Kind.UPSERT, Kind.UPDATE, Kind.ADD})


class _Search:
    """The operations that run, by their bits, and what their ends leave of the pasts.

    `certain`: the bits of those that will return.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.running: dict[int, Operation] = {}
        self.certain = 0
        self._bits: dict[int, int] = {}

    def begin(self, number: int, operation: Operation) -> None:
        """An operation begins."""
        bit = 1
        while bit in self.running:
            bit <<= 1
        self._bits[number] = bit
        self.running[bit] = operation
        if operation.returned is not None:
            self.certain |= bit

    def give_up(self, pasts: set[_Past], number: int) -> set[_Past]:
        """An unknown write is not looked at any more."""
        bit = self._bits.get(number)
        return pasts if bit is None else self._without(pasts, bit)

    def end(self, pasts: set[_Past], number: int) -> set[_Past]:
        """An operation has returned: the pasts in which it has had its effect."""
        bit = self._bits.pop(number)
        reached = self._having_done(pasts, bit)
        self.certain &= ~bit
        del self.running[bit]
        pasts = self._without_dominated(reached)
        settled = ~self.certain
        for _, done in pasts:
            settled &= done
        return self._without(pasts, settled) if settled and pasts else pasts

    def _having_done(self, pasts: set[_Past], bit: int) -> set[_Past]:
        """What the pasts can become by effects of running operations, the last of which is that of
        the operation `bit`; the bit is not in them any more."""
        reached: set[_Past] = set()
        seen = {self._with_reads(past) for past in pasts}
        open_ = list(seen)
        while open_:
            value, done = open_.pop()
            if done & bit:
                reached.add((value, done ^ bit))
                continue
            for other, operation in self._next_ones(done):
                after = _effect(operation, value)
                if isinstance(after, _Impossible):
                    continue
                following = self._with_reads((after, done | other))
                if following not in seen:
                    if len(seen) >= self._most:
                        raise Undecided(f"more than {self._most} pasts beside {operation}")
                    seen.add(following)
                    open_.append(following)
        return reached

    def _next_ones(self, done: int) -> list[tuple[int, Operation]]:
        """The running operations that can have their effect next. Of unknown ones that are alike
        the first stands for all; reads are done when they can be."""
        alike: set[tuple[Kind, Value]] = set()
        found = []
        for bit, operation in self.running.items():
            if done & bit or operation.kind is Kind.READ:
                continue
            if operation.returned is None:
                if (operation.kind, operation.value) in alike:
                    continue
                alike.add((operation.kind, operation.value))
            found.append((bit, operation))
        return found

    def _with_reads(self, past: _Past) -> _Past:
        """The same past with every running read of its value done: a read changes nothing, so no
        other past explains more."""
        value, done = past
        for bit, operation in self.running.items():
            if operation.kind is Kind.READ and operation.value == value:
                done |= bit
        return value, done

    def _without(self, pasts: set[_Past], bits: int) -> set[_Past]:
        """The pasts when unknown writes are no longer looked at: they have had their effect in all
        pasts, or are not to have it in any."""
        for number, bit in list(self._bits.items()):
            if bit & bits:
                del self._bits[number], self.running[bit]
        return {(value, done & ~bits) for value, done in pasts}

    def _without_dominated(self, pasts: set[_Past]) -> set[_Past]:
        """Without the pasts that differ from another only by more unknown writes having had their
        effect: who still has such a write ahead may do as if it had never been."""
        groups: dict[_Past, list[int]] = {}
        for value, done in pasts:
            groups.setdefault((value, done & self.certain), []).append(done & ~self.certain)
        return {
            (value, certain | unknown)
            for (value, certain), sets in groups.items()
            for unknown in sets
            if not any(other != unknown and other & unknown == other for other in sets)
        }


class _Impossible:
    pass


_IMPOSSIBLE = _Impossible()


def _effect(operation: Operation, value: Value) -> Value | _Impossible:
    """The value after an operation; _IMPOSSIBLE where it cannot have told what it told."""
    match operation.kind:
        case Kind.READ:
            return value if operation.value == value else _IMPOSSIBLE
        case Kind.UPSERT:
            return operation.value
        case Kind.UPDATE:
            return value if value is None else operation.value
        case Kind.ADD:
            return operation.value if value is None else value
        case Kind.DELETE:
            return None
        case Kind.DELETE_IF:
            holds = value is not None and value == operation.value
            if operation.hit is not None and operation.hit is not holds:
                return _IMPOSSIBLE
            return None if holds else value


# ------------------------------------------------------------------------------------- the report


def _smaller(before: frozenset[Value], piece: list[Operation]) -> Violation:
    """The piece without what its being impossible does not depend on: reads without which it is
    impossible too, and writes that need not have had any effect and that nobody tells of.

    The piece begins at the last quiescent point, as if each unknown write were still ahead there.
    Should it be possible then, its beginning is what makes it impossible; it is left whole.
    """
    if _first_bad_piece(_in_order(piece), before) is None:
        return Violation(_sorted(before), tuple(_in_order(piece)))
    kept = dict(enumerate(piece))
    for number, operation in enumerate(piece):
        rest = {n: o for n, o in kept.items() if n != number}
        if operation.kind is Kind.READ and _still_bad(rest.values(), before):
            kept = rest
    told = {o.value for o in kept.values() if o.kind in {Kind.READ, Kind.DELETE_IF}}
    shown = set(kept)
    for number, operation in list(kept.items()):
        if operation.kind not in _WRITES_OF_VALUES or operation.value in told:
            continue
        loosened = kept | {number: replace(operation, returned=None)}
        if _still_bad(loosened.values(), before):
            kept = loosened
            shown.discard(number)
    return Violation(_sorted(before), tuple(_in_order(piece[n] for n in shown)))


_FEW_PASTS = 300
"""A report may be longer than it must be, but it has to come."""


def _still_bad(piece: Iterable[Operation], before: frozenset[Value]) -> bool:
    try:
        return _first_bad_piece(_in_order(piece), before, most=_FEW_PASTS) is not None
    except Undecided:
        return False


def _in_order(operations: Iterable[Operation]) -> list[Operation]:
    return sorted(operations, key=lambda operation: operation.invoked)


def _sorted(values: frozenset[Value]) -> tuple[Value, ...]:
    return tuple(sorted(values, key=lambda value: (value is not None, value or 0)))
