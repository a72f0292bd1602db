"""A real cluster for tests and benchmarks: `chroma-router up` in a directory of its own."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 60.0
STOP_SECONDS = 40.0


@dataclass
class RunningCluster:
    """A cluster that serves; `address` is its router's."""

    process: subprocess.Popen[str]
    address: str
    data: Path
    log: Path

    @property
    def host(self) -> str:
        """The router's host."""
        return self.address.rpartition(":")[0]

    @property
    def port(self) -> int:
        """The router's port."""
        return int(self.address.rpartition(":")[2])

    def node_pids(self) -> dict[str, int]:
        """The process id of each shard's node, by shard name."""
        return {
            words[words.index("--name") + 1]: pid
            for pid, words in self._servers()
            if "--name" in words
        }

    def router_pid(self) -> int:
        """The process id of the router."""
        (pid,) = [pid for pid, words in self._servers() if "--catalog" in words]
        return pid

    def _servers(self) -> Iterator[tuple[int, list[str]]]:
        """The processes that serve this cluster, and their command lines."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except (OSError, UnicodeDecodeError):
                continue
            if "serve" in words and any(str(self.data) in w for w in words):
                yield int(entry.name), words

    def stop(self) -> int:
        """Stops the cluster as an operator does; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


@contextmanager
def running_cluster(
    data: Path,
    shards: int = 3,
    env: Mapping[str, str] | None = None,
    listen: str = "127.0.0.1:0",
) -> Iterator[RunningCluster]:
    """`chroma-router up`, by default on a free port; stopped on leaving. Its log is DATA.log."""
    log = data.with_suffix(".log")
    with log.open("a") as stderr:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "router.cli.main", "up"),
                *("--shards", str(shards), "--data", str(data), "--listen", listen),
            ],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **(env or {})},
        )
    try:
        yield RunningCluster(process, _ready_words(process, log)["grpc"], data, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def another_router(cluster: RunningCluster) -> Iterator[str]:
    """A second router over the cluster's catalog and nodes; its address."""
    with cluster.log.open("a") as stderr:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "router.cli.main", "serve"),
                *("--catalog", str(cluster.data / "catalog.sqlite3"), "--listen", "127.0.0.1:0"),
            ],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout is not None
    try:
        yield _ready_words(process, cluster.log)["grpc"]
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)
        process.stdout.close()


def run_cli(*args: str, timeout: float = 300, check: bool = True) -> Any:
    """Runs `chroma-router ARGS --json`; what it printed, parsed."""
    done = subprocess.run(
        [sys.executable, "-m", "router.cli.main", *args, "--json"],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"chroma-router {args} exited {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def _ready_words(process: subprocess.Popen[str], log: Path) -> dict[str, str]:
    """What the ready line says, within START_SECONDS."""
    assert process.stdout is not None
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(
        target=lambda stream: lines.put(stream.readline()), args=(process.stdout,), daemon=True
    )
    reader.start()
    try:
        line = lines.get(timeout=START_SECONDS)
    except queue.Empty:
        line = ""
    if not line.startswith("ready "):
        process.kill()
        process.wait()
        raise AssertionError(f"the cluster did not start (it said {line!r}): {log.read_text()}")
    return dict(word.split("=", 1) for word in line.split()[1:])
