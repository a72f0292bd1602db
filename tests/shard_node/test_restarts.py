"""Stops, kills, hangs and refusals to start: what survives, and what a router is told meanwhile."""

import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    NotAllowed,
    NotFound,
    Overloaded,
    Reason,
    Stale,
    Unavailable,
)
from chroma_router.wire.slots import slot_of
from tests.shard_node.running import (
    ADD,
    ALL_SLOTS,
    DELETE,
    ROOT,
    UPDATE,
    UPSERT,
    CollectionCalls,
    Node,
    Row,
    floats,
    running,
    uuid7,
)

pytestmark = pytest.mark.integration

_KILLS = 6


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def mine(data: Path) -> Iterator[Node]:
    """A node that the test may stop and kill."""
    with running(data) as node:
        yield node


def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(0.01)


# ------------------------------------------------------------------------------------ restarts


def test_everything_but_the_grant_survives_a_restart(mine: Node) -> None:
    docs, gone = mine.collection(), mine.collection()
    gone.write(ADD, Row("x", floats(1)))
    mine.call("DropCollection", shard_pb2.DropCollectionRequest(collection_id=gone.id, epoch=2))
    add = docs.operation(ADD, [Row("b", floats(1), sequence=7), Row("a", floats(2), sequence=8)])
    docs.apply(add)
    docs.write(DELETE, "a")
    boot_id = mine.hello().boot_id
    assert mine.stop() == 0
    mine.start()
    with pytest.raises(Stale, match="say Hello"):
        docs.count()
    with pytest.raises(NotAllowed, match="belongs to cluster"):
        mine.hello(cluster="5b8e3f0e-6f0c-4d57-9f0b-3a2d3f1f7f11")
    hello = mine.hello()
    assert hello.boot_id != boot_id
    assert hello.high_sequence == 7  # of what is there
    with pytest.raises(Stale):
        docs.count()
    with pytest.raises(NotFound):
        gone.own(epoch=3)
    docs.own()
    docs.apply(add)  # remembered: "a" does not return
    assert (docs.ids(), docs.count()) == (["b"], 1)


def test_a_drop_that_was_interrupted_is_finished_at_the_next_start(mine: Node) -> None:
    docs = mine.collection()
    docs.write(ADD, *(Row(f"r{n}", floats(n)) for n in range(50)))
    mine.stop()
    link = sqlite3.connect(mine.data / "chroma" / "chroma.sqlite3")
    link.execute("UPDATE router_collection SET dropped = 1")
    link.commit()
    mine.start()
    mine.hello()
    with pytest.raises(NotFound):
        docs.own(epoch=2)
    left = "SELECT count(*) FROM router_record UNION ALL SELECT count(*) FROM collections"
    assert link.execute(left).fetchall() == [(0,), (0,)]
    link.close()


def test_the_arrays_of_a_dropped_collection_come_back_in_no_other(mine: Node) -> None:
    def leaves_and_follows() -> list[dict[str, Any]]:
        gone = mine.collection()
        gone.write(ADD, *(Row(f"g{n}", floats(n), metadata={"tags": ["secret"]}) for n in range(9)))
        mine.call("DropCollection", shard_pb2.DropCollectionRequest(collection_id=gone.id, epoch=2))
        docs = mine.collection()
        docs.write(ADD, *(Row(f"r{n}", floats(n)) for n in range(20)))
        return [dict(record.metadata) for record in docs.records()]

    assert leaves_and_follows() == [{}] * 20
    # A directory that was made before the node saw to this is mended when it is opened.
    mine.stop()
    link = sqlite3.connect(mine.data / "chroma" / "chroma.sqlite3")
    link.execute("DROP TRIGGER router_array_delete")
    link.execute("INSERT INTO embedding_metadata_array(id, key, int_value) VALUES (21, 'x', 1)")
    link.commit()
    link.close()
    mine.start()
    mine.hello()
    assert leaves_and_follows() == [{}] * 20


