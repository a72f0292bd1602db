"""`import`: another Chroma's collections into the cluster. What it brings over and what it says."""

import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.command import DEFAULT_ROUTER, Failed, RouterOption, command, run, stopped, usage
from router.cli.output import counted, print_json, print_table
from router.cli.progress import shown

if TYPE_CHECKING:
    from router.cli.import_run import Brought, Importer, ImportTally
    from router.cli.import_source import Source, SourceCollection

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_ROUND_RECORDS = 100_000
_ROUND_COLLECTIONS = 200


@dataclass(slots=True)
class _Report:
    """What came of the collections that were finished."""

    brought: "list[tuple[SourceCollection, str, Brought]]" = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@command
def import_(
    origin: Annotated[
        str,
        typer.Option(
            "--from", metavar="DIR|URL", help="Directory of a Chroma, or http://HOST:PORT."
        ),
    ],
    headers: Annotated[
        list[str] | None,
        typer.Option(
            "--header",
            metavar="'NAME: VALUE'",
            help="Sent to a server with each request; can be given several times.",
        ),
    ] = None,
    collections: Annotated[
        list[str] | None,
        typer.Option("--collection", help="Only this one; can be given several times."),
    ] = None,
    tenants: Annotated[
        list[str] | None,
        typer.Option("--tenant", help="Only this one; a server does not tell which it has."),
    ] = None,
    databases: Annotated[
        list[str] | None, typer.Option("--database", help="Only this one of each tenant.")
    ] = None,
    into: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another name for the one --collection.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be brought over.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, max=5461, help="Records in one write.")] = 1000,
    concurrency: Annotated[
        int, typer.Option(min=1, max=64, help="Collections under way at once.")
    ] = 4,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds for which one call is tried again.")
    ] = 300.0,
    temporary: Annotated[
        Path | None,
        typer.Option("--temp", metavar="DIR", help="Where a directory is copied to, for reading."),
    ] = None,
    router: RouterOption = DEFAULT_ROUTER,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Bring the collections of an existing Chroma (1.5.9) into the cluster.

    Tenants, databases, collections and all their records, in insertion order. The source is only
    read: a directory is copied first, since Chroma writes to what it opens. Nothing may write to it
    meanwhile. When it is interrupted, run it again: it goes on where it stopped. At the end every
    record is compared with its original; run it again later to compare once more.

    \b
    Examples:
      chroma-router import --from ./chroma
      chroma-router import --from http://localhost:8000 --collection docs --into docs-2
      chroma-router import --from ./chroma --dry-run
      chroma-router import --from https://chroma:443 --header "x-chroma-token: $TOKEN"
    """
    if into is not None and len(collections or ()) != 1:
        usage("--into: name the one collection that is to get another name with --collection")
    if temporary is not None and not temporary.is_dir():
        raise Failed(f"--temp {temporary} is no directory")
    sent = _headers(headers or ())
    from router.cli.import_source import chosen, is_server, open_source

    if sent and not is_server(origin):
        usage("--header: only a server is sent any; --from names a directory")
    source = open_source(origin, temporary, sent)
    try:
        found = chosen(source, tenants or (), databases or (), collections or ())
        if dry_run:
            _list(found, as_json)
            return
        if into is not None and sum(map(len, found.values())) > 1:
            usage("--into: several databases have that collection; name one with --database")
        report = _import(source, found, into, router, batch, concurrency, timeout, as_json)
    finally:
        source.close()
    if report.problems:
        raise Failed("\nchroma-router: ".join(report.problems))


def _headers(given: Sequence[str]) -> dict[str, str]:
    """What is said about one that is no header leaves out its value, which may be a secret."""
    found: dict[str, str] = {}
    for at, text in enumerate(given, 1):
        name, colon, value = text.partition(":")
        value = value.strip()
        if not colon or not _HEADER_NAME.fullmatch(name):
            usage(f"--header: number {at} is none; write it as 'NAME: VALUE'")
        if not value or not (value.isascii() and value.isprintable()):
            usage(f"--header: the value of {name} must be printable ASCII text, and not empty")
        found[name] = value
    return found


def _import(
    source: "Source",
    found: "dict[tuple[str, str], list[SourceCollection]]",
    into: str | None,
    router: str,
    batch: int,
    concurrency: int,
    timeout: float,
    as_json: bool,
) -> _Report:
    from router.cli.import_run import ImportTally

    everything = [c for taken in found.values() for c in taken]
    tally = ImportTally(sum(c.count for c in everything))
    report = _Report()

    async def work() -> None:
        from router.cli.import_run import Importer
        from router.cli.link import RouterLink
        from router.cli.patient import PatientLink

        async with RouterLink(router) as link:
            await link.call(link.cluster.GetVersion, cluster_pb2.GetVersionRequest())
            with shown(2 * tally.total, tally) as show:
                importer = Importer(source, PatientLink(link, timeout), batch, tally, show)
                for tenant, database in found:
                    await importer.scope(tenant, database)
                for some in _rounds(everything):
                    await _bring_all(importer, some, into, concurrency, report)
                    await asyncio.to_thread(source.refresh)

    from chroma_router.v1 import cluster_pb2

    source.prepare(everything)
    began = time.monotonic()
    try:
        run(work())
    except KeyboardInterrupt:
        stopped(
            f"{tally.present + tally.stored:,} of {counted(tally.total, 'record')} are in, "
            f"{counted(len(report.brought), 'collection')} finished; run the same command again: "
            "it goes on where it stopped"
        )
    _summarize(report, tally, time.monotonic() - began, as_json)
    return report


async def _bring_all(
    importer: "Importer",
    some: "Sequence[SourceCollection]",
    into: str | None,
    concurrency: int,
    report: _Report,
) -> None:
    """Brings collections over, a few at a time. One that is refused does not stop the others."""
    from chroma_router.wire.errors import ClusterError
    from router.cli.import_run import Refused
    from router.cli.patient import may_pass

    room = asyncio.Semaphore(concurrency)

    async def bring(collection: "SourceCollection") -> None:
        name = into or collection.name
        async with room:
            try:
                brought = await importer.bring(collection, name)
            except Refused as refusal:
                report.problems.append(str(refusal))
            except ClusterError as error:
                if may_pass(error):
                    raise
                report.problems.append(f"{collection.label}: {error.message}")
            else:
                report.brought.append((collection, name, brought))

    async with asyncio.TaskGroup() as tasks:
        for collection in some:
            tasks.create_task(bring(collection))


def _rounds(collections: "Sequence[SourceCollection]") -> "Iterator[list[SourceCollection]]":
    """Groups after which the engine gives back its memory: a group is small, or one collection."""
    group: list[SourceCollection] = []
    records = 0
    for collection in collections:
        full = records + collection.count > _ROUND_RECORDS or len(group) >= _ROUND_COLLECTIONS
        if group and full:
            yield group
            group, records = [], 0
        group.append(collection)
        records += collection.count
    if group:
        yield group


def _list(found: "dict[tuple[str, str], list[SourceCollection]]", as_json: bool) -> None:
    from router.cli.definition import space_of

    rows = [
        {
            "tenant": tenant,
            "database": database,
            "collection": collection.name,
            "records": collection.count,
            "space": space_of(collection.definition.configuration),
        }
        for (tenant, database), taken in found.items()
        for collection in taken
    ]
    if as_json:
        scopes = [{"tenant": tenant, "database": database} for tenant, database in found]
        print_json({"databases": scopes, "collections": rows})
        return
    columns = ["tenant", "database", "collection", "records", "space"]
    texts = [[*map(str, (r["tenant"], r["database"], r["collection"])),
              f"{r['records']:,}", str(r["space"])] for r in rows]  # fmt: skip
    print_table("", columns, texts, numeric=["records"], long=["collection"])


def _summarize(report: _Report, tally: "ImportTally", seconds: float, as_json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "tenant": collection.tenant,
            "database": collection.database,
            "collection": name,
            "records": brought.records,
            "stored": brought.stored,
            "verified": True,
        }
        for collection, name, brought in report.brought
    ]
    if as_json:
        print_json(
            {
                "collections": rows,
                "records": sum(row["records"] for row in rows),
                "stored": tally.stored,
                "problems": report.problems,
                "seconds": round(seconds, 3),
                "records_per_second": round(tally.stored / seconds, 1) if seconds else 0.0,
            }
        )
        return
    for row in rows:
        before = row["records"] - row["stored"]
        there = f", {before:,} of them were there already" if before else ""
        print(
            f"{row['tenant']}/{row['database']}/{row['collection']}: "
            f"{counted(row['records'], 'record')}{there}; all compared and equal"
        )
    print(
        f"{counted(tally.stored, 'record')} brought over, {counted(len(rows), 'collection')} "
        f"verified: {seconds:.1f} s"
    )
