"""A cluster that is hurt: killed and stopped nodes, full queues, and what clients are told."""

import functools
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

import chroma_router
from chroma_router.v1 import records_pb2, records_pb2_grpc, types_pb2
from chroma_router.wire.errors import ClusterError, detail_of
from chroma_router.wire.status import from_rpc_error
from tests.support.cluster import RunningCluster, running_cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

SEED = 20261123
DIMENSION = 16


@pytest.fixture(scope="module")
def hurt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A cluster for the tests of this module, with queues small enough to fill."""
    limits = {"CHROMA_ROUTER_QUEUE_OPERATIONS": "64", "CHROMA_ROUTER_QUEUE_BYTES": str(8 << 20)}
    with running_cluster(tmp_path_factory.mktemp("hurt") / "data", 3, limits) as running:
        yield running


def vector(value: int) -> Any:
    """An embedding that tells its record's value."""
    row = np.random.default_rng(value).standard_normal(DIMENSION, dtype=np.float32)
    return [float(x) for x in row]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Polls until the condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def kill_and_await_its_successor(hurt: RunningCluster, shard: str, pid: int) -> None:
    """Kills a node and waits until the supervisor has begun another."""
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: hurt.node_pids().get(shard, pid) != pid)


def went_on(steps: list[int], goal: list[int], failures: list[BaseException]) -> bool:
    """Whether every writer has reached its goal, or one has failed."""
    return bool(failures) or all(step >= g for step, g in zip(steps, goal, strict=True))


def test_kills_of_nodes_lose_nothing_and_double_nothing(hurt: RunningCluster) -> None:
    print(f"seed {SEED}")
    client = chroma_router.Client(host=hurt.host, port=hurt.port)
    name = client.create_collection("killed").name
    writers, stop = 8, threading.Event()
    acknowledged: list[dict[str, int | None]] = [{} for _ in range(writers)]
    steps = [0] * writers
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        """Writes to its own ids, one at a time, and knows the last acknowledged value of each."""
        picker = random.Random(SEED + writer)
        mine = chroma_router.Client(host=hurt.host, port=hurt.port).get_collection(name)
        while not stop.is_set():
            steps[writer] += 1
            record_id = f"w{writer}-{picker.randrange(40)}"
            try:
                if picker.random() < 0.25:
                    mine.delete(ids=[record_id])
                    acknowledged[writer][record_id] = None
                else:
                    value = writer * 1_000_000 + steps[writer]
                    mine.upsert(
                        ids=[record_id], embeddings=[vector(value)], metadatas=[{"value": value}]
                    )
                    acknowledged[writer][record_id] = value
            except Exception as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=write, args=(i,)) for i in range(writers)]
    for thread in threads:
        thread.start()
    picker = random.Random(SEED)
    for _ in range(4):
        pids = hurt.node_pids()
        shard = picker.choice(sorted(pids))
        kill_and_await_its_successor(hurt, shard, pids[shard])
        # The next kill comes when every writer has gone on after this one.
        goal = [step + 5 for step in steps]
        wait_for(functools.partial(went_on, steps, goal, failures))
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not failures, failures[0]

    collection = client.get_collection(name)
    got = collection.get(include=["metadatas", "embeddings"])
    assert max(Counter(got["ids"]).values()) == 1
    assert got["metadatas"] is not None
    assert got["embeddings"] is not None
    stored = {i: m["value"] for i, m in zip(got["ids"], got["metadatas"], strict=True)}
    expected = {
        record_id: value
        for part in acknowledged
        for record_id, value in part.items()
        if value is not None
    }
    assert stored == expected
    assert collection.count() == len(expected)
    for record_id, row in zip(got["ids"], got["embeddings"], strict=True):
        np.testing.assert_allclose(row, vector(expected[record_id]), rtol=1e-6)


