"""A shard that is stopped, killed or begins anew: each call is answered rightly or says why not."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from chromadb.api import ClientAPI

import chroma_router
from chroma_router.errors import DeadlineExceededError, UnavailableError
from chroma_router.retry import RetryPolicy
from chroma_router.v1 import records_pb2, records_pb2_grpc, types_pb2
from tests.support.cluster import RunningCluster, running_cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

AWAY = (UnavailableError, DeadlineExceededError)
COUNT = 300


@pytest.fixture(scope="module")
def hurt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Three shards, for the tests of this module to hurt and to mend."""
    with running_cluster(tmp_path_factory.mktemp("away") / "data", 3) as running:
        yield running


@pytest.fixture
def client(hurt: RunningCluster) -> ClientAPI:
    """A client that waits for its router too, as long as a call may take."""
    return chroma_router.Client(hurt.host, hurt.port, retry=RetryPolicy(max_attempts=100))


def filled(client: ClientAPI, name: str) -> Any:
    """A collection of records r0, r1, … in this order."""
    made: Any = client.create_collection(name)
    made.add(
        ids=[f"r{n}" for n in range(COUNT)],
        embeddings=[[float(n), 1.0] for n in range(COUNT)],
        metadatas=[{"n": n} for n in range(COUNT)],
    )
    return made


def calls(collection: Any) -> dict[str, Callable[[], object]]:
    """One of each kind, over all shards, none of which changes anything."""
    row = [[1.0, 1.0]]
    everything = [f"r{n}" for n in range(COUNT)]
    rows = [[float(n), 1.0] for n in range(COUNT)]
    missing = [f"no-{n}" for n in range(30)]
    return {
        "count": collection.count,
        "get": lambda: collection.get(include=[])["ids"],
        "get a page": lambda: collection.get(limit=5, offset=200, include=[])["ids"],
        "get by condition": lambda: collection.get(where={"n": {"$gte": 295}}, include=[])["ids"],
        "get by ids": lambda: collection.get(ids=everything, include=[])["ids"],
        "query": lambda: collection.query(query_embeddings=row, n_results=3)["ids"],
        "add": lambda: collection.add(ids=everything, embeddings=rows),
        "upsert": lambda: collection.upsert(ids=everything, embeddings=rows),
        "update": lambda: collection.update(ids=missing, metadatas=[{"a": 1}] * 30),
        "delete by condition": lambda: collection.delete(where={"n": -1})["deleted"],
        "delete the oldest": lambda: collection.delete(where={"n": -1}, limit=2)["deleted"],
    }


def test_a_shard_that_does_not_answer(hurt: RunningCluster, client: ClientAPI) -> None:
    collection = filled(client, "away-stopped")
    expected = {what: call() for what, call in calls(collection).items()}
    hasty = chroma_router.Client(hurt.host, hurt.port, timeout=0.6)
    theirs = hasty.get_collection("away-stopped")
    pid = hurt.node_pids()["shard-2"]
    os.kill(pid, signal.SIGSTOP)
    try:
        for what, call in calls(theirs).items():
            begun = time.monotonic()
            with pytest.raises(AWAY) as told:
                call()
            assert time.monotonic() - begun < 4, what
            assert "shard-2" in str(told.value) or "deadline" in str(told.value).lower(), what
        # What only the others hold is there all the while, for reading and for writing.
        held = next(f"r{n}" for n in range(COUNT) if _answers(theirs, f"r{n}"))
        assert collection.get(ids=[held])["ids"] == [held]
        assert collection.query(query_embeddings=[[0.0, 0.0]], ids=[held])["ids"] == [[held]]
        collection.update(ids=[held], metadatas=[{"m": 1}])
        assert "away-stopped" in [c.name for c in client.list_collections()]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert {what: call() for what, call in calls(collection).items()} == expected
    assert collection.get(ids=[held])["metadatas"] == [{"n": int(held[1:]), "m": 1}]


def _answers(collection: Any, record_id: str) -> bool:
    try:
        return bool(collection.get(ids=[record_id])["ids"])
    except AWAY:
        return False


@pytest.mark.parametrize(
    ("shard", "what"),
    [("shard-1", "query"), ("shard-2", "upsert"), ("shard-3", "delete the oldest")],
)
def test_a_call_to_a_shard_that_begins_anew(
    hurt: RunningCluster, client: ClientAPI, shard: str, what: str
) -> None:
    collection = filled(client, f"away-{shard}")
    expected = {kind: call() for kind, call in calls(collection).items()}
    os.kill(hurt.node_pids()[shard], signal.SIGKILL)
    # The client repeats a call while the node begins anew; what it then gets is whole.
    assert calls(collection)[what]() == expected[what]
    assert {kind: call() for kind, call in calls(collection).items()} == expected


def test_a_page_token_holds_over_the_end_of_nodes_and_router(
    hurt: RunningCluster, client: ClientAPI
) -> None:
    collection = filled(client, "away-paged")
    collection.delete(ids=["r7"])
    collection.add(ids=["r7"], embeddings=np.ones((1, 2)))
    expected = [f"r{n}" for n in range(COUNT) if n != 7] + ["r7"]
    request = records_pb2.GetRequest(
        collection=types_pb2.CollectionRef(id=str(collection.id)), limit=COUNT
    )
    # The router cuts a page at 8 MiB: so no two of these documents stand on one.
    collection.upsert(
        ids=expected[40:42], embeddings=np.ones((2, 2)), documents=["x" * (5 << 20)] * 2
    )
    request.include.append(types_pb2.INCLUDE_DOCUMENTS)
    read: list[str] = []
    while not read or request.page_token:
        with grpc.insecure_channel(
            hurt.address, options=[("grpc.max_receive_message_length", -1)]
        ) as channel:
            stub = records_pb2_grpc.RecordServiceStub(channel)
            answer = stub.Get(request, timeout=60, wait_for_ready=True)
        if not read:
            kill_all(hurt)
            assert collection.count() == COUNT  # when it answers, all of them are back
        read += [record.id for record in answer.records]
        request.page_token = answer.next_page_token
    assert read == expected
    assert collection.get(include=[])["ids"] == expected
    paged = [collection.get(limit=90, offset=at, include=[])["ids"] for at in range(0, COUNT, 90)]
    assert [i for page in paged for i in page] == expected


def kill_all(hurt: RunningCluster) -> None:
    """Kills the router and every node, which the supervisor then starts again."""
    before = psutil.Process(hurt.process.pid).children()
    assert len(before) == 4
    for child in before:
        child.kill()
    psutil.wait_procs(before, 20)
