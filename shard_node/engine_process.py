"""The engine's process: the only importer of Chroma's bindings, and the only place they are called.

    python -m shard_node.engine_process SOCKET_FD PARENT_PID PERSIST_PATH CACHE_SIZE READER_THREADS

It is a child of the node because an engine write holds the GIL for its whole length, because a
crash or a hang of the engine must not take the node with it, and because the node keeps its state
in the engine's SQLite file through Python's sqlite3: two copies of the SQLite library on one file
in one process break each other's locks (sqlite.org/howtocorrupt.html, 2.2.1; docs/adr/0004).

One thread writes, a few read (get and query release the GIL). It lives as long as its node: SIGKILL
by the kernel when the node dies, and an end of file on the socket as the second string.
"""

import array
import contextlib
import ctypes
import importlib.util
import json
import os
import queue
import resource
import signal
import socket
import sys
import threading
import types
from collections.abc import Sequence
from typing import Any

from shard_node import frames

_SCOPE = ("default_tenant", "default_database")
_PR_SET_PDEATHSIG = 1
_READS = frozenset({"get", "query"})
_READ_TURN_SECONDS = 0.05
_FILE_BYTES = 64 << 30  # a torn link list can make the engine ask for hundreds of gigabytes

Request = tuple[int, str, tuple[Any, ...]]


def _light_chromadb() -> None:
    """Lets the bindings raise chromadb.errors without the 0.6 s and 76 MB of `import chromadb`.

    They import that module at their first error, while the GIL is held; an empty package with the
    right path in its place makes Python load chromadb/errors.py alone.
    """
    spec = importlib.util.find_spec("chromadb")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("chromadb is not installed")
    package = types.ModuleType("chromadb")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["chromadb"] = package
    importlib.import_module("chromadb.errors")


def _floats(rows: Sequence[Sequence[float] | None] | None) -> list[bytes | None] | None:
    """Embeddings of an engine's answer as float32 bytes."""
    if rows is None:
        return None
    return [None if row is None else array.array("f", row).tobytes() for row in rows]


def _views(rows: Sequence[bytes | None]) -> list["memoryview[float] | None"]:
    return [None if row is None else memoryview(row).cast("f") for row in rows]


class Engine:
    """Chroma's bindings in the words of the node; each public method is one request."""

    def __init__(self, persist_path: str, cache_size: int) -> None:
        bindings = importlib.import_module("chromadb_rust_bindings")
        self._api = bindings.Bindings(
            allow_reset=False,
            sqlite_db_config=bindings.SqliteDBConfig(
                hash_type=bindings.MigrationHash.MD5,
                migration_mode=bindings.MigrationMode.Apply,
                url=os.path.join(persist_path, "chroma.sqlite3"),  # noqa: PTH118
            ),
            persist_path=persist_path,
            hnsw_cache_size=cache_size,
        )

    def ping(self) -> int:
        """The most records that one write may have."""
        return int(self._api.get_max_batch_size())

    def count(self, physical: str) -> int:
        return int(self._api.count(physical, *_SCOPE))

    def create_collection(
        self,
        name: str,
        configuration: str | None,
        schema: str | None,
        metadata: dict[str, Any] | None,
    ) -> tuple[str, str, str, dict[str, Any] | None]:
        made = self._api.create_collection(name, configuration, schema, metadata, True, *_SCOPE)
        schema_json = "" if made.schema is None else json.dumps(made.schema)
        return str(made.id), json.dumps(made.configuration), schema_json, made.metadata

    def update_collection(
        self, physical: str, metadata: dict[str, Any] | None, configuration: str | None
    ) -> None:
        self._api.update_collection(physical, None, metadata, configuration)

    def delete_collection(self, name: str) -> None:
        self._api.delete_collection(name, *_SCOPE)

    def add(self, physical: str, ids: list[str], *columns: Any) -> None:
        self._api.add(ids, physical, *self._columns(*columns), *_SCOPE)

    def update(self, physical: str, ids: list[str], *columns: Any) -> None:
        self._api.update(physical, ids, *self._columns(*columns), *_SCOPE)

    def upsert(self, physical: str, ids: list[str], *columns: Any) -> None:
        self._api.upsert(physical, ids, *self._columns(*columns), *_SCOPE)

    def delete(self, physical: str, ids: list[str]) -> None:
        self._api.delete(physical, ids, None, None, None, *_SCOPE)

    def get(
        self,
        physical: str,
        ids: list[str] | None,
        where: str | None,
        where_document: str | None,
        include: list[str],
    ) -> tuple[Any, ...]:
        """(ids, embeddings, documents, uris, metadatas); what is not included is None."""
        found = self._api.get(physical, ids, where, None, 0, where_document, include, *_SCOPE)
        return (
            found.ids, _floats(found.embeddings), found.documents, found.uris, found.metadatas
        )  # fmt: skip

    def query(
        self,
        physical: str,
        ids: list[str] | None,
        embeddings: list[bytes],
        n_results: int,
        where: str | None,
        where_document: str | None,
        include: list[str],
    ) -> tuple[Any, ...]:
        """As `get`, one inner list for each query embedding, and the distances as the last."""
        found = self._api.query(
            physical, ids, _views(embeddings), n_results, where, where_document, include, *_SCOPE
        )
        rows = found.embeddings
        vectors = None if rows is None else [_floats(inner) for inner in rows]
        return (
            found.ids, vectors, found.documents, found.uris, found.metadatas, found.distances
        )  # fmt: skip

    @staticmethod
    def _columns(
        embeddings: list[bytes | None],
        metadatas: list[dict[str, Any] | None],
        documents: list[str | None],
        uris: list[str | None],
    ) -> tuple[Any, ...]:
        return _views(embeddings), metadatas, documents, uris