def test_memory_stays_flat_while_a_shard_is_stopped(hurt: RunningCluster) -> None:
    client = chroma_router.Client(host=hurt.host, port=hurt.port)
    collection = client.create_collection("stopped")
    collection.add(ids=["first"], embeddings=np.zeros((1, 1024), np.float32))
    router = next(
        child
        for child in psutil.Process(hurt.process.pid).children()
        if "serve" in child.cmdline() and "--catalog" in child.cmdline()
    )
    pid = hurt.node_pids()["shard-2"]
    record = types_pb2.Record(embedding=bytes(4096), document="x" * 60_000)
    told: Counter[str] = Counter()
    without_hint = 0
    lock = threading.Lock()

    def push(writer: int, until: float) -> None:
        nonlocal without_hint
        with grpc.insecure_channel(hurt.address) as channel:
            stub = records_pb2_grpc.RecordServiceStub(channel)
            number = 0
            while time.monotonic() < until:
                number += 1
                record_of_this = types_pb2.Record()
                record_of_this.CopyFrom(record)
                record_of_this.id = f"{writer}-{number}"
                request = records_pb2.UpsertRequest(
                    collection=types_pb2.CollectionRef(id=str(collection.id)),
                    records=[record_of_this],
                )
                try:
                    stub.Upsert(request, timeout=3)
                    name = "OK"
                except grpc.RpcError as failure:
                    error = from_rpc_error(failure)
                    name = error.reason.value
                    with lock:
                        without_hint += error.retry_after is None
                with lock:
                    told[name] += 1

    def pushed(seconds: float) -> list[int]:
        """Pushes that long; the router's memory in bytes, half a second apart."""
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=push, args=(i, until)) for i in range(96)]
        for thread in threads:
            thread.start()
        samples = []
        while time.monotonic() < until:
            samples.append(int(router.memory_info().rss))
            time.sleep(0.5)
        for thread in threads:
            thread.join(30)
        return samples

    os.kill(pid, signal.SIGSTOP)
    try:
        samples = pushed(15)
    finally:
        os.kill(pid, signal.SIGCONT)
    # In the first third connections are made and the allocator reaches its working size.
    before, after = samples[: len(samples) // 3], samples[len(samples) // 3 :]
    print(f"router {max(before) >> 20} MiB, then {max(after) >> 20} MiB; {dict(told)}")
    assert max(after) - max(before) < 16 << 20
    assert told["QUEUE_FULL"] > 0
    assert set(told) <= {"OK", "QUEUE_FULL", "SHARD_UNAVAILABLE"}
    assert without_hint == 0
    collection.upsert(ids=["after"], embeddings=np.ones((1, 1024), np.float32))
    assert collection.get(ids=["after"])["ids"] == ["after"]


def test_a_write_over_a_dead_shard_says_what_became_of_each_part(
    tmp_path: Path,
) -> None:
    with running_cluster(tmp_path / "data", 2) as running:
        client = chroma_router.Client(host=running.host, port=running.port)
        collection = client.create_collection("parts")
        collection.add(ids=["first"], embeddings=np.zeros((1, 1), np.float32))
        pid = running.node_pids()["shard-2"]
        os.kill(pid, signal.SIGSTOP)
        try:
            with grpc.insecure_channel(running.address) as channel:
                stub = records_pb2_grpc.RecordServiceStub(channel)
                request = records_pb2.AddRequest(
                    collection=types_pb2.CollectionRef(id=str(collection.id)),
                    records=[types_pb2.Record(id=f"id-{i}", embedding=bytes(4)) for i in range(40)],
                    request_id="the-request",
                )
                error = failed_call(stub, request)
                outcome = detail_of(error, types_pb2.WriteOutcome)
                assert outcome is not None
                assert outcome.request_id == "the-request"
                assert list(outcome.applied_shards) == ["shard-1"]
                assert list(outcome.unknown_shards) == ["shard-2"]
                assert 0 < len(outcome.unknown_ids) < 40
                os.kill(pid, signal.SIGCONT)
                stub.Add(request, timeout=20)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert collection.count() == 41


def failed_call(
    stub: records_pb2_grpc.RecordServiceStub, request: records_pb2.AddRequest
) -> ClusterError:
    """The error of an Add that has two seconds."""
    try:
        stub.Add(request, timeout=2)
    except grpc.RpcError as failure:
        return from_rpc_error(failure)
    raise AssertionError("the write went through")