def test_sigterm_applies_what_it_has_admitted(mine: Node) -> None:
    docs = mine.collection()
    operations = [
        docs.operation(ADD, [Row(f"r{n}-{i}", floats(*range(64))) for i in range(100)])
        for n in range(30)
    ]
    pending = mine.stub.Apply.future(shard_pb2.ApplyRequest(operations=operations), timeout=30)
    eventually(lambda: docs.count() > 0)
    mine.process.terminate()
    assert [r.refused_reason for r in pending.result().results] == [""] * 30
    assert mine.process.wait(30) == 0


# ------------------------------------------------------------------------------------ kills


class Model:
    """A client that repeats what was not acknowledged, and knows what must then be there."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.sequence = 0
        self.present: dict[str, float] = {}
        self.place: dict[str, int] = {}

    def next(self, docs: CollectionCalls) -> tuple[shard_pb2.Operation, Callable[[], None]]:
        """An operation, and what its success changes."""
        kind = self.rng.choice([ADD, ADD, UPDATE, UPSERT, DELETE, DELETE])
        ids = self.rng.sample([f"r{n}" for n in range(12)], self.rng.randint(1, 5))
        if kind == DELETE:
            return docs.operation(DELETE, ids, uuid7()), lambda: self._delete(ids)
        rows: list[Row | str] = []
        values: dict[str, tuple[float, int]] = {}
        for record_id in ids:
            self.sequence += 1
            value = float(self.rng.randint(0, 1000))
            rows.append(Row(record_id, floats(value), sequence=self.sequence))
            values[record_id] = (value, self.sequence)
        return docs.operation(kind, rows, uuid7()), lambda: self._put(kind, values)

    def _put(self, kind: int, values: dict[str, tuple[float, int]]) -> None:
        for record_id, (value, sequence) in values.items():
            exists = record_id in self.present
            if kind != (ADD if exists else UPDATE):
                self.present[record_id] = value
                self.place.setdefault(record_id, sequence)

    def _delete(self, ids: list[str]) -> None:
        for record_id in ids:
            self.present.pop(record_id, None)
            self.place.pop(record_id, None)

    def check(self, docs: CollectionCalls) -> None:
        want = sorted(self.present, key=lambda i: self.place[i])
        assert docs.ids() == want
        assert {r.id: r.embedding for r in docs.records()} == {
            i: floats(v) for i, v in self.present.items()
        }
        assert docs.count() == len(self.present)
        if self.present:
            (hits,) = docs.query(floats(0), n=20)
            assert {i for i, _ in hits} == set(self.present)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("victim", ["node", "engine"])
def test_kills_under_writes(mine: Node, victim: str) -> None:
    """Each operation is repeated until it is acknowledged; then it has had effect exactly once."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    docs, model = mine.collection(), Model(seed)
    rng = random.Random(seed)
    unknown = 0
    for _ in range(_KILLS):
        engine = mine.engine()
        target = engine if victim == "engine" else mine.process
        axe = threading.Timer(rng.uniform(0, 0.15), target.kill)
        axe.start()
        while True:
            operation, landed = model.next(docs)
            try:
                results = docs.apply(operation, seconds=10)
            except ClusterError:
                unknown += 1
                break
            assert results[0].refused_reason == ""
            landed()
        axe.join()
        psutil.wait_procs([engine], 10)  # it goes with its node
        if victim == "node":
            mine.stop()
            mine.start()
        boot_id = mine.until_serving()
        docs.own(boot_id=boot_id)
        for _ in range(2):  # a router repeats, and may repeat what it need not
            assert docs.apply(operation)[0].refused_reason == ""
        landed()
        model.check(docs)
    assert unknown == _KILLS


def test_an_engine_that_dies_is_replaced_and_forgets_its_grants(mine: Node) -> None:
    docs = mine.collection()
    docs.write(ADD, Row("a", floats(1)))
    before = mine.hello().boot_id
    mine.kill_engine()
    eventually(lambda: _boot_id(mine) not in {before, ""})
    with pytest.raises(Stale) as stale:
        docs.count()
    assert stale.value.metadata["epoch"] == "0"
    with pytest.raises(Stale):
        docs.own(boot_id=before)
    docs.own()
    assert docs.ids() == ["a"]


