"""Shards that are added to and removed from a running `up`, with real processes and kill -9."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from chroma_router.v1.supervisor_pb2 import StartShardRequest
from chroma_router.v1.supervisor_pb2_grpc import SupervisorServiceStub
from router.supervisor.layout import Layout
from tests.support.cluster import RunningCluster, run_cli, running_cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


def cli(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "router.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "did not happen in time"
        time.sleep(0.02)


def names(cluster: RunningCluster) -> list[str]:
    shards = run_cli("shards", "list", "--router", cluster.address)["shards"]
    assert all(shard["state"] == "serving" for shard in shards)
    return [shard["name"] for shard in shards]


def ingest(cluster: RunningCluster, path: Path, collection: str) -> Any:
    rows = [{"id": f"r{n}", "embedding": [float(n), 1.0]} for n in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return run_cli("ingest", str(path), "--collection", collection, "--router", cluster.address)


def killed_before_the_shard_was_known(cluster: RunningCluster) -> None:
    """The router asks for a node, and is killed before it has put the shard into the catalog."""
    with grpc.insecure_channel(Layout.of(cluster.data).control) as channel:
        known = ["shard-1", "shard-2"]
        SupervisorServiceStub(channel).StartShard(StartShardRequest(known=known), timeout=60)
    os.kill(cluster.router_pid(), signal.SIGKILL)
    serving = ("healthcheck", "--router", cluster.address)
    until(lambda: cli(*serving).stdout == "SERVING\n")


@pytest.mark.parametrize("name", [(), ("shard-3",)], ids=["no name", "a name"])
def test_an_add_that_was_cut_off_is_finished_by_a_repeat(
    tmp_path: Path, name: tuple[str, ...]
) -> None:
    with running_cluster(tmp_path / "data", 2) as cluster:
        killed_before_the_shard_was_known(cluster)
        assert names(cluster) == ["shard-1", "shard-2"], "nothing behind the operator's back"
        added = run_cli("shards", "add", *name, "--router", cluster.address)["shard"]
        assert added["name"] == "shard-3"
        assert names(cluster) == ["shard-1", "shard-2", "shard-3"]
        again = cli("shards", "add", "shard-3", "--router", cluster.address)
        assert (again.returncode, "shard-3 exists" in again.stderr) == (1, True)


def test_shards_come_go_and_stay_over_restarts(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_cluster(data, 2) as cluster:
        router = ("--router", cluster.address)
        assert run_cli("shards", "add", *router)["shard"]["role"] == "active"
        ingest(cluster, tmp_path / "in.jsonl", "numbers")
        refused = cli("shards", "remove", "shard-3", *router)
        assert (refused.returncode, "shards drain shard-3" in refused.stderr) == (1, True)
        assert run_cli("shards", "add", *router)["shard"]["name"] == "shard-4"
        killed = cluster.node_pids()["shard-4"]
        os.kill(killed, signal.SIGKILL)
        until(lambda: cluster.node_pids().get("shard-4", killed) != killed)
        assert cluster.stop() == 0
    wrong = cli("up", "--shards", "2", "--data", str(data))
    assert (wrong.returncode, "without --shards" in wrong.stderr) == (1, True)
    with running_cluster(data, 4) as cluster:
        router = ("--router", cluster.address)
        assert names(cluster) == [f"shard-{n}" for n in range(1, 5)]
        removed = run_cli("shards", "remove", "shard-4", *router)
        assert removed == {"shard": "shard-4", "lost": []}
        assert (data / "removed" / "shard-4").is_dir()
        assert "shard-4" not in cluster.node_pids()
        os.kill(cluster.router_pid(), signal.SIGKILL)  # its flags still name shard-4
        until(lambda: cli("healthcheck", *router).stdout == "SERVING\n")
        assert names(cluster) == ["shard-1", "shard-2", "shard-3"]
        assert run_cli("shards", "add", *router)["shard"]["name"] == "shard-5"
        assert cluster.stop() == 0


def test_a_shard_that_was_started_and_never_added_is_removed_by_its_name(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_cluster(data, 2) as cluster:
        killed_before_the_shard_was_known(cluster)
        assert cluster.stop() == 0
    with running_cluster(data, 3) as cluster:
        assert names(cluster) == ["shard-1", "shard-2"]
        run_cli("shards", "remove", "shard-3", "--router", cluster.address)
        assert Layout.of(data).names() == ["shard-1", "shard-2"]


@contextmanager
def a_node(name: str, data: Path) -> Iterator[str]:
    """A shard node by itself; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    words = ["serve", "--name", name, "--data", str(data), "--listen", address]
    with subprocess.Popen(
        [sys.executable, "-m", "shard_node.main", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        try:
            yield address
        finally:
            process.terminate()


def test_bad_newcomers_are_refused_and_a_dead_shard_is_given_up(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "data", 2) as cluster:
        router = ("--router", cluster.address)
        with a_node("far", tmp_path / "far") as address:
            for words, says in (
                (("near", address), "far"),
                (("shard-1", address), "shard-1 exists"),
                (("far", cluster.address), "is no shard node"),
                (("far", "127.0.0.1:1"), "can be reached"),
                (("f/r", address), "1 to 63 letters"),
            ):
                refused = cli("shards", "add", *words, *router)
                assert (refused.returncode, says in refused.stderr) == (1, True), refused.stderr
            assert names(cluster) == ["shard-1", "shard-2"]
            run_cli("shards", "add", "far", address, *router)
            ingest(cluster, tmp_path / "in.jsonl", "numbers")
            alive = cli("shards", "remove", "far", "--force-lost", "--yes", *router)
            assert (alive.returncode, "is not lost" in alive.stderr) == (1, True)
            held = {s["name"]: s for s in run_cli("shards", "list", *router)["shards"]}["far"]
            assert held["records"] > 0
        lost = run_cli("shards", "remove", "far", "--force-lost", "--yes", *router)["lost"]
        assert [(part["collection"], part["records"]) for part in lost] == [
            ("numbers", held["records"])
        ]
        assert ingest(cluster, tmp_path / "in.jsonl", "numbers")["stored"] == 60
        (status,) = run_cli("status", *router)["collections"]
        assert (status["records"], set(status["shards"])) == (60, {"shard-1", "shard-2"})
        with (
            running_cluster(tmp_path / "other", 1) as other,
            a_node("far", tmp_path / "far") as address,
        ):
            stranger = cli("shards", "add", "far", address, "--router", other.address)
            assert (stranger.returncode, "belongs to cluster" in stranger.stderr) == (1, True)
