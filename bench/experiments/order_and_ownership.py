"""Experiment 2: how a shard node puts its matches in order and filters them by ownership.

Builds three engine directories from the 63,666-record package corpus, relocates 30 % of the slots
the way a move does (copies appended at the target with their original sequence; the source keeps
stale, unowned copies), then measures, against one naive list and against brute force:

* ``get``: where the sequences of the matched records come from (state table, hidden metadata key,
  dict, engine order), and how ownership is decided (hash of the id, or a looked-up slot);
* ``query``: over-fetching, a ``slot $in`` filter in the engine, an exact scan of the owned
  records, and the engine's own ``ids`` filter, at several unowned fractions.

Usage::

    .venv/bin/python bench/experiments/order_and_ownership.py \
        --data CORPUS [--repeats 5] [--queries 50] [--seed 7]

Prints its seed and its tables, and ends by itself (about five minutes). ``--work`` keeps the engine
directories, and a later run with the same seed uses them again.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import heapq
import json
import math
import random
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import chromadb_rust_bindings as engine  # type: ignore[import-untyped]
import mmh3
import numpy as np
import numpy.typing as npt

TENANT, DATABASE = "default_tenant", "default_database"
SLOTS, SHARDS = 1024, 3
COLLECTION = "3f2a5d0e-7c53-4a55-9a06-0d4c8ed4a001"  # logical UUID: also the physical name
BASE_SEQUENCE = 1_763_000_000_000 << 20  # a hybrid logical clock: milliseconds, then a counter
SLOT_KEY, SEQUENCE_KEY = "_slot", "_sequence"

Floats = npt.NDArray[np.float32]
Key = tuple[int, str]  # (sequence, id)
Json = dict[str, Any]
KeySource = Callable[["Shard", "str | None", int], list[Key]]


def slot(record_id: str) -> int:
    """The slot of a record id: the top ten bits of the first half of the 128-bit hash."""
    return int(mmh3.mmh3_x64_128_utupledigest(record_id.encode())[0] >> 54)


@dataclass(frozen=True)
class Corpus:
    """Records and queries, in insertion order."""

    ids: list[str]
    documents: list[str]
    metadatas: list[Json]
    vectors: Floats
    queries: Floats

    @classmethod
    def load(cls, data: Path, seed: int) -> Corpus:
        """The corpus in a shuffled insertion order, since the file is sorted by id."""
        with gzip.open(data / "packages.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        order = list(range(len(rows)))
        random.Random(seed).shuffle(order)
        vectors = np.load(data / "packages.f16.npy").astype(np.float32)[order]
        queries = np.load(data / "queries.f16.npy").astype(np.float32)
        rows = [rows[i] for i in order]
        return cls(
            [r["id"] for r in rows],
            [r["document"] for r in rows],
            [{k: v for k, v in r["metadata"].items() if v is not None} for r in rows],
            np.ascontiguousarray(vectors),
            queries,
        )


@dataclass
class Shard:
    """One engine directory, its state table, and the in-memory alternatives to that table."""

    bindings: Any
    collection: str
    state: sqlite3.Connection
    owned: list[bool]  # by slot
    rows: int
    sequence_of: dict[str, int]

    @property
    def owned_fraction(self) -> float:
        return sum(self.owned[slot(i)] for i in self.sequence_of) / self.rows

    def get(
        self,
        ids: Sequence[str] | None = None,
        where: str | None = None,
        limit: int | None = None,
        offset: int = 0,
        include: Sequence[str] = (),
    ) -> Any:
        return self.bindings.get(
            self.collection,
            None if ids is None else list(ids),
            where,
            limit,
            offset,
            None,
            list(include),
            TENANT,
            DATABASE,
        )

    def query(
        self, vectors: Floats, k: int, where: str | None = None, ids: list[str] | None = None
    ) -> tuple[list[list[str]], list[list[float]]]:
        answer = self.bindings.query(
            self.collection,
            ids,
            list(vectors),
            k,
            where,
            None,
            ["distances"],
            TENANT,
            DATABASE,
        )
        return answer.ids, answer.distances


# --- building -----------------------------------------------------------------------------------

SCHEMA = """
PRAGMA journal_mode=WAL;
CREATE TABLE router_record(
  collection TEXT NOT NULL, id TEXT NOT NULL, slot INTEGER NOT NULL, sequence INTEGER NOT NULL,
  PRIMARY KEY (collection, id)) WITHOUT ROWID;