def test_while_the_engine_starts_calls_are_told_to_come_again(mine: Node) -> None:
    docs = mine.collection()
    mine.kill_engine()
    seen: list[Unavailable] = []

    def served() -> bool:
        try:
            mine.hello()
        except Unavailable as error:
            seen.append(error)
            stats = mine.call("GetShardStats", shard_pb2.GetShardStatsRequest())
            return [s.collection_id for s in stats.holdings] != [docs.id]
        return bool(seen)

    eventually(served)
    assert {error.reason for error in seen} <= {Reason.ENGINE_STARTING, Reason.ENGINE_FAILED}
    assert all(error.retry_after for error in seen)
    assert mine.hello().boot_id


def _boot_id(node: Node) -> str:
    stats = node.call("GetShardStats", shard_pb2.GetShardStatsRequest())
    return str(stats.boot_id)


def test_a_torn_index_is_rebuilt_from_the_queue(mine: Node) -> None:
    docs = mine.collection(configuration='{"hnsw":{"sync_threshold":20}}')
    for start in range(0, 50, 10):
        rows = [Row(f"r{n}", floats(n, n), sequence=n) for n in range(start, start + 10)]
        docs.write(ADD, *rows)
    mine.kill()
    database = mine.data / "chroma" / "chroma.sqlite3"
    link = sqlite3.connect(database)  # as if killed inside the last persist
    ((segment, persisted),) = link.execute(
        "SELECT s.id, m.seq_id FROM segments s JOIN max_seq_id m ON m.segment_id = s.id"
        " WHERE s.scope = 'VECTOR'"
    ).fetchall()
    assert persisted == 40
    link.execute("UPDATE max_seq_id SET seq_id = 20 WHERE segment_id = ?", (segment,))
    link.commit()
    link.close()
    pickled = database.parent / segment / "index_metadata.pickle"
    pickled.write_bytes(pickled.read_bytes()[:100])
    mine.start().hello()
    docs.own()
    assert docs.count() == 50
    hits = docs.query(*(floats(n, n) for n in range(50)), n=1)
    assert [found[0][0] for found in hits] == [f"r{n}" for n in range(50)]
    docs.write(ADD, Row("one more", floats(1000, 1000), sequence=99))


# ------------------------------------------------------------------------------------ hangs, load


def test_a_loaded_index_counts_its_tail_once(mine: Node) -> None:
    """A load that left the engine to count it twice would persist long before the threshold."""
    docs = mine.collection(configuration='{"hnsw":{"sync_threshold":20}}')
    docs.write(ADD, *(Row(f"r{n}", floats(n), sequence=n) for n in range(15)))
    mine.kill()
    mine.start()
    docs.own(epoch=1, boot_id=mine.until_serving(), configuration='{"hnsw":{"sync_threshold":20}}')
    assert len(docs.query(floats(1), n=15)[0]) == 15
    sql = "SELECT count(*) FROM max_seq_id m JOIN segments s ON s.id = m.segment_id"
    link = sqlite3.connect(mine.data / "chroma" / "chroma.sqlite3")
    persisted = []
    for n in range(15, 20):
        docs.write(ADD, Row(f"r{n}", floats(n), sequence=n))
        persisted += link.execute(sql + " WHERE s.scope = 'VECTOR'").fetchone()
    link.close()
    assert persisted == [0, 0, 0, 0, 1]


def test_a_hanging_engine_is_ended_at_its_bound(data: Path) -> None:
    with running(data, environment={"CHROMA_ROUTER_NODE_WRITE_SECONDS": "1"}) as node:
        docs = node.collection()
        before = node.hello().boot_id
        node.engine().send_signal(signal.SIGSTOP)
        add = docs.operation(ADD, [Row("a", floats(1))])
        with pytest.raises(Unavailable):
            docs.apply(add)
        docs.own(boot_id=node.until_serving())
        assert node.hello().boot_id != before
        assert docs.apply(add)[0].refused_reason == ""
        assert docs.count() == 1


