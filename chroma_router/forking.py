"""What a fork of this process must know of its gRPC calls: none may be in flight at that instant.

Measured with grpcio 1.85.1, forks under eight threads that call without a pause: with calls in
flight children's gRPC hangs or crashes (13 of 300 crash, with GRPC_ENABLE_FORK_SUPPORT=1 all hang;
beside calls of grpc.aio 23 of 300 crash); without, and with a channel that shares no connection
with the parent's, all of 1,200 could call, and no parent was held up. So a fork waits until the
calls in flight have ended, and no new one begins until it is done. ADR 0006 has the whole table.

It owns the one gate that every call of this process passes. It never touches a channel.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from chroma_router.errors import RouterError

QUIET_SECONDS: Final = 10.0
"""How long a fork waits for calls in flight. Then it goes ahead, and the child may not call."""

# What gRPC itself takes for yes in GRPC_ENABLE_FORK_SUPPORT; its core has it on when it is not set.
_TRUE: Final = frozenset({"1", "true", "yes", "y", "t"})

_MENDS: Final = "start it with spawn or forkserver, or make the first client after the fork"


class ForkGate:
    """Counts calls in flight, and holds new ones back while this process is being forked.

    The lock is re-entrant: a signal handler may call, or fork, in the midst of these lines.
    """

    def __init__(self, quiet_seconds: float = QUIET_SECONDS) -> None:
        self._quiet_seconds = quiet_seconds
        self._used = False
        self._async_used = False
        self._broken = ""
        self._async_broken = ""
        self._begin_afresh()

    def _begin_afresh(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._calling: Counter[int] = Counter()  # calls in flight, by thread
        self._async_calls = 0
        self._forks = 0

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around a call. Raises RouterError where gRPC did not survive a fork."""
        thread = threading.get_ident()
        with self._changed:
            while self._forks:
                self._changed.wait()
            if self._broken:
                raise RouterError(self._broken)
            self._used = True
            self._calling[thread] += 1
        try:
            yield
        finally:
            with self._changed:
                self._calling[thread] -= 1
                if not self._calling[thread]:
                    del self._calling[thread]
                self._changed.notify_all()

    @contextmanager
    def async_call(self) -> Iterator[None]:
        """Around an asyncio call. A fork does not wait for it: the forking thread may be its loop.

        Raises RouterError in every child of a process that had made such calls: grpc.aio has one
        thread for all its channels, which no child inherits.
        """
        with self._changed:
            if self._broken or self._async_broken:
                raise RouterError(self._broken or self._async_broken)
            self._used = self._async_used = True
            self._async_calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._async_calls -= 1

    def before_fork(self) -> None:
        """Waits until no call is in flight, and keeps the gate shut."""
        self._changed.acquire()
        self._forks += 1
        until = time.monotonic() + self._quiet_seconds
        # A thread that forks in the midst of its own call (a signal handler) would wait for itself.
        while self._calling and threading.get_ident() not in self._calling:
            if not self._changed.wait(until - time.monotonic()):
                break

    def after_fork_in_parent(self) -> None:
        """Opens the gate."""
        self._forks -= 1
        self._changed.notify_all()
        self._changed.release()

    def after_fork_in_child(self) -> None:
        """Opens the gate of a process that has one thread and no call in flight."""
        if self._used and not self._broken:
            self._broken = self._why_broken()
        if self._async_used:
            self._async_broken = (
                "this process was forked from one that had made asyncio gRPC calls, which no "
                "child can go on with; use chroma_router.Client in it, or " + _MENDS
            )
        self._begin_afresh()

    def _why_broken(self) -> str:
        off = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "1").lower() not in _TRUE
        if off:
            return (
                "this process was forked from one that had made gRPC calls with "
                "GRPC_ENABLE_FORK_SUPPORT switched off; leave it unset, or " + _MENDS
            )
        if self._async_calls or self._calling:
            return (
                "this process was forked while its parent had gRPC calls in flight, and gRPC does "
                "not survive that; " + _MENDS
            )
        return ""


GATE: Final = ForkGate()
"""The gate of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=GATE.before_fork,
        after_in_parent=GATE.after_fork_in_parent,
        after_in_child=GATE.after_fork_in_child,
    )
