"""`catalog check|backup|rebuild`: care of the catalog's file. No router is asked."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli.command import Failed, JsonOption, command, run, usage
from router.cli.output import counted, print_json

if TYPE_CHECKING:
    from router.catalog import NodeHoldings

_HOLDINGS_TIMEOUT = 30.0

CatalogOption = Annotated[
    Path, typer.Option("--catalog", metavar="FILE", help="The catalog's file.")
]


@command
def check(catalog: CatalogOption = Path("catalog.sqlite3"), as_json: JsonOption = False) -> None:
    """Say whether a catalog is sound: exit code 0 if it is. A router may be using it.

    \b
    Example:
      chroma-router catalog check --catalog ./cluster/catalog.sqlite3
    """
    from router.catalog import check as check_catalog
    from router.catalog import outdated

    if not catalog.exists():
        raise Failed(f"{catalog} does not exist; name the catalog with --catalog FILE")
    problems = check_catalog(catalog)
    if as_json:
        print_json({"catalog": str(catalog), "sound": not problems, "problems": problems})
    else:
        for problem in problems:
            print(problem)
    if problems:
        raise Failed(
            f"{catalog} is not sound; bring back a backup, or make it anew with "
            "`chroma-router catalog rebuild`"
        )
    if not as_json:
        print(f"{catalog} is sound")
        if (found := outdated(catalog)) is not None:
            print(f"It has the older format {found}; the next router that opens it upgrades it.")


@command
def backup(
    to: Annotated[Path, typer.Argument(metavar="TO", help="The copy; must not exist.")],
    catalog: CatalogOption = Path("catalog.sqlite3"),
) -> None:
    """Copy a catalog as of one moment. A router may be using it.

    \b
    Example:
      chroma-router catalog backup catalog-monday.sqlite3 --catalog ./cluster/catalog.sqlite3
    """
    from chroma_router.wire.errors import ClusterError
    from router.catalog import backup as copy

    if not catalog.exists():
        raise Failed(f"{catalog} does not exist; name the catalog with --catalog FILE")
    try:
        copy(catalog, to)
    except ClusterError as error:
        raise Failed(error.message) from None
    print(f"{catalog} copied to {to}")


@command
def rebuild(
    to: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TO]", help="The new file; must not exist. [default: the one of --data]"
        ),
    ] = None,
    node: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=ADDRESS", help="A shard and where its node listens; name all."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The directory of an `up` that does not run now."),
    ] = None,
) -> None:
    """Make a lost catalog anew from what all its nodes hold. No router may be running.

    With --data the nodes are started for the time it takes; with --node they must be running.

    \b
    Examples:
      chroma-router catalog rebuild --data ./cluster
      chroma-router catalog rebuild new.sqlite3 --node shard-1=10.0.0.1:50061 --node shard-2=...
    """
    if bool(node) == bool(data):
        usage("give either --data DIR or --node NAME=ADDRESS for each node")
    target = to or (data / "catalog.sqlite3" if data else None)
    if target is None:
        usage("name the new file: chroma-router catalog rebuild TO --node ...")
    nodes = []
    for text in node or ():
        name, equals, address = text.partition("=")
        if not (name and equals and address):
            usage(f"--node: {text!r} is not NAME=ADDRESS, such as shard-1=127.0.0.1:50061")
        nodes.append((name, address))
    if data is not None:
        _refuse_in_use(data)
    if target.exists():
        raise Failed(f"{target} exists already and is not overwritten; move it away first")
    run(_rebuild_from_data(data, target) if data else _rebuild(nodes, target))


def _refuse_in_use(data: Path) -> None:
    """Raises Failed when a supervisor runs in the directory, whatever else is wrong with it."""
    import os

    from chroma_router.wire.errors import ClusterError
    from router.supervisor.layout import Layout

    if not (data / "up.lock").exists():
        return
    try:
        os.close(Layout.of(data).lock())
    except ClusterError as error:
        raise Failed(error.message) from None


async def _rebuild_from_data(data: Path, target: Path) -> None:
    from router.supervisor.up import nodes_only
    from router.telemetry import configure_logs

    configure_logs("WARNING")
    async with nodes_only(data) as nodes:
        await _rebuild(nodes, target)


async def _rebuild(nodes: list[tuple[str, str]], target: Path) -> None:
    import asyncio

    from router.catalog import rebuild as rebuild_catalog
    from router.catalog import write_rebuilt

    told = await asyncio.gather(*(_holdings(name, address) for name, address in nodes))
    rebuilt = rebuild_catalog(dict(zip((name for name, _ in nodes), told, strict=True)))
    if isinstance(rebuilt, list):
        for problem in rebuilt:
            print(problem)
        raise Failed("the catalog cannot be rebuilt from these nodes; nothing was written")
    write_rebuilt(target, rebuilt)
    for note in rebuilt.notes:
        print(f"note: {note}")
    print(
        f"{target} written: {counted(len(rebuilt.shards), 'shard')}, "
        f"{counted(len(rebuilt.databases), 'database')}, "
        f"{counted(len(rebuilt.collections), 'collection')}"
    )


async def _holdings(name: str, address: str) -> "NodeHoldings":
    import grpc

    from chroma_router.v1 import shard_pb2, shard_pb2_grpc
    from chroma_router.wire.status import from_rpc_error
    from router.catalog import NodeHoldings

    async with grpc.aio.insecure_channel(address) as channel:
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        try:
            stats = await stub.GetShardStats(
                shard_pb2.GetShardStatsRequest(), timeout=_HOLDINGS_TIMEOUT
            )
            holdings = [
                holding
                async for holding in stub.ListHoldings(
                    shard_pb2.ListHoldingsRequest(), timeout=_HOLDINGS_TIMEOUT
                )
            ]
        except grpc.aio.AioRpcError as error:
            raise Failed(
                f"shard {name} at {address} does not answer: {from_rpc_error(error).message}"
            ) from None
    if stats.shard != name:
        raise Failed(
            f"{address} serves {stats.shard}, not {name}; name it --node {stats.shard}=..."
        )
    return NodeHoldings(address, stats.cluster_id, holdings)
