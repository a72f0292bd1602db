"""What the commands that begin or watch a rebalance share: its options, and waiting for its end.

A rebalance is carried out by the routers; a command that waits only asks how it is.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.command import Failed, run, stopped
from router.cli.output import counted, print_json
from router.cli.rebalance_view import (
    ENDED,
    Show,
    as_dict,
    headline,
    print_rebalance,
    state_of,
    watched,
)

if TYPE_CHECKING:
    from chroma_router.v1 import cluster_pb2
    from router.cli.link import RouterLink

ThrottleOption = Annotated[
    int,
    typer.Option(
        "--throttle", min=0, metavar="N", help="At most N records a second; 0: no such bound."
    ),
]
QueryDiffOption = Annotated[
    float,
    typer.Option(
        "--query-diff",
        min=0.0,
        max=1.0,
        metavar="SHARE",
        help="Switch only if this share of replayed queries' hits agrees; 0: do not replay.",
    ),
]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="Return when it has ended; exit code 1 unless it is done.")
]

POLL_SECONDS = 0.5
"""How often a command that waits asks."""

AWAY_SECONDS = 120.0
"""For how long a router may be away while a command waits; it may have been restarted."""

BEGIN_TIMEOUT = 120.0
"""Seconds for a call that asks every shard for its records and then plans."""


def options_of(throttle: int, query_diff: float) -> "cluster_pb2.RebalanceOptions":
    """The options as the contract has them."""
    from chroma_router.v1 import cluster_pb2

    return cluster_pb2.RebalanceOptions(records_per_second=throttle, query_agreement=query_diff)


def carry_out(
    router: str,
    begin: "Callable[[RouterLink], Coroutine[Any, Any, cluster_pb2.Rebalance]]",
    *,
    wait: bool,
    as_json: bool,
    wanted: str = "done",
) -> bool:
    """Begins a rebalance (or tells one what to do) and says what became of it.

    With `wait` it returns when the rebalance has ended; Failed unless it is `wanted` then. True if
    it has ended.
    """
    begun: list[cluster_pb2.Rebalance] = []
    try:
        shown = as_dict(run(_carried_out(router, begin, begun, wait=wait)))
    except KeyboardInterrupt:
        if not begun:
            raise
        stopped(
            f"the rebalance {begun[0].id} goes on; watch it with `chroma-router rebalance status "
            "--watch`, give it up with `chroma-router rebalance cancel`"
        )
    ended = shown["state"] in ENDED
    if as_json:
        print_json({"rebalance": shown})
    elif ended and not shown["moves"]:
        print("nothing is to be moved")
    elif wait:
        print_rebalance(shown)
    else:
        records = sum(move["records"] for move in shown["moves"])
        print(f"{headline(shown)}; {counted(records, 'record')} in all")
        if shown["state"] == "paused":
            print("go on with `chroma-router rebalance resume`")
        elif not ended:
            print("watch it with `chroma-router rebalance status --watch`")
    if wait and shown["state"] != wanted:
        raise Failed(f"the rebalance is {shown['state']}: {_why(shown)}")
    return ended


def _why(shown: dict[str, Any]) -> str:
    problems = [move["problem"] for move in shown["moves"] if move["problem"]]
    if shown["state"] == "done":
        return "all of it had been switched"
    return shown["problem"] or next(iter(problems), "someone cancelled it")


async def _carried_out(
    router: str,
    begin: "Callable[[RouterLink], Coroutine[Any, Any, cluster_pb2.Rebalance]]",
    begun: "list[cluster_pb2.Rebalance]",
    *,
    wait: bool,
) -> "cluster_pb2.Rebalance":
    from router.cli.link import RouterLink

    async with RouterLink(router) as link:
        rebalance = await begin(link)
        begun.append(rebalance)
        if not wait or state_of(rebalance) in ENDED:
            return rebalance
        with watched() as show:
            return await followed(link, rebalance.id, show)


async def followed(link: "RouterLink", rebalance_id: str, show: Show) -> "cluster_pb2.Rebalance":
    """Shows a rebalance until it has ended, and returns how it did.

    A router that is away is asked again for AWAY_SECONDS; then it raises Failed.
    """
    from chroma_router.v1 import cluster_pb2
    from router.cli.patient import PatientLink

    patient = PatientLink(link, AWAY_SECONDS)
    while True:
        answer = await patient.call(
            "asking how the rebalance is",
            link.cluster.GetRebalance,
            cluster_pb2.GetRebalanceRequest(),
        )
        rebalance = answer.rebalance
        if rebalance.id != rebalance_id:
            raise Failed(
                f"the rebalance {rebalance_id} has ended, and another one has begun; what became "
                "of it is not known any more"
            )
        show(rebalance)
        if state_of(rebalance) in ENDED:
            return rebalance
        await asyncio.sleep(POLL_SECONDS)
