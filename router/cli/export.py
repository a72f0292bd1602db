"""`export`: collections into files that `ingest` reads back. What it is asked, and what it says."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.command import (
    DEFAULT_ROUTER,
    DatabaseOption,
    Failed,
    RouterOption,
    TenantOption,
    command,
    run,
    stopped,
    usage,
)
from router.cli.output import bytes_text, counted, print_json
from router.cli.progress import shown

if TYPE_CHECKING:
    from chroma_router.v1 import types_pb2
    from router.cli.patient import PatientLink


_NAME_A_PLACE = "name a directory, or a file that ends with .jsonl, .jsonl.gz or .parquet"


class FileFormat(StrEnum):
    """What a file of records can be; the value is its suffix."""

    JSONL = "jsonl"
    JSONL_GZ = "jsonl.gz"
    PARQUET = "parquet"


@dataclass(slots=True)
class _Tally:
    """What has been written so far."""

    stored: int = 0
    files: list[dict[str, Any]] = field(default_factory=list)

    @property
    def position(self) -> int:
        """How many records have been written."""
        return self.stored


@dataclass(frozen=True, slots=True)
class _Options:
    names: list[str]
    to: Path
    one_file: bool
    file_format: FileFormat
    force: bool
    tenant: str
    database: str
    router: str
    timeout: float


@command
def export(
    to: Annotated[
        Path, typer.Option(metavar="FILE|DIR", help="FILE.jsonl, .jsonl.gz, .parquet, or DIR.")
    ],
    collections: Annotated[
        list[str] | None,
        typer.Option("--collection", help="Can be given several times; without it: all."),
    ] = None,
    file_format: Annotated[
        FileFormat | None, typer.Option("--format", help="Of the files in DIR; jsonl if not said.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds for which one call is tried again.")
    ] = 300.0,
    tenant: TenantOption = "default_tenant",
    database: DatabaseOption = "default_database",
    router: RouterOption = DEFAULT_ROUTER,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Write collections to files, in insertion order, each with its collection's definition.

    `chroma-router ingest FILE --collection NAME` reads them back: the same records in the same
    order, with the same types. A file appears when it is complete. What is written to a collection
    meanwhile may be in its file or not. In DIR a file is called like its collection; a name that is
    too long for a file, or differs from another only in case, is shortened and ends with ~ and a
    hash: the summary and the head of the file say the whole name. Parquet needs
    `pip install 'chroma-router[parquet]'`.

    \b
    Examples:
      chroma-router export --collection docs --to docs.jsonl.gz
      chroma-router export --collection docs --collection notes --to backup --format parquet
    """
    if str(to) == "-":
        usage(f"--to: nothing is exported to stdout; {_NAME_A_PLACE}")
    suffix = next((f for f in FileFormat if to.name.endswith(f".{f.value}")), None)
    one_file = suffix is not None and not to.is_dir()
    if one_file and len(collections or ()) != 1:
        usage("--to: one file takes one --collection; name a directory for several")
    if one_file and file_format not in (None, suffix):
        usage("--format: the name of the file says another one")
    # A new directory with a suffix is more likely a file in a format that is not written here.
    if not one_file and not to.is_dir() and (to.exists() or to.suffix):
        usage(f"--to: {_NAME_A_PLACE}")
    if one_file and not to.parent.exists():
        raise Failed(f"the directory {to.parent} does not exist; make it first")
    options = _Options(
        names=list(dict.fromkeys(collections or ())),
        to=to,
        one_file=one_file,
        file_format=(suffix if one_file else file_format) or FileFormat.JSONL,
        force=force,
        tenant=tenant,
        database=database,
        router=router,
        timeout=timeout,
    )
    if options.file_format is FileFormat.PARQUET:
        from router.cli.parquet import require

        require()
    tally = _Tally()
    began = time.monotonic()
    try:
        run(_export(options, tally))
    except KeyboardInterrupt:
        stopped(
            f"{counted(len(tally.files), 'file')} complete, nothing is left of the one that was "
            "being written; run it again for the collections that are missing"
        )
    seconds = time.monotonic() - began
    if as_json:
        rate = round(tally.stored / seconds, 1) if seconds else 0.0
        summary = {"files": tally.files, "records": tally.stored, "seconds": round(seconds, 3)}
        print_json({**summary, "records_per_second": rate})
        return
    for file in tally.files:
        print(
            f"{file['collection']}: {counted(file['records'], 'record')} in {file['file']} "
            f"({bytes_text(file['bytes'])})"
        )
    print(f"{counted(tally.stored, 'record')} exported: {seconds:.1f} s")


async def _export(options: _Options, tally: _Tally) -> None:
    from chroma_router.v1 import records_pb2
    from router.cli.export_files import taken
    from router.cli.link import RouterLink, collection_ref
    from router.cli.patient import PatientLink

    async with RouterLink(options.router) as link:
        found = await _collections(link, options)
        files = _files(options, [collection.name for collection in found])
        if not options.one_file:
            options.to.mkdir(parents=True, exist_ok=True)
        for path in files.values():
            if path.exists() and not options.force:
                raise taken(path)
        total = 0
        for collection in found:
            ref = collection_ref(collection.name, options.tenant, options.database)
            count = records_pb2.CountRequest(collection=ref)
            total += (await link.call(link.records.Count, count)).count
        with shown(total, tally) as show:
            cluster = PatientLink(link, options.timeout)
            for collection in found:
                await _write(cluster, collection, files[collection.name], options, tally, show)


async def _collections(link: Any, options: _Options) -> "list[types_pb2.Collection]":
    from chroma_router.v1 import catalog_pb2
    from router.cli.link import collection_ref

    if not options.names:
        every = catalog_pb2.ListCollectionsRequest(tenant=options.tenant, database=options.database)
        answer = await link.call(link.catalog.ListCollections, every)
        if not answer.collections:
            raise Failed(f"{options.tenant}/{options.database} has no collections")
        return sorted(answer.collections, key=lambda collection: collection.name)
    found = []
    for name in options.names:
        ref = collection_ref(name, options.tenant, options.database)
        request = catalog_pb2.GetCollectionRequest(collection=ref)
        found.append((await link.call(link.catalog.GetCollection, request)).collection)
    return found


def _files(options: _Options, names: Sequence[str]) -> dict[str, Path]:
    from router.cli.export_files import file_stems

    if options.one_file:
        return {names[0]: options.to}
    suffix = options.file_format.value
    return {name: options.to / f"{stem}.{suffix}" for name, stem in file_stems(names).items()}


async def _write(
    cluster: "PatientLink",
    collection: "types_pb2.Collection",
    path: Path,
    options: _Options,
    tally: _Tally,
    show: Any,
) -> None:
    """One file. The collection is read by its UUID: another of its name never comes in between."""
    from chroma_router.v1 import types_pb2
    from router.cli.definition import definition_of
    from router.cli.export_files import writer

    before = tally.stored
    ref = types_pb2.CollectionRef(id=collection.id)
    head = definition_of(collection).to_json(collection.name)
    with writer(path, head, replace=options.force) as file:
        async with aclosing(cluster.pages(ref)) as pages:
            async for page in pages:
                await asyncio.to_thread(file.write, page)
                tally.stored += len(page)
                show()
    tally.files.append(
        {
            "collection": collection.name,
            "file": str(path),
            "records": tally.stored - before,
            "bytes": (await asyncio.to_thread(path.stat)).st_size,
        }
    )
