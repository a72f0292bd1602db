"""`demo`: a cluster on this machine, real documents, questions, one plain Chroma beside it."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.command import Failed, JsonOption, command, run
from router.cli.output import print_json, print_table, snippet
from router.embedding import EmbedderName

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from router.cli.stdlib_docs import Docstring

COLLECTION = "stdlib"
QUESTIONS = (
    "parse a date and time from a string",
    "compress a file with gzip",
    "connect to an SMTP server and send mail",
    "copy a whole directory tree",
    "choose a random element from a sequence",
)
_K = 5
_BATCH = 1000
_DEFAULT_LIMIT = {EmbedderName.LEXICAL: 10_000, EmbedderName.MINILM: 1_000}
_SPACE = {"hnsw": {"space": "cosine"}}


@command
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Go on serving until Ctrl-C.")] = False,
    shards: Annotated[int | None, typer.Option(min=1, max=64, help="[default: 3]")] = None,
    embedder: Annotated[
        EmbedderName,
        typer.Option(help="lexical finds common words, offline; minilm finds meaning."),
    ] = EmbedderName.LEXICAL,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the cluster here. [default: a temporary directory]"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Documents. [default: 10000 with lexical, 1000 with minilm]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start a cluster, index the docstrings of Python's standard library, and ask it questions.

    Nothing is downloaded with the lexical embedder. It stops and cleans up unless --keep is given.

    \b
    Example:
      chroma-router demo --keep
    """
    run(_demo(keep, shards, embedder, data, limit or _DEFAULT_LIMIT[embedder], as_json))


async def _demo(
    keep: bool,
    shards: int | None,
    embedder: EmbedderName,
    data: Path | None,
    limit: int,
    as_json: bool,
) -> None:
    with contextlib.ExitStack() as stack:
        scratch = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(
                    prefix="chroma-router-demo-", ignore_cleanup_errors=True
                )
            )
        )
        say = _Narrator(quiet=as_json)
        texts, vectors, questions = await asyncio.to_thread(_embed, embedder, limit, say)
        say("starting the cluster")
        async with _cluster(data or scratch / "cluster", shards, scratch / "up.log") as address:
            seconds = await asyncio.to_thread(_index, address, embedder, texts, vectors)
            say(f"{len(texts):,} documents indexed through the router in {seconds:.1f} s")
            plain, seconds = await asyncio.to_thread(
                _plain_chroma, scratch / "plain", texts, vectors, questions
            )
            say(f"the same in one plain Chroma, for comparison, in {seconds:.1f} s")
            result = await _ask(address, questions, plain)
            if as_json:
                print_json(result)
            else:
                _print(result)
            if keep:
                await _serve_on(address)


class _Narrator:
    """Says on stderr what is being done."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def __call__(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)


def _embed(
    name: EmbedderName, limit: int, say: _Narrator
) -> "tuple[list[Docstring], npt.NDArray[np.float32], npt.NDArray[np.float32]]":
    """The documents, their vectors and the questions' vectors."""
    from router.cli.stdlib_docs import docstrings
    from router.embedding import EmbedderUnavailable, embedder

    began = time.monotonic()
    try:
        embed = embedder(name)
    except EmbedderUnavailable as error:
        raise Failed(str(error)) from None
    found = docstrings(limit)
    vectors = embed([doc.text for doc in found])
    questions = embed(QUESTIONS)
    say(
        f"{len(found):,} docstrings of Python's standard library read and embedded ({name}) in "
        f"{time.monotonic() - began:.1f} s"
    )
    return found, vectors, questions


@contextlib.asynccontextmanager
async def _cluster(data: Path, shards: int | None, log: Path) -> AsyncIterator[str]:
    """A cluster by `chroma-router up`, as long as the block lasts; the router's address."""
    from chroma_router.wire.errors import Unavailable
    from router.supervisor.backoff import RestartPolicy
    from router.supervisor.child import Child
    from router.telemetry import configure_logs

    configure_logs("ERROR")
    arguments = ["up", "--data", str(data), "--listen", "127.0.0.1:0"]
    if shards is not None:
        arguments += ["--shards", str(shards)]
    with log.open("wb") as logs:
        child = Child("cluster", "router.cli.main", arguments, RestartPolicy(), logs)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(child.run(), name="cluster")
            try:
                line = await child.first_ready()
                yield dict(word.partition("=")[::2] for word in line.split())["grpc"]
            except Unavailable as error:
                raise Failed(_last_line(log) or error.message) from None
            finally:
                await child.stop(90.0)


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1].removeprefix("chroma-router: ") if lines else ""


