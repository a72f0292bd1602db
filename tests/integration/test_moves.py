"""Slots that move between the shards of a running cluster, and what an operator may not do."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chroma_router
from tests.support.cluster import RunningCluster, run_cli, running_cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

RECORDS = 800
DIMENSION = 16


class Operator:
    """The command line, at one cluster."""

    def __init__(self, cluster: RunningCluster) -> None:
        self._router = ("--router", cluster.address)

    def run(self, *words: str) -> Any:
        """A command that must succeed; what it says."""
        return run_cli(*words, *self._router, timeout=90)

    def refused(self, *words: str) -> str:
        """A command that must be refused, in one line and with nothing changed; the line."""
        before = self.state()
        done = subprocess.run(
            [sys.executable, "-m", "router.cli.main", *words, *self._router],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert self.state() == before
        return done.stderr

    def state(self) -> Any:
        """Who owns how much."""
        return [
            (shard["name"], shard["role"], shard["slots"], shard["records"])
            for shard in self.run("shards", "list")["shards"]
        ]

    def records(self) -> dict[str, int]:
        """How many records each shard owns."""
        return {name: records for name, _, _, records in self.state()}

    def wait_for(self, condition: Callable[[Any], bool], seconds: float = 60) -> Any:
        """The newest rebalance when the condition holds of it."""
        until = time.monotonic() + seconds
        while not condition(rebalance := self.run("rebalance", "status")["rebalance"]):
            assert time.monotonic() < until, rebalance
        return rebalance


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Two shards, which the tests leave as two."""
    with running_cluster(tmp_path_factory.mktemp("moves") / "data", 2) as running:
        yield running


@pytest.fixture
def operator(cluster: RunningCluster) -> Operator:
    """Of that cluster."""
    return Operator(cluster)


@pytest.fixture(scope="module")
def collection(cluster: RunningCluster) -> Any:
    """A collection with records of all shapes."""
    client = chroma_router.Client(cluster.host, cluster.port)
    made = client.create_collection("moved", configuration={"hnsw": {"space": "l2"}})
    rows = np.random.default_rng(7).standard_normal((RECORDS, DIMENSION), np.float32)
    ids = [f"r{n}" for n in range(RECORDS)]
    half = RECORDS // 2
    made.add(
        ids=ids[:half],
        embeddings=rows[:half],
        documents=[f"text {n}" for n in range(half)],
        metadatas=[{"n": n, "even": n % 2 == 0, "ratio": n / 7} for n in range(half)],
    )
    made.add(ids=ids[half:], embeddings=rows[half:], metadatas=[{"n": n} for n in range(half)])
    # The second incarnation of a record comes last and has nothing of the first.
    made.delete(ids=ids[:20])
    made.add(ids=ids[:10], embeddings=rows[:10], metadatas=[{"again": n} for n in range(10)])
    made.update(ids=ids[30:40], metadatas=[{"ratio": None, "changed": True}] * 10)
    return made


def contents(collection: Any) -> dict[str, Any]:
    """All records, in insertion order."""
    found = collection.get(include=["documents", "metadatas", "embeddings"])
    return {**found, "embeddings": [row.tolist() for row in found["embeddings"]]}