def test_a_full_queue_refuses_and_deadlines_are_kept(data: Path) -> None:
    with running(data, environment={"CHROMA_ROUTER_NODE_QUEUE_OPERATIONS": "3"}) as node:
        docs = node.collection()
        docs.write(ADD, Row("first", floats(1)))
        node.engine().send_signal(signal.SIGSTOP)
        requests = [
            shard_pb2.ApplyRequest(operations=[docs.operation(ADD, [Row(f"r{n}", floats(1))])])
            for n in range(3)
        ]
        waiting = [node.stub.Apply.future(request, timeout=60) for request in requests]
        eventually(lambda: _is_full(docs))
        with pytest.raises(DeadlineExpired):
            docs.query(floats(1), seconds=0.2)
        assert docs.count() == 1  # needs no engine
        node.engine().send_signal(signal.SIGCONT)
        assert [r.refused_reason for w in waiting for r in w.result().results] == [""] * 3
        assert docs.count() == 4


def _is_full(docs: CollectionCalls) -> bool:
    try:
        docs.apply(docs.operation(DELETE, ["x"]), seconds=0.3)
    except Overloaded as error:
        known = (Reason.QUEUE_FULL, {"shard": "shard-1"})
        return (error.reason, error.metadata) == known and bool(error.retry_after)
    except DeadlineExpired:
        return False
    return False


def test_health_answers_while_a_large_write_is_applied(mine: Node) -> None:
    docs = mine.collection()
    rng = random.Random(1)
    rows = [Row(f"r{n}", floats(*(rng.random() for _ in range(256)))) for n in range(4000)]
    request = shard_pb2.ApplyRequest(operations=[docs.operation(ADD, rows)])
    health: Any = health_pb2_grpc.HealthStub(mine.channel)
    pending = mine.stub.Apply.future(request, timeout=60)
    slowest, asked = 0.0, 0
    while not pending.done():
        began = time.monotonic()
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        slowest, asked = max(slowest, time.monotonic() - began), asked + 1
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert pending.result().results[0].refused_reason == ""
    assert asked > 3
    assert slowest < pending.result().apply_microseconds / 1e6 / 2
    assert docs.count() == 4000


# ------------------------------------------------------------------------------------ refusals


def start(data: Path, *options: str, listen: str = "127.0.0.1:0") -> tuple[int, str]:
    """Runs a node that must refuse to serve: its exit code and what it says."""
    command = [sys.executable, "-m", "shard_node.main", "serve", "--data", str(data)]
    command += ["--listen", listen, *(options or ("--name", "shard-1"))]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


def test_a_second_node_is_refused_and_told_who_is_there(mine: Node) -> None:
    code, said = start(mine.data)
    assert code == 1
    assert f'"pid": {mine.process.pid}' in said
    assert len(said.splitlines()) == 1


def test_the_lock_outlives_the_node_as_long_as_the_engine_does(mine: Node) -> None:
    mine.kill()
    assert mine.start().hello().boot_id


@pytest.mark.parametrize("unix", [False, True])
def test_an_address_in_use(mine: Node, tmp_path: Path, unix: bool) -> None:
    path = tmp_path / "taken"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        listen = f"unix:{path}" if unix else mine.address
        code, said = start(tmp_path / "other", listen=listen)
    assert code == 1
    assert f"cannot listen on {listen}" in said


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:", "host:99999", "unix:/no/such/dir/s"])
def test_an_address_that_is_none(tmp_path: Path, listen: str) -> None:
    code, said = start(tmp_path / "data", listen=listen)
    assert code == 1
    assert len(said.splitlines()) == 1


def test_wrong_usage(tmp_path: Path) -> None:
    assert start(tmp_path, "--name")[0] == 2
    assert start(tmp_path, "--name", "a b")[0] == 1
    assert start(Path("/proc/nowhere"))[0] == 1


