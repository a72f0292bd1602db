"""Several calls at once, of which some may fail; and work that must not hold up the others."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

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


async def computed(rows: int, work: Callable[..., _T], *arguments: object) -> _T:
    """The result of pure work over so many rows: in a thread if they are many."""
    if rows > INLINE_ROWS:
        return await asyncio.to_thread(work, *arguments)
    return work(*arguments)
