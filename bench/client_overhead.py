"""What chroma_router.Client costs over raw gRPC stubs: query, and add of 100 records, in one run.

    python -m bench.client_overhead [--rounds 400] [--shards 3] [--loaded 3000] [--router ADDRESS]

A real cluster, of its own unless a router is named; three contestants take turns call by call, so
that a drift of the machine meets all:

raw         what an application without us has to write: generated stubs on a channel; numpy rows to
            float32 bytes, documents and metadata into records, and of an answer ids, distances,
            documents and metadata into Python lists and dicts. No checks, no request id, no trace
            id, no repeats, no deadline.
GrpcAPI     our implementation of chromadb's server interface, without its Collection
Collection  chromadb's own Collection over it: what an application uses

Prints the medians, and of the ratio of medians to raw a 95 % confidence interval (bootstrap over
rounds); beside it this process's CPU time for a call, gRPC's threads included, which says what is
left of the ratio when the cluster answers at once; then what parts of a call cost alone.
"""

import argparse
import contextlib
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from chromadb.api.models.Collection import Collection

import chroma_router
from chroma_router import columns
from chroma_router.v1 import records_pb2, records_pb2_grpc, types_pb2
from tests.support.cluster import running_cluster

DIMENSION = 384
BATCH = 100
NEIGHBOURS = 10
WORDS = "the quick brown fox jumps over the lazy dog and runs away from all of it "
INCLUDE: Any = ("metadatas", "documents", "distances")


class Batch:
    """One add: ids of its own, rows, documents and metadata of three kinds."""

    def __init__(self, name: str, rng: np.random.Generator) -> None:
        self.ids = [f"{name}-{n}" for n in range(BATCH)]
        self.rows = rng.standard_normal((BATCH, DIMENSION), dtype=np.float32)
        self.documents = [f"{WORDS * 3}{record_id}" for record_id in self.ids]
        self.metadatas: Any = [
            {"year": 1900 + n, "source": f"file-{n}.txt", "score": n / 7} for n in range(BATCH)
        ]


class Raw:
    """A hand-written client of the contract."""

    def __init__(self, channel: grpc.Channel, collection_id: str) -> None:
        self._stub = records_pb2_grpc.RecordServiceStub(channel)
        self._collection = types_pb2.CollectionRef(id=collection_id)

    def add(self, batch: Batch) -> None:
        """Adds records."""
        request = records_pb2.AddRequest(collection=self._collection)
        for n, record_id in enumerate(batch.ids):
            record = request.records.add(
                id=record_id, embedding=batch.rows[n].tobytes(), document=batch.documents[n]
            )
            for key, value in batch.metadatas[n].items():
                if isinstance(value, str):
                    record.metadata[key].string_value = value
                elif isinstance(value, int):
                    record.metadata[key].int_value = value
                else:
                    record.metadata[key].float_value = value
        self._stub.Add(request)

    def query(self, row: Any) -> dict[str, Any]:
        """Finds the nearest records."""
        request = records_pb2.QueryRequest(
            collection=self._collection,
            embeddings=[row.tobytes()],
            n_results=NEIGHBOURS,
            include=[
                types_pb2.INCLUDE_METADATAS,
                types_pb2.INCLUDE_DOCUMENTS,
                types_pb2.INCLUDE_DISTANCES,
            ],
        )
        hits = self._stub.Query(request).results[0].hits
        return {
            "ids": [hit.record.id for hit in hits],
            "distances": [hit.distance for hit in hits],
            "documents": [hit.record.document for hit in hits],
            "metadatas": [
                {
                    key: getattr(value, value.WhichOneof("kind"))
                    for key, value in hit.record.metadata.items()
                }
                for hit in hits
            ],
        }


def take_turns(
    contestants: Mapping[str, Callable[[Any], object]],
    rounds: int,
    make: Callable[[str], Any],
) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds and CPU milliseconds of each call; another contestant begins each round."""
    names = list(contestants)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for n in range(-10, rounds):  # the first ten are to warm up
        for turn in range(len(names)):
            name = names[(n + turn) % len(names)]
            argument = make(f"{name}{n}")
            before, cpu_before = time.perf_counter(), time.process_time()
            contestants[name](argument)
            elapsed, cpu = time.perf_counter() - before, time.process_time() - cpu_before
            if n >= 0:
                taken[name].append((elapsed * 1000, cpu * 1000))
    return taken


def report(what: str, taken: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Prints the medians and their ratios to the first contestant's."""
    rng = np.random.default_rng(0)
    base, *_ = taken
    rows = {name: np.array([wall for wall, _ in values]) for name, values in taken.items()}
    cpus = {name: float(np.median([cpu for _, cpu in values])) for name, values in taken.items()}
    picks = rng.integers(0, len(rows[base]), (1000, len(rows[base])))
    for name, values in rows.items():
        ratios = np.median(values[picks], axis=1) / np.median(rows[base][picks], axis=1)
        low, high = np.percentile(ratios, [2.5, 97.5])
        ratio = np.median(values) / np.median(rows[base])
        print(
            f"{what:13} {name:10} {np.median(values):7.3f} ms  {ratio:5.3f} x raw "
            f"[{low:.3f}, {high:.3f}]   CPU {cpus[name]:.3f} ms",
            flush=True,
        )


