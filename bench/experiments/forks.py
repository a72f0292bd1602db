"""What becomes of gRPC in a process that is forked beside its calls (ADR 0006).

    python -m bench.experiments.forks ARRANGEMENT [--forks 300] [--threads 8] [--aio busy|idle]

An echo server in a process of its own; threads here call it without a pause while this process
forks, and each child makes three calls on a channel of its own. ARRANGEMENT is one of

none     calls go on during the fork; the child's channel may share the parent's connections
apart    calls go on; the child's channel shares nothing
gate     a fork waits for the calls in flight and lets none begin; connections may be shared
both     gate and apart: what chroma_router does
closing  as both, and the parent's channel is closed before each fork, and opened after it

Set GRPC_ENABLE_FORK_SUPPORT as you like. A child that does not end within 8 s is counted as hung
and killed; three of them end the run. Every answer is compared with its question.
"""

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc

from chroma_router.forking import ForkGate

CHILD_SECONDS = 8.0
SERVER = """
import grpc, concurrent.futures as f
class Echo(grpc.GenericRpcHandler):
    def service(self, _):
        return grpc.unary_unary_rpc_method_handler(lambda request, _: request)
server = grpc.server(f.ThreadPoolExecutor(8)); server.add_generic_rpc_handlers((Echo(),))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start(); server.wait_for_termination()
"""


class Caller:
    """Calls the echo server, from any thread, on a channel of this process."""

    def __init__(self, port: str, apart: bool, gated: bool, closing: bool) -> None:
        self._target = f"127.0.0.1:{port}"
        self._options = (("grpc.use_local_subchannel_pool", int(apart)),)
        self._gate = ForkGate() if gated else None
        self._closing = closing
        self._channels: dict[int, grpc.Channel] = {}
        self._opening = threading.Lock()
        os.register_at_fork(before=self._before, after_in_child=self._in_child)
        if self._gate:
            os.register_at_fork(
                before=self._gate.before_fork,
                after_in_parent=self._gate.after_fork_in_parent,
                after_in_child=self._gate.after_fork_in_child,
            )

    def ask(self, question: bytes) -> None:
        """One call; raises if the answer is another."""
        with self._gate.call() if self._gate else contextlib.nullcontext():
            answer: bytes = self._channel().unary_unary("/echo/Echo")(question, timeout=10)  # type: ignore[arg-type]
        if answer != question:
            raise AssertionError(f"asked {question!r}, answered {answer!r}")

    def _channel(self) -> grpc.Channel:
        with self._opening:
            if os.getpid() not in self._channels:
                channel = grpc.insecure_channel(self._target, options=self._options)
                self._channels[os.getpid()] = channel
            return self._channels[os.getpid()]

    def _before(self) -> None:  # runs after the gate's: hooks run in reverse order
        self._opening.acquire()
        if self._closing and os.getpid() in self._channels:
            self._channels.pop(os.getpid()).close()
        self._opening.release()

    def _in_child(self) -> None:
        self._opening = threading.Lock()


@contextlib.contextmanager
def echo_server() -> Iterator[str]:
    """A server in another process; its port."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        yield it.stdout.readline().strip()
        it.terminate()


def run_asyncio(port: str, busy: bool, stop: threading.Event) -> None:
    """Keeps a grpc.aio channel of its own, calling without a pause if `busy`."""

    async def call() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            echo: Any = channel.unary_unary("/echo/Echo")
            await echo(b"asyncio")
            while not stop.is_set():
                await (echo(b"asyncio") if busy else asyncio.sleep(0.01))

    asyncio.run(call())


def fork(caller: Caller, number: int) -> str:
    """What became of one child."""
    pid = os.fork()
    if not pid:
        code = 3
        try:
            for n in range(3):
                caller.ask(f"child-{number}-{n}".encode())
            code = 0
        finally:
            os._exit(code)
    until = time.monotonic() + CHILD_SECONDS
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return "well" if code == 0 else f"exit code {code}"
        time.sleep(0.002)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return "hung"


def main() -> None:
    """Runs one arrangement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("arrangement", choices=("none", "apart", "gate", "both", "closing"))
    parser.add_argument("--forks", type=int, default=300)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--aio", choices=("busy", "idle"))
    args = parser.parse_args()
    stop = threading.Event()
    children: Counter[str] = Counter()
    failures: list[str] = []
    calls = 0

    def work(name: int) -> None:
        nonlocal calls
        while not stop.is_set():
            calls += 1
            try:
                caller.ask(f"parent-{name}-{calls}".encode())
            except Exception as error:
                failures.append(repr(error))

    with echo_server() as port:
        caller = Caller(
            port,
            apart=args.arrangement in {"apart", "both", "closing"},
            gated=args.arrangement in {"gate", "both", "closing"},
            closing=args.arrangement == "closing",
        )
        caller.ask(b"first")
        threads = [
            threading.Thread(target=work, args=(n,), daemon=True) for n in range(args.threads)
        ]
        if args.aio:
            aio = (port, args.aio == "busy", stop)
            threads.append(threading.Thread(target=run_asyncio, args=aio, daemon=True))
        for thread in threads:
            thread.start()
        longest = 0.0
        for number in range(args.forks):
            begun = time.monotonic()
            what = fork(caller, number)
            children[what] += 1
            longest = max(longest, time.monotonic() - begun)
            if children["hung"] == 3:
                break
        stop.set()
        for thread in threads:
            thread.join(15)
        hung = sum(thread.is_alive() for thread in threads)
    print(
        f"{args.arrangement}: children {dict(children)}; the parent's {calls} calls: "
        f"{len(failures)} failed, {hung} threads hung; longest fork and child {longest:.2f} s"
    )
    os._exit(0)


if __name__ == "__main__":
    main()
