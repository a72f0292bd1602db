"""`collections list|place`: the collections of a database, and on how many shards each lives."""

from typing import TYPE_CHECKING, Annotated

import typer

from router.cli.command import (
    DEFAULT_ROUTER,
    DatabaseOption,
    JsonOption,
    RouterOption,
    TenantOption,
    command,
    run,
    usage,
)
from router.cli.output import print_json, print_table
from router.cli.rebalance_run import (
    BEGIN_TIMEOUT,
    QueryDiffOption,
    ThrottleOption,
    WaitOption,
    carry_out,
    options_of,
)

if TYPE_CHECKING:
    from chroma_router.v1 import catalog_pb2, cluster_pb2
    from router.cli.link import RouterLink

_TENANT, _DATABASE = "default_tenant", "default_database"
_COLUMNS = ("collection", "id", "shards", "dimension", "epoch")


@command
def list_collections(
    tenant: TenantOption = _TENANT,
    database: DatabaseOption = _DATABASE,
    router: RouterOption = DEFAULT_ROUTER,
    as_json: JsonOption = False,
) -> None:
    """Show the collections of a database.

    \b
    Example:
      chroma-router collections list --database default_database
    """
    found = [
        {
            "name": collection.name,
            "id": collection.id,
            "placement_shards": collection.placement_shards or "all",
            "dimension": collection.dimension or None,
            "epoch": collection.epoch,
        }
        for collection in run(_list(router, tenant, database)).collections
    ]
    if as_json:
        print_json({"collections": found})
        return
    rows = [
        (c["name"], c["id"], str(c["placement_shards"]), str(c["dimension"] or ""), str(c["epoch"]))
        for c in sorted(found, key=lambda c: str(c["name"]))
    ]
    print_table("", _COLUMNS, [tuple(map(str, row)) for row in rows], numeric=_COLUMNS[2:])


async def _list(router: str, tenant: str, database: str) -> "catalog_pb2.ListCollectionsResponse":
    from chroma_router.v1 import catalog_pb2
    from router.cli.link import RouterLink

    async with RouterLink(router) as link:
        request = catalog_pb2.ListCollectionsRequest(tenant=tenant, database=database)
        return await link.call(link.catalog.ListCollections, request)


@command
def place(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The collection's name.")],
    shards: Annotated[
        str, typer.Option("--shards", metavar="N|all", help="On how many shards to place it.")
    ],
    throttle: ThrottleOption = 0,
    query_diff: QueryDiffOption = 0.0,
    wait: WaitOption = False,
    tenant: TenantOption = _TENANT,
    database: DatabaseOption = _DATABASE,
    router: RouterOption = DEFAULT_ROUTER,
    as_json: JsonOption = False,
) -> None:
    """Place a collection on another number of shards.

    Its slots move there by a rebalance, which the routers carry out.

    \b
    Example:
      chroma-router collections place papers --shards all --wait
    """
    placement = _placement(shards)

    async def begin(link: "RouterLink") -> "cluster_pb2.Rebalance":
        from chroma_router.v1 import cluster_pb2
        from router.cli.link import collection_ref

        request = cluster_pb2.PlaceCollectionRequest(
            collection=collection_ref(name, tenant, database),
            placement_shards=placement,
            options=options_of(throttle, query_diff),
        )
        return (await link.call(link.cluster.PlaceCollection, request, BEGIN_TIMEOUT)).rebalance

    carry_out(router, begin, wait=wait, as_json=as_json)


def _placement(text: str) -> int:
    """The contract's placement_shards."""
    from chroma_router.wire.placement import ALL_SHARDS

    if text == "all":
        return ALL_SHARDS
    if not (text.isascii() and text.isdigit() and 1 <= int(text) < ALL_SHARDS):
        usage(f"--shards: {text!r} is neither a number from 1 nor all")
    return int(text)