CREATE INDEX router_record_order ON router_record(collection, sequence);
CREATE INDEX router_record_slot ON router_record(collection, slot);
"""


def open_engine(path: Path) -> Any:
    config = engine.SqliteDBConfig(
        hash_type=engine.MigrationHash.MD5,
        migration_mode=engine.MigrationMode.Apply,
        url=str(path / "chroma.sqlite3"),
    )
    return engine.Bindings(
        allow_reset=False, sqlite_db_config=config, persist_path=str(path), hnsw_cache_size=100
    )


def build_shard(path: Path, corpus: Corpus, rows: list[int]) -> None:
    path.mkdir(parents=True)
    bindings = open_engine(path)
    created = bindings.create_collection(
        COLLECTION, '{"hnsw":{"space":"cosine"}}', None, None, False, TENANT, DATABASE
    )
    state = sqlite3.connect(path / "state.sqlite3", isolation_level=None)
    state.executescript(SCHEMA)
    for start in range(0, len(rows), 2000):
        part = rows[start : start + 2000]
        bindings.add(
            [corpus.ids[i] for i in part],
            str(created.id),
            [memoryview(corpus.vectors[i]) for i in part],
            [
                {
                    **corpus.metadatas[i],
                    SLOT_KEY: slot(corpus.ids[i]),
                    SEQUENCE_KEY: BASE_SEQUENCE + i,
                }
                for i in part
            ],
            [corpus.documents[i] for i in part],
            None,
            TENANT,
            DATABASE,
        )
        state.execute("BEGIN")
        state.executemany(
            "INSERT INTO router_record VALUES (?,?,?,?)",
            [(COLLECTION, corpus.ids[i], slot(corpus.ids[i]), BASE_SEQUENCE + i) for i in part],
        )
        state.execute("COMMIT")
    state.execute("ANALYZE")
    state.close()


def open_shard(path: Path, owned: list[bool]) -> Shard:
    bindings = open_engine(path)
    collection = bindings.get_collection(COLLECTION, TENANT, DATABASE)
    assert "cosine" in json.dumps(collection.configuration), collection.configuration
    state = sqlite3.connect(path / "state.sqlite3", isolation_level=None)
    sequence_of = dict(
        state.execute("SELECT id, sequence FROM router_record WHERE collection=?", (COLLECTION,))
    )
    return Shard(bindings, str(collection.id), state, owned, len(sequence_of), sequence_of)


def owners(seed: int) -> tuple[list[int], list[int]]:
    """Owner of each slot before and after 30 % of the slots moved to another shard."""
    before = [s % SHARDS for s in range(SLOTS)]
    rng = random.Random(seed + 1)
    after = list(before)
    for s in rng.sample(range(SLOTS), round(SLOTS * 0.3)):
        after[s] = (before[s] + rng.randrange(1, SHARDS)) % SHARDS
    return before, after


def build(work: Path, corpus: Corpus, seed: int) -> list[Shard]:
    before, after = owners(seed)
    slots = [slot(i) for i in corpus.ids]
    marker = work / f"complete-{seed}"
    if not marker.exists():
        began = time.perf_counter()
        for s in range(SHARDS):
            shutil.rmtree(work / f"shard-{s + 1}", ignore_errors=True)
            born = [i for i, h in enumerate(slots) if before[h] == s]
            moved = [i for i, h in enumerate(slots) if before[h] != s and after[h] == s]
            moved.sort(key=lambda i: (slots[i], corpus.ids[i]))  # a move goes slot by slot
            build_shard(work / f"shard-{s + 1}", corpus, born + moved)
        marker.touch()
        print(f"loaded in {time.perf_counter() - began:.1f} s")
    return [
        open_shard(work / f"shard-{s + 1}", [after[h] == s for h in range(SLOTS)])
        for s in range(SHARDS)
    ]


# --- get: sources of the ordered keys -----------------------------------------------------------


def match(shard: Shard, where: str | None) -> list[str]:
    """The matching ids in engine order, owned or not."""
    ids: list[str] = shard.get(where=where).ids
    return ids


def owned_by_hash(shard: Shard, ids: Sequence[str]) -> list[str]:
    owned, digest = shard.owned, mmh3.mmh3_x64_128_utupledigest
    return [i for i in ids if owned[digest(i.encode())[0] >> 54]]


def smallest(keys: list[Key], need: int) -> list[Key]:
    keys.sort()
    return keys[:need]


SQL_JSON = (
    "SELECT r.sequence, r.id FROM json_each(?) AS j CROSS JOIN router_record AS r"
    " ON r.collection=? AND r.id=j.value"
)
SQL_JSON_SLOT = SQL_JSON.replace("r.id FROM", "r.id, r.slot FROM")
SQL_TEMP = (
    "SELECT r.sequence, r.id FROM temp.matched AS m CROSS JOIN router_record AS r"
    " ON r.collection=? AND r.id=m.id"
)
SQL_WALK = (
    "SELECT sequence, id FROM router_record INDEXED BY router_record_order"
    " WHERE collection=? ORDER BY sequence"
)


def lookup_json(shard: Shard, ids: list[str]) -> list[Key]:
    return shard.state.execute(SQL_JSON, (json.dumps(ids), COLLECTION)).fetchall()


def lookup_temp(shard: Shard, ids: list[str]) -> list[Key]:
    state = shard.state
    state.execute("CREATE TEMP TABLE IF NOT EXISTS matched(id TEXT NOT NULL)")
    state.execute("BEGIN")
    state.executemany("INSERT INTO temp.matched VALUES (?)", [(i,) for i in ids])
    keys = state.execute(SQL_TEMP, (COLLECTION,)).fetchall()
    state.execute("DELETE FROM temp.matched")
    state.execute("COMMIT")
    return keys


def lookup_in(size: int) -> Callable[[Shard, list[str]], list[Key]]:
    def lookup(shard: Shard, ids: list[str]) -> list[Key]:
        keys: list[Key] = []
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            marks = ",".join("?" * len(part))
            sql = f"SELECT sequence, id FROM router_record WHERE collection=? AND id IN ({marks})"
            keys += shard.state.execute(sql, [COLLECTION, *part]).fetchall()
        return keys

    return lookup


def lookup_dict(shard: Shard, ids: list[str]) -> list[Key]:
    return list(zip(map(shard.sequence_of.__getitem__, ids), ids, strict=True))


def keys_by(lookup: Callable[[Shard, list[str]], list[Key]]) -> KeySource:
    """Match in the engine, filter by hash, look the sequences of all owned matches up, sort."""

    def keys(shard: Shard, where: str | None, need: int) -> list[Key]:
        return smallest(lookup(shard, owned_by_hash(shard, shard.get(where=where).ids)), need)

    return keys


def keys_json_slot(shard: Shard, where: str | None, need: int) -> list[Key]:
    """As json_each, but ownership from the looked-up slot."""
    rows = shard.state.execute(
        SQL_JSON_SLOT, (json.dumps(shard.get(where=where).ids), COLLECTION)
    ).fetchall()
    return smallest([(q, i) for q, i, h in rows if shard.owned[h]], need)


def keys_walk(shard: Shard, where: str | None, need: int) -> list[Key]:
    """Match in the engine, then walk the state index in order and stop at the last key needed."""
    cursor = shard.state.execute(SQL_WALK, (COLLECTION,))
    owned, digest = shard.owned, mmh3.mmh3_x64_128_utupledigest
    if where is None:
        return list(islice((k for k in cursor if owned[digest(k[1].encode())[0] >> 54]), need))
    found = set(shard.get(where=where).ids)
    hits = (k for k in cursor if k[1] in found and owned[digest(k[1].encode())[0] >> 54])
    return list(islice(hits, need))


def keys_state(shard: Shard, where: str | None, need: int) -> list[Key]:
    """The choice: walk the index if that reads fewer rows than looking up every match."""
    if where is None:
        return keys_walk(shard, where, need)
    ids = shard.get(where=where).ids
    mine = owned_by_hash(shard, ids)
    if len(mine) <= need or need * shard.rows > 2 * len(mine) * len(mine):
        return smallest(lookup_json(shard, mine), need)
    found = set(mine)
    cursor = shard.state.execute(SQL_WALK, (COLLECTION,))
    return list(islice((k for k in cursor if k[1] in found), need))


def keys_hidden(shard: Shard, where: str | None, need: int) -> list[Key]:
    """The sequence from a hidden metadata key; pages, as the engine refuses more than 32,766."""
    keys: list[Key] = []
    offset = 0
    while True:
        page = shard.get(where=where, limit=30_000, offset=offset, include=["metadatas"])
        ids = page.ids
        for i, metadata in zip(ids, page.metadatas, strict=True):
            if shard.owned[metadata[SLOT_KEY]]:
                keys.append((metadata[SEQUENCE_KEY], i))
        if len(ids) < 30_000:
            return smallest(keys, need)
        offset += 30_000


def keys_running_maximum(shard: Shard, where: str | None, need: int) -> list[Key]:
    """Engine order; the key is the running maximum of the sequence. Not exact after a move."""
    want = math.ceil(need / shard.owned_fraction * 1.1) + 64
    ids = owned_by_hash(shard, shard.get(where=where, limit=want).ids)
    if len(ids) < need:
        ids = owned_by_hash(shard, shard.get(where=where).ids)
    sequences = {i: q for q, i in lookup_json(shard, ids[:need])}
    keys, highest = [], 0
    for i in ids[:need]:
        highest = max(highest, sequences[i])
        keys.append((highest, i))
    return keys


KEY_SOURCES: dict[str, KeySource] = {
    "a1 table, json_each join": keys_by(lookup_json),
    "a1s json_each, slot looked up": keys_json_slot,
    "a2 table, temp table": keys_by(lookup_temp),
    "a3 table, IN by 500": keys_by(lookup_in(500)),
    "a3 table, IN by 30000": keys_by(lookup_in(30_000)),
    "a4 match, walk (coll,seq) index": keys_walk,
    "a5 a1 or a4, whichever reads less": keys_state,
    "b  hidden metadata key": keys_hidden,
    "c  dict id->sequence": keys_by(lookup_dict),
    "d  engine order, running max": keys_running_maximum,
}


def page(shards: list[Shard], keys: list[list[Key]], offset: int, limit: int) -> list[str]:
    """Merge the shards' keys, cut the page, fetch the winners' contents and put them in order."""
    tagged = heapq.merge(*([(k, s) for k in part] for s, part in enumerate(keys)))
    winners = list(islice(tagged, offset, offset + limit))
    found: dict[str, str] = {}
    for s, shard in enumerate(shards):
        ids = [k[1] for k, owner in winners if owner == s]
        if ids:
            answer = shard.get(ids=ids, include=["metadatas", "documents"])
            _ = answer.metadatas
            found.update(zip(answer.ids, answer.documents, strict=True))
    return [k[1] for k, _ in winners if k[1] in found]


def milliseconds(repeats: int, work: Callable[..., Any], *args: Any) -> float:
    """Median wall time of a few warm runs of ``work(*args)``."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work(*args)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def matches(metadata: Json, where: Json | None) -> bool:
    """The naive reference filter, for the few operators this experiment uses."""
    for field, condition in (where or {}).items():
        (operator, wanted), value = next(iter(condition.items())), metadata.get(field)
        if operator == "$in" and value not in wanted:
            return False
        if operator == "$gt" and (value is None or not value > wanted):
            return False
    return True


