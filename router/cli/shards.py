"""`shards list|add|drain|remove`: which shards a cluster has."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.command import (
    DEFAULT_ROUTER,
    Failed,
    JsonOption,
    RouterOption,
    command,
    run,
    usage,
)
from router.cli.output import counted, print_json, print_table
from router.cli.rebalance_run import (
    BEGIN_TIMEOUT,
    ThrottleOption,
    WaitOption,
    carry_out,
    options_of,
)
from router.cli.shard_table import COLUMNS, NUMERIC, described, print_problems, rows_of

if TYPE_CHECKING:
    from chroma_router.v1 import cluster_pb2
    from router.cli.link import RouterLink

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The shard's name.")]

START_TIMEOUT = 330.0
"""Seconds for a new node to serve; past the supervisor's own patience."""


@command
def list_shards(router: RouterOption = DEFAULT_ROUTER, as_json: JsonOption = False) -> None:
    """Show the shards: what they hold and how they are.

    \b
    Example:
      chroma-router shards list --json
    """
    shards = described(run(_list_shards(router)).shards)
    if as_json:
        print_json({"shards": shards})
    else:
        columns = (*COLUMNS, "address")
        rows = [(*r, s["address"]) for r, s in zip(rows_of(shards), shards, strict=True)]
        print_table("", columns, rows, numeric=NUMERIC, long=("address",))
        print_problems(shards)


async def _list_shards(router: str) -> "cluster_pb2.ListShardsResponse":
    from chroma_router.v1 import cluster_pb2
    from router.cli.link import RouterLink

    async with RouterLink(router) as link:
        return await link.call(link.cluster.ListShards, cluster_pb2.ListShardsRequest())


@command
def add(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Its name. [default: the next shard-N]")
    ] = "",
    address: Annotated[
        str,
        typer.Argument(
            metavar="[ADDR]",
            help="Where its node listens, HOST:PORT or unix:PATH. [default: `up` starts one]",
        ),
    ] = "",
    router: RouterOption = DEFAULT_ROUTER,
    as_json: JsonOption = False,
) -> None:
    """Make a shard known whose node serves.

    Without an address `chroma-router up` starts one, on the machine where it runs. New
    collections are placed on it; what there is moves to it by `rebalance start`.

    \b
    Example:
      chroma-router shards add shard-4 10.0.0.4:50061
    """
    shard = run(_add(router, name, address))
    (shown,) = described([shard])
    if as_json:
        print_json({"shard": shown})
    else:
        print(f"{shown['name']} at {shown['address']} is a shard of the cluster now")
        print("move a share of the records to it with `chroma-router rebalance start`")


async def _add(router: str, name: str, address: str) -> "cluster_pb2.Shard":
    from chroma_router.v1 import cluster_pb2
    from router.cli.link import RouterLink

    async with RouterLink(router) as link:
        request = cluster_pb2.AddShardRequest(name=name, address=address)
        return (await link.call(link.cluster.AddShard, request, START_TIMEOUT)).shard


@command
def drain(
    name: NameArgument,
    throttle: ThrottleOption = 0,
    wait: WaitOption = False,
    router: RouterOption = DEFAULT_ROUTER,
    as_json: JsonOption = False,
) -> None:
    """Move everything that a shard owns to the others.

    Then it can be removed. New collections are no longer placed on it.

    \b
    Example:
      chroma-router shards drain shard-2 --wait
    """

    async def begin(link: "RouterLink") -> "cluster_pb2.Rebalance":
        from chroma_router.v1 import cluster_pb2

        request = cluster_pb2.DrainShardRequest(name=name, options=options_of(throttle, 0.0))
        return (await link.call(link.cluster.DrainShard, request, BEGIN_TIMEOUT)).rebalance

    ended = carry_out(router, begin, wait=wait, as_json=as_json)
    if ended and not as_json:
        print(f"{name} owns nothing; remove it with `chroma-router shards remove {name}`")


@command
def remove(
    name: NameArgument,
    force_lost: Annotated[
        bool,
        typer.Option("--force-lost", help="It is dead for good: give up all that it owns."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask before giving up records.")
    ] = False,
    router: RouterOption = DEFAULT_ROUTER,
    as_json: JsonOption = False,
) -> None:
    """Forget a shard that owns nothing, or is dead.

    With --force-lost a dead one is given up with all that it owns. What would be lost is shown
    first, and asked for unless --yes is given.

    \b
    Example:
      chroma-router shards remove shard-2
    """
    if yes and not force_lost:
        usage("--yes: goes with --force-lost; without that nothing is lost")
    if force_lost and not yes:
        _confirm(name, _lost(run(_remove(router, name, force_lost=True, dry_run=True))))
    lost = _lost(run(_remove(router, name, force_lost=force_lost, dry_run=False)))
    if as_json:
        print_json({"shard": name, "lost": lost})
        return
    if force_lost:
        _print_lost(lost, "lost")
    print(f"{name} is no shard of the cluster any more")


def _confirm(name: str, lost: list[dict[str, Any]]) -> None:
    """Asks whether to give up what is lost. Raises Failed if not."""
    _print_lost(lost, "would be lost", to_stderr=True)
    try:
        agreed = typer.confirm(f"give up what {name} owns, for good?", err=True)
    except typer.Abort:  # nobody is there to be asked
        print(file=sys.stderr)
        agreed = False
    if not agreed:
        raise Failed(f"{name} stays as it is; nothing was changed")


async def _remove(
    router: str, name: str, *, force_lost: bool, dry_run: bool
) -> "cluster_pb2.RemoveShardResponse":
    from chroma_router.v1 import cluster_pb2
    from router.cli.link import RouterLink

    async with RouterLink(router) as link:
        request = cluster_pb2.RemoveShardRequest(name=name, force_lost=force_lost, dry_run=dry_run)
        return await link.call(link.cluster.RemoveShard, request, BEGIN_TIMEOUT)


def _lost(answer: "cluster_pb2.RemoveShardResponse") -> list[dict[str, Any]]:
    return [
        {
            "collection_id": part.collection_id,
            "collection": part.name,
            "slots": part.slots,
            "records": part.records if part.HasField("records") else None,
        }
        for part in answer.lost
    ]


def _print_lost(lost: list[dict[str, Any]], how: str, *, to_stderr: bool = False) -> None:
    file = sys.stderr if to_stderr else sys.stdout
    for part in lost:
        records = "an unknown number of records"
        if part["records"] is not None:
            records = f"about {counted(part['records'], 'record')}"
        print(
            f"{part['collection']} ({part['collection_id']}): {records} in {part['slots']} of "
            f"1,024 slots {how}",
            file=file,
        )
    if not lost:
        print(f"nothing {how}: it owns no slots", file=file)
