"""`up`, `ingest`, `query`, `catalog` with real processes: from the first start to kill -9."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.cluster import RunningCluster, run_cli, running_cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

RECORDS = 500


def write_records(path: Path, count: int = RECORDS, dimension: int = 8) -> None:
    with path.open("w") as out:
        for n in range(count):
            vector = [float((n * 7 + i * 13) % 29) for i in range(dimension)]
            row = {
                "id": f"r{n}",
                "document": f"number {n}",
                "metadata": {"n": n},
                "embedding": vector,
            }
            out.write(json.dumps(row) + "\n")


def cli(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "router.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def processes(data: Path) -> list[psutil.Process]:
    """All processes with the directory in their command line, `up` among them."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(data) in word for word in process.info["cmdline"] or ())
    ]


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "did not happen in time"
        time.sleep(0.02)


def count(cluster: RunningCluster, collection: str) -> int:
    status = run_cli("status", "--router", cluster.address)
    total: int = sum(c["records"] for c in status["collections"] if c["name"] == collection)
    return total


def ingest(cluster: RunningCluster, path: Path, *more: str) -> Any:
    return run_cli(
        "ingest", str(path), "--collection", "numbers", "--router", cluster.address, *more
    )


def test_from_start_to_restart(tmp_path: Path) -> None:
    data, path = tmp_path / "data", tmp_path / "in.jsonl"
    write_records(path)
    with running_cluster(data) as cluster:
        status = run_cli("status", "--router", cluster.address)
        assert [shard["state"] for shard in status["shards"]] == ["serving"] * 3
        for _ in range(2):  # it can be run again
            assert ingest(cluster, path, "--batch", "100")["stored"] == RECORDS
        assert count(cluster, "numbers") == RECORDS
        shards = run_cli("shards", "list", "--router", cluster.address)["shards"]
        assert sum(shard["records"] for shard in shards) == RECORDS
        assert sum(shard["share"] for shard in shards) == pytest.approx(1)
        assert cluster.stop() == 0
        assert processes(data) == []
    with running_cluster(data) as cluster:
        assert count(cluster, "numbers") == RECORDS
        asked = ["query", "--collection", "numbers", "--router", cluster.address, "-k", "3"]
        hits = run_cli(*asked, "--like", "r7", "--where", '{"n": {"$lt": 100}}')["hits"]
        assert [hit["rank"] for hit in hits] == [1, 2, 3]
        assert all(hit["metadata"]["n"] < 100 and hit["id"] != "r7" for hit in hits)
        assert {hit["shard"] for hit in hits} <= {"shard-1", "shard-2", "shard-3"}
        shown = cli(*asked, "--embedding", "[1,1,1,1,1,1,1,1]")
        assert "document" in shown.stdout
        assert cli("healthcheck", "--router", cluster.address).stdout == "SERVING\n"


