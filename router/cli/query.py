"""`query`: the nearest records of a collection to a text, a vector or another record."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli.command import (
    DEFAULT_ROUTER,
    CollectionOption,
    DatabaseOption,
    Failed,
    JsonOption,
    RouterOption,
    TenantOption,
    command,
    run,
    usage,
)
from router.cli.output import print_json, print_table, snippet
from router.embedding import EmbedderName

if TYPE_CHECKING:
    from chroma_router.v1 import types_pb2
    from router.cli.link import RouterLink

EMBEDDER_KEY = "embedder"
"""Collection metadata that `ingest --embedder` writes, so that `query --text` uses the same one."""


@command
def query(
    collection: CollectionOption,
    text: Annotated[str | None, typer.Option(help="What to look for, in words.")] = None,
    embedding: Annotated[
        str | None, typer.Option(metavar="JSON", help="What to look for, as a list of numbers.")
    ] = None,
    like: Annotated[
        str | None, typer.Option(metavar="ID", help="What to look for, as a record's id.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="How many hits.")] = 10,
    where: Annotated[
        str | None, typer.Option(metavar="JSON", help="A condition in Chroma's where language.")
    ] = None,
    embedder: Annotated[
        EmbedderName | None,
        typer.Option(help="For --text. [default: the one that `ingest` used]"),
    ] = None,
    tenant: TenantOption = "default_tenant",
    database: DatabaseOption = "default_database",
    router: RouterOption = DEFAULT_ROUTER,
    as_json: JsonOption = False,
) -> None:
    """Find the nearest records of a collection.

    \b
    Examples:
      chroma-router query --collection docs --text "parse a date" -k 5
      chroma-router query --collection docs --like some-id --where '{"kind": "function"}'
    """
    if sum(given is not None for given in (text, embedding, like)) != 1:
        usage("give one of --text, --embedding and --like")
    vector = _numbers(embedding) if embedding is not None else None
    if where is not None:
        _check_json("--where", where)
    from router.cli.link import collection_ref

    asked = _Question(text, vector, like, embedder)
    hits = run(_query(router, collection_ref(collection, tenant, database), asked, k, where or ""))
    rows = [_row(rank, hit) for rank, hit in enumerate(hits, 1)]
    if as_json:
        print_json({"collection": collection, "hits": rows})
        return
    print_table(
        "",
        ("rank", "distance", "shard", "id", "document"),
        [
            (
                str(r["rank"]),
                f"{r['distance']:.4f}",
                r["shard"],
                r["id"],
                snippet(r["document"] or ""),
            )
            for r in rows
        ],
        numeric=("rank", "distance"),
        long=("id", "document"),
    )


class _Question:
    """What is looked for: exactly one of text, vector and like is not None."""

    def __init__(
        self,
        text: str | None,
        vector: list[float] | None,
        like: str | None,
        embedder: EmbedderName | None,
    ) -> None:
        self.text, self.vector, self.like, self.embedder = text, vector, like, embedder


def _numbers(text: str) -> list[float]:
    value = _check_json("--embedding", text)
    if not isinstance(value, list) or not value:
        usage("--embedding: not a list of numbers, such as '[0.1, 0.2, 0.3]'")
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in value):
        usage("--embedding: not a list of numbers, such as '[0.1, 0.2, 0.3]'")
    return [float(n) for n in value]


def _check_json(option: str, text: str) -> object:
    try:
        value: object = json.loads(text)
    except ValueError as error:
        usage(f"{option}: not JSON ({error})")
    return value


async def _query(
    router: str,
    ref: "types_pb2.CollectionRef",
    asked: _Question,
    k: int,
    where: str,
) -> "list[types_pb2.Hit]":
    from chroma_router.v1 import records_pb2, types_pb2
    from router.cli.link import RouterLink

    async with RouterLink(router) as link:
        vector = await _vector(link, ref, asked)
        request = records_pb2.QueryRequest(
            collection=ref,
            embeddings=[vector],
            n_results=k + 1 if asked.like is not None else k,
            filter=types_pb2.Filter(where=where),
            include=[
                types_pb2.INCLUDE_DOCUMENTS,
                types_pb2.INCLUDE_METADATAS,
                types_pb2.INCLUDE_DISTANCES,
            ],
        )
        answer = await link.call(link.records.Query, request)
    hits = [hit for hit in answer.results[0].hits if hit.record.id != asked.like]
    return hits[:k]


async def _vector(link: "RouterLink", ref: "types_pb2.CollectionRef", asked: _Question) -> bytes:
    import numpy as np

    from chroma_router.v1 import catalog_pb2, records_pb2, types_pb2
    from router.embedding import EmbedderUnavailable
    from router.embedding import embedder as embedder_of

    if asked.vector is not None:
        return np.asarray(asked.vector, dtype="<f4").tobytes()
    if asked.like is not None:
        request = records_pb2.GetRequest(
            collection=ref,
            filter=types_pb2.Filter(ids=[asked.like], by_ids=True),
            include=[types_pb2.INCLUDE_EMBEDDINGS],
        )
        found = (await link.call(link.records.Get, request)).records
        if not found:
            raise Failed(f"the collection {ref.name} has no record with the id {asked.like!r}")
        return bytes(found[0].embedding)
    name: str = asked.embedder or ""
    if not name:
        answer = await link.call(
            link.catalog.GetCollection, catalog_pb2.GetCollectionRequest(collection=ref)
        )
        name = answer.collection.metadata[EMBEDDER_KEY].string_value
    if name not in set(EmbedderName):
        raise Failed(
            f"how the collection {ref.name} was embedded is not known; say it with --embedder "
            "lexical or --embedder minilm, or give the vector itself with --embedding"
        )
    assert asked.text is not None
    try:
        vector = embedder_of(EmbedderName(name))([asked.text])[0]
        return bytes(vector.astype("<f4").tobytes())
    except EmbedderUnavailable as error:
        raise Failed(str(error)) from None


def _row(rank: int, hit: "types_pb2.Hit") -> dict[str, Any]:
    from chroma_router.wire.records import metadata_from_wire

    record = hit.record
    return {
        "rank": rank,
        "distance": hit.distance,
        "shard": hit.shard,
        "id": record.id,
        "document": record.document if record.HasField("document") else None,
        "metadata": metadata_from_wire(record.metadata),
    }
