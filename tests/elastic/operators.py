"""What an operator does: the commands of `chroma-router`, and how a rebalance is going."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import grpc

from chroma_router.v1 import cluster_pb2, cluster_pb2_grpc
from chroma_router.wire.status import from_rpc_error
from tests.support.cluster import run_cli

ENDED = frozenset(
    {
        cluster_pb2.REBALANCE_STATE_DONE,
        cluster_pb2.REBALANCE_STATE_CANCELLED,
        cluster_pb2.REBALANCE_STATE_FAILED,
    }
)
MOVES_ENDED = frozenset({cluster_pb2.MOVE_STAGE_TRIMMED, cluster_pb2.MOVE_STAGE_CANCELLED})

_POLL_SECONDS = 0.05
_CALL_SECONDS = 5.0
_SERVING_SECONDS = 30.0
# A router that was killed comes back soon.
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


class NotInTime(Exception):
    """Something did not happen within the time that it was given."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that was refused: what it printed, and its exit code."""

    text: str
    code: int


class Operator:
    """Of the cluster behind some routers; one that does not answer is passed over."""

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses
        self._channels = [
            grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS) for address in addresses
        ]
        self._stubs = [cluster_pb2_grpc.ClusterServiceStub(channel) for channel in self._channels]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def run(self, *words: str, timeout: float = 300) -> dict[str, Any]:
        """A command that must succeed; what it says as JSON. Raises AssertionError."""
        await self._serving(only=0)  # that of the supervisor, which alone can start nodes
        router = self.addresses[0]
        answer: dict[str, Any] = await asyncio.to_thread(
            run_cli, *words, "--router", router, timeout=timeout
        )
        return answer

    async def _serving(self, only: int | None = None) -> int:
        """The number of the first router that answers. Raises NotInTime if none does."""
        until = time.monotonic() + _SERVING_SECONDS
        while time.monotonic() < until:
            for number, stub in enumerate(self._stubs):
                if only not in {None, number}:
                    continue
                with suppress(grpc.RpcError):
                    await stub.GetVersion(cluster_pb2.GetVersionRequest(), timeout=1)
                    return number
            await asyncio.sleep(_POLL_SECONDS)
        raise NotInTime(f"no router served within {_SERVING_SECONDS:.0f} s")

    async def refused(self, *words: str) -> Refused:
        """A command that must not succeed. Raises AssertionError if it does."""
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "router.cli.main", *words, "--router", self.addresses[0]],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0, f"chroma-router {words} was not refused: {done.stdout}"
        return Refused(done.stderr, done.returncode)

    async def rebalance(self) -> cluster_pb2.Rebalance | None:
        """The newest rebalance, from the first router that answers; None if there has been none.

        Raises grpc.RpcError if none answers.
        """
        request = cluster_pb2.GetRebalanceRequest()
        for n, stub in enumerate(self._stubs):
            try:
                return (await stub.GetRebalance(request, timeout=_CALL_SECONDS)).rebalance
            except grpc.RpcError as error:
                if from_rpc_error(error).reason == "NO_REBALANCE":
                    return None
                if n == len(self._stubs) - 1:
                    raise
        raise AssertionError("an operator has a router")

    async def rebalance_at(self, number: int) -> cluster_pb2.Rebalance | None:
        """The newest rebalance as one router tells it; None if it does not answer."""
        try:
            return (
                await self._stubs[number].GetRebalance(
                    cluster_pb2.GetRebalanceRequest(), timeout=_CALL_SECONDS
                )
            ).rebalance
        except grpc.RpcError:
            return None

    async def shards(self) -> dict[str, cluster_pb2.Shard]:
        """The shards by name."""
        answer = await self._stubs[await self._serving()].ListShards(
            cluster_pb2.ListShardsRequest(), timeout=_CALL_SECONDS
        )
        return {shard.name: shard for shard in answer.shards}

    async def until(
        self,
        met: Callable[[cluster_pb2.Rebalance], bool],
        seconds: float,
        poll: float = _POLL_SECONDS,
    ) -> cluster_pb2.Rebalance:
        """The newest rebalance when it meets the condition. Raises NotInTime."""
        until = time.monotonic() + seconds
        newest: cluster_pb2.Rebalance | None = None
        while time.monotonic() < until:
            try:
                newest = await self.rebalance()
            except grpc.RpcError:
                newest = None
            if newest is not None and met(newest):
                return newest
            await asyncio.sleep(poll)
        raise NotInTime(f"after {seconds:.0f} s the newest rebalance is\n{newest}")

    async def ended(self, seconds: float) -> cluster_pb2.Rebalance:
        """The newest rebalance when it has ended. Raises NotInTime."""
        return await self.until(lambda rebalance: rebalance.state in ENDED, seconds)


def current(rebalance: cluster_pb2.Rebalance) -> cluster_pb2.Move | None:
    """The move that is under way or next; None when all have ended."""
    return next((move for move in rebalance.moves if move.stage not in MOVES_ENDED), None)
