"""`ingest`: a JSONL file into a collection. What it shows while it works, and what it sums up."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.command import (
    DEFAULT_ROUTER,
    CollectionOption,
    DatabaseOption,
    Failed,
    RouterOption,
    TenantOption,
    command,
    run,
    usage,
)
from router.cli.output import counted, print_json
from router.cli.query import EMBEDDER_KEY
from router.embedding import EmbedderName

if TYPE_CHECKING:
    from router.cli.ingest_lines import BadLine, Batch, BatchRules, LineFile
    from router.cli.ingest_run import Tally

_PLAIN_EVERY = 5.0
_SPACES = ("cosine", "l2", "ip")


@dataclass(frozen=True, slots=True)
class _Options:
    """What the command was asked, as its parts need it."""

    file: Path
    collection: str
    embeddings: Path | None
    embedder: EmbedderName | None
    batch: int
    concurrency: int
    space: str | None
    configuration: str
    rejects: Path | None
    rate: float | None
    timeout: float
    tenant: str
    database: str
    router: str


@command
def ingest(
    file: Annotated[Path, typer.Argument(help="JSONL, plain or gzipped.", metavar="FILE")],
    collection: CollectionOption,
    embeddings: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Row i is the embedding of line i.")
    ] = None,
    embedder: Annotated[
        EmbedderName | None, typer.Option(help="Makes the embeddings that the lines do not have.")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Distance of a new collection: cosine, l2 or ip.")
    ] = None,
    create_config: Annotated[
        str | None, typer.Option(metavar="JSON", help="Chroma configuration of a new collection.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=5461, help="Records in one write.")] = 500,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Writes under way.")] = 4,
    rate: Annotated[
        float | None, typer.Option(metavar="RECORDS/S", help="At most so many records a second.")
    ] = None,
    rejects: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where bad lines go, instead of stopping.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds for which one write is tried again.")
    ] = 300.0,
    tenant: TenantOption = "default_tenant",
    database: DatabaseOption = "default_database",
    router: RouterOption = DEFAULT_ROUTER,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Bring a file of records into a collection, which is made if it does not exist.

    Each line is {"id": ..., "document": ..., "metadata": {...}, "embedding": [...], "uri": ...};
    only the id is required. Records are upserted, so it can be run again. It goes on by itself when
    a shard is away for a while. A bad line stops it with its number, unless --rejects says where to
    put it.

    \b
    Examples:
      chroma-router ingest docs.jsonl --collection docs --embedder lexical
      chroma-router ingest docs.jsonl.gz --collection docs --embeddings docs.npy --space cosine
    """
    if rate is not None and not 0 < rate < float("inf"):
        usage("--rate: a number above 0")
    if embeddings is not None and embedder is not None:
        usage("give either --embeddings or --embedder: only one of them can make the vectors")
    if not file.is_file():
        raise Failed(f"{file} does not exist or is no file")
    if rejects is not None and rejects.exists() and rejects.samefile(file):
        usage("--rejects: it is the file that is read; name another")
    options = _Options(
        file=file,
        collection=collection,
        embeddings=embeddings,
        embedder=embedder,
        batch=batch,
        concurrency=concurrency,
        space=space,
        configuration=_configuration(space, create_config),
        rejects=rejects,
        rate=rate,
        timeout=timeout,
        tenant=tenant,
        database=database,
        router=router,
    )
    began = time.monotonic()
    tally = run(_ingest(options))
    seconds = time.monotonic() - began
    summary = {
        "collection": collection,
        "stored": tally.stored,
        "rejected": tally.rejected,
        "retries": tally.retries,
        "seconds": round(seconds, 3),
        "records_per_second": round(tally.stored / seconds, 1) if seconds else 0.0,
    }
    if as_json:
        print_json(summary)
        return
    rejected = f", {tally.rejected:,} rejected (see {rejects})" if tally.rejected else ""
    repeated = f", {counted(tally.retries, 'write')} repeated" if tally.retries else ""
    print(
        f"{counted(tally.stored, 'record')} stored in {collection}{rejected}{repeated}: "
        f"{seconds:.1f} s, {summary['records_per_second']:,.0f} records/s"
    )


def _configuration(space: str | None, given: str | None) -> str:
    if space is not None and given is not None:
        usage("give either --space or --create-config")
    if space is not None:
        if space not in _SPACES:
            usage(f"--space: {space!r} is none of {', '.join(_SPACES)}")
        return json.dumps({"hnsw": {"space": space}})
    if given is None:
        return ""
    try:
        value = json.loads(given)
    except ValueError as error:
        usage(f"--create-config: not JSON ({error})")
    if not isinstance(value, dict):
        usage('--create-config: not a JSON object, such as \'{"hnsw": {"space": "cosine"}}\'')
    return given


