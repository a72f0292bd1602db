"""The node's handle on its engine process: start, calls with bounds, end.

An Engine lives once: when its process dies, hangs past a call's bound or is closed, it is spent,
and the node starts another (shard_node/node.py). It never retries and never decides what a failure
means.
"""

import asyncio
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from chroma_router.wire.errors import (
    AlreadyExists,
    ClusterError,
    InternalFailure,
    InvalidRequest,
    NotFound,
    Overloaded,
    Reason,
    Unavailable,
)
from shard_node import frames
from shard_node.settings import NodeSettings

RETRY_AFTER_SECONDS = 0.5

_READS = frozenset({"get", "query"})
_WATCH_SECONDS = 0.5
_CLOSE_SECONDS = 30.0
# The engine tells SQLite's error by its code. With these alone a statement is refused for what it
# is: SQLITE_ERROR (too many variables, too deep an expression) and SQLITE_CONSTRAINT_FUNCTION
# (Chroma's regex function, for a pattern that grows too large).
_SQLITE_CODE = re.compile(r"error returned from database: \(code: (\d+)\)")
_SQLITE_REFUSALS = frozenset({1, 1043})
_IDS_BESIDE_WHERE = 8  # more cost 4-5 ms each; matching all and intersecting wins (docs/adr/0003)


class EngineLost(Unavailable):
    """The engine's process is gone; what it was doing was done wholly or not at all."""

    default_reason = Reason.ENGINE_FAILED

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after=RETRY_AFTER_SECONDS)


