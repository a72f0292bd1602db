"""Which process of a world is which, and killing one of them."""

import re
from enum import StrEnum

import psutil

from chroma_router.v1 import cluster_pb2
from tests.elastic.world import World, kill


class Victim(StrEnum):
    """A process by its part in the move under way."""

    MOVER = "mover"
    OTHER_ROUTER = "other router"
    SOURCE = "source node"
    TARGET = "target node"
    SOURCE_ENGINE = "source engine"
    TARGET_ENGINE = "target engine"


def mover_pid(rebalance: cluster_pb2.Rebalance) -> int | None:
    """The router process that carries a rebalance out, as the cluster tells it; None: none does."""
    found = re.search(r"\bpid (\d+)\b", rebalance.mover)
    return int(found[1]) if found else None


def supervised_router(world: World) -> int:
    """The process of the router of `chroma-router up`. Raises LookupError while there is none."""
    for child in psutil.Process(world.cluster.process.pid).children():
        if "--catalog" in child.cmdline():
            return child.pid
    raise LookupError("the supervisor has no router now")


def strike(
    world: World, victim: Victim, rebalance: cluster_pb2.Rebalance, move: cluster_pb2.Move
) -> str:
    """Kills the process; in words, what was killed. Raises LookupError if it does not run now."""
    if victim in {Victim.MOVER, Victim.OTHER_ROUTER}:
        supervised = supervised_router(world)
        is_mover = mover_pid(rebalance) == supervised
        if is_mover == (victim is Victim.MOVER):
            kill(supervised)
            return f"{victim} (of the supervisor, pid {supervised})"
        pid = world.second.pid
        world.second.kill()
        return f"{victim} (the second one, pid {pid})"
    at_source = victim in {Victim.SOURCE, Victim.SOURCE_ENGINE}
    shard = move.source if at_source else move.target
    nodes = world.cluster.node_pids()
    if shard not in nodes:
        raise LookupError(f"{shard} has no node now")
    pid = nodes[shard]
    if victim in {Victim.SOURCE_ENGINE, Victim.TARGET_ENGINE}:
        engines = psutil.Process(pid).children()
        if not engines:
            raise LookupError(f"{shard} has no engine now")
        pid = engines[0].pid
    kill(pid)
    return f"{victim} ({shard}, pid {pid})"
