"""The console script `chroma-router`: which commands there are."""

import sys
from typing import Annotated

import typer

from router.cli import (
    catalog,
    collections,
    demo,
    export,
    import_,
    ingest,
    inspect,
    query,
    rebalance,
    serve,
    shards,
)
from router.cli.command import Failed

app = typer.Typer(
    name="chroma-router",
    help="Several single-writer Chroma nodes behind one gRPC router. See it: `chroma-router demo`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
shards_app = typer.Typer(
    help="The shards of a cluster: list, add, drain, remove.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
rebalance_app = typer.Typer(
    help="Even shares for all shards: plan, start, watch, pause, resume, cancel.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
collections_app = typer.Typer(
    help="The collections, and on how many shards each is placed.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
catalog_app = typer.Typer(
    help="The catalog's file: check it, back it up, make it anew from the nodes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

app.command("up")(serve.up)
app.command("serve")(serve.serve)
app.command("demo")(demo.demo)
app.command("status")(inspect.status)
app.command("ingest")(ingest.ingest)
app.command("import")(import_.import_)
app.command("export")(export.export)
app.command("query")(query.query)
app.command("version")(inspect.version)
app.command("healthcheck")(inspect.healthcheck)
shards_app.command("list")(shards.list_shards)
shards_app.command("add")(shards.add)
shards_app.command("drain")(shards.drain)
shards_app.command("remove")(shards.remove)
rebalance_app.command("plan")(rebalance.plan)
rebalance_app.command("start")(rebalance.start)
rebalance_app.command("status")(rebalance.status)
rebalance_app.command("pause")(rebalance.pause)
rebalance_app.command("resume")(rebalance.resume)
rebalance_app.command("cancel")(rebalance.cancel)
collections_app.command("list")(collections.list_collections)
collections_app.command("place")(collections.place)
catalog_app.command("check")(catalog.check)
catalog_app.command("backup")(catalog.backup)
catalog_app.command("rebuild")(catalog.rebuild)
app.add_typer(shards_app, name="shards")
app.add_typer(rebalance_app, name="rebalance")
app.add_typer(collections_app, name="collections")
app.add_typer(catalog_app, name="catalog")


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version.", is_eager=True, callback=inspect.show_version
        ),
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Runs the command that the arguments name."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Failed as failure:
        sys.exit(f"chroma-router: {failure}")


if __name__ == "__main__":
    main()
