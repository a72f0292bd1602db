"""Reads over the shards of a collection: the calls go out together, an answer comes from one epoch.

`consistently` repeats a whole read when a node refuses it as stale (invariant 3), after the
directory has brought node or router up to date; `scatter` makes the calls of one round.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from chroma_router.wire.errors import ClusterError, DeadlineExpired, Stale, Unavailable
from router.cluster import Cluster, Shard
from router.core.model import CollectionEntry
from router.core.retry import backoff, retryable
from router.directory import Directory

ROUNDS = 20
"""How often one read is repeated for a newer epoch or a shard that comes back, at most."""

RETRY_BASE, RETRY_CAP = 0.05, 1.0
"""Seconds of back-off before a read is repeated for a shard that did not answer."""

UNAVAILABLE_WINDOW = 5.0
"""Seconds during which a read waits for a shard that does not answer: a node restarts within it."""

_Answer = TypeVar("_Answer")
_Request = TypeVar("_Request")


class ReadPath:
    """Sends reads to shards and gathers their answers."""

    def __init__(self, cluster: Cluster, directory: Directory) -> None:
        self._cluster = cluster
        self._directory = directory

    async def consistently(
        self,
        entry: CollectionEntry,
        deadline: float,
        read: Callable[[CollectionEntry], Awaitable[_Answer]],
    ) -> _Answer:
        """The answer of `read`, which is repeated whole until all of it is from one epoch.

        A shard that does not answer is waited for, at most UNAVAILABLE_WINDOW seconds. `deadline`
        is on the clock of time.monotonic().
        """
        patience = min(deadline, time.monotonic() + UNAVAILABLE_WINDOW)
        refused: Stale | None = None
        for attempt in range(ROUNDS):
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    if refused is not None:
                        entry = await self._directory.reconcile(entry, refused)
                    return await read(entry)
            except Stale as error:
                refused = error
            except TimeoutError:
                raise DeadlineExpired(
                    "the shards did not answer within the deadline; give the call more time"
                ) from None
            except ClusterError as error:
                if not retryable(error) or time.monotonic() >= patience:
                    raise
                delay = backoff(attempt, RETRY_BASE, RETRY_CAP, jitter=0.5)
                await asyncio.sleep(min(delay, max(0.0, patience - time.monotonic())))
        raise Unavailable(
            f"collection [{entry.name}] kept changing its epoch; repeat the request",
            retry_after=1.0,
        )

    async def scatter(
        self,
        requests: Mapping[str, _Request],
        call: Callable[[Shard, _Request], Awaitable[_Answer]],
    ) -> list[_Answer]:
        """Sends each shard its request at once; the answers in the order of `requests`.

        The first error ends the other calls and is raised.
        """
        if len(requests) == 1:
            ((name, request),) = requests.items()
            return [await call(self._cluster.shard(name), request)]
        shards = [(self._cluster.shard(name), request) for name, request in requests.items()]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_run(call, shard, req)) for shard, req in shards]
        except* ClusterError as failures:
            raise _worst(failures) from None
        return [task.result() for task in tasks]


async def _run(
    call: Callable[[Shard, _Request], Awaitable[_Answer]], shard: Shard, request: _Request
) -> _Answer:
    return await call(shard, request)


def _worst(failures: BaseExceptionGroup[ClusterError]) -> ClusterError:
    """Of several shards' errors the one to act on: what can never succeed, then what is stale."""
    errors: list[ClusterError] = []
    stack: list[BaseException] = [failures]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(error.exceptions)
        elif isinstance(error, ClusterError):
            errors.append(error)
    return min(
        errors, key=lambda e: (isinstance(e, Unavailable | Stale), isinstance(e, Unavailable))
    )