def test_a_shard_is_added_filled_emptied_and_removed(operator: Operator, collection: Any) -> None:
    before = contents(collection)
    query = np.zeros((1, DIMENSION), np.float32)
    nearest = collection.query(query_embeddings=query, n_results=200)["ids"]
    name = operator.run("shards", "add")["shard"]["name"]
    assert operator.records()[name] == 0
    plan = operator.run("rebalance", "plan")
    assert {move["to"] for move in plan["moves"]} == {name}
    assert operator.records()[name] == 0, "a plan changes nothing"

    done = operator.run("rebalance", "start", "--wait")["rebalance"]
    assert (done["state"], {m["stage"] for m in done["moves"]}) == ("done", {"trimmed"})
    assert sum(move["records"] for move in done["moves"]) == sum(
        move["records"] for move in plan["moves"]
    )
    counts = operator.records()
    even = sum(counts.values()) / 3
    assert all(abs(count - even) <= 0.05 * even for count in counts.values()), counts
    assert contents(collection) == before
    assert collection.count() == len(before["ids"])
    assert sorted(collection.query(query_embeddings=query, n_results=200)["ids"][0]) == sorted(
        nearest[0]
    )
    assert all(s["unowned_records"] == 0 for s in operator.run("shards", "list")["shards"])
    assert operator.run("rebalance", "plan")["moves"] == []

    assert f"shards drain {name}" in operator.refused("shards", "remove", name)
    assert operator.run("shards", "drain", name, "--wait")["rebalance"]["state"] == "done"
    assert operator.records()[name] == 0
    assert contents(collection) == before
    assert operator.run("shards", "remove", name) == {"shard": name, "lost": []}
    assert len(operator.records()) == 2


def test_a_cancelled_rebalance_leaves_everything_where_it_was(
    operator: Operator, collection: Any
) -> None:
    before = contents(collection)
    name = operator.run("shards", "add")["shard"]["name"]
    counts = operator.records()
    # So slow that nothing is switched before it is cancelled.
    operator.run("rebalance", "start", "--throttle", "5")
    operator.wait_for(lambda r: any(move["copied_records"] > 0 for move in r["moves"]))
    collection.update(ids=["r50"], metadatas=[{"n": -1}])
    assert operator.run("rebalance", "pause")["rebalance"]["state"] == "paused"
    assert "has not ended" in operator.refused("rebalance", "start")
    assert "has not ended" in operator.refused("shards", "drain", name)
    assert operator.run("rebalance", "status")["rebalance"]["state"] == "paused"
    assert operator.run("rebalance", "resume")["rebalance"]["state"] == "running"
    cancelled = operator.run("rebalance", "cancel", "--wait")["rebalance"]
    assert cancelled["state"] == "cancelled"
    assert {move["stage"] for move in cancelled["moves"]} == {"cancelled"}
    assert operator.records() == counts
    assert all(s["unowned_records"] == 0 for s in operator.run("shards", "list")["shards"])
    place = before["ids"].index("r50")
    before["metadatas"][place] = {**before["metadatas"][place], "n": -1}
    assert contents(collection) == before
    assert "ended" in operator.refused("rebalance", "cancel")
    assert operator.run("shards", "drain", name, "--wait")["rebalance"]["state"] == "done"
    operator.run("shards", "remove", name)


def test_a_collection_is_placed_on_one_shard_and_on_all(
    operator: Operator, collection: Any
) -> None:
    before = contents(collection)
    placed = operator.run("collections", "place", "moved", "--shards", "1", "--wait")["rebalance"]
    assert placed["state"] == "done"
    assert sorted(operator.records().values()) == [0, len(before["ids"])]
    assert contents(collection) == before
    operator.run("collections", "place", "moved", "--shards", "all", "--wait")
    assert min(operator.records().values()) > 0.4 * len(before["ids"])
    assert contents(collection) == before


def test_what_is_refused_changes_nothing(operator: Operator, collection: Any) -> None:
    assert collection.count() > 0
    assert "no shard" in operator.refused("shards", "drain", "no-such-shard")
    assert "no shard" in operator.refused("shards", "remove", "no-such-shard")
    assert "drain shard-1" in operator.refused("shards", "remove", "shard-1")
    assert "not lost" in operator.refused("shards", "remove", "shard-1", "--force-lost", "--yes")


def test_the_last_shard_stays(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "data", 1) as cluster:
        operator = Operator(cluster)
        client = chroma_router.Client(cluster.host, cluster.port)
        client.create_collection("kept").add(ids=["a"], embeddings=np.ones((1, 2), np.float32))
        assert "rebalance start" in operator.refused("rebalance", "status")
        assert "rebalance start" in operator.refused("rebalance", "cancel")
        assert "shard" in operator.refused("shards", "drain", "shard-1")
        assert "shard" in operator.refused("shards", "remove", "shard-1")
