"""What bounds the calls under way: the bytes of requests, and what the calls that stream hold."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from chroma_router.wire.errors import Overloaded

MAX_OPEN_STREAMS = 512
"""Scans and BulkUpserts open at once; far fewer than the calls that gRPC takes, so that streams
that are left open never keep other calls out."""

READER_PATIENCE_SECONDS = 60.0
"""How long a page may wait for a client that takes nothing."""

IDLE_SECONDS = 300.0
"""How long a BulkUpsert may bring nothing while none of its batches is worked on."""


class Gate:
    """Bounds the bytes of all requests that are being worked on (invariant 6)."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._bytes = 0

    @contextlib.contextmanager
    def passed(self, size: int) -> Iterator[None]:
        """Holds `size` bytes of the bound meanwhile. Raises Overloaded when they do not fit."""
        if self._bytes + size > self._limit:
            raise Overloaded(
                f"the router is working on {self._bytes} bytes of requests and takes no more than "
                f"{self._limit}; slow down and repeat",
                retry_after=0.5,
            )
        self._bytes += size
        try:
            yield
        finally:
            self._bytes -= size


class Shares:
    """Bounds what all connections hold of something for long, and each of them at half of that:
    one client that lets its streams stand leaves room for the others."""

    def __init__(self, what: str, limit: int) -> None:
        self._what = what
        self._limit = limit
        self._held: Counter[str] = Counter()

    @contextlib.contextmanager
    def taken(self, connection: str, amount: int = 1) -> Iterator[None]:
        """Holds `amount` meanwhile. Raises Overloaded when it does not fit.

        What is more than half by itself fits as long as its connection holds nothing else.
        """
        own = self._held[connection]
        if own and own + amount > self._limit // 2:
            raise Overloaded(
                f"this connection holds {own} {self._what} and may hold {self._limit // 2}; read "
                "or end the streams that it has open, then repeat",
                retry_after=1.0,
            )
        if self._held.total() + amount > self._limit:
            raise Overloaded(
                f"the router holds {self._held.total()} {self._what} and no more than "
                f"{self._limit}; repeat when other streams have ended",
                retry_after=1.0,
            )
        self._held[connection] += amount
        try:
            yield
        finally:
            self._held[connection] -= amount
            if not self._held[connection]:
                del self._held[connection]

    @property
    def is_free(self) -> bool:
        """Whether nothing is held."""
        return not self._held


@dataclass(frozen=True, slots=True)
class StreamBounds:
    """What bounds the calls that stream. They may stand for hours, so nothing that they hold is of
    a bound that other calls need."""

    open: Shares
    """The streams themselves."""
    requests: Shares
    """The bytes of the Scans' requests: a filter is needed until the last page."""
    pages: Shares
    """The bytes of the Scans' pages on their way."""
    draining: asyncio.Event
    """Set when the router is told to stop."""
    page_seconds: float = 60.0
    """In how many seconds a page is made."""
    patience_seconds: float = READER_PATIENCE_SECONDS

    @classmethod
    def of(cls, limit_bytes: int, page_seconds: float, draining: asyncio.Event) -> Self:
        """Those of a router whose requests may have `limit_bytes`."""
        return cls(
            open=Shares("open streams", MAX_OPEN_STREAMS),
            requests=Shares("bytes of the requests of Scans", limit_bytes),
            pages=Shares("bytes of pages that are not read", limit_bytes),
            draining=draining,
            page_seconds=page_seconds,
        )
