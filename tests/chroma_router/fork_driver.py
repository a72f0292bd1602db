"""A process that forks beside its own calls; run by test_forking.py. Exit code 0: all was well.

    python -m tests.chroma_router.fork_driver SCENARIO PORT

Every call asks for one id and must be answered with it: an answer that belongs to another process
or thread would show. The parents do not repeat calls, so a disturbed connection shows too.
"""

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from chromadb.api.client import Client

import chroma_router
from chroma_router.forking import GATE

CHILD_SECONDS = 30
NO_REPEATS = chroma_router.RetryPolicy(max_attempts=1)

port = int(sys.argv[2]) if len(sys.argv) > 2 else 0
shared: Any = None
"""The collection that every scenario has before it forks."""


def ask(collection: Any, name: str, times: int = 3) -> None:
    """Reads records by id and sees that it gets just those."""
    for n in range(times):
        got = collection.get(ids=[f"{name}-{n}"])["ids"]
        assert got == [f"{name}-{n}"], got


def fork(child: Callable[[], None]) -> int:
    """The process id of a child that does `child` and ends with 0, with 3 after an exception."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(CHILD_SECONDS)  # a child that hangs ends by this
    try:
        child()
    except BaseException as error:
        os.write(1, str(error).encode())
        os._exit(3)
    os._exit(0)


def ended(pid: int) -> int:
    """The exit code of a child; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def beside_threads(collection: Any, forks: int = 60) -> int:
    """Forks under six threads that call without a pause; each child calls with them all."""
    stop = threading.Event()

    def call(thread: int) -> int:
        calls = 0
        while not stop.is_set():
            ask(collection, f"thread-{thread}-{calls}", 1)
            calls += 1
        return calls

    with ThreadPoolExecutor(6) as pool:
        callers = [pool.submit(call, n) for n in range(6)]
        codes = [ended(fork(lambda k=k: ask(collection, f"child-{k}"))) for k in range(forks)]  # type: ignore[misc]
        stop.set()
        assert all(caller.result(20) for caller in callers)
    return max(codes, key=abs)


def prefork(collection: Any) -> int:
    """As gunicorn does: several children at once, each with threads, and the parent goes on."""

    def serve(worker: int) -> None:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(ask, collection, f"{worker}-{n}") for n in range(8)]:
                done.result()

    pids = [fork(lambda n=n: serve(n)) for n in range(6)]  # type: ignore[misc]
    ask(collection, "parent", 20)
    return max((ended(pid) for pid in pids), key=abs)


def grandchildren(collection: Any) -> int:
    """A child that has called forks again."""

    def child() -> None:
        ask(collection, "child")
        assert ended(fork(lambda: ask(collection, "grandchild"))) == 0
        ask(collection, "child again")

    return ended(fork(child))


def ask_inherited(name: str) -> None:
    """Asks with the client that the process was forked with; clients cannot be pickled."""
    ask(shared, name)


def pool(collection: Any) -> int:
    """multiprocessing's own workers, which end by Python's way out and not by os._exit."""
    with multiprocessing.get_context("fork").Pool(3) as workers:
        workers.map(ask_inherited, [str(n) for n in range(9)])
    ask(collection, "parent")
    return 0


def leave(collection: Any) -> int:
    """A child that ends as programs do tears down what it inherited, beneath the parent's feet."""
    pid = os.fork()
    if not pid:
        ask(collection, "child")
        sys.exit(0)
    code = ended(pid)
    ask(collection, "parent")
    return code


def closed(_: Any) -> int:
    """The client is closed just before the fork; the child makes one of its own."""
    code = 0
    for _ in range(20):
        client = connect()
        ask(client.get_collection("docs"), "parent")
        client.close()
        code = code or ended(fork(lambda: ask(connect().get_collection("docs"), "child")))
    return code


def slow(collection: Any) -> int:
    """A call outlasts the fork's patience: the child is told, the parent goes on."""
    GATE._quiet_seconds = 0.2
    with ThreadPoolExecutor(1) as pool:
        caller = pool.submit(ask, collection, "slow", 1)
        while not GATE._calling:
            time.sleep(0.001)
        begun = time.monotonic()
        pid = fork(lambda: ask(collection, "child"))
        assert time.monotonic() - begun < 2
        caller.result(10)
    ask(collection, "parent")
    return ended(pid)


def with_asyncio(collection: Any) -> int:
    """After asyncio calls a child may use the sync client; the async one says why it cannot."""

    async def parent() -> None:
        client = await chroma_router.AsyncClient("127.0.0.1", port, timeout=10)
        assert await client.heartbeat()
        assert ended(fork(lambda: ask(collection, "child"))) == 0
        assert await client.heartbeat()

    async def child() -> None:
        await chroma_router.AsyncClient("127.0.0.1", port)

    asyncio.run(parent())
    return ended(fork(lambda: asyncio.run(child())))


def connect() -> Client:
    """A client that repeats nothing."""
    return chroma_router.Client("127.0.0.1", port, timeout=10, retry=NO_REPEATS)


SCENARIOS: dict[str, Callable[[Any], int]] = {
    scenario.__name__: scenario
    for scenario in (
        *(beside_threads, prefork, grandchildren, pool, leave, closed, slow, with_asyncio),
    )
}

if __name__ == "__main__":
    shared = connect().get_collection("docs")
    ask(shared, "first")
    sys.exit(SCENARIOS[sys.argv[1]](shared))
