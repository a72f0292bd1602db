"""The console script `chroma-router`: which commands there are."""

import sys
from typing import Annotated

import typer

from router.cli import catalog, demo, export, import_, ingest, inspect, query, serve
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
    help="The shards of a cluster.", no_args_is_help=True, rich_markup_mode=None
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
shards_app.command("list")(inspect.list_shards)
catalog_app.command("check")(catalog.check)
catalog_app.command("backup")(catalog.backup)
catalog_app.command("rebuild")(catalog.rebuild)
app.add_typer(shards_app, name="shards")
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
