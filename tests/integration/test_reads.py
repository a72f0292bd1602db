"""Get, Query, Count and Scan while shards are empty, restarted, killed or stopped."""

import asyncio
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

import chroma_router
from chroma_router.v1 import records_pb2, records_pb2_grpc, types_pb2
from chroma_router.wire.errors import ClusterError, DeadlineExpired, InvalidRequest, Unavailable
from chroma_router.wire.slots import slot_of
from chroma_router.wire.status import from_rpc_error
from tests.support.cluster import RunningCluster, running_cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

DIMENSION = 8
RECORDS = 600
READS = ("Get", "Query", "Count")


@pytest.fixture(scope="module")
def shaken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A cluster for the tests of this module; a page of a scan has 3 seconds."""
    limits = {"CHROMA_ROUTER_REQUEST_TIMEOUT_SECONDS": "3"}
    with running_cluster(tmp_path_factory.mktemp("shaken") / "data", 3, limits) as running:
        yield running


@pytest.fixture
def stub(shaken: RunningCluster) -> Iterator[Any]:
    with grpc.insecure_channel(shaken.address) as channel:
        yield records_pb2_grpc.RecordServiceStub(channel)


@pytest.fixture
def filled(shaken: RunningCluster) -> tuple[types_pb2.CollectionRef, list[str]]:
    """A collection of RECORDS records, and their ids in the order of a scan."""
    client = chroma_router.Client(host=shaken.host, port=shaken.port)
    collection = client.create_collection(f"reads-{uuid.uuid4()}")
    ids = [f"r{n:04}" for n in range(RECORDS)]
    rows = np.random.default_rng(5).standard_normal((RECORDS, DIMENSION), dtype=np.float32)
    collection.add(ids=ids, embeddings=rows, metadatas=[{"even": n % 2 == 0} for n in range(600)])
    return types_pb2.CollectionRef(id=str(collection.id)), scan_order(ids)


def scan_order(ids: list[str]) -> list[str]:
    return sorted(ids, key=lambda i: (slot_of(i), i))


def read(stub: Any, method: str, ref: Any, *, partial: bool, seconds: float = 20) -> Any:
    """One read of the whole collection; raises the ClusterError."""
    fields: dict[str, Any] = {"collection": ref, "allow_partial": partial}
    if method == "Query":
        fields |= {"embeddings": [bytes(4 * DIMENSION)], "n_results": RECORDS}
    request = getattr(records_pb2, f"{method}Request")(**fields)
    try:
        return getattr(stub, method)(request, timeout=seconds)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


def seen(method: str, answer: Any) -> int:
    """How many records an answer saw."""
    match method:
        case "Get":
            return len(answer.records)
        case "Query":
            return len(answer.results[0].hits)
    return int(answer.count)


def scanned(stub: Any, ref: Any, cursor: str = "", **filter_: Any) -> tuple[list[str], str, Any]:
    """The ids that came, the last cursor, and the error that ended the stream, if any."""
    ids: list[str] = []
    request = records_pb2.ScanRequest(collection=ref, cursor=cursor, filter=filter_)
    try:
        for page in stub.Scan(request):
            ids += [record.id for record in page.records]
            cursor = page.cursor
    except grpc.RpcError as error:
        return ids, cursor, from_rpc_error(error)
    return ids, cursor, None


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Polls until the condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A node that hangs meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def supervisor_children(cluster: RunningCluster) -> list[psutil.Process]:
    return psutil.Process(cluster.process.pid).children()


def router_of(cluster: RunningCluster) -> psutil.Process:
    return next(p for p in supervisor_children(cluster) if "--catalog" in p.cmdline())


@contextmanager
def killed(cluster: RunningCluster, shard: str) -> Iterator[None]:
    """A node that is down meanwhile: its supervisor stands still and starts no other."""
    with stopped(cluster.process.pid):
        process = psutil.Process(cluster.node_pids()[shard])
        family = [process, *process.children(recursive=True)]
        for member in family:
            member.kill()
        # A zombie until its supervisor goes on: what counts is that it is gone from its port.
        wait_for(lambda: all(not _runs(p) for p in family))
        yield


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("method", READS)
def test_a_killed_shard(
    shaken: RunningCluster, stub: Any, filled: tuple[Any, list[str]], method: str
) -> None:
    ref, ids = filled
    owned = read(stub, method, ref, partial=True)
    assert seen(method, owned) == RECORDS
    assert owned.coverage.record_share == 1.0
    with killed(shaken, "shard-2"):
        began = time.monotonic()
        part = read(stub, method, ref, partial=True)
        spent = time.monotonic() - began
        assert list(part.coverage.missing_shards) == ["shard-2"]
        assert list(part.coverage.answered_shards) == ["shard-1", "shard-3"]
        assert 0 < seen(method, part) < RECORDS
        assert part.coverage.record_share == pytest.approx(seen(method, part) / RECORDS)
        assert spent < 2.0
        with pytest.raises(Unavailable) as failed:
            read(stub, method, ref, partial=False)
        assert failed.value.metadata["shard"] == "shard-2"
        assert "shard-2" in failed.value.message
        assert failed.value.retry_after
    assert seen(method, read(stub, method, ref, partial=False)) == RECORDS, "just restarted"
    assert scanned(stub, ref) == (ids, scanned(stub, ref)[1], None)


@pytest.mark.parametrize("method", READS)
def test_a_stopped_shard(
    shaken: RunningCluster, stub: Any, filled: tuple[Any, list[str]], method: str
) -> None:
    ref, _ = filled
    read(stub, method, ref, partial=False)
    with stopped(shaken.node_pids()["shard-2"]):
        began = time.monotonic()
        part = read(stub, method, ref, partial=True)
        spent = time.monotonic() - began
        assert list(part.coverage.missing_shards) == ["shard-2"]
        assert 0 < seen(method, part) < RECORDS
        assert part.coverage.record_share == pytest.approx(seen(method, part) / RECORDS)
        assert spent < 4.0
        began = time.monotonic()
        part = read(stub, method, ref, partial=True, seconds=1.0)
        assert list(part.coverage.missing_shards) == ["shard-2"]
        assert time.monotonic() - began < 0.9
        with pytest.raises((DeadlineExpired, Unavailable)) as failed:
            read(stub, method, ref, partial=False, seconds=1.5)
        assert "shard-2" in failed.value.message
    assert seen(method, read(stub, method, ref, partial=True)) == RECORDS


def test_a_shard_that_is_empty(shaken: RunningCluster, stub: Any) -> None:
    client = chroma_router.Client(host=shaken.host, port=shaken.port)
    collection = client.create_collection(f"one-{uuid.uuid4()}")
    collection.add(ids=["only"], embeddings=np.zeros((1, DIMENSION), np.float32))
    ref = types_pb2.CollectionRef(id=str(collection.id))
    for method in READS:
        answer = read(stub, method, ref, partial=True)
        assert seen(method, answer) == 1
        assert answer.coverage.record_share == 1.0
        assert len(answer.coverage.answered_shards) == 3
    assert scanned(stub, ref)[0] == ["only"]
    empty = client.create_collection(f"empty-{uuid.uuid4()}")
    none = types_pb2.CollectionRef(id=str(empty.id))
    assert scanned(stub, none) == ([], "", None)
    assert read(stub, "Count", none, partial=True).coverage.record_share == 1.0


def test_all_shards_stopped_is_an_error_also_for_a_partial_read(
    shaken: RunningCluster, stub: Any, filled: tuple[Any, list[str]]
) -> None:
    ref, _ = filled
    one, two, three = shaken.node_pids().values()
    with stopped(one), stopped(two), stopped(three):
        for method in READS:
            with pytest.raises(ClusterError) as failed:
                read(stub, method, ref, partial=True, seconds=1.0)
            assert isinstance(failed.value, DeadlineExpired | Unavailable)
            assert set(failed.value.metadata) >= {"shard", "trace_id", "request_id"}


@pytest.mark.parametrize("where", ["", '{"even": true}'])
def test_a_scan_whose_shard_stops_ends_and_goes_on(
    shaken: RunningCluster, stub: Any, filled: tuple[Any, list[str]], where: str
) -> None:
    ref, ids = filled
    chosen = [i for i in ids if not where or int(i[1:]) % 2 == 0]
    with stopped(shaken.node_pids()["shard-3"]):
        began = time.monotonic()
        part, cursor, error = scanned(stub, ref, where=where)
        assert time.monotonic() - began < 6.0, "a page has three seconds here"
        assert isinstance(error, Unavailable)
        assert "shard-3" in error.message
        assert error.metadata["trace_id"]
    rest, _, error = scanned(stub, ref, cursor, where=where)
    assert error is None
    assert part + rest == chosen


def test_a_scan_under_writes_and_across_a_restart_of_the_router(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "data", 3) as running:
        client = chroma_router.Client(host=running.host, port=running.port)
        collection = client.create_collection("scanned")
        rows = np.zeros((4000, 2), np.float32)
        stay = [f"stay-{n}" for n in range(4000)]
        for kind in ("stay", "go"):
            names = [f"{kind}-{n}" for n in range(4000)]
            collection.add(ids=names, embeddings=rows, documents=["x" * 3000] * 4000)
        stop = threading.Event()
        failures: list[BaseException] = []

        def write() -> None:
            number = 0
            while not stop.is_set():
                try:
                    collection.delete(ids=[f"go-{number % 4000}"])
                    collection.upsert(ids=[f"new-{number}"], embeddings=rows[:1])
                    collection.upsert(ids=[f"go-{(number + 7) % 4000}"], embeddings=rows[:1])
                except Exception as error:
                    failures.append(error)
                    return
                number += 1

        writer = threading.Thread(target=write)
        writer.start()
        ref = types_pb2.CollectionRef(id=str(collection.id))
        ids: list[str] = []
        codes: list[grpc.StatusCode] = []
        cursor, pages, restarts = "", 0, 0
        try:
            while True:
                request = records_pb2.ScanRequest(
                    collection=ref, cursor=cursor, include=[types_pb2.INCLUDE_DOCUMENTS]
                )
                try:
                    with grpc.insecure_channel(
                        running.address, [("grpc.max_receive_message_length", 64 << 20)]
                    ) as channel:
                        for page in records_pb2_grpc.RecordServiceStub(channel).Scan(request):
                            assert page.ByteSize() < 9 << 20
                            ids += [record.id for record in page.records]
                            cursor = page.cursor
                            pages += 1
                            if not restarts:
                                restarts += 1
                                router_of(running).kill()
                except grpc.RpcError as error:
                    codes.append(error.code())
                    wait_for(lambda: _answers(running))
                else:
                    break
        finally:
            stop.set()
            writer.join(60)
        assert not failures, failures[0]
        assert restarts == 1
        assert set(codes) == {grpc.StatusCode.UNAVAILABLE}
        assert pages > 2
        assert len(ids) == len(set(ids))
        assert ids == scan_order(ids)
        assert set(stay) <= set(ids)


def _answers(cluster: RunningCluster) -> bool:
    with grpc.insecure_channel(cluster.address) as channel:
        try:
            grpc.channel_ready_future(channel).result(1)
        except grpc.FutureTimeoutError:
            return False
    return True


def test_clients_that_leave_a_scan_midway_leave_nothing_behind(
    shaken: RunningCluster, stub: Any
) -> None:
    client = chroma_router.Client(host=shaken.host, port=shaken.port)
    collection = client.create_collection(f"left-{uuid.uuid4()}")
    rows = np.zeros((2000, 2), np.float32)
    for batch in range(4):
        collection.add(
            ids=[f"{batch}-{n}" for n in range(2000)],
            embeddings=rows,
            documents=["x" * 5000] * 2000,
        )
    ref = types_pb2.CollectionRef(id=str(collection.id))
    router = router_of(shaken)

    async def leave(times: int) -> None:
        options = [("grpc.max_receive_message_length", 64 << 20)]
        async with grpc.aio.insecure_channel(shaken.address, options) as channel:
            scan = records_pb2_grpc.RecordServiceStub(channel).Scan
            request = records_pb2.ScanRequest(collection=ref, include=[types_pb2.INCLUDE_DOCUMENTS])
            for _ in range(times):
                calls = [scan(request) for _ in range(10)]
                await asyncio.gather(*(call.read() for call in calls))
                for call in calls:
                    call.cancel()

    asyncio.run(leave(2))
    before = router.memory_info().rss
    asyncio.run(leave(8))
    grown = router.memory_info().rss - before
    print(f"router {before >> 20} MiB, {grown >> 20} MiB more after 80 scans that were left")
    assert grown < 64 << 20
    ids, _, error = scanned(stub, ref)
    assert error is None
    assert len(ids) == 8000


@pytest.mark.parametrize("cursor", ["x", "é", "A" * 100_000])
def test_cursors_that_are_none(stub: Any, filled: tuple[Any, list[str]], cursor: str) -> None:
    ids, _, error = scanned(stub, filled[0], cursor)
    assert ids == []
    assert isinstance(error, InvalidRequest)
    assert "cursor" in error.message