class EngineRefused(Exception):
    """The engine raised. `kind` is the name of the exception's class."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind, self.text = kind, text

    def as_error(self) -> ClusterError:
        """The error of the tree that says the same to a caller."""
        match self.kind:
            case "InvalidArgumentError" | "TypeError" | "ValueError" | "OverflowError":
                return InvalidRequest(self.text)
            case "NotFoundError":
                return NotFound(self.text)
            case "UniqueConstraintError":
                return AlreadyExists(self.text)
            case "FilterTooLarge":
                return InvalidRequest(
                    "where: the engine cannot evaluate so large a filter; write fewer conditions,"
                    f" shorter lists, or a simpler $regex ({self.text})"
                )
            case "FrameTooLarge":
                return Overloaded(f"engine: {self.text}: ask for less", Reason.ANSWER_TOO_LARGE)
            case _:
                return InternalFailure(f"engine: {self.kind}: {self.text}")


class Contents(NamedTuple):
    """What `get` found, column by column; a column that was not asked for is None."""

    ids: list[str]
    embeddings: list[bytes | None] | None
    documents: list[str | None] | None
    uris: list[str | None] | None
    metadatas: list[dict[str, Any] | None] | None


class Nearest(NamedTuple):
    """What `query` found, one inner list for each query embedding."""

    ids: list[list[str]]
    embeddings: list[list[bytes | None]] | None
    documents: list[list[str | None]] | None
    uris: list[list[str | None]] | None
    metadatas: list[list[dict[str, Any] | None]] | None
    distances: list[list[float]] | None


class PhysicalCollection(NamedTuple):
    """A collection as the engine reports it."""

    id: str
    configuration_json: str
    schema_json: str
    metadata: dict[str, Any] | None


@dataclass(slots=True)
class _Call:
    reply: asyncio.Future[Any]
    method: str
    expires: float  # by time.monotonic()


class Engine:
    """One engine process. `run` must be running for calls to be answered.

    It owns the process, the socket to it, and the calls under way.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], link: socket.socket, settings: NodeSettings
    ) -> None:
        self._process, self._link, self._settings = process, link, settings
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._calls: dict[int, _Call] = {}
        self._number = 0
        self._readers = asyncio.Semaphore(settings.reader_threads)
        self._waiting = 0
        self._closing = False

    @classmethod
    async def start(
        cls, persist_path: Path, settings: NodeSettings, inherit: Sequence[int] = ()
    ) -> "Engine":
        """Starts the process; it opens the directory while the caller goes on to `ping` it."""
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if open_files == resource.RLIM_INFINITY:
            open_files = settings.open_files
        cache_size = open_files // 5  # a loaded collection has so many files open
        ours, theirs = socket.socketpair()
        with theirs:
            # Not asyncio's way: this one uses vfork, so that gRPC's fork handlers are not called.
            # On this thread, for the engine dies with the thread that started it.
            process = subprocess.Popen(  # noqa: ASYNC220
                [
                    sys.executable, "-m", "shard_node.engine_process",
                    str(theirs.fileno()), str(os.getpid()), str(persist_path), str(cache_size),
                    str(settings.reader_threads + 1),  # and one for what the writer reads
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *inherit),
            )  # fmt: skip
        engine = cls(process, ours, settings)
        engine._reader, engine._writer = await asyncio.open_connection(sock=ours)
        return engine

    @property
    def pid(self) -> int:
        """The process id of the engine."""
        return self._process.pid

    async def run(self) -> None:
        """Until the engine is closed. Raises EngineLost when it dies or hangs."""
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch(), name="engine watch")
                await self._receive()
                watch.cancel()
        finally:
            self._fail_calls()
        if not self._closing:
            raise EngineLost("the engine's process ended")

    def kill(self) -> None:
        """Ends the process at once; does nothing when it has ended."""
        self._process.kill()

    async def end(self) -> None:
        """Makes sure that the process is gone, and waits for that."""
        self.kill()
        await asyncio.to_thread(self._process.wait, _CLOSE_SECONDS)
        self._fail_calls()
        self._writer.close()

    async def close(self) -> None:
        """Asks the process to finish what is under way and to end; `run` then returns."""
        self._closing = True
        self._writer.writelines(frames.pack((0, "close", ())))
        try:
            await asyncio.to_thread(self._process.wait, _CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    # ------------------------------------------------------------------------------ requests

    async def ping(self) -> int:
        """Waits until the engine has opened its directory; the most records of one write."""
        return int(await self._call("ping", bound=self._settings.open_seconds))

    async def create_collection(
        self,
        name: str,
        configuration: str | None,
        schema: str | None,
        metadata: dict[str, Any] | None,
    ) -> PhysicalCollection:
        """Gets the collection of that name, or makes it."""
        made = await self._call("create_collection", name, configuration, schema, metadata)
        return PhysicalCollection(*made)

    async def update_collection(
        self, physical: str, metadata: dict[str, Any] | None, configuration: str | None
    ) -> None:
        """Changes metadata and the changeable part of the configuration; None leaves it."""
        await self._call("update_collection", physical, metadata, configuration)

    async def delete_collection(self, name: str) -> None:
        """Deletes the collection of that name."""
        await self._call("delete_collection", name)

    async def write(self, method: str, physical: str, ids: list[str], *columns: list[Any]) -> None:
        """`add`, `update`, `upsert` (embeddings, metadatas, documents, uris) or `delete`."""
        await self._call(method, physical, ids, *columns)

    async def get(
        self,
        physical: str,
        ids: list[str] | None = None,
        where: str = "",
        where_document: str = "",
        include: Sequence[str] = (),
    ) -> Contents:
        """The records that match, in the engine's order."""
        conditions = (where or None, where_document or None)
        found = await self._filtered(conditions, "get", physical, ids, *conditions, list(include))
        return Contents(*found)

    async def get_in_turn(
        self, physical: str, ids: list[str], *, include: Sequence[str]
    ) -> Contents:
        """As `get`, for the single writer within a turn, which all writes wait for: it does not
        queue behind clients' reads. One such call at a time."""
        arguments = (physical, ids, None, None, list(include))
        return Contents(*await self._send("get", arguments, self._settings.read_seconds))

    async def matching(
        self, physical: str, ids: Sequence[str] | None, where: str, where_document: str
    ) -> list[str]:
        """The ids for which the conditions hold, of those given or of all."""
        if ids is None or len(ids) > _IDS_BESIDE_WHERE:
            found = (await self.get(physical, None, where, where_document)).ids
            if ids is None:
                return found
            matches = set(found)
            return [record_id for record_id in ids if record_id in matches]
        return (await self.get(physical, list(ids), where, where_document)).ids

    async def load(self, physical: str) -> None:
        """Loads the index and replays its tail. Must come before the collection's first write, and
        before any other read: after a read that replays nothing the engine counts the tail twice
        (docs/adr/0002). Any first read replays as `count` does; `get` lets other reads go on
        meanwhile, since it releases the GIL.
        """
        bound = self._settings.load_seconds
        await self._readers.acquire()  # never refused for the reads that wait
        await self._read("get", (physical, ["-"], None, None, []), bound)
        await self._call("count", physical, bound=bound)

    async def query(
        self,
        physical: str,
        embeddings: list[bytes],
        n_results: int,
        ids: list[str] | None = None,
        where: str = "",
        where_document: str = "",
        include: Sequence[str] = (),
    ) -> Nearest:
        """The nearest records that match, for each embedding, with their distances."""
        conditions = (where or None, where_document or None)
        found = await self._filtered(
            conditions, "query", physical, ids, embeddings, n_results, *conditions,
            ["distances", *include],
        )  # fmt: skip
        return Nearest(*found)

    # ------------------------------------------------------------------------------ machinery

    async def _filtered(
        self, conditions: tuple[str | None, str | None], method: str, *arguments: Any
    ) -> Any:
        """A read with conditions: the statement that the engine makes of them may be too large."""
        try:
            return await self._call(method, *arguments)
        except EngineRefused as refused:
            code = _SQLITE_CODE.search(refused.text)
            if any(conditions) and code and int(code[1]) in _SQLITE_REFUSALS:
                raise EngineRefused("FilterTooLarge", refused.text) from None
            raise

    async def _call(self, method: str, *arguments: Any, bound: float | None = None) -> Any:
        if method not in _READS:
            return await self._send(method, arguments, bound or self._settings.write_seconds)
        if self._waiting >= self._settings.reads_waiting:
            raise Overloaded(
                f"{self._waiting} reads wait for the engine (CHROMA_ROUTER_NODE_READS_WAITING)",
                Reason.QUEUE_FULL,
                retry_after=0.1,
            )
        self._waiting += 1
        try:
            await self._readers.acquire()
        finally:
            self._waiting -= 1
        return await self._read(method, arguments, self._settings.read_seconds)

    async def _read(self, method: str, arguments: tuple[Any, ...], bound: float) -> Any:
        """One of the reads that the engine has at a time; its caller has acquired the place."""
        try:
            reply = self._send(method, arguments, bound)
        except BaseException:
            self._readers.release()
            raise
        reply.add_done_callback(self._read_is_done)
        # A caller that goes away leaves the read with the engine: so its place is not free yet.
        return await asyncio.shield(reply)

    def _read_is_done(self, reply: asyncio.Future[Any]) -> None:
        self._readers.release()
        reply.exception()  # seen, also when the caller is gone

    def _send(self, method: str, arguments: tuple[Any, ...], bound: float) -> asyncio.Future[Any]:
        """The reply, some day: `_watch` ends the engine when the call has expired."""
        if self._writer.is_closing() or self._process.poll() is not None:
            raise EngineLost("the engine is gone")
        self._number += 1
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[self._number] = _Call(reply, method, time.monotonic() + bound)
        self._writer.writelines(frames.pack((self._number, method, arguments)))
        return reply

    async def _receive(self) -> None:
        try:
            while True:
                number, ok, result = await frames.receive_async(self._reader)
                call = self._calls.pop(number)
                if call.reply.done():  # its caller did not wait
                    continue
                if ok:
                    call.reply.set_result(result)
                else:
                    call.reply.set_exception(EngineRefused(*result))
        except (EOFError, ConnectionError):
            return

    async def _watch(self) -> None:
        """Kills the process when a call is past its bound, waited for or not."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            now = time.monotonic()
            if any(call.expires < now for call in self._calls.values()):
                self.kill()
                return

    def _fail_calls(self) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if not call.reply.done():
                call.reply.set_exception(EngineLost(f"the engine ended during {call.method}"))
                call.reply.exception()  # a caller that is gone too must not make asyncio complain
