"""Experiment 3: the engine in the node's process (P) or in a child process of it (C).

P: one process, a grpc.aio + uvloop server and the Rust bindings; one writer thread, a few readers.
C: the same server in the parent, the same engine host in a spawned child; raw request bytes travel
   over a Unix socketpair in frames of `<u32 length, u32 call, u8 kind>`; the parent parses nothing.

A variant is `P` or `C`, then options joined by `+`: `t4` four reader threads (2 by default), `s0.5`
a GIL switch interval of 0.5 ms in the process that holds the engine, `co` waiting queries go to the
engine as one multi-vector query; `f` after each apply the reads that wait have their turn first.

    .venv/bin/python bench/experiments/engine_placement.py load
    … hop      cost of the extra hop on an idle node
    … frame    cost of ways to talk over the socketpair
    … faults   SIGSEGV and SIGSTOP of the process that holds the engine
    … facts    PR_SET_PDEATHSIG and flock when the parent is killed

Request payloads are `marshal` tuples in both arrangements (instead of protobuf; experiment only).
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import concurrent.futures
import contextlib
import ctypes
import fcntl
import itertools
import json
import marshal
import multiprocessing.connection
import os
import queue
import random
import resource
import shutil
import signal
import socket
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DIM = 384
ROWS = 10_000
TENANT, DATABASE = "default_tenant", "default_database"
HEADER = struct.Struct("<IIB")
KINDS = {"Query": 1, "Get": 2, "Upsert": 3, "Ping": 4}
QUERY, GET, UPSERT, PING = 1, 2, 3, 4
READY, FAILED = 9, 10
HANG_SECONDS = 2.0
PR_SET_PDEATHSIG = 1
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 32 << 20),
    ("grpc.max_send_message_length", 32 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
]


@dataclass(frozen=True)
class Variant:
    """One arrangement with its options; see the module's docstring for the notation."""

    child: bool
    readers: int = 2
    switch_ms: float | None = None
    coalesce: bool = False
    fair: bool = False

    @staticmethod
    def parse(text: str) -> Variant:
        place, *options = text.split("+")
        if place not in ("P", "C"):
            raise ValueError(f"a variant starts with P or C: {text}")
        readers, switch_ms, coalesce, fair = 2, None, False, False
        for option in options:
            if option == "co":
                coalesce = True
            elif option == "f":
                fair = True
            elif option[0] == "t":
                readers = int(option[1:])
            elif option[0] == "s":
                switch_ms = float(option[1:])
            else:
                raise ValueError(f"unknown option {option} in {text}")
        return Variant(place == "C", readers, switch_ms, coalesce, fair)


# ---------------------------------------------------------------- engine


def open_bindings(data: Path) -> Any:
    """Open the engine without chromadb's Python layer."""
    import chromadb_rust_bindings as rust

    config = rust.SqliteDBConfig(
        hash_type=rust.MigrationHash.MD5,
        migration_mode=rust.MigrationMode.Apply,
        url=str(data / "chroma.sqlite3"),
    )
    return rust.Bindings(
        allow_reset=False, sqlite_db_config=config, persist_path=str(data), hnsw_cache_size=500
    )


def rows(rng: random.Random, first: int, count: int) -> bytes:
    """The payload of an upsert of `count` rows, numbered from `first`."""
    import numpy as np

    vectors = np.random.default_rng(rng.getrandbits(32)).standard_normal(
        (count, DIM), dtype=np.float32
    )
    ids = [f"row-{first + i}" for i in range(count)]
    documents = [f"text of row {first + i} " + "lorem ipsum " * 12 for i in range(count)]
    metadatas = [{"number": first + i, "source": "bench"} for i in range(count)]
    return marshal.dumps((ids, vectors.tobytes(), documents, metadatas))


def one_query(rng: random.Random) -> bytes:
    import numpy as np

    vector = np.random.default_rng(rng.getrandbits(32)).standard_normal(DIM, dtype=np.float32)
    return marshal.dumps((10, vector.tobytes()))


def apply_upsert(bindings: Any, collection: str, payload: bytes) -> bytes:
    ids, blob, documents, metadatas = marshal.loads(payload)
    view, width = memoryview(blob), DIM * 4
    vectors = [view[i * width : (i + 1) * width].cast("f") for i in range(len(ids))]
    bindings.upsert(collection, ids, vectors, metadatas, documents, None, TENANT, DATABASE)
    return marshal.dumps(len(ids))


