"""Experiment: how a shard node reads a collection's records in the order of (slot, id).

Fills the node's own tables (shard_node.state.SCHEMA, WAL, every commit fsynced) with one
collection, once with an index on (collection, slot, id) and once without; then measures, through
the triggers and in groups as the node writes, but without the engine,

* ``write``: milliseconds for a group of 300 new records when the collection is full, and how many
  bytes of WAL it makes;
* ``page``: milliseconds for the next 5,000 keys after a place in the middle: by the index, or by
  reading all keys and keeping the smallest;
* ``build``: seconds to make the index for a directory that has none, and ``counts``: milliseconds
  to count the records of each slot, as each start of a node does.

Usage::

    python bench/experiments/slot_order.py [--records 1000000] [--seed 7] [--ids random|serial]

Prints one line for each; ends by itself (a minute or two).
"""

import argparse
import heapq
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from chroma_router.wire.slots import slot_of
from shard_node.state import SCHEMA, connect, topic_of

INDEX = "CREATE INDEX router_record_slot_test ON router_record(collection, slot, id)"
GROUP, PAGE, GROUPS = 300, 5000, 60
QUEUE = """CREATE TABLE embeddings_queue(
  seq_id INTEGER PRIMARY KEY, created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
  operation INTEGER NOT NULL, topic TEXT NOT NULL, id TEXT NOT NULL, vector BLOB, encoding TEXT,
  metadata TEXT)"""
EMBEDDING = bytes(384 * 4)


def made(path: Path, *, indexed: bool) -> sqlite3.Connection:
    """A database with the node's tables."""
    link = connect(path)
    link.execute("PRAGMA journal_mode=WAL")
    link.execute(QUEUE)
    for name, statement in SCHEMA.items():
        if name != "router_record_slot":
            link.execute(statement)
    if indexed:
        link.execute(INDEX)
    link.execute("INSERT INTO router_batch VALUES (1, 0, 0, 1, ?)", (topic_of("c"),))
    return link


def fill(link: sqlite3.Connection, ids: list[str]) -> None:
    """Puts the rows of a collection that stands, past the triggers."""
    link.execute("BEGIN")
    link.executemany(
        "INSERT INTO router_record VALUES (1, ?, ?, ?)",
        ((record_id, slot_of(record_id), n) for n, record_id in enumerate(ids)),
    )
    link.execute("COMMIT")
    link.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def write(link: sqlite3.Connection, ids: list[str], first: int) -> float:
    """Seconds for one group: staged, queued, committed with an fsync."""
    began = time.perf_counter()
    link.execute("PRAGMA synchronous=FULL")
    link.execute("BEGIN IMMEDIATE")
    link.execute("DELETE FROM router_staged")
    link.executemany(
        "INSERT INTO router_staged VALUES (?, ?, ?)",
        ((record_id, slot_of(record_id), first + n) for n, record_id in enumerate(ids)),
    )
    link.execute("UPDATE router_batch SET staged = staged + 1")
    link.executemany(
        "INSERT INTO embeddings_queue(operation, topic, id, vector) VALUES (0, ?, ?, ?)",
        ((topic_of("c"), record_id, EMBEDDING) for record_id in ids),
    )
    link.execute("COMMIT")
    return time.perf_counter() - began


def by_index(link: sqlite3.Connection) -> list[tuple[int, str]]:
    """The next page from the middle of the slots."""
    found: list[tuple[int, str]] = link.execute(
        "SELECT slot, id FROM router_record WHERE collection = 1 AND (slot, id) > (512, 'm')"
        " ORDER BY slot, id LIMIT ?",
        (PAGE,),
    ).fetchall()
    return found


def by_scan(link: sqlite3.Connection) -> list[tuple[int, str]]:
    """As by_index, from every key."""
    rows = link.execute("SELECT slot, id FROM router_record WHERE collection = 1")
    place = (512, "m")
    return heapq.nsmallest(PAGE, (row for row in rows if row > place))


def count_slots(link: sqlite3.Connection) -> list[tuple[int, int]]:
    """How many records each slot has."""
    sql = "SELECT slot, count(*) FROM router_record WHERE collection = 1 GROUP BY slot"
    return link.execute(sql).fetchall()


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The best of some runs."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--ids", choices=["random", "serial"], default="random")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    total = given.records + GROUP * GROUPS
    if given.ids == "random":
        ids = [f"{rng.getrandbits(128):032x}" for _ in range(total)]
    else:
        ids = [f"doc-{n:09}" for n in range(total)]
    print(f"seed {given.seed}, {given.records} records, {given.ids} ids")
    with tempfile.TemporaryDirectory() as work:
        for indexed in (True, False):
            path = Path(work) / f"{indexed}.sqlite3"
            link = made(path, indexed=indexed)
            fill(link, ids[: given.records])
            taken, wal = [], 0
            for group in range(GROUPS):
                first = given.records + group * GROUP
                taken.append(write(link, ids[first : first + GROUP], first))
                wal = max(wal, path.with_name(f"{path.name}-wal").stat().st_size)
            taken.sort()
            page = seconds(partial(by_index if indexed else by_scan, link))
            counted = seconds(partial(count_slots, link))
            print(
                f"{'index' if indexed else 'no index':9} write {taken[GROUPS // 2] * 1e3:6.1f} ms "
                f"p90 {taken[GROUPS * 9 // 10] * 1e3:6.1f}, "
                f"wal/group {wal / GROUPS / 1e6:5.2f} MB, "
                f"page {page * 1e3:7.1f} ms, counts {counted * 1e3:6.1f} ms, "
                f"file {path.stat().st_size / 1e6:.0f} MB"
            )
            if not indexed:
                began = time.perf_counter()
                link.execute(INDEX)
                print(f"build {time.perf_counter() - began:.1f} s")
            link.close()


if __name__ == "__main__":
    main()
