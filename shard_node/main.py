"""The command line: chroma-shard-node serve --name shard-1 --data DIR --listen ADDR."""

import logging
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer
import uvloop
from pydantic import ValidationError

from shard_node.directory import DirectoryRefused
from shard_node.server import AddressRefused, serve
from shard_node.settings import NodeSettings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def _group() -> None:
    """One Chroma data directory with one writer, served to the routers of its cluster."""


@app.command("serve")
def _serve(
    name: Annotated[str, typer.Option(help="The shard's name.")],
    data: Annotated[Path, typer.Option(help="The data directory; made if it does not exist.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT (port 0 takes a free one) or unix:PATH.")],
) -> None:
    """Serve a shard until SIGTERM. Prints `ready shard=NAME listen=ADDR` when it serves."""
    try:
        settings = NodeSettings()
    except ValidationError as error:
        first = error.errors()[0]
        where = "_".join(str(part) for part in first["loc"]).upper()
        _fail(f"CHROMA_ROUTER_NODE_{where}: {first['msg']}", code=2)
    _log_to_stderr(settings.log_level, name)

    def ready(address: str) -> None:
        print(f"ready shard={name} listen={address}", flush=True)

    try:
        uvloop.run(serve(name, data, listen, settings, ready))
    except (DirectoryRefused, AddressRefused) as error:
        _fail(str(error), code=1)
    except ExceptionGroup as defect:
        structlog.get_logger(__name__).critical("the node cannot go on", exc_info=defect)
        _fail("the node cannot go on; the log above has the trace", code=1)


def _fail(message: str, code: int) -> NoReturn:
    print(f"chroma-shard-node: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _log_to_stderr(level: str, shard: str) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(shard=shard)


def main() -> None:
    """The entry point of chroma-shard-node."""
    app()


if __name__ == "__main__":
    main()