def migrate(data: Path) -> None:
    """First open: the engine makes its tables."""
    data.mkdir(parents=True)
    open_bindings(data)


def configure(data: Path) -> None:
    """Settings before the first data, by Python's SQLite: WAL, no purge, queue index."""
    with contextlib.closing(sqlite3.connect(data / "chroma.sqlite3")) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(
            "UPDATE embeddings_queue_config SET config_json_str = ?",
            ('{"automatically_purge":false,"_type":"EmbeddingsQueueConfigurationInternal"}',),
        )
        db.execute("CREATE INDEX IF NOT EXISTS bench_queue ON embeddings_queue(topic, seq_id)")
        db.commit()


def load(data: Path, seed: int) -> None:
    bindings = open_bindings(data)
    made = bindings.create_collection(
        "bench", None, None, {"hnsw:space": "cosine"}, True, TENANT, DATABASE
    )
    rng = random.Random(seed)
    for first in range(0, ROWS, 500):
        apply_upsert(bindings, str(made.id), rows(rng, first, 500))


@dataclass
class Call:
    """One request for the engine and what to do with its answer."""

    kind: int
    payload: bytes
    done: Callable[[int, bytes], None]


class EngineHost:
    """The engine, its single writer thread and its reader threads; the same for P and C."""

    def __init__(self, data: Path, variant: Variant) -> None:
        if variant.switch_ms is not None:
            sys.setswitchinterval(variant.switch_ms / 1000)
        self._bindings = open_bindings(data)
        self._coalesce, self._fair = variant.coalesce, variant.fair
        self._reads_in, self._reads_out = 0, 0
        self._answered = threading.Condition()
        self._collection = str(self._bindings.get_collection("bench", TENANT, DATABASE).id)
        self._warm()
        self._writes: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[Call] = queue.SimpleQueue()
        threading.Thread(target=self._write_loop, daemon=True).start()
        for _ in range(variant.readers):
            threading.Thread(target=self._read_loop, daemon=True).start()

    def submit(self, call: Call) -> None:
        if call.kind == UPSERT:
            self._writes.put(call)
        else:
            self._reads_in += 1
            self._reads.put(call)

    def _warm(self) -> None:
        """The first query loads the index; serving starts after it."""
        self._query([bytes(DIM * 4 - 4) + struct.pack("<f", 1.0)], 10)

    def _query(self, vectors: Sequence[bytes], k: int) -> Any:
        return self._bindings.query(
            self._collection,
            None,
            [memoryview(v).cast("f") for v in vectors],
            k,
            None,
            None,
            ["documents", "metadatas", "distances"],
            TENANT,
            DATABASE,
        )

    def _write_loop(self) -> None:
        while True:
            call = self._writes.get()
            try:
                call.done(call.kind, apply_upsert(self._bindings, self._collection, call.payload))
            except BaseException as error:  # PanicException of the bindings is a BaseException
                call.done(FAILED, repr(error).encode())
            if self._fair:
                time.sleep(0.001)  # lets go of the GIL, so that waiting requests are read at all
                asked = self._reads_in
                end = time.monotonic() + 0.05
                with self._answered:
                    while self._reads_out < asked and time.monotonic() < end:
                        self._answered.wait(0.05)

    def _read_loop(self) -> None:
        while True:
            group = [self._reads.get()]
            with contextlib.suppress(queue.Empty):
                while self._coalesce and len(group) < 32:
                    group.append(self._reads.get_nowait())
            try:
                self._answer(group)
            except BaseException as error:  # as above
                for call in group:
                    call.done(FAILED, repr(error).encode())
            with self._answered:
                self._reads_out += len(group)
                self._answered.notify_all()

    def _answer(self, group: Sequence[Call]) -> None:
        queries = [call for call in group if call.kind == QUERY]
        for call in group:
            if call.kind == GET:
                (ids,) = marshal.loads(call.payload)
                found = self._bindings.get(
                    self._collection,
                    ids,
                    None,
                    None,
                    0,
                    None,
                    ["documents", "metadatas"],
                    TENANT,
                    DATABASE,
                )
                call.done(GET, marshal.dumps((found.ids, found.documents, found.metadatas)))
        if queries:
            parsed = [marshal.loads(call.payload) for call in queries]
            found = self._query([vector for _, vector in parsed], parsed[0][0])
            parts = zip(
                queries, found.ids, found.distances, found.documents, found.metadatas, strict=True
            )
            for call, *answer in parts:
                call.done(QUERY, marshal.dumps(answer))


