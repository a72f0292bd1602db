"""Calls that a fence holds, until the slots have their new owner or the fence is lifted.

A node that is fenced refuses what touches the moving slots (DESIGN.md, "Moves", 3). The refused
calls wait here, not in a shard's queue: they hold up nobody, and are bounded by the gate that let
them in. What ends their wait is news of the collection: from the mover of this very router at the
moment of its switch, else from the catalog, which one task per collection asks for all of them.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count

import structlog

from chroma_router.wire.errors import ClusterError

log = structlog.get_logger(__name__)

POLL_BASE, POLL_CAP, POLL_GROWTH = 0.01, 0.05, 1.5
"""Seconds between two looks into the catalog, the first and the longest, and how they grow."""

PATIENCE_BASE, PATIENCE_CAP = 0.1, 0.5
"""Seconds, least and most, after which a held call is tried again without any news: a cancel may
have lifted the fence, of which the epoch says nothing. In between, the time that it has held."""


@dataclass(eq=False, slots=True)
class _Hold:
    """The held calls of one collection."""

    began: float
    """On the clock of time.monotonic()."""
    calls: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Fences:
    """Whom fences hold, by collection. Owns one task for each collection that has held calls."""

    def __init__(self, look: Callable[[str], Awaitable[object]], tasks: asyncio.TaskGroup) -> None:
        """`look` reads a collection from the catalog, and calls `release` if that was news."""
        self._look = look
        self._tasks = tasks
        self._holds: dict[str, _Hold] = {}

    async def wait(self, collection_id: str) -> None:
        """Returns at the next `release` of the collection, or when it is time to try again.

        The caller has made sure, without awaiting anything since, that there is no news already.
        """
        hold = self._holds.get(collection_id)
        if hold is None:
            hold = self._holds[collection_id] = _Hold(time.monotonic())
            self._tasks.create_task(self._poll(collection_id, hold), name=f"fence-{collection_id}")
        patience = min(PATIENCE_CAP, max(PATIENCE_BASE, time.monotonic() - hold.began))
        hold.calls += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await hold.news.wait()
        finally:
            hold.calls -= 1

    def held(self, collection_id: str) -> int:
        """How many calls of a collection are held now."""
        hold = self._holds.get(collection_id)
        return hold.calls if hold is not None else 0

    def release(self, collection_id: str) -> None:
        """Lets all held calls of a collection go on at once."""
        hold = self._holds.get(collection_id)
        if hold is not None:
            hold.news.set()
            hold.news = asyncio.Event()  # those that are refused again wait for the next

    async def _poll(self, collection_id: str, hold: _Hold) -> None:
        """Looks into the catalog until nobody is held any more."""
        try:
            for attempt in count():
                pause = POLL_BASE * POLL_GROWTH ** min(attempt, 10)
                await asyncio.sleep(min(POLL_CAP, pause))
                if not hold.calls:
                    return
                try:
                    await self._look(collection_id)
                except ClusterError as error:
                    # Whoever is held finds out for itself when it is tried again.
                    log.info("fence_poll_failed", collection=collection_id, error=error.message)
        finally:
            del self._holds[collection_id]
