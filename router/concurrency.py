"""Several calls at once, of which some may fail."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

from chroma_router.wire.errors import ClusterError

_T = TypeVar("_T")


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