def _index(
    address: str,
    embedder: EmbedderName,
    texts: "Sequence[Docstring]",
    vectors: "npt.NDArray[np.float32]",
) -> float:
    """Brings the documents into the cluster with chromadb's own API; the seconds it took."""
    import chroma_router

    host, _, port = address.rpartition(":")
    client = chroma_router.Client(host=host, port=int(port))
    collection = client.get_or_create_collection(
        COLLECTION,
        metadata={"embedder": embedder.value},
        configuration=_SPACE,  # type: ignore[arg-type]
        embedding_function=None,
    )
    return _fill(collection, texts, vectors)


def _fill(
    collection: Any, texts: "Sequence[Docstring]", vectors: "npt.NDArray[np.float32]"
) -> float:
    began = time.monotonic()
    for start in range(0, len(texts), _BATCH):
        part = texts[start : start + _BATCH]
        collection.upsert(
            ids=[doc.id for doc in part],
            documents=[doc.text for doc in part],
            metadatas=[{"module": d.module, "kind": d.kind, "line": d.line} for d in part],
            embeddings=vectors[start : start + _BATCH],
        )
    return time.monotonic() - began


def _plain_chroma(
    directory: Path,
    texts: "Sequence[Docstring]",
    vectors: "npt.NDArray[np.float32]",
    questions: "npt.NDArray[np.float32]",
) -> tuple[list[list[str]], float]:
    """The ids that one plain Chroma finds for each question; the seconds to fill it."""
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(directory, Settings(anonymized_telemetry=False))
    collection = client.create_collection(
        COLLECTION,
        configuration=_SPACE,  # type: ignore[arg-type]
        embedding_function=None,
    )
    seconds = _fill(collection, texts, vectors)
    return collection.query(query_embeddings=questions, n_results=_K)["ids"], seconds


async def _ask(
    address: str, questions: "npt.NDArray[np.float32]", plain: list[list[str]]
) -> dict[str, Any]:
    """Asks the router, over gRPC itself: a hit says there which shard it came from."""
    from chroma_router.v1 import cluster_pb2, records_pb2, types_pb2
    from router.cli.link import RouterLink, collection_ref

    async with RouterLink(address) as link:
        answer = await link.call(
            link.records.Query,
            records_pb2.QueryRequest(
                collection=collection_ref(COLLECTION, "", ""),
                embeddings=[row.astype("<f4").tobytes() for row in questions],
                n_results=_K,
                include=[types_pb2.INCLUDE_DOCUMENTS, types_pb2.INCLUDE_DISTANCES],
            ),
        )
        status = await link.call(link.cluster.GetStatus, cluster_pb2.GetStatusRequest())
    asked = []
    for question, result, single in zip(QUESTIONS, answer.results, plain, strict=True):
        hits = [
            {
                "rank": rank,
                "distance": hit.distance,
                "shard": hit.shard,
                "id": hit.record.id,
                "document": hit.record.document,
                "plain_chroma": single[rank - 1] if rank <= len(single) else "",
            }
            for rank, hit in enumerate(result.hits, 1)
        ]
        same = len({hit["id"] for hit in hits} & set(single))
        asked.append({"question": question, "hits": hits, "same_as_plain_chroma": same})
    return {
        "router": address,
        "records": status.records,
        "shards": {shard.name: shard.records for shard in status.shards},
        "questions": asked,
    }


def _print(result: dict[str, Any]) -> None:
    total = result["records"]
    rows = [(n, f"{r:,}", f"{r / total:.1%}" if total else "") for n, r in result["shards"].items()]
    print_table(
        "records per shard", ("shard", "records", "share"), rows, numeric=("records", "share")
    )
    same = wanted = 0
    for asked in result["questions"]:
        hits = asked["hits"]
        same += asked["same_as_plain_chroma"]
        wanted += len(hits)
        print_table(
            f"{asked['question']}? ({asked['same_as_plain_chroma']} of {len(hits)} as one Chroma)",
            ("#", "distance", "shard", "id", "document", "one plain Chroma"),
            [
                (
                    str(hit["rank"]),
                    f"{hit['distance']:.4f}",
                    hit["shard"],
                    hit["id"],
                    snippet(hit["document"], 60),
                    "the same" if hit["plain_chroma"] == hit["id"] else hit["plain_chroma"],
                )
                for hit in hits
            ],
            numeric=("#", "distance"),
            long=("id", "document", "one plain Chroma"),
        )
    print(f"{same} of {wanted} hits are those of one plain Chroma with the same vectors")


async def _serve_on(address: str) -> None:
    """Until Ctrl-C or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    host, _, port = address.rpartition(":")
    print(
        f"\nserving on {address} (pid {os.getpid()}) until Ctrl-C; ask it with\n\n"
        f'  chroma-router query --router {address} --collection {COLLECTION} --text "open a file"\n'
        f"  chroma-router status --router {address}\n\n"
        "or from Python\n\n"
        "  import chroma_router\n"
        f'  client = chroma_router.Client("{host}", {port})\n'
        f'  print(client.get_collection("{COLLECTION}", embedding_function=None).count())\n',
        flush=True,
    )
    await stop.wait()