SECTIONS = ["libs", "libdevel", "python", "doc", "perl", "devel", "utils", "haskell"]
FILTERS: dict[str, Json | None] = {
    "section $in 8": {"section": {"$in": SECTIONS}},
    "kib $gt 1229": {"installed_kib": {"$gt": 1229}},
    "kib $gt 230": {"installed_kib": {"$gt": 230}},
    "section $in math": {"section": {"$in": ["math"]}},
    "no filter": None,
}


def measure_get(shards: list[Shard], corpus: Corpus, repeats: int) -> None:
    print("\n## get: ms a shard (mean of 3) for the keys; ms merged, sequential, with contents\n")
    print("| filter | matches | offset | source | keys/shard | merged | same page as one list |")
    print("|---|---:|---:|---|---:|---:|---|")
    for name, where in FILTERS.items():
        text = None if where is None else json.dumps(where)
        naive = [i for i, m in zip(corpus.ids, corpus.metadatas, strict=True) if matches(m, where)]
        engine_ms = statistics.mean(milliseconds(repeats, match, s, text) for s in shards)
        ids = [match(s, text) for s in shards]
        hash_ms = statistics.mean(
            milliseconds(repeats, owned_by_hash, s, m) for s, m in zip(shards, ids, strict=True)
        )
        mine = [owned_by_hash(s, m) for s, m in zip(shards, ids, strict=True)]
        print(
            f"| {name} | {len(naive)} | - | engine match ids only; + hash filter of"
            f" {sum(map(len, ids)) // 3} | {engine_ms:.1f} + {hash_ms:.1f} | | |"
        )
        for label, lookup in (
            ("json_each", lookup_json),
            ("temp table", lookup_temp),
            ("IN by 500", lookup_in(500)),
            ("IN by 30000", lookup_in(30_000)),
            ("dict", lookup_dict),
        ):
            cost = statistics.mean(
                milliseconds(repeats, lookup, s, m) for s, m in zip(shards, mine, strict=True)
            )
            print(
                f"| | | | lookup alone: {label}, {sum(map(len, mine)) // 3} ids | {cost:.1f} | | |"
            )
        for offset in (5000, 0):
            expected = naive[offset : offset + 100]
            if not expected:
                continue
            for label, source in KEY_SOURCES.items():
                need = offset + 100
                keys = [source(s, text, need) for s in shards]
                got = page(shards, keys, offset, 100)
                same = sum(a == b for a, b in zip(got, expected, strict=False))
                overlap = len(set(got) & set(expected))
                verdict = "exact" if got == expected else f"no: {same} in place, {overlap} of 100"
                cost = statistics.mean(milliseconds(repeats, source, s, text, need) for s in shards)
                merged = milliseconds(repeats, page, shards, keys, offset, 100)
                print(
                    f"| {name} | {len(naive)} | {offset} | {label} | {cost:.1f} |"
                    f" {3 * cost + merged:.1f} | {verdict} |",
                    flush=True,
                )


