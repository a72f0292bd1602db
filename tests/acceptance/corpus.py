"""The main job on a real corpus: ingest into a cluster, compare with one plain Chroma and with the
exact neighbours, stop, start, and compare again.

    python -m tests.acceptance.corpus --data DIR

DIR holds packages.jsonl.gz (id, document, metadata a line), packages.f16.npy (their embeddings),
queries.f16.npy, neighbours.i32.npy and distances.f32.npy (exact cosine neighbours). Prints a line a
check and exits 1 if one fails.
"""

import argparse
import gzip
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
from chromadb.api import ClientAPI
from chromadb.config import Settings

import chroma_router
from tests.support.cluster import RunningCluster, run_cli, running_cluster

Collection = Any  # chromadb's, whose types refuse much that it takes
NAME = "packages"
TOP = 10
RECALL_BAR = 0.97
BALANCE_BAR = 0.05
BATCH = 1000
SEED = 20260719

WHERES: Sequence[dict[str, Any] | None] = (
    None,
    {"section": "python"},
    {"section": {"$in": ["python", "perl", "games"]}},
    {"$and": [{"installed_kib": {"$gt": 1000}}, {"priority": {"$ne": "optional"}}]},
    {"$or": [{"essential": True}, {"installed_kib": {"$lt": 10}}]},
    {"section": {"$nin": ["libs", "libdevel", "doc", "debug"]}},
    {"version": {"$gte": 3}},
    {"no_such_key": "x"},
)
WHERE_DOCUMENTS: Sequence[dict[str, Any] | None] = (
    {"$contains": "engine"},
    {"$not_contains": "library"},
    {"$and": [{"$contains": "python"}, {"$contains": "bindings"}]},
    {"$regex": "[0-9]+-bit"},
)


@dataclass
class Corpus:
    """The records and the exact neighbours of the queries."""

    ids: list[str]
    documents: list[str]
    metadatas: list[Any]
    embeddings: np.ndarray
    queries: np.ndarray
    distances: np.ndarray


