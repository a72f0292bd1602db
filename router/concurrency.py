"""Several calls at once, of which some may fail; one call for all who ask the same at once; and
work that must not hold up the others."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Generic, TypeVar

from chroma_router.wire.errors import ClusterError

_T = TypeVar("_T")

INLINE_ROWS = 10_000
"""Work over more rows is done in a thread: the event loop stays free."""


async def settled(calls: Iterable[Awaitable[_T]]) -> list[_T | ClusterError]:
    """Runs all calls to their end, at once; the answer or the error of each, in their order.

    Anything but a ClusterError is a defect: it ends the other calls and is raised.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_outcome(call)) for call in calls]
    return [task.result() for task in tasks]


async def _outcome(call: Awaitable[_T]) -> _T | ClusterError:
    try:
        return await call
    except ClusterError as error:
        return error


class _Flight(Generic[_T]):
    """One call for all who are on it; `outcome` is None until it has ended."""

    def __init__(self) -> None:
        self.outcome: tuple[_T | ClusterError] | None = None


class _Line(Generic[_T]):
    """The flights of one key: at most one in the air and one that is boarding."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.in_the_air: _Flight[_T] | None = None
        self.boarding: _Flight[_T] = _Flight()
        self.passengers = 0


class Flights(Generic[_T]):
    """Calls that many may want at the same time, and that are made once for all of them.

    Owns no task: one of those who wait makes the call, and if that one is cancelled, the next does.
    So at most one call of a key is under way, however many ask.
    """

    def __init__(self) -> None:
        self._lines: dict[Hashable, _Line[_T]] = {}

    async def join(
        self, key: Hashable, call: Callable[[], Awaitable[_T]], *, under_way_will_do: bool = False
    ) -> _T:
        """The answer of a call that begins after this was asked; its error is every asker's.

        `under_way_will_do`: also of one that has begun before, if it is still under way. `call`
        must ask the same for every asker of `key`.
        """
        line = self._lines.setdefault(key, _Line())
        begun = line.in_the_air if under_way_will_do else None
        flight = begun or line.boarding
        line.passengers += 1
        try:
            async with line.turn:
                if flight.outcome is None:
                    if line.boarding is flight:  # whoever asks from here on wants a later one
                        line.boarding = _Flight()
                    line.in_the_air = flight
                    try:
                        flight.outcome = (await _outcome(call()),)
                    finally:
                        line.in_the_air = None
        finally:
            line.passengers -= 1
            if not line.passengers:
                del self._lines[key]
        (outcome,) = flight.outcome
        if isinstance(outcome, ClusterError):
            raise outcome
        return outcome


async def computed(rows: int, work: Callable[..., _T], *arguments: object) -> _T:
    """The result of pure work over so many rows: in a thread if they are many."""
    if rows > INLINE_ROWS:
        return await asyncio.to_thread(work, *arguments)
    return work(*arguments)
