"""Edges of the interface on a whole cluster: filters by id, bad batches, large things, races."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from chromadb.api import ClientAPI
from chromadb.errors import ChromaError, InternalError, NotFoundError

import chroma_router
from chroma_router.v1 import records_pb2, records_pb2_grpc, types_pb2
from tests.support.cluster import RunningCluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

Fresh = Callable[..., Any]


def rows(count: int, dimension: int = 2, seed: int = 1) -> Any:
    """Random embeddings."""
    return np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)


def by_shard(cluster: RunningCluster, collection: Any) -> dict[str, list[str]]:
    """The ids of each shard, as the shards themselves tell with their hits."""
    with grpc.insecure_channel(cluster.address) as channel:
        answer = records_pb2_grpc.RecordServiceStub(channel).Query(
            records_pb2.QueryRequest(
                collection=types_pb2.CollectionRef(id=str(collection.id)),
                embeddings=[bytes(8)],
                n_results=10_000,
            )
        )
    found: dict[str, list[str]] = {}
    for hit in answer.results[0].hits:
        found.setdefault(hit.shard, []).append(hit.record.id)
    return found


def test_id_filters_of_no_shard_one_shard_and_all(cluster: RunningCluster, fresh: Fresh) -> None:
    collection = fresh()
    ids = [f"r{n}" for n in range(120)]
    collection.add(ids=ids, embeddings=rows(120), metadatas=[{"n": n % 2} for n in range(120)])
    shards = by_shard(cluster, collection)
    assert len(shards) == 3
    query = rows(1, seed=2)
    for asked in (*shards.values(), ids[40:80], [part[0] for part in shards.values()]):
        expected = [i for i in ids if i in set(asked)]
        assert collection.get(ids=asked[::-1], include=[])["ids"] == expected
        found = collection.query(query_embeddings=query, ids=asked, n_results=200)["ids"][0]
        assert sorted(found) == sorted(asked)
        odd = collection.query(query_embeddings=query, ids=asked, n_results=200, where={"n": 1})
        assert sorted(odd["ids"][0]) == sorted(i for i in asked if int(i[1:]) % 2)
        assert collection.get(ids=asked, limit=1, offset=1, include=[])["ids"] == expected[1:2]
    missing = ["nowhere", "neither"]
    assert collection.get(ids=missing)["ids"] == []
    with pytest.raises(InternalError, match=r"Error finding id: .*'(nowhere|neither)'"):
        collection.query(query_embeddings=query, ids=missing)
    known = collection.query(query_embeddings=query, ids=[*missing, "r1"], where={"n": 1})
    assert known["ids"] == [["r1"]]
    assert collection.query(query_embeddings=query, ids=[])["ids"] == [[]]
    with grpc.insecure_channel(cluster.address) as channel:
        stub = records_pb2_grpc.RecordServiceStub(channel)
        none = types_pb2.Filter(by_ids=True)  # no shard has any of them
        ref = types_pb2.CollectionRef(id=str(collection.id))
        assert not stub.Get(records_pb2.GetRequest(collection=ref, filter=none)).records
        assert stub.Delete(records_pb2.DeleteRequest(collection=ref, filter=none)).deleted == 0
    assert collection.delete(ids=[*shards["shard-1"], ""])["deleted"] == len(shards["shard-1"]) + 1
    left = [i for i in ids if i not in set(shards["shard-1"])]
    assert collection.get(include=[])["ids"] == left
    assert collection.get(ids=shards["shard-1"])["ids"] == []


BAD: dict[str, Callable[[types_pb2.Record], object]] = {
    "an embedding of another dimension": lambda r: setattr(r, "embedding", bytes(12)),
    "a NaN": lambda r: setattr(r, "embedding", np.array([np.nan, 1], "<f4").tobytes()),
    "an empty id": lambda r: setattr(r, "id", ""),
    "an id that stands twice": lambda r: setattr(r, "id", "r0"),
    "a reserved key": lambda r: r.metadata["chroma:document"].SetInParent(),
    "a metadata NaN": lambda r: setattr(r.metadata["x"], "float_value", float("nan")),
    "an empty array": lambda r: r.metadata["x"].int_array.SetInParent(),
}


@pytest.mark.parametrize("what", list(BAD))
def test_one_bad_record_of_a_batch_over_all_shards(
    cluster: RunningCluster, fresh: Fresh, what: str
) -> None:
    collection = fresh()
    ids = [f"r{n}" for n in range(60)]
    collection.add(ids=ids, embeddings=rows(60), documents=["before"] * 60)
    before = collection.get(include=["documents", "metadatas", "embeddings"])
    batch = [types_pb2.Record(id=f"r{n}", embedding=bytes(8), document="after") for n in range(200)]
    BAD[what](batch[137])
    ref = types_pb2.CollectionRef(id=str(collection.id))
    with grpc.insecure_channel(cluster.address) as channel:
        stub = records_pb2_grpc.RecordServiceStub(channel)
        kinds: list[tuple[Any, Any]] = [
            (stub.Add, records_pb2.AddRequest),
            (stub.Upsert, records_pb2.UpsertRequest),
            (stub.Update, records_pb2.UpdateRequest),
        ]
        for call, request in kinds:
            with pytest.raises(grpc.RpcError) as refused:
                call(request(collection=ref, records=batch))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    after = collection.get(include=["documents", "metadatas", "embeddings"])
    assert (after["ids"], after["documents"]) == (before["ids"], before["documents"])
    assert after["metadatas"] == before["metadatas"]
    np.testing.assert_array_equal(after["embeddings"], before["embeddings"])


def test_documents_of_a_megabyte(fresh: Fresh) -> None:
    collection = fresh()
    # The engine's text index ends at a NUL, alone as here; what is kept does not.
    documents = {f"d{n}": "\U0001f980" + "é" * (1 << 19) + f" end-{n}.\0{n}" for n in range(24)}
    ids = list(documents)
    for at in range(0, 24, 8):
        part = ids[at : at + 8]
        collection.add(ids=part, embeddings=rows(8), documents=[documents[i] for i in part])
    got = collection.get()
    assert dict(zip(got["ids"], got["documents"], strict=True)) == documents
    assert got["ids"] == ids
    assert collection.get(where_document={"$contains": "end-17."})["ids"] == ["d17"]
    (hits,) = collection.query(query_embeddings=rows(1), n_results=24)["documents"]
    assert sorted(hits) == sorted(documents.values())


def test_twenty_thousand_ids_at_once(fresh: Fresh) -> None:
    collection = fresh()
    count = 20_000
    ids = [f"r{n:05}" for n in range(count)]
    vectors = rows(count)
    for at in range(0, count, 5000):
        part = slice(at, at + 5000)
        collection.add(
            ids=ids[part],
            embeddings=vectors[part],
            metadatas=[{"n": n} for n in range(at, at + 5000)],
        )
    shuffled = list(np.random.default_rng(3).permutation(ids))
    got = collection.get(ids=[str(i) for i in shuffled], include=["metadatas"])
    assert got["ids"] == ids
    assert [m["n"] for m in got["metadatas"]] == list(range(count))
    some = collection.get(ids=[*ids, "missing"], where={"n": {"$lt": 7}}, include=[])
    assert some["ids"] == ids[:7]
    assert collection.get(ids=ids, limit=3, offset=19_998, include=[])["ids"] == ids[19_998:]
    found = collection.query(query_embeddings=vectors[:1], ids=ids, n_results=1)
    assert found["ids"] == [[ids[0]]]


def test_shards_that_hold_nothing(fresh: Fresh) -> None:
    collection = fresh()
    empty = collection.query(query_embeddings=[[1.0], [2.0]], n_results=3)
    assert (empty["ids"], empty["distances"]) == ([[], []], [[], []])
    assert collection.get()["ids"] == []
    assert collection.delete(where={"a": 1})["deleted"] == 0
    assert collection.delete(ids=["x"])["deleted"] == 1  # as Chroma counts: those asked for
    collection.update(ids=["x"], metadatas=[{"a": 1}])
    assert collection.count() == 0
    collection.add(ids=["only"], embeddings=[[1.0, 0.0]], metadatas=[{"a": 1}])
    with pytest.raises(ChromaError, match="dimension of 2, got 3"):
        collection.add(ids=["b", "c", "d", "e", "f"], embeddings=np.ones((5, 3)))
    assert collection.query(query_embeddings=[[1.0, 0.0]], n_results=9)["ids"] == [["only"]]
    assert collection.get(where={"a": 1})["ids"] == ["only"]
    assert collection.delete(where={"a": 1}, limit=5)["deleted"] == 1
    with pytest.raises(ChromaError, match="dimension of 2, got 3"):  # emptied, it keeps its own
        collection.query(query_embeddings=[[1.0, 0.0, 0.0]])


class Readers:
    """Threads that read one collection by its name, while others delete it and make it again.

    Each answer must be of one generation, that of the handle it was asked by, or say that it is
    gone. A generation is filled by one add, so an answer may hold a part of it.
    """

    def __init__(self, client: ClientAPI, name: str, size: int) -> None:
        self._client, self._name, self._size = client, name, size
        self._stop = threading.Event()
        self._full = [0] * 6
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._read, args=(n,)) for n in range(6)]
        for thread in self._threads:
            thread.start()

    def await_full(self, answers: int) -> None:
        """Waits for so many more answers that hold a whole generation."""
        goal = sum(self._full) + answers
        until = time.monotonic() + 60
        while sum(self._full) < goal and not self._failures:
            assert time.monotonic() < until
            time.sleep(0.005)

    def end(self) -> None:
        """Stops them; raises what they found."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        for failure in self._failures:
            raise failure

    def _read(self, me: int) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            try:
                self._full[me] += self._one_answer(turn) == self._size
            except NotFoundError:
                continue
            except BaseException as error:
                self._failures.append(error)
                return

    def _one_answer(self, turn: int) -> int:
        """How many records it had."""
        handle: Any = self._client.get_collection(self._name)
        generation = handle.metadata["generation"]
        if turn % 3 == 0:
            count = int(handle.count())
            assert count <= self._size
            return count
        if turn % 3 == 1:
            got = handle.get()
            ids, metadatas = got["ids"], got["metadatas"]
        else:
            row = rows(1, seed=turn)
            answer = handle.query(query_embeddings=row, n_results=2 * self._size)
            ids, metadatas = answer["ids"][0], answer["metadatas"][0]
        assert len(set(ids)) == len(ids) <= self._size
        assert all(i.startswith(f"g{generation}-") for i in ids), (generation, ids)
        assert all(m == {"generation": generation} for m in metadatas)
        return len(ids)