class Checks:
    """Prints each check as it is made and remembers failures."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, name: str, passed: bool, figure: object = "") -> None:
        """Records one check."""
        self.failed += not passed
        print(f"{'pass' if passed else 'FAIL'}  {name}  {figure}", flush=True)


def load(data: Path, limit: int | None) -> Corpus:
    """Reads the corpus, or its first `limit` records (recall is then not checked)."""
    with gzip.open(data / "packages.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines][:limit]
    return Corpus(
        ids=[record["id"] for record in records],
        documents=[record["document"] for record in records],
        metadatas=[record["metadata"] for record in records],
        embeddings=np.load(data / "packages.f16.npy")[:limit].astype(np.float32),
        queries=np.load(data / "queries.f16.npy").astype(np.float32),
        distances=np.load(data / "distances.f32.npy"),
    )


def plain_chroma(directory: Path, corpus: Corpus) -> Collection:
    """The twin: one plain Chroma with the same records in the same order."""
    client: ClientAPI = chromadb.PersistentClient(
        str(directory), settings=Settings(anonymized_telemetry=False)
    )
    twin = client.create_collection(NAME, configuration={"hnsw": {"space": "cosine"}})
    for at in range(0, len(corpus.ids), BATCH):
        part = slice(at, at + BATCH)
        twin.upsert(
            ids=corpus.ids[part],
            embeddings=corpus.embeddings[part],
            documents=corpus.documents[part],
            metadatas=corpus.metadatas[part],
        )
    return twin


def recall(collection: Collection, corpus: Corpus) -> float:
    """Recall@10 by distance: a hit counts if it is not farther than the exact tenth."""
    found = 0
    for at in range(0, len(corpus.queries), 50):
        answer = collection.query(
            query_embeddings=corpus.queries[at : at + 50], n_results=TOP, include=["distances"]
        )
        assert answer["distances"] is not None
        for row, distances in enumerate(answer["distances"]):
            bound = corpus.distances[at + row][TOP - 1] + 1e-5
            found += sum(1 for distance in distances if distance <= bound)
    return found / (len(corpus.queries) * TOP)


def filters() -> Iterator[dict[str, Any]]:
    """The filters of the comparison: each where, each where_document, some of both."""
    for where in WHERES:
        yield {"where": where}
    for where_document in WHERE_DOCUMENTS:
        yield {"where_document": where_document}
        yield {"where": WHERES[2], "where_document": where_document}


def whole(twin: Collection, chosen: dict[str, Any], kinds: list[Any]) -> dict[str, list[Any]]:
    """All that a filter chooses of plain Chroma, by pages: it fails past 32,766 rows."""
    rows: dict[str, list[Any]] = {kind: [] for kind in ("ids", *kinds)}
    while True:
        page = twin.get(**chosen, limit=5000, offset=len(rows["ids"]), include=kinds)
        for kind, values in rows.items():
            values.extend(page[kind])
        if len(page["ids"]) < 5000:
            return rows


def same_reads(mine: Collection, twin: Collection, checks: Checks, label: str) -> None:
    """Every get that the comparison knows, on both; order included."""
    different = []
    compared = 0
    for chosen in filters():
        for page in ({}, {"limit": 100, "offset": 5000}, {"limit": 7, "offset": 3}, {"limit": 20}):
            kinds: list[Any] = ["documents", "metadatas"]
            if page.get("limit") == 20:
                kinds.append("embeddings")
            a = mine.get(**chosen, **page, include=kinds)
            b = (
                whole(twin, chosen, kinds)
                if not page
                else twin.get(**chosen, **page, include=kinds)
            )
            compared += len(b["ids"])
            same = a["ids"] == b["ids"] and a["documents"] == b["documents"]
            same = same and a["metadatas"] == b["metadatas"]
            if "embeddings" in kinds and same and len(b["ids"]):
                same = np.allclose(a["embeddings"], b["embeddings"], rtol=1e-5, atol=1e-7)
            if not same:
                different.append((chosen, page, len(a["ids"]), len(b["ids"])))
    checks(f"{label}: get with where/where_document/limit/offset", not different, different[:3])
    print(f"      {compared} records compared in order")


def same_lookups(
    mine: Collection, twin: Collection, ids: list[str], checks: Checks, label: str
) -> None:
    """Gets by id, with ids that do not exist among them."""
    picker = random.Random(SEED)
    wrong = 0
    for _ in range(20):
        some = [*picker.sample(ids, 50), "no-such-package", "nor-this-one"]
        picker.shuffle(some)
        a, b = mine.get(ids=some), twin.get(ids=some)
        wrong += a["ids"] != b["ids"] or a["metadatas"] != b["metadatas"]
    checks(f"{label}: get by ids", wrong == 0, f"{wrong} of 20 differ")


def filtered_queries(
    mine: Collection, twin: Collection, corpus: Corpus, checks: Checks, label: str
) -> None:
    """Queries with a filter, each against the exact neighbours among what the filter chooses.

    Chroma's search is approximate with a filter too, here and in the twin.
    """
    found = {"cluster": 0, "one Chroma": 0}
    asked = 0
    for chosen in (
        {"where": {"$or": [{"essential": True}, {"installed_kib": {"$lt": 10}}]}},
        {"where_document": {"$and": [{"$contains": "python"}, {"$contains": "bindings"}]}},
    ):
        rows = np.asarray(twin.get(**chosen, include=["embeddings"])["embeddings"])
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for query in corpus.queries[:20]:
            bound = np.sort(1 - rows @ (query / np.linalg.norm(query)))[:TOP].max() + 1e-5
            asked += min(TOP, len(rows))
            for name, collection in (("cluster", mine), ("one Chroma", twin)):
                answer = collection.query(query_embeddings=[query], n_results=TOP, **chosen)
                found[name] += sum(1 for distance in answer["distances"][0] if distance <= bound)
    got, single = found["cluster"] / asked, found["one Chroma"] / asked
    checks(f"{label}: recall@10 with filters", got >= RECALL_BAR, f"{got:.4f} ({single:.4f})")


def change_both(mine: Collection, twin: Collection, corpus: Corpus) -> None:
    """The same updates, upserts, deletes and re-adds on both."""
    picker = random.Random(SEED)
    chosen = picker.sample(corpus.ids, 900)

    def both(act: Callable[[Collection], object]) -> None:
        act(mine)
        act(twin)

    both(lambda c: c.update(ids=chosen[:200], metadatas=[{"seen": i} for i in range(200)]))
    both(
        lambda c: c.update(
            ids=[*chosen[200:300], "missing"],
            documents=["changed"] * 101,
            embeddings=corpus.queries[500:601],
        )
    )
    both(
        lambda c: c.upsert(
            ids=chosen[300:500],
            embeddings=corpus.queries[:200],
            metadatas=[{"section": "moved", "kept": i / 7} for i in range(200)],
        )
    )
    both(
        lambda c: c.upsert(
            ids=[f"new-{i}" for i in range(100)],
            embeddings=corpus.queries[200:300],
            documents=[f"a new engine {i}" for i in range(100)],
        )
    )
    both(lambda c: c.delete(ids=chosen[500:700]))
    both(
        lambda c: c.delete(where={"$and": [{"section": "games"}, {"installed_kib": {"$gt": 9000}}]})
    )
    both(lambda c: c.delete(where={"section": "perl"}, limit=50))
    both(
        lambda c: c.add(
            ids=[*chosen[500:600], *chosen[700:800]],  # deleted ones come back; others are ignored
            embeddings=corpus.queries[300:500],
            documents=["once more"] * 200,
        )
    )
    both(lambda c: c.update(ids=chosen[:50], metadatas=[{"seen": None}] * 50))


def compare(
    cluster: RunningCluster,
    twin: Collection,
    corpus: Corpus,
    checks: Checks,
    label: str,
    full: bool,
) -> None:
    """Everything that is read, on both."""
    client = chroma_router.Client(host=cluster.host, port=cluster.port)
    mine = client.get_collection(NAME)
    checks(f"{label}: count", mine.count() == twin.count(), f"{mine.count()} / {twin.count()}")
    status = run_cli("status", "--router", cluster.address)
    counts = [shard["records"] for shard in status["shards"]]
    even = sum(counts) / len(counts)
    skew = max(abs(count - even) / even for count in counts)
    checks(f"{label}: records per shard within 5 %", skew <= BALANCE_BAR, f"{counts} {skew:.1%}")
    if full:
        got, single = recall(mine, corpus), recall(twin, corpus)
        checks(f"{label}: recall@10", got >= RECALL_BAR, f"{got:.4f} (one Chroma {single:.4f})")
    same_reads(mine, twin, checks, label)
    same_lookups(mine, twin, corpus.ids, checks, label)
    filtered_queries(mine, twin, corpus, checks, label)


def main() -> int:
    """Runs the acceptance; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--limit", type=int, help="use only the first so many records")
    args = parser.parse_args()
    checks = Checks()
    corpus = load(args.data, args.limit)
    full = args.limit is None
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "cluster"
        twin = plain_chroma(Path(scratch) / "plain", corpus)
        records = Path(scratch) / "records.jsonl"
        with gzip.open(args.data / "packages.jsonl.gz", "rt", encoding="utf-8") as lines:
            records.write_text("".join(line for _, line in zip(corpus.ids, lines, strict=False)))
        vectors = Path(scratch) / "vectors.npy"
        np.save(vectors, np.load(args.data / "packages.f16.npy")[: len(corpus.ids)])
        with running_cluster(data, args.shards) as cluster:
            begun = time.monotonic()
            summary = run_cli(
                "ingest",
                str(records),
                "--collection",
                NAME,
                "--embeddings",
                str(vectors),
                "--space",
                "cosine",
                "--batch",
                str(BATCH),
                "--concurrency",
                "1",
                "--router",
                cluster.address,
                timeout=900,
            )
            print(f"      ingested in {time.monotonic() - begun:.1f} s: {summary}")
            compare(cluster, twin, corpus, checks, "after ingest", full)
            checks("stop exits 0", cluster.stop() == 0)
        with running_cluster(data, args.shards) as cluster:
            compare(cluster, twin, corpus, checks, "after restart", full)
            client = chroma_router.Client(host=cluster.host, port=cluster.port)
            change_both(client.get_collection(NAME), twin, corpus)
            compare(cluster, twin, corpus, checks, "after changes", False)
            checks("stop exits 0", cluster.stop() == 0)
        with running_cluster(data, args.shards) as cluster:
            compare(cluster, twin, corpus, checks, "after changes and restart", False)
    print(f"{'ALL PASS' if not checks.failed else f'{checks.failed} FAILED'}")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
