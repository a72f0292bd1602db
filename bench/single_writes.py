"""Acknowledged single-record writes per second: this cluster against `chroma run`, in one run.

    python -m bench.single_writes [--writers 32] [--seconds 8] [--rounds 3] [--shards 3]

Both are used in the same way: Python threads, each with chromadb's own client, each upserting one
record (384 d, a document of 200 characters, three metadata keys) at a time. The contestants take
turns, so that a drift of the machine meets both. Prints one line a turn and the ratio of medians.
"""

import argparse
import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import chromadb
import numpy as np
from chromadb.api import ClientAPI
from chromadb.config import Settings

import chroma_router
from tests.support.cluster import running_cluster

DIMENSION = 384
START_SECONDS = 60.0
NAME = "single-writes"


@contextlib.contextmanager
def chroma_run(directory: Path) -> Iterator[Callable[[], ClientAPI]]:
    """Chroma's own server on a free port; gives a maker of clients."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "chroma"
    with (directory / "log").open("w") as log:
        server = subprocess.Popen(
            [str(program), "run", "--path", str(directory / "data"), "--port", str(port)],
            stdout=log,
            stderr=log,
        )
    settings = Settings(anonymized_telemetry=False)

    def connect() -> ClientAPI:
        return chromadb.HttpClient("127.0.0.1", port, settings=settings)

    try:
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                connect().heartbeat()
                break
            except Exception:
                if server.poll() is not None or time.monotonic() > until:
                    raise
        yield connect
    finally:
        server.terminate()
        server.wait(10)


def load(connect: Callable[[], ClientAPI], records: int) -> None:
    """Makes the collection with so many records in it."""
    collection = connect().get_or_create_collection(NAME)
    vectors = np.random.default_rng(1).standard_normal((records, DIMENSION), dtype=np.float32)
    for at in range(0, records, 1000):
        rows = range(at, min(at + 1000, records))
        collection.upsert(
            ids=[f"loaded-{i}" for i in rows],
            embeddings=vectors[at : at + len(rows)],
            documents=["x" * 200] * len(rows),
        )


def measure(
    connect: Callable[[], ClientAPI], writers: int, seconds: float, turn: int
) -> tuple[float, float, float]:
    """Writes per second, and their median and 99th percentile latency in milliseconds."""
    begin = threading.Barrier(writers + 1)
    latencies: list[list[float]] = [[] for _ in range(writers)]
    failures: list[BaseException] = []
    stop = threading.Event()

    def write(writer: int) -> None:
        collection = connect().get_collection(NAME)
        vectors = np.random.default_rng(writer).standard_normal((64, DIMENSION), dtype=np.float32)
        begin.wait()
        count = 0
        while not stop.is_set():
            before = time.perf_counter()
            try:
                collection.upsert(
                    ids=[f"{turn}-{writer}-{count}"],
                    embeddings=vectors[count % 64 : count % 64 + 1],
                    documents=["d" * 200],
                    metadatas=[{"writer": writer, "count": count, "kind": "bench"}],
                )
            except Exception as error:
                failures.append(error)
                return
            latencies[writer].append(time.perf_counter() - before)
            count += 1

    threads = [threading.Thread(target=write, args=(i,)) for i in range(writers)]
    for thread in threads:
        thread.start()
    begin.wait()
    started = time.perf_counter()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join(30)
    elapsed = time.perf_counter() - started
    if failures:
        raise failures[0]
    flat = sorted(latency * 1000 for part in latencies for latency in part)
    return len(flat) / elapsed, flat[len(flat) // 2], flat[int(len(flat) * 0.99)]


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--loaded", type=int, default=0, help="records in the collection before")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "plain"
        plain.mkdir()
        with (
            chroma_run(plain) as http,
            running_cluster(Path(scratch) / "cluster", args.shards) as cluster,
        ):
            contestants: dict[str, Callable[[], ClientAPI]] = {
                "chroma run": http,
                "cluster": lambda: chroma_router.Client(host=cluster.host, port=cluster.port),
            }
            rates: dict[str, list[float]] = {name: [] for name in contestants}
            for connect in contestants.values():
                load(connect, args.loaded)
            for turn in range(args.rounds):
                for name, connect in contestants.items():
                    rate, median, p99 = measure(connect, args.writers, args.seconds, turn)
                    rates[name].append(rate)
                    print(
                        f"{name:11} {rate:7.0f} writes/s  p50 {median:6.1f} ms  p99 {p99:6.1f} ms"
                    )
            middle = {name: statistics.median(values) for name, values in rates.items()}
            ratio = middle["cluster"] / middle["chroma run"]
            print(
                f"{args.writers} writers, {args.shards} shards: {middle['cluster']:.0f} against "
                f"{middle['chroma run']:.0f} writes/s = {ratio:.1f} x"
            )


if __name__ == "__main__":
    main()