def measure_ids_with_where(shard: Shard) -> None:
    """The engine's get(ids, where) together, against two calls that the node intersects."""
    print("\n## get(ids, where): one engine call, against get(where) cut to the ids\n")
    print("| ids | filter | engine get(ids, where) ms | get(where), then the ids ms | same |")
    print("|---:|---|---:|---:|---|")
    ids = random.Random(1).sample(list(shard.sequence_of), 64)
    for where in ({"section": "libs"}, {"installed_kib": {"$gt": 230}}):
        text = json.dumps(where)
        for n in (1, 16, 64):
            asked = ids[:n]
            began = time.perf_counter()
            together = shard.get(ids=asked, where=text).ids
            first = (time.perf_counter() - began) * 1000
            began = time.perf_counter()
            wanted = set(asked)
            apart = [i for i in shard.get(where=text).ids if i in wanted]
            second = (time.perf_counter() - began) * 1000
            same = sorted(together) == sorted(apart)
            print(f"| {n} | {text} | {first:.1f} | {second:.1f} | {same} |", flush=True)


# --- memory -------------------------------------------------------------------------------------


def measure_memory(shard: Shard, path: Path) -> None:
    """Bytes a record of each in-memory form, and of the table on disk."""
    sql = "SELECT id, sequence FROM router_record WHERE collection=?"

    def compact() -> Any:
        rows = shard.state.execute(sql, (COLLECTION,))
        digest = mmh3.mmh3_x64_128_utupledigest
        table = np.fromiter(
            ((digest(i.encode())[0], q) for i, q in rows),
            dtype=[("hash", np.uint64), ("sequence", np.int64)],
        )
        table.sort(order="hash")
        return table

    forms: dict[str, Callable[[], Any]] = {
        "dict id -> sequence": lambda: dict(shard.state.execute(sql, (COLLECTION,))),
        "sorted list of (sequence, id)": lambda: shard.state.execute(
            SQL_WALK, (COLLECTION,)
        ).fetchall(),
        "numpy (hash64, sequence) sorted": compact,
    }
    print("\n## memory, bytes a record\n\n| form | bytes/record | build ms |\n|---|---:|---:|")
    for name, make in forms.items():
        gc.collect()
        began = time.perf_counter()
        make()
        took = (time.perf_counter() - began) * 1000
        tracemalloc.start()
        held = make()
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        print(f"| {name} | {size / shard.rows:.0f} | {took:.0f} |")
        del held
    shard.state.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = (path / "state.sqlite3").stat().st_size
    print(f"| table + both indexes on disk | {size / shard.rows:.0f} | |")