# ---------------------------------------------------------------- engine child


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process with its parent, then look whether that came too late."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def frames(sock: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """Frames from a blocking socket: buffered reads, one system call for a small frame."""
    buffer = bytearray()
    while True:
        while len(buffer) >= HEADER.size:
            length, call, kind = HEADER.unpack_from(buffer)
            end = HEADER.size + length
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                payload = bytes(view[HEADER.size : end])
            del buffer[:end]
            yield call, kind, payload
        got = sock.recv(1 << 18)
        if not got:
            return
        buffer += got


def engine_main(data: Path, variant: Variant, fd: int, parent: int) -> None:
    die_with(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sock = socket.socket(fileno=fd)
    lock = threading.Lock()

    def send(call: int, kind: int, payload: bytes) -> None:
        with lock:
            sock.sendall(HEADER.pack(len(payload), call, kind) + payload)

    host = EngineHost(data, variant)
    send(0, READY, b"")
    for number, kind, payload in frames(sock):
        if kind == PING:
            send(number, PING, b"")
            continue

        def done(answer_kind: int, answer: bytes, number: int = number) -> None:
            send(number, answer_kind, answer)

        host.submit(Call(kind, payload, done))
    os._exit(0)


# ---------------------------------------------------------------- node


class EngineError(Exception):
    """The engine refused a call."""


class EngineGoneError(Exception):
    """The engine is not there: starting, crashed or killed. Known not sent, or outcome unknown."""


class InProcess:
    """Arrangement P."""

    def __init__(self, data: Path, variant: Variant) -> None:
        self._host = EngineHost(data, variant)
        self._loop = asyncio.get_running_loop()

    async def call(self, kind: int, payload: bytes) -> bytes:
        future: asyncio.Future[bytes] = self._loop.create_future()

        def settle(answer_kind: int, answer: bytes) -> None:
            if future.done():
                return
            if answer_kind == FAILED:
                future.set_exception(EngineError(answer.decode()))
            else:
                future.set_result(answer)

        def done(answer_kind: int, answer: bytes) -> None:
            self._loop.call_soon_threadsafe(settle, answer_kind, answer)

        self._host.submit(Call(kind, payload, done))
        return await future


class FrameProtocol(asyncio.Protocol):
    """The parent's end of the socketpair."""

    def __init__(
        self, on_frame: Callable[[int, int, bytes], None], on_lost: Callable[[], None]
    ) -> None:
        self._buffer = bytearray()
        self._on_frame, self._on_lost = on_frame, on_lost

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        while len(buffer) >= HEADER.size:
            length, call, kind = HEADER.unpack_from(buffer)
            end = HEADER.size + length
            if len(buffer) < end:
                return
            with memoryview(buffer) as view:
                payload = bytes(view[HEADER.size : end])
            del buffer[:end]
            self._on_frame(call, kind, payload)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost()


