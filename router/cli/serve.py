"""`up` and `serve`: a whole cluster on this machine, or one router of a cluster elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from router.cli.command import Failed, command, run, usage

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="A TOML file of router settings.")
]
ListenOption = Annotated[
    str | None,
    typer.Option(
        "--listen", metavar="HOST:PORT", help="Where gRPC is served. [default: 127.0.0.1:50051]"
    ),
]


def _print_ready(address: str, shards: int) -> None:
    print(f"ready grpc={address} shards={shards}", flush=True)


@command
def serve(
    config: ConfigOption = None,
    listen: ListenOption = None,
    catalog: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The catalog. [default: catalog.sqlite3]"),
    ] = None,
    shard: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ADDRESS", help="A shard and where its node listens; repeat for each."
        ),
    ] = None,
    supervisor: Annotated[
        str | None,
        typer.Option(metavar="unix:PATH", hidden=True, help="Given by `chroma-router up`."),
    ] = None,
) -> None:
    """Run one router. Its nodes are started elsewhere.

    Settings come from flags, from the environment (CHROMA_ROUTER_...), from --config; the first
    wins. A new catalog takes the shards from the flags. Later a flag can only give a known shard
    another address; more shards join by `chroma-router shards add`.

    \b
    Example:
      chroma-router serve --catalog catalog.sqlite3 \\
        --shard shard-1=10.0.0.1:50061 --shard shard-2=10.0.0.2:50061
    """
    shards = [_shard(text) for text in shard or ()]
    from chroma_router.wire.errors import ClusterError
    from router.server import serve as serve_router
    from router.settings import load_settings
    from router.telemetry import configure_logs

    configure_logs()
    try:
        settings = load_settings(
            config, {"listen": listen, "catalog": catalog, "supervisor": supervisor}
        )
    except ClusterError as error:
        raise Failed(error.message) from None
    if not shards and not (settings.catalog.exists() and run(_has_shards(settings.catalog))):
        raise Failed(
            f"the cluster has no shards: neither the catalog {settings.catalog} nor a flag names "
            "one; start the router with `--shard NAME=ADDRESS`"
        )
    run(serve_router(settings, shards, _print_ready))


async def _has_shards(path: Path) -> bool:
    """Whether a catalog names any shard."""
    from router.catalog import Catalog

    catalog = await Catalog.open(path)
    try:
        return bool(await catalog.shards())
    finally:
        await catalog.close()


def _shard(text: str) -> tuple[str, str]:
    name, equals, address = text.partition("=")
    if not (name and equals and address):
        usage(f"--shard: {text!r} is not NAME=ADDRESS, such as shard-1=127.0.0.1:50061")
    return name, address


@command
def up(
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Where the cluster keeps everything.")
    ],
    shards: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="How many shards. [default: those DIR has, 3 in a new one]"
        ),
    ] = None,
    listen: ListenOption = None,
    config: ConfigOption = None,
) -> None:
    """Run a whole cluster on this machine: a router and its shard nodes as child processes.

    It prints "ready grpc=HOST:PORT shards=N" when all of them serve, starts again what dies, and
    ends in order on SIGTERM or Ctrl-C.

    \b
    Example:
      chroma-router up --shards 3 --data ./cluster
    """
    from chroma_router.wire.errors import ClusterError
    from router.settings import load_settings
    from router.supervisor.up import up as supervise
    from router.telemetry import configure_logs

    configure_logs()
    try:
        settings = load_settings(config, {"listen": listen})
    except ClusterError as error:
        raise Failed(error.message) from None
    more = ["--config", str(config.resolve())] if config else []
    run(supervise(data, shards, settings.listen, more, _print_ready))