async def _ingest(options: _Options) -> "Tally":
    from router.cli.ingest_lines import LineFile, batches
    from router.cli.ingest_run import Sender, Tally
    from router.cli.link import RouterLink, collection_ref
    from router.rate_cap import RateCap

    tally = Tally()

    with contextlib.ExitStack() as stack:
        file = LineFile(options.file)
        stack.callback(file.close)
        rules = _rules(options, file)
        reject = _rejecter(options.rejects, stack)

        def on_bad(line: "BadLine") -> None:
            if reject is None:
                raise Failed(
                    f"{options.file}, line {line.number}: {line.reason}; mend it and run it again, "
                    "or put bad lines aside with --rejects FILE"
                )
            reject(line)

        async with RouterLink(options.router) as link:

            async def prepare(first: "Batch") -> None:
                await _create(link, options, marked=first.embedded)

            sender = Sender(
                link=link,
                collection=collection_ref(options.collection, options.tenant, options.database),
                concurrency=options.concurrency,
                timeout=options.timeout,
                rate=RateCap(options.rate) if options.rate is not None else None,
                on_bad=on_bad,
                prepare=prepare,
                tally=tally,
            )
            show = stack.enter_context(_progress(file.size, tally))
            await sender.send_all(_shown(batches(file, rules), show))
            show()
    return tally


def _rules(options: _Options, file: "LineFile") -> "BatchRules":
    from router.cli.ingest_lines import BatchRules, load_embeddings
    from router.embedding import EmbedderUnavailable, embedder

    rows = None
    if options.embeddings is not None:
        rows = load_embeddings(options.embeddings, file.count())
    made = None
    if options.embedder is not None:
        try:
            made = embedder(options.embedder)
        except EmbedderUnavailable as error:
            raise Failed(str(error)) from None
    return BatchRules(options.batch, rows, made)


async def _create(link: Any, options: _Options, *, marked: bool) -> None:
    """Makes the collection unless it exists; `marked`: its metadata name the embedder.

    Raises Failed when it exists with another space than the one that is asked for.
    """
    from chroma_router.v1 import catalog_pb2
    from chroma_router.wire.records import metadata_to_wire

    request = catalog_pb2.CreateCollectionRequest(
        name=options.collection,
        tenant=options.tenant,
        database=options.database,
        configuration_json=options.configuration,
        get_or_create=True,
    )
    if marked and options.embedder is not None:
        metadata_to_wire({EMBEDDER_KEY: options.embedder.value}, request.metadata)
    answer = await link.call(link.catalog.CreateCollection, request)
    if options.space is None or answer.created:
        return
    space = _space_of(answer.collection.configuration_json)
    if space != options.space:
        raise Failed(
            f"the collection {options.collection} exists with the space {space}, not "
            f"{options.space}; leave out --space to add to it as it is, or name another collection"
        )


def _space_of(configuration_json: str) -> str:
    """The distance of a collection that exists."""
    configuration = json.loads(configuration_json or "{}")
    for index in ("hnsw", "spann"):
        space = (configuration.get(index) or {}).get("space")
        if space:
            return str(space)
    return "l2"


def _rejecter(path: Path | None, stack: contextlib.ExitStack) -> "Callable[[BadLine], None] | None":
    """Writes a bad line as {"line": number, "reason": ..., "text": ...}."""
    if path is None:
        return None
    out = stack.enter_context(path.open("w", encoding="utf-8"))

    def reject(line: "BadLine") -> None:
        text = line.text.decode("utf-8", "replace")
        record = {"line": line.number, "reason": line.reason, "text": text}
        out.write(json.dumps(record, ensure_ascii=False) + "\n")

    return reject


def _shown(batches: "Iterator[Batch]", show: Callable[[], None]) -> "Iterator[Batch]":
    for batch in batches:
        show()
        yield batch


@contextlib.contextmanager
def _progress(size: int, tally: "Tally") -> Iterator[Callable[[], None]]:
    """Shows on stderr how far it is: a bar on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        with _bar(size, tally) as show:
            yield show
        return
    began = last = time.monotonic()

    def show_line() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _PLAIN_EVERY:
            return
        last = now
        part = tally.position / size if size else 1.0
        rate = tally.stored / (now - began)
        left = (now - began) * (1 - part) / part if part else 0.0
        print(
            f"{part:.0%}: {tally.stored:,} records, {rate:,.0f}/s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    yield show_line


@contextlib.contextmanager
def _bar(size: int, tally: "Tally") -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[records]:,} records"),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    began = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("ingest", total=size, records=0, rate=0.0)

        def show() -> None:
            seconds = time.monotonic() - began
            progress.update(
                task,
                completed=tally.position,
                records=tally.stored,
                rate=tally.stored / seconds if seconds else 0.0,
            )

        yield show
