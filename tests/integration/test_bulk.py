"""BulkUpsert on a real cluster: acknowledgements, order, kills in mid-stream, cancellation."""

import os
import queue
import signal
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from chroma_router.v1 import (
    catalog_pb2,
    catalog_pb2_grpc,
    records_pb2,
    records_pb2_grpc,
    types_pb2,
)
from tests.support.cluster import RunningCluster, running_cluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

Request = records_pb2.BulkUpsertRequest
Response = records_pb2.BulkUpsertResponse
INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]


class Loader:
    """A collection, and streams to it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.records = records_pb2_grpc.RecordServiceStub(channel)
        catalog = catalog_pb2_grpc.CatalogServiceStub(channel)
        made = catalog.CreateCollection(
            catalog_pb2.CreateCollectionRequest(name=f"bulk-{uuid.uuid4()}")
        )
        self.ref = types_pb2.CollectionRef(id=made.collection.id)

    def batch(self, ids: list[str], value: int = 0, **more: Any) -> Request:
        """A batch of records whose metadata and embedding tell a value."""
        records = [
            types_pb2.Record(
                id=i,
                embedding=struct.pack("<4f", value, 1, 2, 3),
                metadata={"value": types_pb2.MetadataValue(int_value=value)},
            )
            for i in ids
        ]
        return Request(**{"collection": self.ref, "records": records, **more})

    def load(self, batches: list[Request]) -> list[Response]:
        """All batches over one stream; their answers."""
        return list(self.records.BulkUpsert(iter(batches), timeout=90))

    def stored(self) -> list[tuple[str, int]]:
        """Ids and values in insertion order, all pages."""
        request = records_pb2.GetRequest(collection=self.ref, include=[types_pb2.INCLUDE_METADATAS])
        found: list[tuple[str, int]] = []
        while True:
            page = self.records.Get(request, timeout=60)
            found += [(r.id, r.metadata["value"].int_value) for r in page.records]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


@pytest.fixture
def loader(cluster: RunningCluster) -> Iterator[Loader]:
    """On the shared cluster."""
    with grpc.insecure_channel(cluster.address) as channel:
        yield Loader(channel)


def test_fifty_batches_are_acknowledged_and_stand_in_the_order_of_the_stream(
    loader: Loader,
) -> None:
    batches = [loader.batch([f"{n}-{i}" for i in range(20)], n) for n in range(50)]
    answers = loader.load(batches)
    assert [a.batch for a in answers] == list(range(50))
    assert not [a for a in answers if a.HasField("error")]
    assert {a.records for a in answers} == {20}
    assert loader.stored() == [(f"{n}-{i}", n) for n in range(50) for i in range(20)]


def test_a_bad_batch_in_the_middle_stores_nothing_and_stops_nothing(loader: Loader) -> None:
    batches = [loader.batch([f"{n}-{i}" for i in range(5)], n) for n in range(9)]
    batches[4].records[3].embedding = b"\0" * 15
    answers = loader.load(batches)
    failed = [a for a in answers if a.HasField("error")]
    assert [(a.batch, a.error.code) for a in failed] == [(4, INVALID)]
    assert "4-3" in failed[0].error.message
    good = [n for n in range(9) if n != 4]
    assert loader.stored() == [(f"{n}-{i}", n) for n in good for i in range(5)]


def test_of_an_id_in_batch_after_batch_the_last_stands(loader: Loader) -> None:
    ids = [f"id-{i}" for i in range(30)]
    batches = [loader.batch([ids[n % 30], ids[(n + 1) % 30]], n) for n in range(120)]
    answers = loader.load(batches)
    assert not [a for a in answers if a.HasField("error")]
    last = {ids[(n + step) % 30]: n for n in range(120) for step in (0, 1)}
    stored = loader.stored()
    assert dict(stored) == last
    assert [record_id for record_id, _ in stored] == ids, "the place of the first is kept"


def test_a_node_killed_in_mid_stream_and_what_has_no_answer_sent_again(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Each batch overwrites one shared id, so that a second application would be seen: the batch
    that was sent again must not undo the later ones."""
    with (
        running_cluster(tmp_path_factory.mktemp("bulk") / "data") as hurt,
        grpc.insecure_channel(hurt.address) as channel,
    ):
        loader = Loader(channel)
        batches = [
            loader.batch(
                [f"{n}-{i}" for i in range(10)] + [f"shared-{n % 7}"],
                n,
                request_id=f"load-{n}",
            )
            for n in range(60)
        ]
        answered: dict[int, Response] = {}
        sending: queue.Queue[Request | None] = queue.Queue()
        stream = loader.records.BulkUpsert(iter(sending.get, None), timeout=90)
        for batch in batches[:30]:
            sending.put(batch)
        for number in range(10):
            answered[number] = next(stream)
        shard, pid = sorted(hurt.node_pids().items())[0]
        os.kill(pid, signal.SIGKILL)
        for batch in batches[30:40]:
            sending.put(batch)
        for number in range(10, 20):
            answered[number] = next(stream)
        stream.cancel()  # the client breaks too: of the other 20 it knows nothing

        wait_for_successor(hurt, shard, pid)
        left = batches[20:]
        for answer in loader.load(left):
            answered[20 + answer.batch] = answer
        assert not [a for a in answered.values() if a.HasField("error")]
        assert [answered[n].request_id for n in range(60)] == [f"load-{n}" for n in range(60)]

        # What was acknowledged is sent once more: it is known, and changes nothing.
        assert not [a for a in loader.load(batches[:20]) if a.HasField("error")]
        stored = dict(loader.stored())
        expected = {f"{n}-{i}": n for n in range(60) for i in range(10)}
        expected |= {f"shared-{n % 7}": n for n in range(60)}
        assert stored == expected
        assert len(loader.stored()) == len(expected)


def wait_for_successor(hurt: RunningCluster, shard: str, pid: int) -> None:
    """Until the supervisor has begun another node."""
    until = time.monotonic() + 60
    while hurt.node_pids().get(shard, pid) == pid:
        assert time.monotonic() < until, "no other node was begun"
        time.sleep(0.02)


def test_a_stream_cancelled_midway_leaves_whole_batches_and_a_router_that_serves(
    loader: Loader,
) -> None:
    ended = threading.Event()

    def endless() -> Iterator[Request]:
        number = 0
        while not ended.is_set():
            yield loader.batch([f"{number}-{i}" for i in range(50)], number)
            number += 1

    stream = loader.records.BulkUpsert(endless(), timeout=90)
    acknowledged = [next(stream).batch for _ in range(12)]
    stream.cancel()
    ended.set()
    with pytest.raises(grpc.RpcError):
        acknowledged.extend(answer.batch for answer in stream)
    # A write behind whatever was under way: it is done when that is.
    assert not loader.load([loader.batch(["after"], -1)])[0].HasField("error")
    stored = loader.stored()
    values = [value for _, value in stored if value >= 0]
    assert set(acknowledged) <= set(values), "what was acknowledged is there"
    for number in acknowledged:
        assert values.count(number) == 50
