"""The Python client against a real cluster: many threads, forks, a router that comes back."""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromadb.api import ClientAPI

import chroma_router
from tests.support.cluster import RunningCluster, running_cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

Fresh = Callable[..., Any]
THREADS = 16
ROUNDS = 12
DIMENSION = 8


def row_of(number: int) -> Any:
    """An embedding that no other number has, and that no other number's is near to."""
    return np.random.default_rng(number).standard_normal(DIMENSION).astype(np.float32) * 100


def use(collection: Any, worker: int) -> None:
    """Mixed calls on records of the worker's own; each answer must be about these."""
    for turn in range(ROUNDS):
        number = worker * 1000 + turn
        name, row = f"{worker}-{turn}", row_of(number)
        collection.add(
            ids=[name], embeddings=[row], documents=[name], metadatas=[{"worker": worker}]
        )
        found = collection.query(query_embeddings=[row], n_results=1)
        assert found["ids"] == [[name]]
        assert found["documents"] == [[name]]
        collection.update(ids=[name], metadatas=[{"turn": turn}])
        got = collection.get(ids=[name], include=["metadatas", "embeddings"])
        assert got["metadatas"] == [{"worker": worker, "turn": turn}]
        np.testing.assert_array_equal(got["embeddings"], [row])
        mine = collection.get(where={"worker": worker}, include=[])["ids"]
        assert mine == [f"{worker}-{kept}" for kept in range(turn) if kept % 2] + [name]
        if turn % 2 == 0:
            assert collection.delete(ids=[name])["deleted"] == 1
        with pytest.raises(chroma_router.errors.InvalidArgumentError, match="dimension"):
            collection.query(query_embeddings=[[float(worker)]])


def test_sixteen_threads_with_one_client_never_mix_their_answers(fresh: Fresh) -> None:
    collection = fresh(configuration={"hnsw": {"space": "l2"}})
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(use, collection, worker) for worker in range(THREADS)]:
            done.result(150)
    assert collection.count() == THREADS * ROUNDS // 2


async def test_tasks_of_one_async_client_never_mix_their_answers(
    cluster: RunningCluster, fresh: Fresh
) -> None:
    name = fresh(configuration={"hnsw": {"space": "l2"}}).name
    client = await chroma_router.AsyncClient(cluster.host, cluster.port)
    collection = await client.get_collection(name)

    async def work(worker: int) -> None:
        for turn in range(ROUNDS):
            record_id, row = f"{worker}-{turn}", row_of(worker * 1000 + turn)
            await collection.add(ids=[record_id], embeddings=[row], documents=[record_id])
            found = await collection.query(query_embeddings=[row], n_results=1)
            assert found["documents"] == [[record_id]]

    async with asyncio.TaskGroup() as tasks:
        for worker in range(THREADS):
            tasks.create_task(work(worker))
    assert await collection.count() == THREADS * ROUNDS


def test_children_forked_beside_writes_write_too(client: ClientAPI, fresh: Fresh) -> None:
    collection = fresh()
    stop = threading.Event()

    def write(worker: int) -> int:
        written = 0
        while not stop.is_set():
            collection.add(ids=[f"parent-{worker}-{written}"], embeddings=[row_of(written)])
            written += 1
        return written

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, worker) for worker in range(4)]
        try:
            children = [_fork_a_writer(collection, child) for child in range(12)]
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        finally:
            stop.set()
        written = sum(writer.result(60) for writer in writers)
    assert codes == [0] * 12
    assert written
    assert collection.count() == written + 12 * 5
    assert client.heartbeat()


def _fork_a_writer(collection: Any, child: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        for n in range(5):
            collection.add(ids=[f"child-{child}-{n}"], embeddings=[row_of(n)])
            assert collection.get(ids=[f"child-{child}-{n}"])["ids"] == [f"child-{child}-{n}"]
        code = 0
    finally:
        os._exit(code)


def test_a_client_outlives_the_cluster_it_talked_to(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_cluster(data, 1) as first:
        address = first.address
        client = chroma_router.Client(address)
        collection = client.create_collection("kept")
        collection.add(ids=["before"], embeddings=[row_of(1)])
        assert first.stop() == 0
    with pytest.raises(chroma_router.errors.UnavailableError):
        collection.count()
    with running_cluster(data, 1, listen=address):
        assert collection.count() == 1
        collection.add(ids=["after"], embeddings=[row_of(2)])
        assert collection.get(include=[])["ids"] == ["before", "after"]
        assert client.get_collection("kept").id == collection.id


def test_a_write_waits_for_a_router_that_was_killed(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "data", 1) as running:
        patient = chroma_router.RetryPolicy(max_attempts=100)
        client = chroma_router.Client(running.address, retry=patient)
        collection = client.create_collection("kept")
        collection.add(ids=["before"], embeddings=[row_of(1)])
        os.kill(running.router_pid(), 9)
        collection.add(ids=["after"], embeddings=[row_of(2)])
        assert collection.get(include=[])["ids"] == ["before", "after"]
