"""Two routers over one catalog and the same nodes: neither knows more than the other."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from chromadb.api import ClientAPI
from chromadb.errors import InvalidArgumentError, NotFoundError

import chroma_router
from tests.support.cluster import RunningCluster, another_router

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

_GET_OR_CREATE = """
import sys, chroma_router
client = chroma_router.Client(sys.argv[1], int(sys.argv[2]))
sys.stdin.readline()
print(client.get_or_create_collection(sys.argv[3]).id)
"""


@pytest.fixture(scope="module")
def addresses(cluster: RunningCluster) -> Iterator[tuple[str, str]]:
    """The shared cluster's router and another one."""
    with another_router(cluster) as address:
        yield cluster.address, address


@pytest.fixture
def clients(addresses: tuple[str, str]) -> tuple[ClientAPI, ClientAPI]:
    """A client of each router."""
    one, other = (chroma_router.Client(*_place(address)) for address in addresses)
    return one, other


def _place(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def one_row(value: float, dimension: int = 3) -> Any:
    """An embedding."""
    return np.full((1, dimension), value, np.float32)


def test_each_reads_what_the_other_wrote(clients: tuple[ClientAPI, ClientAPI]) -> None:
    made = clients[0].create_collection("two-reads")
    sides: list[Any] = [made, clients[1].get_collection("two-reads")]
    for n in range(40):
        writer, reader = sides[n % 2], sides[1 - n % 2]
        writer.upsert(ids=[f"r{n}"], embeddings=one_row(n), metadatas=[{"n": n}])
        assert reader.get(ids=[f"r{n}"])["metadatas"] == [{"n": n}]
        reader.update(ids=[f"r{n}"], metadatas=[{"n": -n}])
        assert writer.get(where={"n": {"$eq": -n}})["ids"][-1] == f"r{n}"
        assert writer.query(query_embeddings=one_row(n), n_results=1)["ids"] == [[f"r{n}"]]
        if n % 3 == 0:
            reader.delete(ids=[f"r{n}"])
            assert writer.get(ids=[f"r{n}"])["ids"] == []
    # Insertion order is one, whichever router took the write and whichever is asked.
    expected = [f"r{n}" for n in range(40) if n % 3]
    for side in sides:
        assert side.get(include=[])["ids"] == expected
        paged = [side.get(limit=7, offset=at, include=[])["ids"] for at in range(0, 28, 7)]
        assert [i for page in paged for i in page] == expected
        assert side.count() == len(expected)


def test_a_definition_changed_through_the_other(clients: tuple[ClientAPI, ClientAPI]) -> None:
    one, other = clients
    mine = one.create_collection("two-changes", metadata={"v": 0})
    theirs = other.get_collection("two-changes")
    theirs.modify(metadata={"v": 1}, configuration={"hnsw": {"ef_search": 77}})
    again = one.get_collection("two-changes")
    assert again.metadata == {"v": 1}
    assert again.configuration_json["hnsw"]["ef_search"] == 77
    mine.modify(name="two-changed")
    assert other.get_collection("two-changed").id == mine.id
    with pytest.raises(NotFoundError):
        other.get_collection("two-changes")
    # The first write through one fixes the dimension for the other, which has read none so far.
    mine.add(ids=["a"], embeddings=one_row(1))
    with pytest.raises(InvalidArgumentError, match="dimension of 3, got 2"):
        theirs.add(ids=["b"], embeddings=one_row(1, 2))
    with pytest.raises(InvalidArgumentError, match="dimension of 3, got 2"):
        theirs.query(query_embeddings=one_row(1, 2))
    other.delete_collection("two-changed")
    calls: list[Callable[[], object]] = [
        mine.count,
        mine.get,
        lambda: mine.query(query_embeddings=one_row(1)),
        lambda: mine.add(ids=["c"], embeddings=one_row(1)),
        lambda: mine.delete(ids=["a"]),
        lambda: mine.modify(metadata={"v": 2}),
    ]
    for call in calls:
        with pytest.raises(NotFoundError):
            call()
    anew = one.create_collection("two-changed")
    anew.add(ids=["z"], embeddings=one_row(1, 5))
    assert other.get_collection("two-changed").get()["ids"] == ["z"]


def test_one_winner_of_get_or_create_over_routers_threads_and_processes(
    addresses: tuple[str, str], clients: tuple[ClientAPI, ClientAPI]
) -> None:
    for round_ in range(3):
        name = f"two-races-{round_}"
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", _GET_OR_CREATE, *map(str, _place(address)), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for address in addresses
        ]
        with contextlib.ExitStack() as held, ThreadPoolExecutor(24) as pool:
            for process in processes:
                held.enter_context(process)
            begin = threading.Barrier(24)

            def race(n: int, name: str = name, begin: threading.Barrier = begin) -> str:
                begin.wait()
                return str(clients[n % 2].get_or_create_collection(name, metadata={"n": n}).id)

            told = [pool.submit(race, n) for n in range(24)]
            outputs = [process.communicate("go\n", timeout=60)[0].strip() for process in processes]
            ids = {future.result(60) for future in told} | set(outputs)
        assert len(ids) == 1, ids
        described = [client.get_collection(name) for client in clients]
        assert described[0].metadata == described[1].metadata


def test_one_dimension_wins_over_both_routers(clients: tuple[ClientAPI, ClientAPI]) -> None:
    for round_ in range(3):
        name = clients[0].create_collection(f"two-dimensions-{round_}").name
        handles: list[Any] = [client.get_collection(name) for client in clients]
        begin = threading.Barrier(24)

        def write(n: int, handles: Any = handles, begin: threading.Barrier = begin) -> str:
            begin.wait()
            try:
                handles[n % 2].add(
                    ids=[f"{n}-{i}" for i in range(6)], embeddings=np.ones((6, 3 + n // 2 % 2))
                )
            except InvalidArgumentError as error:
                return "refused" if "expecting embedding with dimension of" in str(error) else "?"
            return f"dimension {3 + n // 2 % 2}"

        with ThreadPoolExecutor(24) as pool:
            outcome = list(pool.map(write, range(24)))
        stored = {what for what in outcome if what != "refused"}
        assert len(stored) == 1
        assert outcome.count("refused") == 12
        shapes = [handle.get(include=["embeddings"])["embeddings"].shape for handle in handles]
        assert shapes == [(12 * 6, int(stored.pop()[-1]))] * 2