# --- query --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vectors:
    """All vectors of one shard, normalised, for brute force."""

    ids: list[str]
    unit: Floats

    def distances(self, query: Floats) -> Floats:
        distances: Floats = 1.0 - self.unit @ (query / np.linalg.norm(query))
        return distances


def over_fetch(
    shard: Shard, query: Floats, k: int, fraction: float, bound: int, where: str | None = None
) -> tuple[list[tuple[float, str]], int, bool]:
    """(i): the best k owned hits, the calls made, whether it gave up (bound, or exhausted)."""
    fetch = first_fetch(k, fraction)
    calls = 0
    while True:
        fetch = min(fetch, bound, shard.rows)
        ids, distances = shard.query(query[None, :], fetch, where)
        calls += 1
        hits = [(d, i) for d, i in zip(distances[0], ids[0], strict=True) if shard.owned[slot(i)]]
        if len(hits) >= k:
            return hits[:k], calls, False
        if fetch >= min(bound, shard.rows) or len(ids[0]) < fetch:
            return hits, calls, True
        fetch *= 2


def first_fetch(k: int, fraction: float) -> int:
    """Enough for k owned hits with about 99 % probability: mean plus 2.5 standard deviations."""
    if fraction >= 1.0:
        return k
    return math.ceil((k + 2.5 * math.sqrt(k * (1.0 - fraction)) + 1) / max(fraction, 1e-6))


