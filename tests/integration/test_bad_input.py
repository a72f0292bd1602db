"""What a hostile or hurried client sends over raw gRPC: refused, named, nothing stored."""

import json
import math
import sqlite3
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
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
from tests.support.cluster import RunningCluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

Record = types_pb2.Record
Value = types_pb2.MetadataValue


def floats(*values: float) -> bytes:
    """An embedding."""
    return struct.pack(f"<{len(values)}f", *values)


class Raw:
    """Raw stubs and one collection of dimension 2 with one record."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.records = records_pb2_grpc.RecordServiceStub(channel)
        self.catalog = catalog_pb2_grpc.CatalogServiceStub(channel)
        made = self.catalog.CreateCollection(
            catalog_pb2.CreateCollectionRequest(name=f"bad-{uuid.uuid4()}")
        )
        self.ref = types_pb2.CollectionRef(id=made.collection.id)
        self.add(Record(id="good", embedding=floats(1, 2), document="good"))

    def add(self, *records: types_pb2.Record) -> None:
        """Adds records."""
        self.records.Add(records_pb2.AddRequest(collection=self.ref, records=records), timeout=30)

    def count(self) -> int:
        """How many records the collection has."""
        return self.records.Count(records_pb2.CountRequest(collection=self.ref)).count


@pytest.fixture
def raw(cluster: RunningCluster) -> Iterator[Raw]:
    """Stubs on the shared cluster."""
    with grpc.insecure_channel(
        cluster.address, options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        yield Raw(channel)


def refusal(call: Any, *args: Any, **kwargs: Any) -> tuple[grpc.StatusCode, str]:
    """Status and text of a call that must fail."""
    with pytest.raises(grpc.RpcError) as raised:
        call(*args, **kwargs)
    failed: Any = raised.value
    assert "Traceback" not in failed.details()
    return failed.code(), failed.details()


GOOD = floats(3, 4)
WRITES = {
    "no records": [],
    "an empty id": [Record(id="", embedding=GOOD)],
    "an id twice": [Record(id="a", embedding=GOOD), Record(id="a", embedding=GOOD)],
    "a ragged batch": [Record(id="a", embedding=GOOD), Record(id="b", embedding=floats(1))],
    "NaN": [Record(id="a", embedding=GOOD), Record(id="b", embedding=floats(1, math.nan))],
    "truncated floats": [Record(id="a", embedding=GOOD[:-1])],
    "no embedding": [Record(id="a", embedding=GOOD), Record(id="b", document="text")],
    "an empty embedding": [Record(id="a", embedding=b"")],
    "a wrong dimension": [Record(id="a", embedding=floats(1, 2, 3))],
    "a reserved key": [Record(id="a", embedding=GOOD, metadata={"#x": Value(int_value=1)})],
    "a value of no kind": [Record(id="a", embedding=GOOD, metadata={"x": Value()})],
    "an absent value in an add": [
        Record(id="a", embedding=GOOD, metadata={"x": Value(absent=True)})
    ],
    "too many": [Record(id=str(i), embedding=GOOD) for i in range(5_462)],
}


@pytest.mark.parametrize("what", list(WRITES))
def test_a_bad_write_is_refused_whole(raw: Raw, what: str) -> None:
    code, text = refusal(raw.add, *WRITES[what])
    assert code is grpc.StatusCode.INVALID_ARGUMENT, text
    assert text
    assert raw.count() == 1


WHERES: dict[str, Any] = {
    "not JSON": {"where": "{"},
    "not an object": {"where": "[1]"},
    "an unknown operator": {"where": '{"a": {"$like": "x"}}'},
    "an empty $in": {"where": '{"a": {"$in": []}}'},
    "nested 10,000 deep": {"where": '{"$and": [' * 10_000 + '{"a": 1}' + "]}" * 10_000},
    "a document operator that is none": {"where_document": '{"$like": "x"}'},
    "over 1 MiB": {"where": '{"a": "' + "x" * (1 << 20) + '"}'},
    # These the engine cannot put into a statement of SQL.
    "2,000 conditions": {"where": json.dumps({"$and": [{"a": n} for n in range(2_000)]})},
    "40,000 values": {"where": json.dumps({"a": {"$in": list(range(40_000))}})},
    "a pattern that grows": {"where_document": '{"$regex": "a{1000}{1000}"}'},
}


@pytest.mark.parametrize("what", list(WHERES))
def test_a_malformed_filter_is_refused_everywhere(raw: Raw, what: str) -> None:
    chosen = types_pb2.Filter(**WHERES[what])
    calls = {
        raw.records.Get: records_pb2.GetRequest(collection=raw.ref, filter=chosen),
        raw.records.Delete: records_pb2.DeleteRequest(collection=raw.ref, filter=chosen),
        raw.records.Query: records_pb2.QueryRequest(
            collection=raw.ref, embeddings=[GOOD], n_results=1, filter=chosen
        ),
    }
    for call, request in calls.items():
        code, text = refusal(call, request, timeout=10)
        assert code is grpc.StatusCode.INVALID_ARGUMENT, text
        assert "where" in text
    assert raw.count() == 1


CONFIGURATIONS = {
    "hnsw.max_neighbors": [{"max_neighbors": 0}, {"max_neighbors": 1_000_000}],
    "hnsw.sync_threshold": [{"sync_threshold": 0}, {"sync_threshold": 2**60}],
    "hnsw.batch_size": [{"batch_size": 0}],
}


def test_an_index_that_would_undo_the_engine_is_refused_however_it_is_asked_for(raw: Raw) -> None:
    """With 0 or a million neighbours the first write ended the engine, and each start again."""
    asked: list[tuple[str, dict[str, Any]]] = [
        (name, {"configuration_json": json.dumps({"hnsw": hnsw})})
        for name, parts in CONFIGURATIONS.items()
        for hnsw in parts
    ]
    asked += [
        ("hnsw", {"metadata": {"hnsw:M": Value(int_value=number)}}) for number in (0, -1, 10**6)
    ]
    for name, options in asked:
        wanted = f"bad-{uuid.uuid4()}"
        request = catalog_pb2.CreateCollectionRequest(name=wanted, **options)
        code, text = refusal(raw.catalog.CreateCollection, request, timeout=10)
        assert code is grpc.StatusCode.INVALID_ARGUMENT, text
        assert name in text
        ref = types_pb2.CollectionRef(name=wanted)
        code, _ = refusal(
            raw.catalog.GetCollection, catalog_pb2.GetCollectionRequest(collection=ref)
        )
        assert code is grpc.StatusCode.NOT_FOUND, "as if never made"
    assert raw.count() == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ('{"hnsw": 1}', "hnsw"),
        ('{"hnsw": []}', "hnsw"),
        ('{"hnsw": {"ef_search": -1}}', "hnsw.ef_search"),
        ('{"hnsw": {"bogus": 1}}', "hnsw.bogus"),
        ('{"spann": {"space": "l2"}}', "spann"),
        ('{"unknown": {}}', "unknown"),
        ('{"embedding_function": 1}', "embedding_function"),
    ],
)
def test_a_change_that_no_engine_could_read_is_not_kept(raw: Raw, change: str, named: str) -> None:
    """It was kept in the catalog, and the collection's next grant failed."""
    which = catalog_pb2.GetCollectionRequest(collection=raw.ref)
    before = raw.catalog.GetCollection(which).collection.configuration_json
    request = catalog_pb2.UpdateCollectionRequest(collection=raw.ref, new_configuration_json=change)
    code, text = refusal(raw.catalog.UpdateCollection, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT, text
    assert named in text
    request.new_configuration_json = '{"hnsw": null}'
    raw.catalog.UpdateCollection(request)
    after = raw.catalog.GetCollection(which).collection.configuration_json
    assert json.loads(after) == json.loads(before)


QUERIES: dict[str, Any] = {
    "no embedding": {"embeddings": [], "n_results": 1},
    "n_results 0": {"embeddings": [GOOD], "n_results": 0},
    "n_results huge": {"embeddings": [GOOD], "n_results": 1_000_000_000},
    "a wrong dimension": {"embeddings": [floats(1)], "n_results": 1},
    "infinity": {"embeddings": [floats(1, math.inf)], "n_results": 1},
    "too many embeddings": {"embeddings": [GOOD] * 1_001, "n_results": 1},
}


@pytest.mark.parametrize("what", list(QUERIES))
def test_a_bad_query_is_refused(raw: Raw, what: str) -> None:
    request = records_pb2.QueryRequest(collection=raw.ref, **QUERIES[what])
    code, text = refusal(raw.records.Query, request, timeout=10)
    assert code is grpc.StatusCode.INVALID_ARGUMENT, text


@pytest.mark.parametrize("include", [[0], [99], [1, -1]])
def test_a_part_of_a_record_that_is_none_is_refused_everywhere(
    raw: Raw, include: list[Any]
) -> None:
    refs: dict[str, Any] = {"collection": raw.ref, "include": include}
    query = records_pb2.QueryRequest(embeddings=[GOOD], n_results=1, **refs)
    calls: list[tuple[Any, Any]] = [
        (raw.records.Get, records_pb2.GetRequest(**refs)),
        (raw.records.Query, query),
        (lambda r, **o: list(raw.records.Scan(r, **o)), records_pb2.ScanRequest(**refs)),
    ]
    for call, request in calls:
        code, text = refusal(call, request, timeout=10)
        assert code is grpc.StatusCode.INVALID_ARGUMENT, text
        assert text.startswith(f"include: {include[-1]} ")


def test_an_unknown_collection(raw: Raw) -> None:
    missing = types_pb2.CollectionRef(id=str(uuid.uuid4()))
    code, text = refusal(raw.records.Count, records_pb2.CountRequest(collection=missing))
    assert code is grpc.StatusCode.NOT_FOUND
    assert missing.id in text
    named = types_pb2.CollectionRef(name="nowhere")
    code, text = refusal(raw.records.Count, records_pb2.CountRequest(collection=named))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "[nowhere]" in text
    code, _ = refusal(raw.records.Count, records_pb2.CountRequest())
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_delete_of_everything_and_a_limit_without_a_condition(raw: Raw) -> None:
    code, _ = refusal(raw.records.Delete, records_pb2.DeleteRequest(collection=raw.ref))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    some = types_pb2.Filter(ids=["good"], by_ids=True)
    limited = records_pb2.DeleteRequest(collection=raw.ref, filter=some, limit=1)
    code, _ = refusal(raw.records.Delete, limited)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert raw.count() == 1


def test_a_message_over_the_limit(raw: Raw) -> None:
    big = Record(id="big", embedding=GOOD, document="x" * (65 << 20))
    code, _ = refusal(raw.add, big)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert raw.count() == 1


def test_bytes_that_are_no_message(cluster: RunningCluster) -> None:
    with grpc.insecure_channel(cluster.address) as channel:
        for method in ("Add", "Get", "Query"):
            call: Any = channel.unary_unary(f"/chroma_router.v1.RecordService/{method}")
            code, _ = refusal(call, b"\xff\xff\xff", timeout=10)
            assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_page_token_that_is_none(raw: Raw) -> None:
    request = records_pb2.GetRequest(collection=raw.ref, page_token="nonsense")
    code, text = refusal(raw.records.Get, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "page_token" in text


def serve(*args: str) -> subprocess.CompletedProcess[str]:
    """`chroma-router serve`, which must refuse."""
    return subprocess.run(
        [sys.executable, "-m", "router.cli.main", "serve", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_catalog_that_cannot_be_read_and_one_of_a_newer_format(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.sqlite3"
    garbage.write_bytes(b"this is no database" * 100)
    done = serve("--catalog", str(garbage), "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert str(garbage) in done.stderr
    assert "Traceback" not in done.stderr

    newer = tmp_path / "newer.sqlite3"
    with sqlite3.connect(newer) as db:
        db.execute("CREATE TABLE t (x)")
        db.execute("PRAGMA user_version = 99")
    db.close()
    done = serve("--catalog", str(newer), "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert str(newer) in done.stderr


def test_a_settings_file_with_an_unknown_key(tmp_path: Path) -> None:
    settings = tmp_path / "router.toml"
    settings.write_text('listen = "127.0.0.1:0"\nlissten = "x"\n')
    done = serve("--config", str(settings))
    assert done.returncode in {1, 2}
    assert "lissten" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use(cluster: RunningCluster, tmp_path: Path) -> None:
    shard = ("--shard", "shard-1=127.0.0.1:1")
    done = serve("--catalog", str(tmp_path / "c.sqlite3"), "--listen", cluster.address, *shard)
    assert done.returncode == 1
    assert cluster.address in done.stderr
    assert "Traceback" not in done.stderr