def test_a_collection_that_comes_and_goes_under_readers(client: ClientAPI) -> None:
    name, size = "under-readers", 30
    readers: Readers | None = None
    try:
        for generation in range(8):
            made = client.create_collection(name, metadata={"generation": generation})
            made.add(
                ids=[f"g{generation}-{n}" for n in range(size)],
                embeddings=rows(size, seed=generation),
                metadatas=[{"generation": generation}] * size,
            )
            readers = readers or Readers(client, name, size)
            readers.await_full(6)
            client.delete_collection(name)
    finally:
        if readers is not None:
            readers.end()


_ADDING = """
import sys, numpy as np, chroma_router
collection = chroma_router.Client(sys.argv[1], int(sys.argv[2])).get_collection(sys.argv[3])
for batch in range(10_000):
    ids = [f"b{batch}-{n}" for n in range(60)]
    collection.add(ids=ids, embeddings=np.full((60, 2), batch, np.float32))
    print(batch, flush=True)
"""


def test_a_client_that_is_killed_while_it_adds(cluster: RunningCluster, fresh: Fresh) -> None:
    collection = fresh()
    place = (cluster.host, str(cluster.port), collection.name)
    acknowledged = -1
    with subprocess.Popen(
        [sys.executable, "-c", _ADDING, *place], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            acknowledged = int(line)
            if acknowledged == 12:
                process.kill()
    # What it had sent is applied to its end by shards that have it, or never.
    until = time.monotonic() + 20
    counts = [collection.count()]
    while len(counts) < 3 or len(set(counts[-3:])) > 1:
        assert time.monotonic() < until
        time.sleep(0.1)
        counts.append(collection.count())
    present = set(collection.get(include=[])["ids"])
    last = acknowledged + 1
    whole = {f"b{batch}-{n}" for batch in range(last) for n in range(60)}
    torn = {f"b{last}-{n}" for n in range(60)}
    assert whole <= present <= whole | torn
    # Each shard has its part of the batch that was cut off, or nothing of it.
    collection.add(ids=sorted(torn), embeddings=np.zeros((60, 2)))
    for ids in by_shard(cluster, collection).values():
        part = torn & set(ids)
        assert part <= present or not part & present
    assert collection.count() == len(whole | torn)


def test_calls_cancelled_in_flight_take_effect_at_most_once(
    cluster: RunningCluster, fresh: Fresh
) -> None:
    collection = fresh()
    collection.add(
        ids=[f"r{n}" for n in range(400)], embeddings=rows(400), metadatas=[{"n": 1}] * 400
    )
    ref = types_pb2.CollectionRef(id=str(collection.id))
    with grpc.insecure_channel(cluster.address) as channel:
        stub = records_pb2_grpc.RecordServiceStub(channel)
        for n in range(30):
            records = [
                types_pb2.Record(id=f"c{n}-{i}", embedding=bytes(8), document=f"try {n}")
                for i in range(30)
            ]
            upsert = records_pb2.UpsertRequest(
                collection=ref, records=records, request_id=f"cancelled-upsert-{n}"
            )
            delete = records_pb2.DeleteRequest(
                collection=ref,
                filter=types_pb2.Filter(where='{"n": 1}'),
                limit=7,
                request_id=f"cancelled-delete-{n}",
            )
            begun: list[Any] = [stub.Upsert.future(upsert), stub.Delete.future(delete)]
            time.sleep(0.0007 * n)  # from before the router has them to after they are done
            for call in begun:
                call.cancel()
            # A record that the cancelled one may have made, then deleted, does not come back by it.
            stub.Upsert(upsert, timeout=30)
            collection.delete(ids=[f"c{n}-0"])
            stub.Upsert(upsert, timeout=30)
            assert stub.Delete(delete, timeout=30).deleted == 7
            assert stub.Delete(delete, timeout=30).deleted == 7
    assert len(collection.get(where={"n": 1}, include=[])["ids"]) == 400 - 30 * 7
    assert len(collection.get(where_document={"$contains": "try"}, include=[])["ids"]) == 30 * 29
    assert collection.count() == 400 - 30 * 7 + 30 * 29


def test_fifty_threads_of_get_or_create_have_one_winner(cluster: RunningCluster) -> None:
    begin = threading.Barrier(50)

    def race(n: int) -> tuple[str, Any]:
        mine = chroma_router.Client(cluster.host, cluster.port)
        begin.wait()
        got: list[Any] = [
            mine.get_or_create_collection("fifty", metadata={"n": n}) for _ in range(2)
        ]
        got[0].upsert(ids=[f"r{n}"], embeddings=[[float(n), 1.0]])
        return str(got[0].id), got[1].metadata["n"]

    with ThreadPoolExecutor(50) as pool:
        told = list(pool.map(race, range(50)))
    assert len(set(told)) == 1
    found = chroma_router.Client(cluster.host, cluster.port).get_collection("fifty")
    assert found.count() == 50