def exact_scan(
    shard: Shard, queries: Floats, k: int, ids: Sequence[str], chunk: int = 1000
) -> list[list[tuple[float, str]]]:
    """(iii): read the owned embeddings in chunks, keep the best k of each query."""
    best: list[list[tuple[float, str]]] = [[] for _ in queries]
    unit_queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    for start in range(0, len(ids), chunk):
        answer = shard.get(ids=ids[start : start + chunk], include=["embeddings"])
        found, block = answer.ids, np.asarray(answer.embeddings, dtype=np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        distances = 1.0 - unit_queries @ block.T
        for q, row in enumerate(distances):
            top = np.argpartition(row, k)[:k] if len(row) > k else np.arange(len(row))
            best[q] = heapq.nsmallest(k, best[q] + [(float(row[t]), found[t]) for t in top])
    return best


def owned_ids(shard: Shard) -> list[str]:
    """The owned ids by the (collection, slot) index."""
    slots = json.dumps([h for h, mine in enumerate(shard.owned) if mine])
    rows = shard.state.execute(
        "SELECT r.id FROM json_each(?) AS j CROSS JOIN router_record AS r"
        " INDEXED BY router_record_slot ON r.collection=? AND r.slot=j.value",
        (slots, COLLECTION),
    )
    return [r[0] for r in rows]


def candidates(shard: Shard, where: str | None) -> list[str]:
    """The ids an exact scan has to read: the owned ones, that match if there is a filter."""
    if where is None:
        return owned_ids(shard)
    return owned_by_hash(shard, shard.get(where=where).ids)


def scan_top(shard: Shard, query: Floats, k: int, where: str | None) -> list[tuple[float, str]]:
    """(iii) for one query, with the listing of its candidates."""
    return exact_scan(shard, query[None, :], k, candidates(shard, where))[0]


def engine_top(
    shard: Shard, query: Floats, k: int, where: str | None, ids: list[str] | None = None
) -> list[tuple[float, str]]:
    """(ii) and (iv): the engine's own filter decides what is owned."""
    found, distances = shard.query(query[None, :], k, where, ids)
    return list(zip(distances[0], found[0], strict=True))


SCAN_WORTH = 6  # reading one record costs about as much as over-fetching six


def owned_top(
    shard: Shard, query: Floats, k: int, fraction: float, where: str | None
) -> tuple[list[tuple[float, str]], bool]:
    """The choice: over-fetch up to the bound, past it scan. Says if it scanned."""
    owned = round(fraction * shard.rows)  # a node keeps this as a counter of records by slot
    if owned == 0:
        return [], False
    bound = max(SCAN_WORTH * owned, k)
    if first_fetch(k, fraction) <= bound:
        hits, _, gave_up = over_fetch(shard, query, k, fraction, bound, where)
        if not gave_up:
            return hits, False
    return scan_top(shard, query, k, where), True


def recall(got: list[tuple[float, str]], truth: Floats, k: int) -> float:
    """Recall by distance: hits no farther than the k-th true distance, out of those that exist."""
    true = np.sort(truth)[:k]
    if len(true) == 0:
        return 1.0
    limit = float(true[-1]) + 1e-5
    return min(1.0, sum(d <= limit for d, _ in got) / len(true))


def each(shard: Shard, queries: Floats, k: int, ids: list[str] | None = None) -> None:
    """One engine call a vector."""
    for query in queries:
        shard.query(query[None, :], k, None, ids)


def measure_query(shard: Shard, corpus: Corpus, queries: int, repeats: int, seed: int) -> None:
    k = 10
    asked = corpus.queries[:queries]
    row_of = {i: n for n, i in enumerate(corpus.ids)}
    ids = list(shard.sequence_of)
    unit = corpus.vectors[[row_of[i] for i in ids]]
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    everything = Vectors(ids, unit)
    slots = np.array([slot(i) for i in ids])
    present = sorted(set(slots.tolist()))
    sections = np.array([corpus.metadatas[row_of[i]].get("section", "") for i in ids])

    def run(name: str, work: Callable[[Floats], Any], some: Floats) -> list[Any]:
        times, answers = [], []
        for query in some:
            began = time.perf_counter()
            answers.append(work(query))
            times.append((time.perf_counter() - began) * 1000)
        times.sort()
        print(
            f"| {name} | {statistics.median(times):.2f} | {times[int(len(times) * 0.95)]:.2f} |",
            end="",
        )
        return answers

    for where in (None, {"section": {"$in": ["libs"]}}, {"section": {"$in": ["math"]}}):
        text = None if where is None else json.dumps(where)
        wanted = (
            np.ones(len(ids), bool) if where is None else np.isin(sections, where["section"]["$in"])
        )
        print(
            f"\n## query top-10 on one shard of {shard.rows} records, where={text},"
            f" {int(wanted.sum())} match\n"
        )
        print(
            "| unowned | way | median ms | p95 ms | recall@10 | notes |\n"
            "|---:|---|---:|---:|---:|---|"
        )
        for unowned in (0.0, 0.1, 0.5, 0.9, 0.99, 0.999):
            rng = random.Random(seed + 2)
            keep = max(1, round(len(present) * (1 - unowned)))
            mine = set(rng.sample(present, keep))
            shard.owned = [h in mine for h in range(SLOTS)]
            mask = np.isin(slots, list(mine)) & wanted
            fraction = np.isin(slots, list(mine)).mean()
            listed = [i for i, m in zip(ids, mask, strict=True) if m]
            truths = [everything.distances(q)[mask] for q in asked]
            label = f"| {unowned:.1%} "

            def score(answers: list[list[tuple[float, str]]], truths: list[Floats] = truths) -> str:
                short = sum(len(a) < min(k, len(t)) for a, t in zip(answers, truths, strict=False))
                mean = statistics.mean(
                    recall(a, t, k) for a, t in zip(answers, truths, strict=False)
                )
                return f" {mean:.4f} | {'' if not short else f'{short} short; '}"

            print(label, end="")
            plain = run(
                "(i) over-fetch",
                partial(over_fetch, shard, k=k, fraction=fraction, bound=shard.rows, where=text),
                asked,
            )
            print(
                score([a[0] for a in plain])
                + f"first fetch {first_fetch(k, fraction)},"
                + f" calls {statistics.mean(a[1] for a in plain):.2f},"
                + f" gave up {sum(a[2] for a in plain)} |",
                flush=True,
            )
            print(label, end="")
            chosen_way = run(
                "chosen rule",
                partial(owned_top, shard, k=k, fraction=fraction, where=text),
                asked,
            )
            print(
                score([a[0] for a in chosen_way])
                + f"scanned {sum(a[1] for a in chosen_way)} of {len(asked)} |",
                flush=True,
            )
            print(label, end="")
            condition: Json = {SLOT_KEY: {"$in": sorted(mine)}}
            both = json.dumps(condition if where is None else {"$and": [where, condition]})
            some = asked[:20]
            hits = run("(ii) slot $in", partial(engine_top, shard, k=k, where=both), some)
            print(score(hits) + f"{keep} slots |", flush=True)
            if len(listed) <= 3000:
                print(label, end="")

                hits = run(
                    "(iii) exact scan, listing included",
                    partial(scan_top, shard, k=k, where=text),
                    some,
                )
                print(score(hits), end="")
                print(f"{len(listed)} candidates |", flush=True)
                print(label, end="")

                hits = run(
                    "(iv) query(ids=owned)",
                    partial(engine_top, shard, k=k, where=None, ids=listed),
                    some,
                )
                print(score(hits), end="")
                print(f"{len(listed)} ids |", flush=True)

    print("\n## query: raw cost by size (ms; one vector, and 32 vectors in one call)\n")
    print("| n | query n_results=n | x32 | scan of n by ids | x32 | query ids=n | recall ids |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    rng = random.Random(seed + 3)
    for n in (10, 30, 100, 300, 1000, 2000, 4000, 8000, 16000):
        chosen = rng.sample(ids, n)
        position = {i: p for p, i in enumerate(ids)}
        block = unit[[position[i] for i in chosen]]
        few, many = asked[:8], asked[:32]
        big = n > 2000
        one = milliseconds(2, each, shard, few, n) / len(few)
        batch = math.nan if big else milliseconds(2, shard.query, many, n)
        scan_one = milliseconds(repeats, exact_scan, shard, few[:1], k, chosen)
        scan_many = math.nan if big else milliseconds(repeats, exact_scan, shard, many, k, chosen)
        filtered = milliseconds(2, each, shard, few, k, chosen) / len(few)
        scores = []
        for q in few:
            found, distances = shard.query(q[None, :], k, None, chosen)
            truth = 1.0 - block @ (q / np.linalg.norm(q))
            scores.append(recall(list(zip(distances[0], found[0], strict=True)), truth, k))
        print(
            f"| {n} | {one:.2f} | {batch:.1f} | {scan_one:.2f} | {scan_many:.1f} |"
            f" {filtered:.2f} | {statistics.mean(scores):.3f} |",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory of the package corpus")
    parser.add_argument("--work", type=Path, help="keep the engine directories here")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--only", choices=["get", "memory", "query"], help="one part only")
    args = parser.parse_args()
    print(f"seed {args.seed}, engine {engine.__name__}, sqlite {sqlite3.sqlite_version}")
    corpus = Corpus.load(args.data, args.seed)
    temporary = None if args.work else tempfile.TemporaryDirectory(prefix="order-and-ownership-")
    work = args.work or Path(temporary.name if temporary else ".")
    shards = build(work, corpus, args.seed)
    try:
        for n, shard in enumerate(shards):
            print(f"shard-{n + 1}: {shard.rows} records, owned {shard.owned_fraction:.3f}")
        if args.only in (None, "memory"):
            measure_memory(shards[0], work / "shard-1")
        if args.only in (None, "get"):
            measure_get(shards, corpus, args.repeats)
            measure_ids_with_where(shards[0])
        if args.only in (None, "query"):
            measure_query(shards[0], corpus, args.queries, args.repeats, args.seed)
    finally:
        for shard in shards:
            shard.state.close()
        if temporary:
            temporary.cleanup()
    return 0


if __name__ == "__main__":
    sys.exit(main())