def test_directories_of_others_are_refused(mine: Node, tmp_path: Path) -> None:
    mine.stop()
    code, said = start(mine.data, "--name", "shard-2")
    assert code == 1
    assert "--name shard-1" in said
    database = mine.data / "chroma" / "chroma.sqlite3"
    for statement, mend in (
        ("UPDATE router_meta SET value = '9' WHERE key = 'format_version'", "has format 9"),
        ("DROP TRIGGER router_queue_applied", "router_queue_applied"),
        ("UPDATE embeddings_queue_config SET config_json_str = '{}'", "purge itself"),
        ("PRAGMA journal_mode = DELETE", "journal_mode=WAL"),
        ("DROP TABLE router_meta", "no node has made"),
    ):
        kept = database.read_bytes()
        link = sqlite3.connect(database, isolation_level=None)
        link.execute(statement)
        link.close()
        code, said = start(mine.data)
        assert (code, mend in said) == (1, True), said
        for leftover in database.parent.glob("chroma.sqlite3-*"):
            leftover.unlink()
        database.write_bytes(kept)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "chroma.sqlite3").touch()
    code, said = start(plain)
    assert code == 1
    assert "chroma-router ingest" in said
    mine.start()


def test_a_directory_of_the_first_version_gets_what_it_lacks(mine: Node) -> None:
    docs = mine.collection()
    docs.write(ADD, *(Row(f"r{n}", floats(n)) for n in range(50)))
    mine.stop()
    link = sqlite3.connect(mine.data / "chroma" / "chroma.sqlite3", isolation_level=None)
    link.execute("DROP INDEX router_record_slot")
    link.execute("DROP TRIGGER router_array_delete")
    (last,) = link.execute("SELECT max(id) FROM embeddings").fetchone()
    link.executemany(
        "INSERT INTO embedding_metadata_array(id, key, int_value) VALUES (?, 'left', 1)",
        [(last,), (last + 1,)],  # of a record that is there, and of one that is not
    )
    link.close()
    mine.start()
    docs.own()
    keys = docs.page(keys_only=True, order=shard_pb2.ROW_ORDER_SLOT)
    assert list(zip(keys.sequences, keys.ids, strict=True)) == sorted(
        (slot_of(f"r{n}"), f"r{n}") for n in range(50)
    )
    link = sqlite3.connect(mine.data / "chroma" / "chroma.sqlite3")
    plan = link.execute(
        "EXPLAIN QUERY PLAN SELECT slot, id FROM router_record"
        " WHERE collection = 1 AND (slot, id) > (5, 'a') ORDER BY slot, id"
    ).fetchall()
    link.close()
    assert "USING COVERING INDEX router_record_slot" in plan[0][3]
    assert len(plan) == 1, "and nothing is sorted"
    docs.write(ADD, Row("r50", floats(50)))
    assert [r.id for r in docs.records() if "left" in r.metadata] == ["r49"]


def test_a_first_start_that_was_broken_off_begins_anew(data: Path) -> None:
    (data / "chroma.new" / "half").mkdir(parents=True)
    with running(data) as node:
        assert node.collection().count() == 0
        assert not (data / "chroma.new").exists()


def test_sigterm_while_the_engine_cannot_start(mine: Node) -> None:
    mine.engine().send_signal(signal.SIGSTOP)
    docs = CollectionCalls(mine, "7c9f9d56-6a0b-44a5-ae1c-0c1d3a0d5f00")
    with pytest.raises(DeadlineExpired):
        docs.own(seconds=0.3)
    mine.kill_engine()
    assert mine.stop() == 0


def test_a_unix_socket(data: Path, tmp_path: Path) -> None:
    with running(data, listen=f"unix:{tmp_path / 'socket'}") as node:
        docs = node.collection(slots=ALL_SLOTS)
        docs.write(ADD, Row("a", floats(1)))
        assert docs.count() == 1
        with grpc.insecure_channel(node.address) as channel:
            grpc.channel_ready_future(channel).result(10)
