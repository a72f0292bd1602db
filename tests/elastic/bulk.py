"""The engine's own bulk rate: plain Chroma in one process, batches of 1,000.

    python -m tests.elastic.bulk RECORDS [CORPUS]

Prints records a second. A process of its own, so that nothing else shares its interpreter.
"""

import sys
import tempfile
import time
from pathlib import Path

import chromadb
from chromadb.config import Settings

from tests.elastic.corpus import Corpus, generated, packages

_BATCH = 1000


def bulk_rate(corpus: Corpus, records: int) -> float:
    """Adds so many records of the corpus to an empty collection; records a second."""
    seeds = corpus.seeds[:records]
    matrix = corpus.vectors.base[:records]
    with tempfile.TemporaryDirectory(prefix="elastic-bulk-") as scratch:
        client = chromadb.PersistentClient(scratch, settings=Settings(anonymized_telemetry=False))
        collection = client.create_collection(
            "bulk", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )
        begun = time.monotonic()
        for at in range(0, len(seeds), _BATCH):
            part = seeds[at : at + _BATCH]
            collection.add(
                ids=[seed.id for seed in part],
                embeddings=matrix[at : at + _BATCH],
                documents=[seed.document or "" for seed in part],
                metadatas=[dict(seed.metadata) for seed in part],
            )
        return len(seeds) / (time.monotonic() - begun)


def main() -> None:
    """See the module."""
    records = int(sys.argv[1])
    if len(sys.argv) > 2:
        corpus = packages(Path(sys.argv[2]), records)
    else:
        corpus = generated(records, seed=1)
    print(f"{bulk_rate(corpus, records):.1f}")


if __name__ == "__main__":
    main()