class Server:
    """Reads requests, hands them to the writer or the readers, and sends their replies."""

    def __init__(self, link: socket.socket, engine: Engine, readers: int) -> None:
        self._link, self._engine = link, engine
        self._sending = threading.Lock()
        self._writes: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._reads_asked = self._reads_done = 0
        self._read_done = threading.Condition()
        self._threads = [threading.Thread(target=self._write)]
        self._threads += [threading.Thread(target=self._read) for _ in range(readers)]

    def serve(self) -> None:
        """Until the node asks to close: then what is under way ends first."""
        for thread in self._threads:
            thread.daemon = True
            thread.start()
        while True:
            request: Request = frames.receive(self._link)
            if request[1] == "close":
                break
            if request[1] in _READS:
                self._reads_asked += 1
                self._reads.put(request)
            else:
                self._writes.put(request)
        self._writes.put(None)
        for _ in self._threads[1:]:
            self._reads.put(None)
        for thread in self._threads:
            thread.join()

    def _write(self) -> None:
        """Between two writes the waiting reads have a turn: 20 queries/s beside them become 48."""
        while (request := self._writes.get()) is not None:
            self._do(request)
            waiting = self._reads_asked
            with self._read_done:
                self._read_done.wait_for(lambda: self._reads_done >= waiting, _READ_TURN_SECONDS)  # noqa: B023

    def _read(self) -> None:
        while (request := self._reads.get()) is not None:
            self._do(request)
            with self._read_done:
                self._reads_done += 1
                self._read_done.notify_all()

    def _do(self, request: Request) -> None:
        number, method, arguments = request
        try:
            reply = frames.pack((number, True, getattr(self._engine, method)(*arguments)))
        except BaseException as error:  # a Rust panic is only a BaseException
            reply = frames.pack((number, False, (type(error).__name__, str(error))))
        with self._sending, contextlib.suppress(OSError):  # the main thread sees the node go
            frames.send(self._link, reply)


def _live_and_die_with(parent: int) -> None:
    """The node alone decides when this process ends; when the node dies, the kernel ends it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def main(arguments: Sequence[str]) -> None:
    """See the head of this file."""
    link_fd, parent, persist_path, cache_size, readers = arguments
    _live_and_die_with(int(parent))
    link = socket.socket(fileno=int(link_fd))
    try:
        _light_chromadb()
        engine = Engine(persist_path, int(cache_size))
        Server(link, engine, int(readers)).serve()
    except (EOFError, ConnectionError):
        os._exit(1)
    except BaseException as error:
        sys.stderr.write(f"engine cannot open {persist_path}: {type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    del engine


if __name__ == "__main__":
    main(sys.argv[1:])
