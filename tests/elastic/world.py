"""A cluster of its own with two routers, the corpus in it, and the clients that check it."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import chroma_router
from chroma_router.retry import RetryPolicy
from tests.elastic.clients import Client
from tests.elastic.corpus import Corpus
from tests.elastic.measure import Record
from tests.elastic.model import Model
from tests.elastic.operators import Operator
from tests.elastic.shared import Shared
from tests.elastic.whole import check_whole
from tests.elastic.workload import Load, Workload
from tests.support.cluster import RunningCluster, running_cluster

R = TypeVar("R")

NAME = "elastic"
SHARDS = 2

_BATCH = 1000
_STOP_SECONDS = 40.0
_START_SECONDS = 60.0


class SecondRouter:
    """A router beside that of `chroma-router up`, which nobody restarts but `start`."""

    def __init__(self, cluster: RunningCluster) -> None:
        self._catalog = cluster.data / "catalog.sqlite3"
        self._log = cluster.log
        self._process: subprocess.Popen[str] | None = None
        self.address = "127.0.0.1:0"

    @property
    def down(self) -> bool:
        """Whether it was killed and not started again."""
        return self._process is None

    @property
    def pid(self) -> int:
        """Its process, while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts it, on the same port each time; returns when it serves."""
        with self._log.open("a") as stderr:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "router.cli.main", "serve"),
                    *("--catalog", str(self._catalog), "--listen", self.address),
                ],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("ready "), f"the second router did not start: {line!r}"
        words = dict(word.split("=", 1) for word in line.split()[1:])
        self.address = words["grpc"]

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ends it as an operator does."""
        self._end(signal.SIGTERM)

    def _end(self, signum: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(signum)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            assert process.stdout is not None
            process.stdout.close()
            self._process = None


@dataclass(slots=True)
class World:
    """What a run works with."""

    cluster: RunningCluster
    second: SecondRouter
    clients: list[Client]
    collection_id: str
    model: Model
    shared: Shared
    record: Record
    operator: Operator
    workload: Workload

    def errors_logged(self) -> list[str]:
        """The log lines of the cluster's processes that are of an error, the first of them."""
        with self.cluster.log.open() as lines:
            errors = (line.rstrip() for line in lines if '"level": "error"' in line)
            return [line[:4000] for _, line in zip(range(10), errors, strict=False)]

    async def check_whole(self) -> int:
        """See whole.py."""
        return await check_whole(
            self.cluster.address,
            self.collection_id,
            self.clients[0],
            self.model,
            self.shared,
            self.record,
        )


@asynccontextmanager
async def loaded_world(
    corpus: Corpus, load: Load, seed: int, *, clients: int = 6, shared: int = 5,
    retry: RetryPolicy | None = None, timeout: float = 30.0, keep: Path | None = None,
) -> AsyncIterator[World]:  # fmt: skip
    """A world whose collection holds the corpus; the workload has not begun.

    `retry` and `timeout` (seconds) are the clients'; without `retry` they never repeat a call, so
    that each failure of a router is seen. `keep`: an empty directory that is left behind.
    """
    with tempfile.TemporaryDirectory(prefix="elastic-") as scratch:
        data = (keep or Path(scratch)) / "cluster"
        with running_cluster(data, SHARDS) as cluster:
            second = SecondRouter(cluster)
            second.start()
            try:
                made = await _clients(cluster, second, clients, retry, timeout)
                model, record = Model(corpus), Record()
                of_clients = [Client(n, c, model, record) for n, c in made]
                await _load(of_clients[0], corpus)
                several = Shared(model, record, shared)
                workload = Workload(of_clients, model, several, record, load, seed)
                async with Operator([cluster.address, second.address]) as operator:
                    yield World(
                        cluster,
                        second,
                        of_clients,
                        str(of_clients[0].collection.id),
                        model,
                        several,
                        record,
                        operator,
                        workload,
                    )
            finally:
                second.stop()


async def _clients(
    cluster: RunningCluster, second: SecondRouter, count: int, retry: RetryPolicy | None,
    timeout: float,
) -> list[tuple[str, object]]:  # fmt: skip
    """Named collections, half of them through each router."""
    made: list[tuple[str, object]] = []
    for n in range(count):
        host, _, port = (second.address if n % 2 else cluster.address).rpartition(":")
        policy = retry or RetryPolicy(max_attempts=1)
        client = await chroma_router.AsyncClient(host, int(port), timeout=timeout, retry=policy)
        collection = await client.get_or_create_collection(
            NAME, configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )
        made.append((f"client-{n}", collection))
    return made


async def _load(client: Client, corpus: Corpus) -> None:
    """Adds the corpus, one batch after the other: the order of insertion is part of the model."""
    begun = time.monotonic()
    order = corpus.load_order()
    for at in range(0, len(order), _BATCH):
        tokens = order[at : at + _BATCH]
        seeds = [corpus.seeds[token] for token in tokens]
        if seeds[0].document is not None and seeds[-1].document is None:
            whole = sum(seed.document is not None for seed in seeds)
            await _add(client, corpus, tokens[:whole])
            await _add(client, corpus, tokens[whole:])
        else:
            await _add(client, corpus, tokens)
    seconds = time.monotonic() - begun
    print(f"{len(corpus.seeds):,} records loaded in {seconds:.1f} s", flush=True)


async def _add(client: Client, corpus: Corpus, tokens: list[int]) -> None:
    seeds = [corpus.seeds[token] for token in tokens]
    documents = [seed.document for seed in seeds]
    await client.collection.add(
        ids=[seed.id for seed in seeds],
        embeddings=corpus.vectors.all_of(tokens),
        metadatas=[dict(seed.metadata) for seed in seeds],
        documents=None if None in documents else documents,
    )


def run_to_the_end(work: Coroutine[Any, Any, R]) -> R:
    """Runs it on an event loop. SIGTERM and SIGINT cancel it, so that what it started is ended."""

    async def guarded() -> R:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return asyncio.run(guarded())
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise SystemExit("stopped") from None


def kill(pid: int) -> None:
    """kill -9 of a process of this world; one that has just ended is no error."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