class InChild:
    """Arrangement C: spawns the engine, restarts it when it dies, kills it when it hangs."""

    def __init__(self, data: Path, variant: str) -> None:
        self._data, self._variant = data, variant
        self._pending: dict[int, asyncio.Future[bytes]] = {}
        self._number = 0
        self._ready = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        await self._spawn()
        await self._ready.wait()
        self._watch = asyncio.create_task(self._watchdog())

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        rest = [str(theirs.fileno()), str(os.getpid())]
        # Popen without preexec_fn uses vfork + exec: no gRPC or engine fork handler runs.
        self._process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, __file__, "_engine", str(self._data), self._variant, *rest],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        ours.setblocking(False)
        transport, _ = await asyncio.get_running_loop().create_unix_connection(
            lambda: FrameProtocol(self._on_frame, self._on_lost), sock=ours
        )
        self._transport = transport

    def _on_frame(self, call: int, kind: int, payload: bytes) -> None:
        if kind == READY:
            self._ready.set()
            return
        future = self._pending.pop(call, None)
        if future is None or future.done():
            return
        if kind == FAILED:
            future.set_exception(EngineError(payload.decode()))
        else:
            future.set_result(payload)

    def _on_lost(self) -> None:
        self._ready.clear()
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(EngineGoneError("engine died; outcome unknown"))
        assert self._process is not None
        self._process.kill()
        self._process.wait()  # reaped before the next one opens the directory: one writer
        self._respawn = asyncio.get_running_loop().create_task(self._spawn())

    async def _watchdog(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            if self._ready.is_set():
                try:
                    async with asyncio.timeout(HANG_SECONDS):
                        await self.call(PING, b"")
                except TimeoutError:
                    assert self._process is not None
                    self._process.kill()
                except EngineGoneError:
                    pass

    async def call(self, kind: int, payload: bytes) -> bytes:
        if not self._ready.is_set():
            raise EngineGoneError("engine is starting; nothing sent")
        assert self._transport is not None
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        self._transport.write(HEADER.pack(len(payload), number, kind) + payload)
        return await future


async def node_main(data: Path, text: str, port: int) -> None:
    import grpc

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    variant = Variant.parse(text)
    engine: InProcess | InChild
    if variant.child:
        engine = InChild(data, text)
        await engine.start()
    else:
        engine = InProcess(data, variant)

    def handler(kind: int) -> Any:
        async def serve(request: bytes, context: Any) -> bytes:
            try:
                return await engine.call(kind, request)
            except EngineGoneError as gone:
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(gone))
            except EngineError as error:
                await context.abort(grpc.StatusCode.INTERNAL, str(error))
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(serve)

    async def health(_request: bytes, _context: Any) -> bytes:
        return b"ok"

    handlers = {name: handler(kind) for name, kind in KINDS.items() if kind != PING}
    handlers["Health"] = grpc.unary_unary_rpc_method_handler(health)
    server = grpc.aio.server(options=[*CHANNEL_OPTIONS[:2], ("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Node", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


# ---------------------------------------------------------------- clients (each in its own process)


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


async def client_main(
    role: str, ports: Sequence[int], seconds: float, size: int, seed: int
) -> None:
    """`queries`: 8 closed loops; `writer`: two groups in flight; `health`: open loop, 20 ms."""
    import grpc

    rng = random.Random(seed)
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{p}", options=CHANNEL_OPTIONS) for p in ports]
    latencies: dict[int, list[float]] = {port: [] for port in ports}

    async def call(channel: Any, method: str, payload: bytes, port: int) -> None:
        begin = time.perf_counter()
        await channel.unary_unary(f"/bench.Node/{method}")(payload)
        latencies[port].append((time.perf_counter() - begin) * 1000)

    for channel in channels:
        await channel.channel_ready()
    payloads = [one_query(rng) for _ in range(500)]
    groups = (
        [rows(rng, 1_000_000 + i * size, size) for i in range(int(1 + seconds * 6000 / size))]
        if size
        else []
    )
    print("prepared", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    end = time.perf_counter() + seconds

    async def query_loop(number: int) -> None:
        own = random.Random(seed + number)
        at = number % len(ports)
        while time.perf_counter() < end:
            await call(channels[at], "Query", own.choice(payloads), ports[at])

    async def write_loop(todo: Iterator[bytes]) -> None:
        while time.perf_counter() < end:
            await call(channels[0], "Upsert", next(todo), ports[0])

    if role == "queries":
        await asyncio.gather(*(query_loop(n) for n in range(8)))
    elif role == "writer":
        todo = iter(groups)
        await asyncio.gather(write_loop(todo), write_loop(todo))
    else:
        tasks = []
        tick = time.perf_counter()
        while tick < end:
            tasks.append(asyncio.create_task(call(channels[0], "Health", b"", ports[0])))
            tick += 0.02
            await asyncio.sleep(max(0.0, tick - time.perf_counter()))
        await asyncio.gather(*tasks)
    print(json.dumps(latencies), flush=True)


# ---------------------------------------------------------------- orchestration


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def myself(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, *(str(a) for a in arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


@dataclass
class Node:
    """A node process on its own copy of the prepared data."""

    template: Path
    work: Path
    variant: str
    port: int = field(default_factory=free_port)

    def __enter__(self) -> Node:
        self.data = Path(tempfile.mkdtemp(dir=self.work)) / "data"
        shutil.copytree(self.template, self.data)
        self.start()
        return self

    def start(self) -> None:
        self.process = myself("_node", self.data, self.variant, self.port)
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError("node did not start")

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        time.sleep(0.1)
        shutil.rmtree(self.data.parent, ignore_errors=True)

    def cpu(self) -> float:
        """CPU seconds of the node and its engine child so far."""
        import psutil

        root = psutil.Process(self.process.pid)
        times = [p.cpu_times() for p in [root, *root.children()]]
        return float(sum(t.user + t.system for t in times))

    def engine_pid(self) -> int:
        import psutil

        if self.variant.startswith("P"):
            return self.process.pid
        return int(psutil.Process(self.process.pid).children()[0].pid)


def table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    text = [
        [f"{c:.2f}" if isinstance(c, float) else str(c) for c in line] for line in [head, *lines]
    ]
    widths = [max(len(line[i]) for line in text) for i in range(len(head))]
    for line in text:
        print(
            "| " + " | ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) + " |",
            flush=True,
        )


def load_cell(
    template: Path, work: Path, variant: str, size: int, seconds: float, where: str, seed: int
) -> dict[str, list[float]]:
    with Node(template, work, variant) as busy, Node(template, work, variant) as idle:
        ports = [busy.port, idle.port] if where == "spread" else [busy.port]
        clients = [
            myself("_client", "queries", seconds, 0, seed, *ports, stdin=subprocess.PIPE),
            myself("_client", "health", seconds, 0, seed, busy.port, stdin=subprocess.PIPE),
        ]
        if size:
            clients.append(
                myself("_client", "writer", seconds, size, seed, busy.port, stdin=subprocess.PIPE)
            )
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()
        before, begin = busy.cpu(), time.perf_counter()
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        time.sleep(seconds - 0.2)
        cpu = (busy.cpu() - before) / (time.perf_counter() - begin)
        answers = [json.loads(client.communicate()[0]) for client in clients]
    return {
        "busy": answers[0][str(busy.port)],
        "idle": answers[0].get(str(idle.port), []),
        "health": answers[1][str(busy.port)],
        "writes": answers[2][str(busy.port)] if size else [],
        "cpu": [cpu],
    }


def run_load(args: argparse.Namespace, template: Path, work: Path) -> None:
    pooled: dict[tuple[int, str], dict[str, list[float]]] = {}
    for repeat in range(args.rounds):
        for size in args.sizes:
            order = args.variants if repeat % 2 == 0 else args.variants[::-1]
            for variant in order:
                cell = load_cell(
                    template, work, variant, size, args.seconds, args.where, args.seed + repeat
                )
                total = pooled.setdefault((size, variant), collections.defaultdict(list))
                for key, values in cell.items():
                    total[key].extend(values)
    lines = []
    span = args.rounds * args.seconds
    for size in args.sizes:
        for variant in args.variants:
            cell = pooled[size, variant]
            line: list[object] = [size, variant]
            line += [
                f"{len(cell['writes']) / span:.1f}",
                f"{len(cell['writes']) * size / span:.0f}",
            ]
            for key in ("busy", "idle"):
                line += [f"{len(cell[key]) / span:.0f}"]
                line += [percentile(cell[key], 0.5), percentile(cell[key], 0.99)]
            line += [percentile(cell["health"], p) for p in (0.5, 0.99, 1.0)]
            line += [statistics.mean(cell["cpu"])]
            lines.append(line)
    print(f"8 closed query loops, {args.where}; {args.rounds} rounds of {args.seconds} s")
    print("times in ms; cpu: cores used by the busy node with its child")
    head = ["rows", "variant", "apply/s", "rows/s", "busy q/s", "p50", "p99", "idle q/s"]
    head += ["p50", "p99", "health p50", "p99", "max", "cpu"]
    table(head, lines)


def run_hop(args: argparse.Namespace, template: Path, work: Path) -> None:
    import grpc

    calls = {"query": 300, "get": 300, "upsert32": 25}

    async def measure(
        nodes: Sequence[Node],
    ) -> dict[tuple[str, str], tuple[list[float], list[float]]]:
        rng = random.Random(args.seed)
        channels = [
            grpc.aio.insecure_channel(f"127.0.0.1:{n.port}", options=CHANNEL_OPTIONS) for n in nodes
        ]
        seen: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
        first = 2_000_000
        for _ in range(args.rounds * 2):
            for name, count in calls.items():
                for node, channel in zip(nodes, channels, strict=True):
                    if name == "query":
                        method, payloads = "Query", [one_query(rng) for _ in range(count)]
                    elif name == "get":
                        method = "Get"
                        payloads = [
                            marshal.dumps(([f"row-{rng.randrange(ROWS)}"],)) for _ in range(count)
                        ]
                    else:
                        method, payloads = (
                            "Upsert",
                            [rows(rng, first + i * 32, 32) for i in range(count)],
                        )
                        first += 32 * count
                    latency, cpu = seen.setdefault((name, node.variant), ([], []))
                    send = channel.unary_unary(f"/bench.Node/{method}")
                    before = node.cpu()
                    for payload in payloads:
                        begin = time.perf_counter()
                        await send(payload)
                        latency.append((time.perf_counter() - begin) * 1000)
                    cpu.append((node.cpu() - before) / count * 1000)
        for channel in channels:
            await channel.close()
        return seen

    import uvloop

    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(Node(template, work, v)) for v in args.variants]
        seen = uvloop.run(measure(nodes))
    lines = [
        [name, variant, percentile(latency, 0.5), percentile(latency, 0.99), statistics.mean(cpu)]
        for (name, variant), (latency, cpu) in seen.items()
    ]
    print(
        "idle node, one client, one call at a time; ms; CPU ms per call of the node with its child"
    )
    table(["call", "variant", "p50", "p99", "cpu ms"], sorted(lines, key=str))


def echo_main(way: str, fd: int) -> None:
    """The child of `frame`: answers each request with 2,000 bytes."""
    answer = b"x" * 2000
    if way == "connection+pickle":
        connection = multiprocessing.connection.Connection(fd)
        with contextlib.suppress(EOFError):
            while True:
                number, _, _ = connection.recv()
                connection.send((number, 1, answer))
        return
    sock = socket.socket(fileno=fd)
    if way.endswith("exact"):
        reader = sock.makefile("rb", buffering=0)

        def exactly(count: int) -> bytes:
            parts = bytearray()
            while len(parts) < count:
                got = reader.read(count - len(parts))
                if not got:
                    sys.exit(0)
                parts += got
            return bytes(parts)

        while True:
            length, number, kind = HEADER.unpack(exactly(HEADER.size))
            exactly(length)
            sock.sendall(HEADER.pack(len(answer), number, kind) + answer)
    for number, kind, _ in frames(sock):
        sock.sendall(HEADER.pack(len(answer), number, kind) + answer)


async def frame_way(way: str, size: int, count: int) -> tuple[float, float]:
    """p50 in µs and CPU µs per call (parent + child) of one way to talk."""
    import psutil

    ours, theirs = socket.socketpair()
    child = myself("_echo", way, theirs.fileno(), pass_fds=[theirs.fileno()])
    theirs.close()
    loop, payload, taken = asyncio.get_running_loop(), b"q" * size, []
    call: Callable[[int], Any]
    if way == "connection+pickle":
        connection = multiprocessing.connection.Connection(os.dup(ours.fileno()))
        pool = concurrent.futures.ThreadPoolExecutor(1)

        def exchange(number: int) -> Any:
            connection.send((number, 1, payload))
            return connection.recv()

        async def call(number: int) -> Any:
            return await loop.run_in_executor(pool, exchange, number)
    elif way.startswith("streams"):
        reader, writer = await asyncio.open_unix_connection(sock=ours)

        async def call(number: int) -> Any:
            writer.write(HEADER.pack(size, number, 1) + payload)
            await writer.drain()
            length, _, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
            return await reader.readexactly(length)
    else:
        pending: dict[int, asyncio.Future[bytes]] = {}
        transport, _ = await loop.create_unix_connection(
            lambda: FrameProtocol(lambda n, _k, p: pending.pop(n).set_result(p), lambda: None),
            sock=ours,
        )
        lines = "writelines" in way

        async def call(number: int) -> Any:
            pending[number] = future = loop.create_future()
            header = HEADER.pack(size, number, 1)
            if lines:
                transport.writelines([header, payload])
            else:
                transport.write(header + payload)
            return await future

    for number in range(100):
        await call(number)
    processes = [psutil.Process(), psutil.Process(child.pid)]
    before = sum(sum(p.cpu_times()[:2]) for p in processes)
    for number in range(count):
        begin = time.perf_counter()
        await call(number)
        taken.append((time.perf_counter() - begin) * 1e6)
    cpu = sum(sum(p.cpu_times()[:2]) for p in processes) - before
    child.kill()
    child.wait()
    return percentile(taken, 0.5), cpu / count * 1e6


def run_frame(args: argparse.Namespace, _template: Path, _work: Path) -> None:
    import uvloop

    ways = ["protocol", "protocol/writelines", "protocol/exact", "streams", "connection+pickle"]
    rng = random.Random(args.seed)
    lines: list[list[object]] = []
    for size in (1_600, 56_000, 350_000):
        seen: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(5):
            for way in rng.sample(ways, len(ways)):
                count = 2000 if size < 100_000 else 400
                seen[way].append(uvloop.run(frame_way(way, size, count)))
        for way, rounds in seen.items():
            p50, cpu = ([r[i] for r in rounds] for i in (0, 1))
            spread = f"{min(p50):.0f}-{max(p50):.0f}"
            median = statistics.median
            lines.append([size, way, f"{median(p50):.0f}", spread, f"{median(cpu):.0f}"])
    print("echo over a socketpair, 2,000-byte answer; median of 5 shuffled rounds; µs a call")
    print("(CPU is counted in ticks of 10 ms: 5 µs a call, 25 at the largest size)")
    table(["bytes", "way", "p50", "of rounds", "cpu"], lines)


class FaultWatch:
    """Clients against one node while its engine is shot; for P it is the node's supervisor too."""

    METHODS = ("Health", "Query", "Upsert")

    def __init__(self, node: Node, seed: int) -> None:
        self._node = node
        self._rng = random.Random(seed)
        self._first = 3_000_000
        self._stop = asyncio.Event()
        self._good: dict[str, list[float]] = {name: [] for name in self.METHODS}
        self._errors: dict[str, collections.Counter[str]] = {
            name: collections.Counter() for name in self.METHODS
        }
        self._slowest_health = 0.0

    async def run(self, fault: signal.Signals) -> list[object]:
        import grpc

        address = f"127.0.0.1:{self._node.port}"
        async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            tasks = [asyncio.create_task(self._probes(channel, name)) for name in self.METHODS]
            if self._node.variant.startswith("P"):
                tasks.append(asyncio.create_task(self._supervise()))
            await asyncio.sleep(1.5)
            shot = time.perf_counter()
            os.kill(self._node.engine_pid(), fault)
            await asyncio.sleep(6.0)
            stopped = time.perf_counter()
            self._stop.set()
            await asyncio.gather(*tasks)
        line: list[object] = [fault.name, self._node.variant]
        for times in self._good.values():
            inside = [shot, *(t for t in times if shot < t < stopped), stopped]
            line.append(f"{max(b - a for a, b in itertools.pairwise(inside)) * 1000:.0f}")
        line += [
            ", ".join(f"{code} {n}" for code, n in codes.items()) or "-"
            for codes in self._errors.values()
        ]
        return [*line, f"{self._slowest_health * 1000:.0f}"]

    def _payload(self, method: str) -> bytes:
        if method == "Query":
            return one_query(self._rng)
        if method == "Upsert":
            self._first += 25
            return rows(self._rng, self._first, 25)
        return b""

    async def _probe(self, channel: Any, method: str) -> None:
        import grpc

        begin = time.perf_counter()
        try:
            await channel.unary_unary(f"/bench.Node/{method}")(self._payload(method), timeout=1.0)
        except grpc.aio.AioRpcError as error:
            self._errors[method][error.code().name] += 1
        else:
            self._good[method].append(time.perf_counter())
        if method == "Health":
            self._slowest_health = max(self._slowest_health, time.perf_counter() - begin)

    async def _probes(self, channel: Any, method: str) -> None:
        running: set[asyncio.Task[None]] = set()
        while not self._stop.is_set():
            task = asyncio.create_task(self._probe(channel, method))
            running.add(task)
            task.add_done_callback(running.discard)
            await asyncio.sleep(0.1 if method == "Upsert" else 0.02)
        await asyncio.gather(*running)

    async def _supervise(self) -> None:
        started = time.perf_counter()
        process = self._node.process
        while not self._stop.is_set():
            await asyncio.sleep(0.01)
            quiet = time.perf_counter() - max([started, *self._good["Health"][-1:]])
            if process.poll() is None and quiet > HANG_SECONDS:
                process.kill()
                process.wait()
            if process.poll() is not None:
                await asyncio.get_running_loop().run_in_executor(None, self._node.start)
                process, started = self._node.process, time.perf_counter()


async def fault_line(node: Node, fault: signal.Signals, seed: int) -> list[object]:
    return await FaultWatch(node, seed).run(fault)


def run_faults(args: argparse.Namespace, template: Path, work: Path) -> None:
    import uvloop

    lines = []
    for fault in (signal.SIGSEGV, signal.SIGSTOP):
        for _ in range(args.rounds):
            for variant in args.variants:
                with Node(template, work, variant) as node:
                    lines.append(uvloop.run(fault_line(node, fault, args.seed)))
    print(f"longest silence after the shot, ms; 1 s deadlines, hang bound {HANG_SECONDS} s")
    head = ["fault", "variant", "health", "query", "upsert"]
    table([*head, "health errors", "query errors", "upsert errors", "slowest health"], lines)


def facts_parent(pdeathsig: bool, inherit: bool, stopped: bool, path: str) -> None:
    """Hold the flock, start a child that is busy in C code (or stopped), wait to be killed."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    code = (
        "import ctypes, os, sys, time\n"
        f"{pdeathsig} and ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)\n"
        "print('up', flush=True)\n"
        "ctypes.PyDLL(None).sleep(3)\n"  # PyDLL keeps the GIL, as an engine write does
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, pass_fds=[lock] if inherit else []
    )
    assert child.stdout is not None
    child.stdout.readline()
    if stopped:
        os.kill(child.pid, signal.SIGSTOP)
    print(child.pid, flush=True)
    time.sleep(60)


def run_facts(_args: argparse.Namespace, _template: Path, work: Path) -> None:
    lines: list[list[object]] = []
    for pdeathsig, inherit, stopped in [
        (False, False, False),
        (False, True, False),
        (True, True, False),
        (True, True, True),
    ]:
        path = work / "lock"
        parent = myself("_facts", int(pdeathsig), int(inherit), int(stopped), path)
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        begin = time.perf_counter()
        parent.wait()
        lock, locked, gone = os.open(path, os.O_RDWR), 0.0, 0.0
        while not (locked and gone) and time.perf_counter() - begin < 5:
            if not locked:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    locked = (time.perf_counter() - begin) * 1000
            if not gone:
                try:
                    state = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
                except FileNotFoundError:
                    state = "Z"
                gone = (time.perf_counter() - begin) * 1000 if state == "Z" else 0.0
            time.sleep(0.001)
        os.close(lock)
        lines.append([pdeathsig, inherit, stopped, f"{gone:.0f}", f"{locked:.0f}"])
    print("the parent is killed while its child is in a 3 s C call that holds the GIL; ms until …")
    table(["PDEATHSIG", "flock fd inherited", "child stopped", "child gone", "flock free"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["load", "hop", "frame", "faults", "facts"])
    parser.add_argument("--variants", nargs="+", default=["P", "C"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[25, 50, 100, 200])
    parser.add_argument("--where", choices=["spread", "busy"], default="spread")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    for variant in args.variants:
        Variant.parse(variant)
    print(f"{args.what}: seed {args.seed}, {ROWS} rows x {DIM}, {os.cpu_count()} cores", flush=True)
    runs = {
        "load": run_load,
        "hop": run_hop,
        "frame": run_frame,
        "faults": run_faults,
        "facts": run_facts,
    }
    with tempfile.TemporaryDirectory(prefix="engine-placement-") as directory:
        work = Path(directory)
        template = work / "template"
        if args.what in ("load", "hop", "faults"):
            for step in (
                "_migrate",
                "_configure",
                "_load",
            ):  # never two SQLite libraries in one process
                subprocess.run(
                    [sys.executable, __file__, step, template, str(args.seed)], check=True
                )
        runs[args.what](args, template, work)


def internal(role: str, rest: Sequence[str]) -> None:
    """Roles of the processes that the experiment starts."""
    import uvloop

    if role == "_migrate":
        migrate(Path(rest[0]))
    elif role == "_configure":
        configure(Path(rest[0]))
    elif role == "_load":
        load(Path(rest[0]), int(rest[1]))
    elif role == "_node":
        uvloop.run(node_main(Path(rest[0]), rest[1], int(rest[2])))
    elif role == "_engine":
        engine_main(Path(rest[0]), Variant.parse(rest[1]), int(rest[2]), int(rest[3]))
    elif role == "_client":
        ports = [int(port) for port in rest[4:]]
        uvloop.run(client_main(rest[0], ports, float(rest[1]), int(rest[2]), int(rest[3])))
    elif role == "_echo":
        echo_main(rest[0], int(rest[1]))
    elif role == "_facts":
        facts_parent(rest[0] == "1", rest[1] == "1", rest[2] == "1", rest[3])
    else:
        raise SystemExit(f"unknown role {role}")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("_"):
        internal(sys.argv[1], sys.argv[2:])
    else:
        main()
