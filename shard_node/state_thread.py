"""Runs state work in the state's one thread.

What SQLite cannot do now (the disk is full, the file is locked for too long) is said as
Unavailable: the caller comes again, the node lives on and reads are still answered.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from chroma_router.wire.errors import Reason, Unavailable

_T = TypeVar("_T")

_RETRY_AFTER_SECONDS = 0.5


async def in_writer(writer: Executor, work: Callable[..., _T], *arguments: object) -> _T:
    """The work's result; it waits at most SQLite's busy time-out (state.BUSY_SECONDS)."""
    try:
        return await asyncio.get_running_loop().run_in_executor(writer, work, *arguments)
    except sqlite3.OperationalError as error:
        raise Unavailable(
            f"the node cannot use its state: {error}",
            Reason.ENGINE_FAILED,
            retry_after=_RETRY_AFTER_SECONDS,
        ) from error
