"""`status`, `version` and `healthcheck`: how a cluster is."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.command import (
    DEFAULT_ROUTER,
    Failed,
    JsonOption,
    RouterOption,
    command,
    run,
)
from router.cli.output import counted, print_json, print_table
from router.cli.shard_table import COLUMNS, NUMERIC, described, print_problems, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chroma_router.v1 import cluster_pb2


@command
def status(router: RouterOption = DEFAULT_ROUTER, as_json: JsonOption = False) -> None:
    """Show how the cluster is: its shards and its collections.

    \b
    Example:
      chroma-router status --router 127.0.0.1:50051
    """
    answer = run(_status(router))
    shards = described(answer.shards)
    collections = _collections(answer.shards)
    if as_json:
        print_json(
            {
                "cluster_id": answer.cluster_id,
                "router_version": answer.router_version,
                "uptime_seconds": answer.uptime_seconds,
                "records": answer.records,
                "collection_count": answer.collections,
                "shards": shards,
                "collections": collections,
            }
        )
        return
    print(
        f"cluster {answer.cluster_id}, {counted(answer.records, 'record')} in "
        f"{counted(answer.collections, 'collection')}, "
        f"router {answer.router_version} up for {answer.uptime_seconds:.0f} s"
    )
    print_table("shards", COLUMNS, rows_of(shards), numeric=NUMERIC)
    print_problems(shards)
    rows = [(c["name"], c["id"], f"{c['records']:,}", str(len(c["shards"]))) for c in collections]
    print_table(
        "collections",
        ("collection", "id", "records", "shards"),
        rows,
        numeric=("records", "shards"),
    )


async def _status(router: str) -> "cluster_pb2.GetStatusResponse":
    from chroma_router.v1 import cluster_pb2
    from router.cli.link import RouterLink

    async with RouterLink(router) as link:
        return await link.call(link.cluster.GetStatus, cluster_pb2.GetStatusRequest())


def _collections(shards: "Iterable[cluster_pb2.Shard]") -> list[dict[str, Any]]:
    """The collections that the shards hold, by name, with their records on each shard."""
    found: dict[str, dict[str, Any]] = {}
    for shard in shards:
        for part in shard.collections:
            if not part.slots:  # it has moved away; the node still remembers it
                continue
            entry = found.setdefault(
                part.collection_id,
                {"name": part.name, "id": part.collection_id, "records": 0, "shards": {}},
            )
            entry["records"] += part.records
            entry["shards"][shard.name] = {"records": part.records, "slots": part.slots}
    return sorted(found.values(), key=lambda entry: (entry["name"], entry["id"]))


@command
def version() -> None:
    """Show the versions of this program and of the Chroma it is built on.

    \b
    Example:
      chroma-router version
    """
    _print_version()


def show_version(wanted: bool) -> None:
    """The option --version: shows what the command `version` does, and ends the program."""
    if wanted:
        _print_version()
        raise typer.Exit


def _print_version() -> None:
    from chroma_router.wire.version import CHROMA_VERSION, VERSION

    print(f"chroma-router {VERSION} (chroma {CHROMA_VERSION})")


@command
def healthcheck(
    router: RouterOption = DEFAULT_ROUTER,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")] = 5.0,
) -> None:
    """Ask a router or a shard node over the gRPC health protocol: exit code 0 if it serves.

    \b
    Example:
      chroma-router healthcheck --router 127.0.0.1:50051
    """
    state = run(_health(router, timeout))
    print(state)
    if state != "SERVING":
        raise Failed(f"{router} is {state}")


async def _health(router: str, timeout: float) -> str:
    import grpc
    from grpc_health.v1 import health_pb2

    from chroma_router.wire.status import from_rpc_error
    from router.cli.link import RouterLink

    async with RouterLink(router) as link:
        check = link.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = await check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise Failed(
                f"nothing that serves answers at {router} ({from_rpc_error(error).message}); "
                "start it, or name another address with --router HOST:PORT"
            ) from None
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
