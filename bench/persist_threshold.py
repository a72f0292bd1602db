"""What a write costs the engine by `sync_threshold`, for small writes into indexes of some sizes.

    python -m bench.persist_threshold [--thresholds 1000 250] [--rows 1 5 16] [--records 0 40000]

Chroma's engine alone, in this process, with the node's settings (write-ahead log, queue kept and
indexed). Prints mean milliseconds and CPU milliseconds of a call.
"""

import argparse
import gc
import sqlite3
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import chromadb_rust_bindings as engine
import numpy as np

DIMENSION = 384
WRITTEN = 1200
LOADED_AT_ONCE = 2000
SCOPE = ("default_tenant", "default_database")


def opened(directory: Path) -> Any:
    """The engine on a directory."""
    return engine.Bindings(
        allow_reset=False,
        sqlite_db_config=engine.SqliteDBConfig(
            hash_type=engine.MigrationHash.MD5,
            migration_mode=engine.MigrationMode.Apply,
            url=str(directory / "chroma.sqlite3"),
        ),
        persist_path=str(directory),
        hnsw_cache_size=100,
    )


def prepared(directory: Path) -> Any:
    """The engine on a fresh directory with the node's settings."""
    first = opened(directory)
    del first
    gc.collect()
    with sqlite3.connect(directory / "chroma.sqlite3") as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("DELETE FROM embeddings_queue_config")
        kept = '{"automatically_purge":false,"_type":"EmbeddingsQueueConfigurationInternal"}'
        db.execute("INSERT INTO embeddings_queue_config(config_json_str) VALUES (?)", (kept,))
        db.execute("CREATE INDEX by_topic ON embeddings_queue(topic, seq_id)")
    db.close()
    return opened(directory)


def measure(threshold: int, rows: int, records: int) -> tuple[float, float]:
    """Mean wall and CPU seconds of an upsert of `rows` new rows into so many records."""
    with tempfile.TemporaryDirectory() as scratch:
        bindings = prepared(Path(scratch))
        configuration = f'{{"hnsw":{{"sync_threshold":{threshold}}}}}'
        made = bindings.create_collection(
            str(uuid.uuid4()), configuration, None, None, False, *SCOPE
        )
        bindings.count(str(made.id), *SCOPE)
        calls = max(50, WRITTEN // rows)
        vectors = np.random.default_rng(1).standard_normal(
            (records + rows * calls, DIMENSION), dtype=np.float32
        )
        written = 0

        def write(count: int) -> None:
            nonlocal written
            span = range(written, written + count)
            bindings.upsert(
                str(made.id),
                [str(i) for i in span],
                [memoryview(vectors[i].tobytes()).cast("f") for i in span],
                [{"number": i, "kind": "bench"} for i in span],
                ["d" * 200] * count,
                None,
                *SCOPE,
            )
            written += count

        while written < records:
            write(min(LOADED_AT_ONCE, records - written))
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            write(rows)
        return (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls


def main() -> None:
    """Prints a line for each combination."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--thresholds", type=int, nargs="+", default=[1000, 250, 100])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 5, 16])
    parser.add_argument("--records", type=int, nargs="+", default=[0, 40_000])
    args = parser.parse_args()
    for records in args.records:
        for rows in args.rows:
            for threshold in args.thresholds:
                wall, cpu = measure(threshold, rows, records)
                print(
                    f"{records:6} records, {rows:3} rows, sync_threshold {threshold:5}: "
                    f"{wall * 1000:5.1f} ms, CPU {cpu * 1000:5.1f} ms",
                    flush=True,
                )


if __name__ == "__main__":
    main()
