"""Experiment 1: can the node keep its state inside the engine's SQLite file?

What is measured
    kills   Kill storm. A node process (Python's ``sqlite3``) stages each batch, then its child
            process (the engine: ``chromadb_rust_bindings`` alone) applies it; triggers on
            ``embeddings_queue`` fill ``router_record`` inside the engine's own transaction. The
            driver kills both, or one, at random instants and checks *before* the engine is opened
            again: the queue holds whole batches only, every acknowledged one among them;
            ``applied = staged`` says truly whether the last one is in; the records and sequences
            equal a naive replay of the queue. Then the vector segment: suspect or torn ones are
            deleted and rebuilt from the queue (some rebuilds are killed too), and every vector is
            read back and queried for.
    cost    A 32-row upsert under each arrangement, alternating in one run: medians and ratios.
    fsyncs  strace: fsync/fdatasync per batch, by process and file (who pays for durability).
    tear    Power loss: the WAL is cut at every frame boundary and inside frames; each prefix must
            recover to a state in which queue, records and applied flag agree.
    wal     Who checkpoints, and what makes the WAL grow.

Run (each ends by itself, prints its seed, exits 1 on a violated expectation):
    .venv/bin/python bench/experiments/node_state_kills.py kills --kills 540
    .venv/bin/python bench/experiments/node_state_kills.py cost --new 16
    .venv/bin/python bench/experiments/node_state_kills.py fsyncs    (or tear, or wal)

Limits: the storm kills processes, not the machine (the page cache survives); ``tear`` stands in
for that.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import functools
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

SCOPE = ("default_tenant", "default_database")
OPERATIONS = {"add": 0, "update": 1, "upsert": 2, "delete": 3}
DEFAULT_SYNC_THRESHOLD = 1000
PR_SET_PDEATHSIG = 1
HEADER_COUNT_OFFSET = 20  # cur_element_count in hnswlib's header.bin
QUEUE_CONFIG = '{"automatically_purge":false,"_type":"EmbeddingsQueueConfigurationInternal"}'

QUEUE_INDEX = "CREATE INDEX IF NOT EXISTS router_queue_topic_seq ON embeddings_queue(topic, seq_id)"
SLOT_INDEX = "CREATE INDEX IF NOT EXISTS router_record_slot ON router_record(collection, slot)"
NODE_SCHEMA = """
CREATE TABLE IF NOT EXISTS router_staged(
  id TEXT PRIMARY KEY, slot INTEGER NOT NULL, sequence INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS router_batch(
  one INTEGER PRIMARY KEY CHECK (one = 1), staged INTEGER NOT NULL, applied INTEGER NOT NULL,
  collection INTEGER NOT NULL, topic TEXT NOT NULL);
INSERT OR IGNORE INTO router_batch VALUES (1, 0, 0, 0, '');
CREATE TABLE IF NOT EXISTS router_record(
  collection INTEGER NOT NULL, id TEXT NOT NULL, slot INTEGER NOT NULL, sequence INTEGER NOT NULL,
  PRIMARY KEY (collection, id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS router_record_sequence ON router_record(collection, sequence);
CREATE TABLE IF NOT EXISTS router_outcome(
  request_id TEXT PRIMARY KEY, batch INTEGER NOT NULL, slot INTEGER NOT NULL,
  outcome TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS router_outcome_batch ON router_outcome(batch);
CREATE TRIGGER IF NOT EXISTS router_queue_guard BEFORE INSERT ON embeddings_queue
  WHEN NEW.topic IS NOT (SELECT topic FROM router_batch WHERE one = 1)
    OR NOT EXISTS (SELECT 1 FROM router_staged WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'router: write was not staged'); END;
CREATE TRIGGER IF NOT EXISTS router_queue_put AFTER INSERT ON embeddings_queue
  WHEN NEW.operation IN (0, 2)
BEGIN
  INSERT OR IGNORE INTO router_record(collection, id, slot, sequence)
    SELECT b.collection, s.id, s.slot, s.sequence FROM router_batch b, router_staged s
    WHERE b.one = 1 AND s.id = NEW.id;
END;
CREATE TRIGGER IF NOT EXISTS router_queue_delete AFTER INSERT ON embeddings_queue
  WHEN NEW.operation = 3
BEGIN
  DELETE FROM router_record
    WHERE collection = (SELECT collection FROM router_batch WHERE one = 1) AND id = NEW.id;
END;
CREATE TRIGGER IF NOT EXISTS router_queue_applied AFTER INSERT ON embeddings_queue
  WHEN (SELECT applied <> staged FROM router_batch WHERE one = 1)
BEGIN UPDATE router_batch SET applied = staged WHERE one = 1; END;
"""

Vector = bytes


@dataclass(frozen=True)
class Batch:
    """One engine call: one operation on distinct ids."""

    number: int
    operation: str
    ids: list[str]
    vectors: list[Vector]
    documents: list[str] | None = None
    metadatas: list[dict[str, Any]] | None = None

    def sequence(self, index: int) -> int:
        return self.number * 100_000 + index

    def rows(self) -> list[tuple[int, str, Vector | None]]:
        """The queue rows this batch must become."""
        code = OPERATIONS[self.operation]
        return [
            (code, i, None if code == 3 else v) for i, v in zip(self.ids, self.vectors, strict=True)
        ]


def slot_of(record_id: str) -> int:
    return zlib.crc32(record_id.encode()) & 1023  # any stable hash serves here


def vector(rng: random.Random, dimension: int) -> Vector:
    return struct.pack(f"{dimension}f", *(rng.uniform(-1, 1) for _ in range(dimension)))


def batches(seed: str, first: int, dimension: int, ids: int, largest: int) -> Iterator[Batch]:
    """The load of one round, reproducible by the driver: no feedback from the engine enters it."""
    rng = random.Random(seed)
    number = first
    while True:
        size = 1 if rng.random() < 0.4 else rng.randint(2, largest)
        operation = rng.choices(list(OPERATIONS), (4, 2, 4, 3))[0]
        chosen = [f"r{n}" for n in rng.sample(range(ids), size)]
        yield Batch(number, operation, chosen, [vector(rng, dimension) for _ in chosen])
        number += 1


# ------------------------------------------------------------------ engine process


class Engine:
    """The bindings and one collection."""

    def __init__(self, data: Path, threshold: int) -> None:
        import chromadb_rust_bindings as bindings  # type: ignore[import-untyped]

        config = bindings.SqliteDBConfig(
            hash_type=bindings.MigrationHash.MD5,
            migration_mode=bindings.MigrationMode.Apply,
            url=str(data / "chroma.sqlite3"),
        )
        self.api = bindings.Bindings(
            allow_reset=False, sqlite_db_config=config, persist_path=str(data), hnsw_cache_size=1000
        )
        configuration = json.dumps({"hnsw": {"space": "l2", "sync_threshold": threshold}})
        made = self.api.create_collection("experiment", configuration, None, None, True, *SCOPE)
        self.collection = str(made.id)

    def apply(self, batch: Batch) -> None:
        views = [memoryview(v).cast("f") for v in batch.vectors]
        rest = (views, batch.metadatas, batch.documents, None, *SCOPE)
        if batch.operation == "add":
            self.api.add(batch.ids, self.collection, *rest)
        elif batch.operation == "update":
            self.api.update(self.collection, batch.ids, *rest)
        elif batch.operation == "upsert":
            self.api.upsert(self.collection, batch.ids, *rest)
        else:
            self.api.delete(self.collection, batch.ids, None, None, None, *SCOPE)

    def count(self) -> int:
        return int(self.api.count(self.collection, *SCOPE))

    def verify(self, expected: dict[str, Vector]) -> dict[str, Any]:
        """Everything a reader could see, against the replayed queue."""
        found = self.api.get(self.collection, None, None, None, 0, None, ["embeddings"], *SCOPE)
        have = dict(zip(found.ids, found.embeddings or [], strict=True))
        wrong = [
            i
            for i, v in expected.items()
            if i not in have or struct.pack(f"{len(have[i])}f", *have[i]) != v
        ]
        misses = 0
        if expected:
            views = [memoryview(v).cast("f") for v in expected.values()]
            near = self.api.query(
                self.collection, None, views, 1, None, None, ["distances"], *SCOPE
            )
            misses = sum(got[:1] != [i] for i, got in zip(expected, near.ids, strict=True))
        return {
            "count": self.count(),
            "extra": len(set(have) - set(expected)),
            "wrong": wrong,
            "misses": misses,
        }


def die_with_parent(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def send(stream: BinaryIO, value: Any) -> None:
    body = pickle.dumps(value, protocol=5)
    stream.write(struct.pack("<I", len(body)) + body)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    head = stream.read(4)
    if len(head) < 4:
        raise EOFError
    return pickle.loads(stream.read(struct.unpack("<I", head)[0]))


def engine_main(options: argparse.Namespace) -> None:
    if options.death_signal:
        die_with_parent(options.parent)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (4 << 30, 4 << 30)
    )  # a torn link list can ask for hundreds of GB
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    engine: Engine | None = None
    while True:
        try:
            name, argument = receive(requests)
        except EOFError:
            os._exit(0)  # the node is gone
        try:
            if name == "open":
                engine = Engine(options.data, options.threshold)
                send(replies, ("ok", engine.collection))
                continue
            if engine is None:
                raise RuntimeError("engine is not open")
            result: Any = None
            if name == "apply":
                engine.apply(argument)
            elif name == "count":
                result = engine.count()
            elif name == "verify":
                result = engine.verify(argument)
            elif name == "hop":  # everything but the engine: what the process boundary costs
                result = sum(len(memoryview(v).cast("f")) for v in argument.vectors)
            send(replies, ("ok", result))
        except BaseException as error:  # PanicException is a BaseException
            send(replies, ("error", f"{type(error).__name__}: {error}"))


class EngineLostError(Exception):
    """The engine process ended without answering."""


class EngineProcess:
    """The node's handle on its engine child."""

    def __init__(
        self,
        data: Path,
        threshold: int,
        *,
        death_signal: bool = True,
        pass_fds: tuple[int, ...] = (),
    ):
        command = [
            sys.executable,
            __file__,
            "engine",
            "--data",
            str(data),
            "--threshold",
            str(threshold),
        ]
        command += ["--parent", str(os.getpid())] + (["--death-signal"] if death_signal else [])
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=pass_fds,
        )

    def call(self, name: str, argument: Any = None) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            send(self.process.stdin, (name, argument))  # type: ignore[arg-type]
            status, result = receive(self.process.stdout)  # type: ignore[arg-type]
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            raise EngineLostError from error
        if status == "error":
            raise RuntimeError(result)
        return result

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


# ------------------------------------------------------------------ node process


def connect(data: Path, synchronous: str = "NORMAL") -> sqlite3.Connection:
    link = sqlite3.connect(data / "chroma.sqlite3", isolation_level=None, timeout=10)
    link.execute(f"PRAGMA synchronous={synchronous}")
    link.execute(
        "PRAGMA wal_autocheckpoint=0"
    )  # the engine checkpoints; two checkpointers buy nothing but races
    return link


def prepare(
    data: Path,
    threshold: int,
    *,
    settings: bool = True,
    state: bool = True,
    slot_index: bool = False,
) -> str:
    """Create the directory as the node would at first open; return the collection's id."""
    data.mkdir(parents=True)
    engine = EngineProcess(data, threshold)
    collection = str(engine.call("open"))
    engine.close()
    if settings:
        link = sqlite3.connect(data / "chroma.sqlite3", isolation_level=None)
        assert link.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
        link.execute("DELETE FROM embeddings_queue_config")
        link.execute(
            "INSERT INTO embeddings_queue_config(config_json_str) VALUES (?)", (QUEUE_CONFIG,)
        )
        link.execute(QUEUE_INDEX)
        if state:
            link.executescript(NODE_SCHEMA)
            if slot_index:
                link.execute(SLOT_INDEX)
        link.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        link.close()
    return collection


def topic_of(collection: str) -> str:
    return f"persistent://default/default/{collection}"


def stage(link: sqlite3.Connection, topic: str, batch: Batch) -> None:
    """One transaction, no fsync: the engine's commit, later in the same WAL, makes it durable."""
    link.execute("BEGIN IMMEDIATE")
    link.execute("DELETE FROM router_staged")
    link.executemany(
        "INSERT INTO router_staged VALUES (?, ?, ?)",
        [(i, slot_of(i), batch.sequence(n)) for n, i in enumerate(batch.ids)],
    )
    link.execute(
        "UPDATE router_batch SET staged = ?, collection = 1, topic = ? WHERE one = 1",
        (batch.number, topic),
    )
    link.execute(
        "INSERT OR REPLACE INTO router_outcome VALUES (?, ?, ?, ?)",
        (f"request-{batch.number}", batch.number, slot_of(batch.ids[0]), "applied"),
    )
    link.execute("DELETE FROM router_outcome WHERE batch < ?", (batch.number - 1000,))
    link.execute("COMMIT")


def forget_unapplied(link: sqlite3.Connection) -> None:
    """At open: the outcome of a batch that was staged but never committed is not true."""
    link.execute(
        "DELETE FROM router_outcome WHERE batch > (SELECT applied FROM router_batch WHERE one = 1)"
    )


def node_main(options: argparse.Namespace) -> None:
    alive = (options.alive,) if options.alive >= 0 else ()
    link = connect(options.data)
    forget_unapplied(link)
    engine = EngineProcess(
        options.data, options.threshold, death_signal=options.death_signal, pass_fds=alive
    )
    topic = topic_of(engine.call("open"))
    engine.call("count")  # loads the collection and replays its tail before the first write
    print("ready", engine.process.pid, flush=True)
    load = batches(
        options.load_seed, options.first, options.dimension, options.ids, options.largest
    )
    for batch in load:
        if options.stop_at and batch.number >= options.stop_at:
            break
        try:
            stage(link, topic, batch)
            engine.call("apply", batch)
        except EngineLostError:
            applied = link.execute("SELECT applied = staged, staged FROM router_batch").fetchone()
            print("lost", applied[1], applied[0], flush=True)
            break
        print("ack", batch.number, flush=True)
    engine.close()
    if options.keep_wal:
        os._exit(0)


def node_command(
    data: Path, options: argparse.Namespace, threshold: int, load_seed: str, first: int
) -> list[str]:
    given = {
        "data": data,
        "threshold": threshold,
        "load-seed": load_seed,
        "first": first,
        "dimension": options.dimension,
        "ids": options.ids,
        "largest": options.largest,
    }
    flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    return [sys.executable, __file__, "node", *flags]


# ------------------------------------------------------------------ kill storm


@dataclass
class Directory:
    """What the driver knows about one data directory, independent of what the node wrote."""

    data: Path
    collection: str
    next_batch: int = 1
    applied: int = 0
    last_seq: int = 0
    sequences: dict[int, int] = field(default_factory=dict)  # seq_id -> the sequence its batch gave

    @property
    def topic(self) -> str:
        return topic_of(self.collection)


class ViolationError(AssertionError):
    """An expectation of the experiment did not hold."""


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise ViolationError(message)


def match_queue(
    link: sqlite3.Connection,
    place: Directory,
    load: Iterator[Batch],
    acked: set[int],
    tally: collections.Counter[str],
) -> None:
    """Whole batches in order, every acknowledged one, at most one more; the flag agrees."""
    rows = link.execute(
        "SELECT seq_id, operation, id, vector FROM embeddings_queue"
        " WHERE seq_id > ? ORDER BY seq_id",
        (place.last_seq,),
    ).fetchall()
    staged, applied = link.execute("SELECT staged, applied FROM router_batch").fetchone()
    at, last_in, last_acked = 0, place.applied, max(acked, default=0)
    while at < len(rows):
        batch = next(load)
        want = batch.rows()
        got = rows[at : at + len(want)]
        expect([r[1:] for r in got] == want, f"batch {batch.number} is torn or altered")
        for index, row in enumerate(got):
            place.sequences[row[0]] = batch.sequence(index)
        at += len(want)
        last_in = batch.number
    expect(last_in >= last_acked, f"acknowledged {last_acked}, queue ends at {last_in}")
    expect(
        last_in <= max(last_acked + 1, place.next_batch),
        "more than one batch beyond the acknowledged",
    )
    expect(applied == last_in, f"applied flag says {applied}, queue ends at {last_in}")
    possible = (last_in, max(last_in + 1, place.next_batch), place.next_batch - 1)
    expect(staged in possible, f"staged {staged}, applied {applied}")
    truth = link.execute(
        "SELECT count(*) FROM router_outcome WHERE batch = ?", (last_in,)
    ).fetchone()[0]
    expect(truth == (1 if last_in else 0), "outcome of the last applied batch is missing")
    tally["batches in queue"] += max(0, last_in - place.next_batch + 1)
    tally["in queue, not acknowledged"] += last_in > max(last_acked, place.applied)
    tally["staged, not in queue"] += staged > last_in and staged >= place.next_batch
    place.next_batch, place.applied = staged + 1, last_in
    if rows:
        place.last_seq = rows[-1][0]


def replay(link: sqlite3.Connection, place: Directory) -> dict[str, tuple[int, Vector]]:
    """The naive twin: the whole queue by the plain rules, with the driver's own sequences."""
    state: dict[str, tuple[int, Vector]] = {}
    for seq, operation, record, vec in link.execute(
        "SELECT seq_id, operation, id, vector FROM embeddings_queue"
        " WHERE topic = ? ORDER BY seq_id",
        (place.topic,),
    ):
        if operation == 3:
            state.pop(record, None)
        elif record in state:
            if operation != 0:
                state[record] = (state[record][0], vec)
        elif operation != 1:
            state[record] = (place.sequences[seq], vec)
    return state


def segment_of(link: sqlite3.Connection) -> str:
    return str(link.execute("SELECT id FROM segments WHERE scope = 'VECTOR'").fetchone()[0])


def unsynced(link: sqlite3.Connection) -> int:
    """Queue rows past the vector segment's max_seq_id, which is written right after a persist."""
    answer = link.execute(
        "SELECT count(*) FROM embeddings_queue WHERE seq_id >"
        " coalesce((SELECT seq_id FROM max_seq_id WHERE segment_id = ?), 0)",
        (segment_of(link),),
    )
    return int(answer.fetchone()[0])


def preflight(folder: Path) -> str:
    """'' when header, pickle and file sizes agree; else what is wrong."""
    pickled, header = folder / "index_metadata.pickle", folder / "header.bin"
    if not pickled.exists():
        return ""  # never persisted: the engine begins anew and replays the queue
    try:
        added = int(pickle.loads(pickled.read_bytes())["total_elements_added"])
    except Exception as error:
        return f"pickle: {type(error).__name__}"
    head = header.read_bytes()
    if len(head) < 60:
        return "header: short"
    # i32 version, then u64: offset, max_elements, cur_element_count, size_data_per_element
    count, per_element = struct.unpack_from("<QQ", head, HEADER_COUNT_OFFSET)
    if count != added:
        return "header count is not pickle count"
    if (folder / "data_level0.bin").stat().st_size < count * per_element:
        return "data file: short"
    if (folder / "length.bin").stat().st_size < count * 4:
        return "length file: short"
    return ""


def check_engine(
    data: Path, threshold: int, expected: dict[str, Vector], timeout: float
) -> tuple[str, int]:
    """Open in a child with a deadline; ('' or what is wrong, self-query misses)."""
    engine = EngineProcess(data, threshold)
    timer = signal.signal(signal.SIGALRM, lambda *_: engine.process.kill())
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        engine.call("open")
        seen = engine.call("verify", expected)
    except EngineLostError:
        return "hang or crash", 0
    except RuntimeError as error:
        return f"error {error}"[:100], 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, timer)
        engine.close()
    if seen["count"] != len(expected) or seen["extra"] or seen["wrong"]:
        short = f"count {seen['count']} of {len(expected)}"
        return f"wrong: {short}, {len(seen['wrong'])} differ, {seen['extra']} extra", 0
    return "", int(seen["misses"])


def drop_segment(data: Path, *, drop_row: bool) -> None:
    """Delete the vector segment; its row first, or a kill in the rebuild leaves no trace."""
    link = connect(data, "FULL")
    segment = segment_of(link)
    if drop_row:
        link.execute("DELETE FROM max_seq_id WHERE segment_id = ?", (segment,))
    link.close()
    shutil.rmtree(data / segment, ignore_errors=True)


def await_persist(place: Directory, deadline: float) -> None:
    """Return as soon as the engine begins to overwrite the vector segment's files."""
    files = sorted(path for path in place.data.glob("*/*.bin"))
    before = [path.stat().st_mtime_ns for path in files]
    while time.monotonic() < deadline and before == [path.stat().st_mtime_ns for path in files]:
        pass


@dataclass
class Storm:
    """The kill storm on one directory: kill, check the state, heal, check the engine."""

    options: argparse.Namespace
    place: Directory
    rng: random.Random
    tally: collections.Counter[str]

    def round(self, number: int) -> None:
        load_seed = f"{self.options.seed}/{number}"
        options, place = self.options, self.place
        load = batches(load_seed, place.next_batch, options.dimension, options.ids, options.largest)
        said = self.run_and_kill(load_seed)
        vectors = self.check_state(load, said)
        healed = self.heal(number, vectors)
        wrong, misses = check_engine(place.data, options.threshold, vectors, options.timeout)
        how = "after a rebuild" if healed else "plain reopen"
        expect(not wrong, f"{how}: {wrong}")
        self.tally["vectors read back equal"] += len(vectors)
        self.tally[f"self-queries that missed, {how}"] += misses
        if healed:
            link = connect(place.data)
            expect(unsynced(link) < options.threshold, "the rebuild left max_seq_id behind")
            link.close()

    def run_and_kill(self, load_seed: str) -> list[list[str]]:
        """Run a node until the axe falls; its lines ("ack N", "lost N applied")."""
        options, place, rng, tally = self.options, self.place, self.rng, self.tally
        mode = rng.choices(("both", "engine", "node"), (8, 1, 1))[0]
        death_signal = mode != "node" or rng.random() < 0.5
        read_end, write_end = os.pipe()
        command = node_command(place.data, options, options.threshold, load_seed, place.next_batch)
        command += ["--alive", str(write_end), *(["--death-signal"] if death_signal else [])]
        node = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=(write_end,), text=True)
        os.close(write_end)
        assert node.stdout is not None
        ready = node.stdout.readline().split()
        expect(ready[:1] == ["ready"], f"node did not start: {ready}")
        wait = rng.uniform(0, options.life)
        if rng.random() < options.aim:
            tally["kills aimed at a persist"] += 1
            await_persist(place, time.monotonic() + options.life)
            wait = rng.uniform(0, 0.001)
        time.sleep(wait)
        if mode in ("both", "engine"):
            os.kill(int(ready[1]), signal.SIGKILL)
        if mode in ("both", "node"):
            node.kill()
        lines = [line for line in node.stdout.read().split("\n")[:-1] if line]
        node.wait()
        os.read(read_end, 1)  # EOF: node and engine are both gone
        os.close(read_end)
        node.stdout.close()
        tally[f"kills: {mode}" + ("" if death_signal else " (engine ends by pipe EOF)")] += 1
        tally["kills"] += 1
        return [line.split() for line in lines]

    def check_state(self, load: Iterator[Batch], said: list[list[str]]) -> dict[str, Vector]:
        """Before the engine is opened: queue, applied flag and records agree; the true vectors."""
        place, tally = self.place, self.tally
        acked = {int(line[1]) for line in said if line[0] == "ack"}
        tally["batches acknowledged"] += len(acked)
        link = connect(place.data)
        intact = link.execute("PRAGMA quick_check").fetchone()[0]
        expect(intact == "ok", f"SQLite file is damaged: {intact}")
        match_queue(link, place, load, acked, tally)
        for line in said:
            if line[0] == "lost":  # what the node saw, still connected, when its engine died
                tally["engine lost, node read the flag"] += 1
                truth = place.applied == int(line[1])
                expect(bool(int(line[2])) == truth, "node misread the applied flag")
        state = replay(link, place)
        have = dict(link.execute("SELECT id, sequence FROM router_record").fetchall())
        link.close()
        expect(have == {i: s for i, (s, _) in state.items()}, "router_record is not the queue")
        tally["records compared"] += len(have)
        return {i: v for i, (_, v) in state.items()}

    def examine(self) -> tuple[bool, str]:
        """Was a persist due that never recorded its max_seq_id? And what does the preflight say?"""
        link = connect(self.place.data)
        suspect, segment = unsynced(link) >= self.options.threshold, segment_of(link)
        link.close()
        return suspect, preflight(self.place.data / segment)

    def heal(self, number: int, vectors: dict[str, Vector]) -> bool:
        """Delete a suspect or torn vector segment; sometimes die while the engine rebuilds it."""
        place, rng, tally = self.place, self.rng, self.tally
        suspect, torn = self.examine()
        tally["suspect (unsynced rows >= sync_threshold)"] += suspect
        if torn:
            tally[f"preflight found: {torn}"] += 1
            tally["preflight found damage outside the suspects"] += not suspect
        if not suspect and not torn:
            return False
        self.open_as_is(number, torn, vectors)
        interrupted = rng.random() < 0.3
        row = interrupted or rng.random() < 0.5
        drop_segment(place.data, drop_row=row)
        if interrupted:
            engine = EngineProcess(place.data, self.options.threshold)
            engine.call("open")
            send(engine.process.stdin, ("count", None))  # type: ignore[arg-type]
            time.sleep(rng.uniform(0, 0.03))
            engine.process.kill()
            engine.close()
            suspect, torn = self.examine()
            tally["rebuilds killed"] += 1
            tally["  ... rebuild killed, suspect again"] += suspect
            if suspect or torn:
                drop_segment(place.data, drop_row=True)
        tally["rebuilt, max_seq_id row " + ("deleted too" if row else "left")] += 1
        return True

    def open_as_is(self, number: int, torn: str, vectors: dict[str, Vector]) -> None:
        """What Chroma alone would have done with the suspect, on a copy."""
        copy = self.place.data.with_name("copy")
        shutil.copytree(self.place.data, copy)
        found, _ = check_engine(copy, self.options.threshold, vectors, self.options.timeout)
        shutil.rmtree(copy)
        self.tally["suspects opened as they are (on a copy)"] += 1
        if found:
            kind = found if found.startswith("hang") else found.split(maxsplit=1)[0]
            self.tally[f"  ... damaged: {kind}"] += 1
            self.tally["  ... damaged though preflight passed"] += not torn
            print(f"  round {number}: preflight '{torn}', as is: {found}", flush=True)


def kills_main(options: argparse.Namespace) -> None:
    rng = random.Random(options.seed)
    tally: collections.Counter[str] = collections.Counter()
    began = time.monotonic()
    place: Directory | None = None
    root = Path(tempfile.mkdtemp(prefix="node-state-", dir=options.work))
    try:
        for number in range(options.kills):
            if number % options.rounds_per_directory == 0:
                if place is not None:
                    shutil.rmtree(place.data)
                data = root / f"d{number}"
                place = Directory(data, prepare(data, options.threshold))
            assert place is not None
            Storm(options, place, rng, tally).round(number)
            if number % 50 == 49:
                print(f"  {number + 1} kills, {time.monotonic() - began:.0f} s", flush=True)
    finally:
        print(f"{time.monotonic() - began:.0f} s in all")
        for name, value in sorted(tally.items()):
            print(f"{value:>8}  {name}")
        if sys.exc_info()[0] is None:
            shutil.rmtree(root, ignore_errors=True)
        else:
            print(f"kept {root}")


# ------------------------------------------------------------------ cost


def wide_batch(rng: random.Random, number: int, ids: list[str], dimension: int) -> Batch:
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota"]
    return Batch(
        number,
        "upsert",
        ids,
        [vector(rng, dimension) for _ in ids],
        [" ".join(rng.choices(words, k=40))[:200] for _ in ids],
        [
            {"source": f"s{rng.randrange(50)}", "page": rng.randrange(500), "score": rng.random()}
            for _ in ids
        ],
    )


class Sidecar:
    """Alternative B: the intent is fsynced in another SQLite file before the engine is called."""

    def __init__(self, path: Path) -> None:
        self.link = sqlite3.connect(path, isolation_level=None)
        self.link.execute("PRAGMA journal_mode=WAL")
        self.link.execute("PRAGMA synchronous=FULL")
        self.link.executescript(NODE_SCHEMA.split("CREATE TRIGGER", 1)[0])

    def intend(self, batch: Batch) -> None:
        """The previous batch's records become true in the same transaction: one fsync."""
        self.link.execute("BEGIN IMMEDIATE")
        self.link.execute(
            "INSERT OR IGNORE INTO router_record SELECT 1, id, slot, sequence FROM router_staged"
        )
        self.link.execute("DELETE FROM router_staged")
        self.link.executemany(
            "INSERT INTO router_staged VALUES (?, ?, ?)",
            [(i, slot_of(i), batch.sequence(n)) for n, i in enumerate(batch.ids)],
        )
        self.link.execute(
            "UPDATE router_batch SET applied = staged, staged = ? WHERE one = 1", (batch.number,)
        )
        self.link.execute(
            "INSERT OR REPLACE INTO router_outcome VALUES (?, ?, 0, 'applied')",
            (f"request-{batch.number}", batch.number),
        )
        self.link.execute("COMMIT")


def nothing(batch: Batch) -> None:
    """An arrangement without node state."""


def print_costs(times: dict[str, list[float]], wal: dict[str, Path]) -> None:
    base = statistics.median(times["settings"])
    print(
        f"{'arrangement':<22}{'median ms':>10}{'mean ms':>10}{'p90 ms':>10}"
        f"{'/settings':>11}{'WAL MB':>9}"
    )
    for name, taken in times.items():
        size = wal[name].stat().st_size / 1e6 if name in wal and wal[name].exists() else 0.0
        middle, p90 = statistics.median(taken), statistics.quantiles(taken, n=10)[8]
        print(
            f"{name:<22}{middle * 1e3:>10.2f}{statistics.mean(taken) * 1e3:>10.2f}"
            f"{p90 * 1e3:>10.2f}{middle / base:>11.3f}{size:>9.1f}"
        )


def cost_main(options: argparse.Namespace) -> None:
    rng = random.Random(options.seed)
    root = Path(tempfile.mkdtemp(prefix="node-cost-", dir=options.work))
    variants: dict[str, tuple[EngineProcess, Callable[[Batch], None]]] = {}
    wal: dict[str, Path] = {}
    names = ["default", "settings", "trigger", "trigger+slot index", "sidecar"]
    for name in names:
        data = root / name.replace(" ", "-")
        state = name.startswith("trigger")
        collection = prepare(
            data,
            DEFAULT_SYNC_THRESHOLD,
            settings=name != "default",
            state=state,
            slot_index=name.endswith("index"),
        )
        engine = EngineProcess(data, DEFAULT_SYNC_THRESHOLD)
        engine.call("open")
        engine.call("count")
        before: Callable[[Batch], None] = nothing
        if state:
            before = functools.partial(stage, connect(data), topic_of(collection))
        elif name == "sidecar":
            before = Sidecar(data / "node.sqlite3").intend
        variants[name] = (engine, before)
        wal[name] = data / "chroma.sqlite3-wal"
    number = 0
    for start in range(0, options.records, 500):
        number += 1
        filled = wide_batch(
            rng, number, [f"r{n}" for n in range(start, start + 500)], options.dimension
        )
        for engine, before in variants.values():
            before(filled)
            engine.call("apply", filled)
    times: dict[str, list[float]] = {
        name: [] for name in [*names, "process hop alone", "staging alone"]
    }
    fresh = options.records
    for call in range(options.calls):
        number += 1
        new = options.rows if options.new < 0 else options.new
        ids = [f"r{n}" for n in rng.sample(range(options.records), options.rows - new)]
        ids += [f"r{n}" for n in range(fresh, fresh + new)]
        fresh += new
        batch = wide_batch(rng, number, ids, options.dimension)
        for name in rng.sample(names, len(names)):
            engine, before = variants[name]
            began = time.perf_counter()
            before(batch)
            staged = time.perf_counter()
            engine.call("apply", batch)
            done = time.perf_counter()
            if call >= options.warm:
                times[name].append(done - began)
                if name == "trigger":
                    times["staging alone"].append(staged - began)
        began = time.perf_counter()
        variants["settings"][0].call("hop", batch)
        if call >= options.warm:
            times["process hop alone"].append(time.perf_counter() - began)
    print_costs(times, wal)
    for engine, _ in variants.values():
        engine.close()
    shutil.rmtree(root)


# ------------------------------------------------------------------ fsyncs, tear, wal


def run_node(
    data: Path, options: argparse.Namespace, count: int, prefix: list[str], keep: bool = False
) -> None:
    command = prefix + node_command(data, options, DEFAULT_SYNC_THRESHOLD, str(options.seed), 1)
    command += ["--stop-at", str(count + 1)]
    command += ["--keep-wal"] if keep else []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def fsyncs_main(options: argparse.Namespace) -> None:
    root = Path(tempfile.mkdtemp(prefix="node-fsync-", dir=options.work))
    seen: list[collections.Counter[str]] = []
    for count in (0, options.batches):
        data = root / f"d{count}"
        prepare(data, 1000)
        trace = root / f"trace{count}"
        run_node(
            data,
            options,
            count,
            ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync,execve", "-o", str(trace)],
            True,
        )
        tally: collections.Counter[str] = collections.Counter()
        node = trace.read_text().split(maxsplit=1)[0]
        for line in trace.read_text().splitlines():
            if "fsync(" in line or "fdatasync(" in line:
                who = "node" if line.split()[0] == node else "engine"
                tally[f"{who} {line.split('<')[1].split('>')[0].rsplit('/', 1)[1]}"] += 1
        seen.append(tally)
    print(f"{options.batches} batches, beyond an open without any (syncs by process and file):")
    for name in sorted(set(seen[0]) | set(seen[1])):
        extra = seen[1][name] - seen[0][name]
        print(f"  {name:<32}{extra:>6}{extra / options.batches:>8.2f} a batch")
    shutil.rmtree(root)


def tear_main(options: argparse.Namespace) -> None:
    root = Path(tempfile.mkdtemp(prefix="node-tear-", dir=options.work))
    data = root / "d"
    collection = prepare(data, 1000)
    base = (data / "chroma.sqlite3").read_bytes()
    keeper = connect(
        data
    )  # an open connection: the last close must not checkpoint and delete the WAL
    keeper.execute("SELECT count(*) FROM embeddings_queue").fetchone()
    run_node(data, options, options.batches, [], True)
    wal = (data / "chroma.sqlite3-wal").read_bytes()
    expect((data / "chroma.sqlite3").read_bytes() == base, "a checkpoint ran: use fewer batches")
    frame = 24 + struct.unpack(">I", wal[8:12])[0]
    rng = random.Random(options.seed)
    cuts = set(range(32, len(wal) + 1, frame)) | {rng.randrange(32, len(wal)) for _ in range(200)}
    states: collections.Counter[str] = collections.Counter()
    for number, cut in enumerate(sorted(cuts)):
        place = Directory(root / f"c{number}", collection)
        place.data.mkdir()
        (place.data / "chroma.sqlite3").write_bytes(base)
        (place.data / "chroma.sqlite3-wal").write_bytes(wal[:cut])
        link = connect(place.data)
        load = batches(str(options.seed), 1, options.dimension, options.ids, options.largest)
        last = link.execute("SELECT applied FROM router_batch").fetchone()[0]
        acked = set(range(1, last + 1))
        match_queue(link, place, load, acked, collections.Counter())
        have = dict(link.execute("SELECT id, sequence FROM router_record").fetchall())
        expect(
            have == {i: s for i, (s, _) in replay(link, place).items()},
            f"cut at {cut}: records differ",
        )
        staged = link.execute("SELECT staged > applied FROM router_batch").fetchone()[0]
        states["staged, not applied" if staged else "applied"] += 1
        link.close()
        shutil.rmtree(place.data)
    print(
        f"{len(cuts)} cuts of a WAL of {len(wal)} bytes, {(len(wal) - 32) // frame} frames:"
        f" all agree; {dict(states)}"
    )
    shutil.rmtree(root)


def wal_main(options: argparse.Namespace) -> None:
    root = Path(tempfile.mkdtemp(prefix="node-wal-", dir=options.work))
    for name in ("no long reader", "a reader holds its snapshot"):
        data = root / name.replace(" ", "-")
        topic = topic_of(prepare(data, 1000))
        engine = EngineProcess(data, 1000)
        engine.call("open")
        link, reader = connect(data), connect(data)
        if name.startswith("a reader"):
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM embeddings_queue").fetchone()
        rng, sizes = random.Random(options.seed), []
        for number in range(1, options.batches + 1):
            batch = wide_batch(
                rng, number, [f"r{number}-{n}" for n in range(32)], options.dimension
            )
            stage(link, topic, batch)
            engine.call("apply", batch)
            if number % (options.batches // 5) == 0:
                sizes.append((data / "chroma.sqlite3-wal").stat().st_size / 1e6)
        main = (data / "chroma.sqlite3").stat().st_size / 1e6
        fifths = [round(size, 1) for size in sizes]
        print(
            f"{name}: WAL MB after each fifth of {options.batches} batches {fifths};"
            f" main file {main:.1f} MB"
        )
        if reader.in_transaction:
            reader.execute("COMMIT")
        answer = link.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        left = (data / "chroma.sqlite3-wal").stat().st_size
        print(f"  then wal_checkpoint(TRUNCATE) from the node: {answer}, WAL {left} bytes")
        engine.close()
        link.close()
        reader.close()
    shutil.rmtree(root)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    public: dict[str, Callable[[argparse.Namespace], None]] = {
        "kills": kills_main,
        "cost": cost_main,
        "fsyncs": fsyncs_main,
        "tear": tear_main,
        "wal": wal_main,
    }
    private = {"engine": engine_main, "node": node_main}
    for name in [*public, *private]:
        sub = commands.add_parser(name)
        sub.add_argument("--dimension", type=int, default=384 if name in ("cost", "wal") else 32)
        sub.add_argument("--ids", type=int, default=60, help="id space of the random load")
        sub.add_argument("--largest", type=int, default=12, help="largest batch of the random load")
        sub.add_argument("--threshold", type=int, default=20, help="hnsw sync_threshold")
        if name in public:
            sub.add_argument("--seed", type=int, default=1)
            sub.add_argument(
                "--work", type=Path, default=None, help="parent of the scratch directories"
            )
            sub.add_argument("--batches", type=int, default=200 if name == "wal" else 40)
        else:
            sub.add_argument("--data", type=Path, required=True)
            sub.add_argument("--death-signal", action="store_true")
    kills, cost = commands.choices["kills"], commands.choices["cost"]
    kills.add_argument("--kills", type=int, default=520)
    kills.add_argument("--rounds-per-directory", type=int, default=25)
    kills.add_argument(
        "--aim", type=float, default=0.4, help="share of the kills aimed at a persist"
    )
    kills.add_argument("--life", type=float, default=0.25, help="longest life of a node, seconds")
    kills.add_argument(
        "--timeout", type=float, default=10.0, help="deadline of a verifying reopen, seconds"
    )
    cost.add_argument("--calls", type=int, default=220)
    cost.add_argument("--warm", type=int, default=20)
    cost.add_argument("--rows", type=int, default=32)
    cost.add_argument("--new", type=int, default=-1, help="rows with a new id (-1: all)")
    cost.add_argument("--records", type=int, default=5000)
    commands.choices["engine"].add_argument("--parent", type=int, required=True)
    node = commands.choices["node"]
    node.add_argument("--load-seed", required=True)
    node.add_argument("--first", type=int, required=True)
    node.add_argument("--alive", type=int, default=-1)
    node.add_argument("--stop-at", type=int, default=0)
    node.add_argument("--keep-wal", action="store_true")
    options = parser.parse_args()
    if options.command in private:
        private[options.command](options)
        return 0
    print(
        f"{options.command}: seed {options.seed}, python sqlite {sqlite3.sqlite_version}",
        flush=True,
    )
    try:
        public[options.command](options)
    except ViolationError as violation:
        print(f"VIOLATED: {violation}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
