"""One child process: started, watched, started again when it dies, ended in bounded time.

Owns the process and its pipes. A child says that it serves by a line on stdout that begins with
"ready"; its stderr is the supervisor's own, so logs pass through untouched.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import IO

import structlog

from chroma_router.wire.errors import Unavailable
from router.supervisor.backoff import Backoff, RestartPolicy

log = structlog.get_logger(__name__)

READY_SECONDS = 300.0
"""How long a child may take until it serves: a node that was killed may rebuild an index first."""

_KILL_SECONDS = 10.0
"""How long the kernel may take to end a process after SIGKILL."""


class Child:
    """A child process by its module and arguments; `run` in a task keeps it alive until `stop`."""

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        policy: RestartPolicy,
        logs: IO[bytes] | None = None,
    ) -> None:
        """`logs` takes its stderr; without it that is the supervisor's own."""
        self.name = name
        self._logs = logs
        self._module = module
        self.arguments = list(arguments)
        self._backoff = Backoff(policy)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._settled = asyncio.Event()
        self._ready_line: str | None = None

    async def first_ready(self) -> str:
        """The line with which it said for the first time that it serves.

        Raises Unavailable when it ended before; it is not started again then.
        """
        await self._settled.wait()
        if self._ready_line is None:
            raise Unavailable(f"{self.name} ended before it served; what it said stands above")
        return self._ready_line

    async def run(self) -> None:
        """Keeps it running until it is stopped. Cancelled, it kills the process."""
        try:
            while not self._stopping.is_set():
                served = await self._run_once()
                if self._stopping.is_set():
                    break
                pause = self._backoff.ended(served)
                log.warning("restarting", child=self.name, pause_seconds=pause)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._stopping.wait()
        finally:
            await self._kill()
            self._settled.set()
            self._ended.set()

    async def stop(self, grace: float) -> None:
        """Asks it to end with SIGTERM; kills it when it has not after `grace` seconds."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await self._ended.wait()
        except TimeoutError:
            log.error("killing", child=self.name, grace_seconds=grace)
            self._signal(signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KILL_SECONDS):
                    await self._ended.wait()

    async def _run_once(self) -> float:
        """Runs it until it ends; for how many seconds it served."""
        # Not asyncio's way: this one uses vfork, so that gRPC's fork handlers are not called. They
        # crash a child that is forked while the supervisor answers its router.
        process = self._process = subprocess.Popen(  # noqa: ASYNC220
            [
                *(sys.executable, "-m", "router.supervisor.leash"),
                *(str(os.getpid()), self._module, *self.arguments),
            ],
            bufsize=0,
            stdin=subprocess.PIPE,  # the leash: never written to, closed when the child has ended
            stdout=subprocess.PIPE,
            stderr=self._logs,
            # Ctrl-C in a terminal is for the supervisor, which ends the children in their order.
            start_new_session=True,
        )
        async with _output_of(process) as stdout:
            served_since = await self._read_until_ready(process, stdout)
            if served_since is not None:
                await self._drain_stdout(stdout)
            code = await asyncio.to_thread(process.wait)
        if self._stopping.is_set():
            return 0.0
        log.warning("ended", child=self.name, pid=process.pid, exit_code=code)
        if self._ready_line is None:
            self._stopping.set()
        return 0.0 if served_since is None else time.monotonic() - served_since

    async def _read_until_ready(
        self, process: subprocess.Popen[bytes], stdout: asyncio.StreamReader
    ) -> float | None:
        """Reads its stdout until it serves; since when it does, or None if it ended."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                while line := await stdout.readline():
                    text = line.decode("utf-8", "replace").strip()
                    if text.startswith("ready"):
                        log.info("child_ready", child=self.name, pid=process.pid)
                        self._ready_line = self._ready_line or text
                        self._settled.set()
                        return time.monotonic()
        except TimeoutError:
            log.error("not_ready_in_time", child=self.name, seconds=READY_SECONDS)
            self._signal(signal.SIGKILL)
        return None

    @staticmethod
    async def _drain_stdout(stdout: asyncio.StreamReader) -> None:
        """Until the child ends; a full pipe would stop it."""
        while await stdout.read(4096):
            pass

    def _signal(self, signum: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signum)  # nothing, if it has ended

    async def _kill(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        self._signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, _KILL_SECONDS)


@contextlib.asynccontextmanager
async def _output_of(process: subprocess.Popen[bytes]) -> AsyncIterator[asyncio.StreamReader]:
    """What a process writes to its stdout. On leaving both pipes are closed."""
    assert process.stdin is not None
    assert process.stdout is not None
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), process.stdout
    )
    try:
        yield reader
    finally:
        transport.close()
        process.stdin.close()