def test_a_killed_node_does_not_stop_an_ingest(tmp_path: Path) -> None:
    data, path, total = tmp_path / "data", tmp_path / "in.jsonl", 3000
    write_records(path, total)
    with running_cluster(data) as cluster:
        pid = cluster.node_pids()["shard-2"]
        with subprocess.Popen(
            [
                *(sys.executable, "-m", "router.cli.main", "ingest", str(path), "--json"),
                *("--collection", "numbers", "--batch", "50", "--rate", "1500"),
                *("--router", cluster.address),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            until(lambda: count(cluster, "numbers") >= 200)
            os.kill(pid, signal.SIGKILL)
            out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert json.loads(out)["stored"] == total
        assert count(cluster, "numbers") == total
        assert cluster.node_pids()["shard-2"] != pid


def test_nothing_outlives_a_killed_supervisor_and_the_router_is_restarted(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_cluster(data) as cluster:
        (router,) = [
            p for p in processes(data) if "serve" in p.cmdline() and "--catalog" in p.cmdline()
        ]
        router.kill()
        until(lambda: cli("healthcheck", "--router", cluster.address).stdout == "SERVING\n")
        os.kill(cluster.process.pid, signal.SIGKILL)
        cluster.process.wait(10)
        until(lambda: processes(data) == [])
    with running_cluster(data) as cluster:
        assert cluster.stop() == 0


def test_a_directory_in_use_and_a_port_in_use(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_cluster(data) as cluster:
        second = cli("up", "--data", str(data), "--listen", "127.0.0.1:0")
        assert (second.returncode, "in use" in second.stderr) == (1, True)
        rebuilt = cli("catalog", "rebuild", "--data", str(data))
        assert (rebuilt.returncode, "in use" in rebuilt.stderr) == (1, True)
        other = tmp_path / "other"
        third = cli("up", "--data", str(other), "--listen", cluster.address)
        assert (third.returncode, "choose another with --listen" in third.stderr) == (1, True)
        assert "Traceback" not in second.stderr + third.stderr
        assert processes(other) == []
        assert run_cli("status", "--router", cluster.address)["records"] == 0


def test_a_node_that_cannot_start_ends_up_with_nothing_left_running(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_cluster(data) as cluster:
        assert cluster.stop() == 0
    shard = data / "shards" / "shard-2"
    (shard / "chroma.sqlite3").touch()
    done = cli("up", "--data", str(data), "--listen", "127.0.0.1:0")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{shard} is a directory of plain Chroma" in done.stderr
    assert "Traceback" not in done.stderr
    assert processes(data) == []


def test_a_long_path_still_starts(tmp_path: Path) -> None:
    with running_cluster(tmp_path / ("long" * 30), 1) as cluster:
        with socket.create_connection((cluster.host, cluster.port), 5):
            pass
        assert cluster.stop() == 0


def test_bad_lines_stop_with_their_number_or_are_put_aside(
    tmp_path: Path, cluster: RunningCluster
) -> None:
    path, rejects = tmp_path / "in.jsonl", tmp_path / "rejects"
    write_records(path, 20)
    lines = path.read_text().splitlines()
    lines[4] = "{"
    lines[9] = json.dumps({"id": "short", "embedding": [1.0]})
    path.write_text("\n".join(lines))
    asked = ["ingest", str(path), "--router", cluster.address]
    stopped = cli(*asked, "--collection", "bad-lines-1")
    assert (stopped.returncode, "line 5: not JSON" in stopped.stderr) == (1, True)
    missing = cli(
        "query", "--collection", "bad-lines-1", "--like", "x", "--router", cluster.address
    )
    assert (missing.returncode, "does not exist" in missing.stderr) == (1, True), missing.stderr
    for batch in ("20", "3"):
        summary = run_cli(
            *asked, "--collection", "bad-lines-2", "--rejects", str(rejects), "--batch", batch
        )
        assert (summary["stored"], summary["rejected"]) == (18, 2)
        found = [json.loads(row) for row in rejects.read_text().splitlines()]
        assert [row["line"] for row in found] == [5, 10]
        assert found[0]["text"] == "{"
        assert "imension" in found[1]["reason"]
        rejects.unlink()  # the next run would not overwrite it
    assert count(cluster, "bad-lines-2") == 18


def test_another_space_is_refused_and_vectors_of_the_lines_are_not_the_embedders(
    tmp_path: Path, cluster: RunningCluster
) -> None:
    path = tmp_path / "in.jsonl"
    write_records(path, 5)
    asked = ["ingest", str(path), "--collection", "spaces", "--router", cluster.address]
    assert run_cli(*asked, "--space", "cosine", "--embedder", "lexical")["stored"] == 5
    assert run_cli(*asked, "--space", "cosine")["stored"] == 5
    other = cli(*asked, "--space", "ip")
    assert other.returncode == 1
    assert "with the space cosine, not ip; leave out --space" in other.stderr
    words = cli("query", "--collection", "spaces", "--text", "x", "--router", cluster.address)
    assert (words.returncode, "--embedder" in words.stderr) == (1, True)


def test_a_lost_catalog_is_rebuilt_from_the_shards(tmp_path: Path) -> None:
    data, path = tmp_path / "data", tmp_path / "in.jsonl"
    write_records(path)
    with running_cluster(data) as cluster:
        ingest(cluster, path)
        before = run_cli("status", "--router", cluster.address)
        assert cluster.stop() == 0
    catalog = data / "catalog.sqlite3"
    assert cli("catalog", "check", "--catalog", str(catalog)).returncode == 0
    copied = cli("catalog", "backup", str(tmp_path / "copy"), "--catalog", str(catalog))
    assert (copied.returncode, (tmp_path / "copy").exists()) == (0, True)
    for file in data.glob("catalog.sqlite3*"):
        file.unlink()
    refused = cli("up", "--data", str(data), "--listen", "127.0.0.1:0")
    assert (refused.returncode, "catalog rebuild" in refused.stderr) == (1, True)
    rebuilt = cli("catalog", "rebuild", "--data", str(data))
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert processes(data) == []
    with running_cluster(data) as cluster:
        after = run_cli("status", "--router", cluster.address)
        assert after["cluster_id"] == before["cluster_id"]
        assert count(cluster, "numbers") == RECORDS
        summary = ingest(cluster, path)
        assert (summary["stored"], count(cluster, "numbers")) == (RECORDS, RECORDS)


def test_the_demo_answers_as_one_chroma_does(tmp_path: Path) -> None:
    done = cli("demo", "--json", "--limit", "600", "--data", str(tmp_path / "demo"), timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["records"] == sum(result["shards"].values()) == 600
    assert all(q["same_as_plain_chroma"] >= len(q["hits"]) - 1 for q in result["questions"])
    assert processes(tmp_path / "demo") == []