def alone(work: Callable[[], object], times: int = 300) -> float:
    """The median microseconds of `work`."""
    taken = []
    for _ in range(times):
        before = time.perf_counter()
        work()
        taken.append((time.perf_counter() - before) * 1e6)
    return statistics.median(taken)


def report_parts(collection: Collection, batch: Batch) -> None:
    """Prints what the parts of a call cost that need no cluster."""
    row = batch.rows[:1]
    prepared = collection._validate_and_prepare_add_request(
        batch.ids,
        batch.rows,
        batch.metadatas,
        batch.documents,
        None,
        None,
    )

    def fill() -> records_pb2.AddRequest:
        request = records_pb2.AddRequest()
        columns.fill_records(
            request.records,
            prepared["ids"],
            prepared["embeddings"],
            prepared["metadatas"],
            prepared["documents"],
            None,
        )
        return request

    filled = fill()
    hit = types_pb2.Hit(record=filled.records[0], distance=1.0)
    result = records_pb2.QueryResult(hits=[hit] * NEIGHBOURS)
    parts: dict[str, Callable[[], object]] = {
        "add: chromadb's checks": lambda: collection._validate_and_prepare_add_request(
            batch.ids,
            batch.rows,
            batch.metadatas,
            batch.documents,
            None,
            None,
        ),
        "add: our columns to records": fill,
        "add: protobuf to bytes": filled.SerializeToString,
        "query: chromadb's checks": lambda: collection._validate_and_prepare_query_request(
            row,
            *(None, None, None, None),
            NEIGHBOURS,
            *(None, None),
            list(INCLUDE),
        ),
        "query: our hits to columns": lambda: columns.query_result([result], list(INCLUDE)),
    }
    for name, work in parts.items():
        print(f"{name:30} {alone(work):7.0f} us")


@contextlib.contextmanager
def served(router: str | None, data: Path, shards: int) -> Iterator[str]:
    """The address of a router: the given one, or that of a new cluster."""
    if router:
        yield router
        return
    with running_cluster(data, shards) as cluster:
        yield cluster.address


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--loaded", type=int, default=3000, help="records in the collection before")
    parser.add_argument("--router", help="use the cluster that runs there")
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    with (
        tempfile.TemporaryDirectory() as scratch,
        served(args.router, Path(scratch) / "cluster", args.shards) as address,
        grpc.insecure_channel(address) as channel,
        chroma_router.Client(address) as client,
    ):
        collection = client.create_collection(f"client-overhead-{time.time_ns()}")
        raw = Raw(channel, str(collection.id))
        api: Any = client._server
        for n in range(args.loaded // BATCH):
            raw.add(Batch(f"loaded-{n}", rng))
        gc.collect()

        def query(row: Any) -> object:
            return collection.query(query_embeddings=row, n_results=NEIGHBOURS)

        def add(batch: Batch) -> None:
            collection.add(
                ids=batch.ids,
                embeddings=batch.rows,
                documents=batch.documents,
                metadatas=batch.metadatas,
            )

        queries = take_turns(
            {
                "raw": raw.query,
                "GrpcAPI": lambda row: api._query(collection.id, [row]),
                "Collection": query,
            },
            args.rounds,
            lambda _: rng.standard_normal(DIMENSION, dtype=np.float32),
        )
        report("query", queries)
        adds = take_turns(
            {
                "raw": raw.add,
                "GrpcAPI": lambda batch: api._add(
                    batch.ids,
                    collection.id,
                    list(batch.rows),
                    batch.metadatas,
                    batch.documents,
                ),
                "Collection": add,
            },
            args.rounds // 4,
            lambda name: Batch(name, rng),
        )
        report(f"add of {BATCH}", adds)
        report_parts(collection, Batch("parts", rng))


if __name__ == "__main__":
    main()
