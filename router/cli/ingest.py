"""`ingest`: a file of records into a collection. What it is asked, and what it sums up."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    stopped,
    usage,
)
from router.cli.definition import space_of
from router.cli.output import counted, print_json
from router.cli.progress import shown
from router.cli.query import EMBEDDER_KEY
from router.embedding import EmbedderName

if TYPE_CHECKING:
    from router.cli.definition import Definition
    from router.cli.ingest_input import InputFile
    from router.cli.ingest_lines import BadLine, Batch, BatchRules
    from router.cli.ingest_run import Tally
    from router.cli.patient import PatientLink

_SPACES = ("cosine", "l2", "ip")
_CONCURRENCY = 4


@dataclass(frozen=True, slots=True)
class _Options:
    """What the command was asked, as its parts need it."""

    file: Path
    collection: str
    embeddings: Path | None
    embedder: EmbedderName | None
    batch: int
    concurrency: int | None
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
    file: Annotated[
        Path, typer.Argument(help="JSONL, plain or gzipped, or Parquet.", metavar="FILE")
    ],
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
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Writes under way: 4; of an exported file 1, in order."),
    ] = None,
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

    A file that `export` wrote also says what its collection is; a new collection becomes the same,
    in the same order. With --concurrency 1 every file is stored in its order. Into a collection
    that exists, a write that a failure breaks off may leave its records out of order: to be sure
    of the order, delete what a run that was stopped has left, and run it anew.

    chromadb's client does not know --embedder: a Python program that queries such a collection by
    text must make the query embeddings in the same way, or use `chroma-router query --text`.

    \b
    Examples:
      chroma-router ingest docs.jsonl --collection docs --embedder lexical
      chroma-router ingest docs.jsonl.gz --collection docs --embeddings docs.npy --space cosine
      chroma-router ingest exported.parquet --collection docs-2
    """
    if rate is not None and not 0 < rate < float("inf"):
        usage("--rate: a number above 0")
    if embeddings is not None and embedder is not None:
        usage("give either --embeddings or --embedder: only one of them can make the vectors")
    if not file.is_file():
        raise Failed(f"{file} does not exist or is no file")
    if rejects is not None and rejects.exists() and rejects.samefile(file):
        usage("--rejects: it is the file that is read; name another")
    if rejects is not None and rejects.is_file() and rejects.stat().st_size:
        raise Failed(
            f"{rejects} holds what an earlier run put there; move it away, or name another file "
            "with --rejects"
        )
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
    from router.cli.ingest_run import Tally

    tally = Tally()
    began = time.monotonic()
    try:
        run(_ingest(options, tally))
    except KeyboardInterrupt:
        stopped(
            f"{counted(tally.stored, 'record')} stored in {collection}; run the same command "
            "again to go on: records are upserted, so those that are stored stay as they are"
        )
    seconds = time.monotonic() - began
    if embedder is not None and tally.stored and tally.own_embeddings:
        print(
            "chroma-router: every line has an embedding of its own; --embedder was not used",
            file=sys.stderr,
        )
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


async def _ingest(options: _Options, tally: "Tally") -> None:
    from router.cli.ingest_input import open_input
    from router.cli.ingest_lines import batches
    from router.cli.ingest_run import Sender
    from router.cli.link import RouterLink, collection_ref
    from router.cli.patient import PatientLink
    from router.rate_cap import RateCap

    with contextlib.ExitStack() as stack:
        file = open_input(options.file)
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
            cluster = PatientLink(link, options.timeout)

            async def prepare(first: "Batch | None") -> None:
                # An export says what its collection is even if that is empty; other files do not.
                if first is not None or file.definition is not None:
                    marked = first is not None and first.embedded
                    made = await _create(cluster, options, file.definition, marked=marked)
                    sender.in_order = made and sender.concurrency == 1

            sender = Sender(
                cluster=cluster,
                collection=collection_ref(options.collection, options.tenant, options.database),
                concurrency=options.concurrency or (1 if file.definition else _CONCURRENCY),
                rate=RateCap(options.rate) if options.rate is not None else None,
                on_bad=on_bad,
                prepare=prepare,
                tally=tally,
            )
            show = stack.enter_context(shown(file.size, tally))
            await sender.send_all(_shown(batches(file, rules), show))
            show()


def _rules(options: _Options, file: "InputFile") -> "BatchRules":
    from router.cli.ingest_lines import BatchRules, load_embeddings
    from router.embedding import EmbedderUnavailable, embedder

    rows = None
    if options.embeddings is not None:
        if file.definition is not None:
            raise Failed(
                f"{options.file} is an export, which has embeddings; leave out --embeddings"
            )
        rows = load_embeddings(options.embeddings, file.count())
    made = None
    if options.embedder is not None:
        try:
            made = embedder(options.embedder)
        except EmbedderUnavailable as error:
            raise Failed(str(error)) from None
    return BatchRules(options.batch, rows, made)


async def _create(
    cluster: "PatientLink", options: _Options, definition: "Definition | None", *, marked: bool
) -> bool:
    """Makes the collection unless it exists; whether it did. `marked`: its metadata name the
    embedder.

    What the command was asked for goes before what the file says. Raises Failed when the collection
    exists with another space than the one that is asked for, or another index than the file's.
    """
    from chroma_router.v1 import catalog_pb2, types_pb2
    from chroma_router.wire.records import metadata_to_wire
    from router.cli.definition import definition_of

    request = catalog_pb2.CreateCollectionRequest(
        name=options.collection,
        tenant=options.tenant,
        database=options.database,
        get_or_create=True,
    )
    if definition is not None:
        definition.fill(request)
    if options.configuration:
        definition = None
        request.configuration_json = options.configuration
        request.schema_json = ""
    said = {EMBEDDER_KEY: options.embedder.value} if marked and options.embedder else {}
    metadata_to_wire(said, request.metadata)
    answer = await cluster.link.call(cluster.link.catalog.CreateCollection, request)
    if answer.created:
        if definition is not None and definition.early_metadata != definition.metadata:
            update = catalog_pb2.UpdateCollectionRequest(
                collection=types_pb2.CollectionRef(id=answer.collection.id)
            )
            metadata_to_wire({**definition.metadata, **said}, update.new_metadata)
            update.replace_metadata = True
            method = cluster.link.catalog.UpdateCollection
            await cluster.call(f"describing {options.collection}", method, update)
        return True
    found = definition_of(answer.collection)
    space = space_of(found.configuration)
    if options.space not in (None, space):
        raise Failed(
            f"the collection {options.collection} exists with the space {space}, not "
            f"{options.space}; leave out --space to add to it as it is, or name another collection"
        )
    if definition is not None and not found.same_index(definition):
        raise Failed(
            f"the collection {options.collection} exists with another configuration than the "
            f"exported one; name another collection, or say --space {space} to add to it as it is"
        )
    return False


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
