"""`rebalance plan|start|status|pause|resume|cancel`: moving slots until shards have even shares."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.command import (
    DEFAULT_ROUTER,
    JsonOption,
    RouterOption,
    command,
    run,
    stopped,
)
from router.cli.output import duration_text, print_json, print_table
from router.cli.rebalance_run import (
    BEGIN_TIMEOUT,
    QueryDiffOption,
    ThrottleOption,
    WaitOption,
    carry_out,
    followed,
    options_of,
)
from router.cli.rebalance_view import as_dict, print_planned, print_rebalance, watched

if TYPE_CHECKING:
    from chroma_router.v1 import cluster_pb2
    from router.cli.link import RouterLink

_SHARES = ("shard", "records", "then", "share", "then share", "slots", "then slots")


@command
def plan(
    drain: Annotated[
        str, typer.Option("--drain", metavar="NAME", help="A shard that shall be emptied.")
    ] = "",
    router: RouterOption = DEFAULT_ROUTER,
    as_json: JsonOption = False,
) -> None:
    """Show what a rebalance would move, and what comes of it.

    Nothing is changed.

    \b
    Example:
      chroma-router rebalance plan --drain shard-2
    """
    answer = run(_plan(router, drain))
    shown = as_dict(answer.rebalance)
    shares = _shares(answer.shares)
    skews = [_skew(shares, when, drain) for when in ("records_before", "records_after")]
    if as_json:
        print_json(
            {
                "moves": shown["moves"],
                "shares": shares,
                "skew_before": skews[0],
                "skew_after": skews[1],
                "seconds": answer.seconds,
            }
        )
        return
    print_table("shards", _SHARES, _share_rows(shares), numeric=_SHARES[1:])
    if not shown["moves"]:
        print("nothing is to be moved")
        return
    print_planned(shown)
    records = sum(move["records"] for move in shown["moves"])
    print(
        f"{records:,} records to move, in about {duration_text(answer.seconds)}; the fullest shard "
        f"is {skews[0]:.1%} above the average now, {skews[1]:.1%} then"
    )


async def _plan(router: str, drain: str) -> "cluster_pb2.PlanRebalanceResponse":
    from chroma_router.v1 import cluster_pb2
    from router.cli.link import RouterLink

    async with RouterLink(router) as link:
        request = cluster_pb2.PlanRebalanceRequest(drain=drain)
        return await link.call(link.cluster.PlanRebalance, request, BEGIN_TIMEOUT)


def _shares(shares: Any) -> list[dict[str, Any]]:
    names = ("shard", "records_before", "records_after", "slots_before", "slots_after")
    return [{name: getattr(share, name) for name in names} for share in shares]


def _skew(shares: list[dict[str, Any]], when: str, drained: str) -> float:
    """By how much the fullest shard is above the average of those that keep or get records."""
    records = [
        share[when]
        for share in shares
        if share["shard"] != drained and share["records_before"] + share["records_after"]
    ]
    total = sum(records)
    return max(records) * len(records) / total - 1 if total else 0.0


def _share_rows(shares: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    total = sum(share["records_before"] for share in shares) or 1
    return [
        (
            share["shard"],
            f"{share['records_before']:,}",
            f"{share['records_after']:,}",
            f"{share['records_before'] / total:.1%}",
            f"{share['records_after'] / total:.1%}",
            f"{share['slots_before']:,}",
            f"{share['slots_after']:,}",
        )
        for share in shares
    ]


@command
def start(
    throttle: ThrottleOption = 0,
    query_diff: QueryDiffOption = 0.0,
    wait: WaitOption = False,
    router: RouterOption = DEFAULT_ROUTER,
    as_json: JsonOption = False,
) -> None:
    """Move slots until every shard has its even share.

    Of the records of each collection, on the shards where that is placed. It is carried out by the
    routers: this command may end before it.

    \b
    Example:
      chroma-router rebalance start --throttle 2000 --wait
    """

    async def begin(link: "RouterLink") -> "cluster_pb2.Rebalance":
        from chroma_router.v1 import cluster_pb2

        request = cluster_pb2.StartRebalanceRequest(options=options_of(throttle, query_diff))
        return (await link.call(link.cluster.StartRebalance, request, BEGIN_TIMEOUT)).rebalance

    carry_out(router, begin, wait=wait, as_json=as_json)


@command
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until it ends.")] = False,
    router: RouterOption = DEFAULT_ROUTER,
    as_json: JsonOption = False,
) -> None:
    """Show how the newest rebalance is going, move by move.

    \b
    Example:
      chroma-router rebalance status --watch
    """
    try:
        rebalance = run(_status(router, watch=watch))
    except KeyboardInterrupt:
        if not watch:
            raise
        stopped("the rebalance goes on")
    shown = as_dict(rebalance)
    if as_json:
        print_json({"rebalance": shown})
    else:
        print_rebalance(shown)


async def _status(router: str, *, watch: bool) -> "cluster_pb2.Rebalance":
    from router.cli.link import RouterLink

    async with RouterLink(router) as link:
        rebalance = await _newest(link)
        if not watch:
            return rebalance
        with watched() as show:
            return await followed(link, rebalance.id, show)


async def _newest(link: "RouterLink") -> "cluster_pb2.Rebalance":
    from chroma_router.v1 import cluster_pb2

    return (await link.call(link.cluster.GetRebalance, cluster_pb2.GetRebalanceRequest())).rebalance


@command
def pause(router: RouterOption = DEFAULT_ROUTER, as_json: JsonOption = False) -> None:
    """Stop the rebalance after the step under way.

    It stays where it is, also when routers restart, until it is resumed or cancelled.

    \b
    Example:
      chroma-router rebalance pause
    """

    async def begin(link: "RouterLink") -> "cluster_pb2.Rebalance":
        from chroma_router.v1 import cluster_pb2

        request = cluster_pb2.PauseRebalanceRequest()
        return (await link.call(link.cluster.PauseRebalance, request)).rebalance

    carry_out(router, begin, wait=False, as_json=as_json)


@command
def resume(
    throttle: Annotated[
        int | None,
        typer.Option(
            "--throttle",
            min=0,
            metavar="N",
            help="From now on at most N records a second; 0: no such bound. [default: as before]",
        ),
    ] = None,
    wait: WaitOption = False,
    router: RouterOption = DEFAULT_ROUTER,
    as_json: JsonOption = False,
) -> None:
    """Go on with the rebalance, or give a running one another rate.

    \b
    Example:
      chroma-router rebalance resume --throttle 500
    """

    async def begin(link: "RouterLink") -> "cluster_pb2.Rebalance":
        from chroma_router.v1 import cluster_pb2

        request = cluster_pb2.ResumeRebalanceRequest()
        if throttle is not None:
            present = (await _newest(link)).options
            request.options.CopyFrom(options_of(throttle, present.query_agreement))
        return (await link.call(link.cluster.ResumeRebalance, request)).rebalance

    carry_out(router, begin, wait=wait, as_json=as_json)


@command
def cancel(
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when all that was not switched is undone.")
    ] = False,
    router: RouterOption = DEFAULT_ROUTER,
    as_json: JsonOption = False,
) -> None:
    """Give up the moves that were not switched yet.

    Their slots stay where they were; slots that were switched stay where they are.

    \b
    Example:
      chroma-router rebalance cancel --wait
    """

    async def begin(link: "RouterLink") -> "cluster_pb2.Rebalance":
        from chroma_router.v1 import cluster_pb2

        request = cluster_pb2.CancelRebalanceRequest()
        return (await link.call(link.cluster.CancelRebalance, request)).rebalance

    carry_out(router, begin, wait=wait, as_json=as_json, wanted="cancelled")
