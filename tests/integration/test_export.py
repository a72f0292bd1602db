"""Out of a real cluster and back: `export` and `ingest` lose nothing, in either format."""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromadb.api import ClientAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import chroma_router
from chroma_router.v1 import types_pb2
from router.cli.link import RouterLink
from router.cli.patient import PatientLink
from tests.integration.test_import import cli, until
from tests.support.cluster import RunningCluster

pytest.importorskip("pyarrow", reason="Parquet is an extra")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

FORMATS = ("jsonl", "jsonl.gz", "parquet")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
keys = st.text(st.sampled_from("abc é😀\0_"), min_size=1, max_size=4)
floats = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9).map(float)
integers = st.integers(-(2**63), 2**63 - 1)
values = st.one_of(
    texts,
    integers,
    floats,
    st.booleans(),
    *(st.lists(kind, min_size=1, max_size=3) for kind in (texts, integers, floats, st.booleans())),
)
records = st.fixed_dictionaries(
    {
        "embedding": st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False),
                              min_size=3, max_size=3),
        "document": st.none() | texts,
        "uri": st.none() | texts,
        "metadata": st.none() | st.dictionaries(keys, values, min_size=1, max_size=4),
    }
)  # fmt: skip


async def read(cluster: RunningCluster, name: str) -> list[types_pb2.Record]:
    """The records as they are on the wire, in order."""
    async with RouterLink(cluster.address) as link:
        pages = PatientLink(link, 30).pages(types_pb2.CollectionRef(name=name))
        return [record async for page in pages for record in page]


def export(cluster: RunningCluster, *arguments: object) -> Any:
    done = cli("export", "--router", cluster.address, "--json", *map(str, arguments))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ingest(cluster: RunningCluster, file: Path, into: str, *more: str) -> None:
    done = cli("ingest", str(file), "--collection", into, "--router", cluster.address, *more)
    assert done.returncode == 0, done.stderr


def add(client: ClientAPI, name: str, rows: list[dict[str, Any]], **options: Any) -> None:
    """A collection of these rows; ids that are hard on files, in no order but that of insertion."""
    collection = client.create_collection(name, **options)
    collection.add(
        [f'{(at * 7919) % 10007}\n"ü\0"' for at in range(len(rows))],
        np.asarray([row["embedding"] for row in rows], dtype="f4"),
        [row["metadata"] for row in rows],
        [row["document"] for row in rows],
        uris=[row["uri"] for row in rows],
    )


NASTY: list[dict[str, Any]] = [
    {"embedding": [0.1, -0.0, 1e-45], "document": None, "uri": None, "metadata": None},
    {"embedding": [3.4e38, 1, 2], "document": "", "uri": "", "metadata": {"a": 1.0, "b": 1}},
    {"embedding": [1 / 3, 2**24 + 2, -1e-38], "document": "\0 \u2028\n😀", "uri": "u:\r\n",
     "metadata": {"i": 2**53 + 1, "l": -(2**63), "t": True, "f": 1e308, "z": 5e-324}},
    {"embedding": [0, 0, 0], "document": "ä" * 2**19, "uri": None,
     "metadata": {"s": ["", "\0", "null"], "i": [2**63 - 1], "f": [1.0, -2.5], "b": [True, False]}},
    {"embedding": [1, 2, 3], "document": "null", "uri": "null", "metadata": {"null": "null"}},
]  # fmt: skip


@pytest.mark.parametrize("suffix", FORMATS)
def test_nasty_records_go_out_and_come_back(
    cluster: RunningCluster, client: ClientAPI, tmp_path: Path, suffix: str
) -> None:
    name = f"nasty-{suffix}"
    hnsw = {"space": "ip", "ef_construction": 50, "max_neighbors": 9}
    add(client, name, NASTY, configuration={"hnsw": hnsw},
        metadata={"a": 1, "b": 1.0, "placement:shards": 2})  # fmt: skip
    file = tmp_path / f"out.{suffix}"
    summary = export(cluster, "--collection", name, "--to", file)
    assert summary["records"] == summary["files"][0]["records"] == len(NASTY)
    ingest(cluster, file, f"{name}-2")
    before, after = (asyncio.run(read(cluster, n)) for n in (name, f"{name}-2"))
    assert before == after
    assert len(after) == len(NASTY)
    old, new = client.get_collection(name), client.get_collection(f"{name}-2")
    assert (new.metadata, new.configuration_json) == (old.metadata, old.configuration_json)
    assert sorted(tmp_path.rglob("*")) == [file], "nothing else is left"


@settings(max_examples=2, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(rows=st.lists(records, min_size=20, max_size=60))
def test_whatever_records_go_out_and_come_back(
    cluster: RunningCluster, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    client = chroma_router.Client(host=cluster.host, port=cluster.port)
    add(client, "any", rows)
    try:
        before = asyncio.run(read(cluster, "any"))
        for suffix in ("jsonl", "parquet"):
            file = tmp_path / f"any.{suffix}"
            export(cluster, "--collection", "any", "--to", file, "--force")
            ingest(cluster, file, f"any-{suffix}")
            assert asyncio.run(read(cluster, f"any-{suffix}")) == before
    finally:
        for collection in client.list_collections():
            if collection.name in {"any", "any-jsonl", "any-parquet"}:
                client.delete_collection(collection.name)


def test_order_and_pages_of_a_larger_collection(
    cluster: RunningCluster, client: ClientAPI, tmp_path: Path
) -> None:
    count = 7000
    collection = client.create_collection("larger", configuration={"hnsw": {"space": "l2"}})
    vectors = np.random.default_rng(1).normal(size=(count, 4)).astype("f4")
    ids = [f"{math.sin(n)}" for n in range(count)]
    for at in range(0, count, 3500):
        collection.add(ids[at : at + 3500], vectors[at : at + 3500])
    for file_format in ("jsonl", "parquet"):
        export(cluster, "--collection", "larger", "--to", tmp_path, "--format", file_format)
        ingest(cluster, tmp_path / f"larger.{file_format}", f"larger-{file_format}")
        got = client.get_collection(f"larger-{file_format}").get(include=["embeddings"])
        assert got["ids"] == ids
        assert np.array_equal(np.asarray(got["embeddings"]), vectors)


def test_a_directory_of_all_collections_and_an_empty_one(
    cluster: RunningCluster, client: ClientAPI, tmp_path: Path
) -> None:
    admin = chroma_router.AdminClient(host=cluster.host, port=cluster.port)
    admin.create_database("exported")
    there = chroma_router.Client(host=cluster.host, port=cluster.port, database="exported")
    add(there, "some", NASTY)
    there.create_collection("none-yet", metadata={"x": True})
    for file_format in ("jsonl", "parquet"):
        asked = ["--database", "exported", "--to", tmp_path / "out", "--format", file_format]
        assert [f["records"] for f in export(cluster, *asked)["files"]] == [0, len(NASTY)]
        refused = cli("export", "--router", cluster.address, *map(str, asked))
        assert (refused.returncode, "--force" in refused.stderr) == (1, True)
        export(cluster, *asked, "--force")
        empty = tmp_path / "out" / f"none-yet.{file_format}"
        ingest(cluster, empty, "none-again", "--database", "exported")
        again = there.get_collection("none-again")
        assert (again.metadata, again.count()) == ({"x": True}, 0)
        there.delete_collection("none-again")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("none-yet.jsonl", "none-yet.parquet", "some.jsonl", "some.parquet")
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_names_that_no_disk_takes_as_they_are(
    cluster: RunningCluster, client: ClientAPI, tmp_path: Path, suffix: str
) -> None:
    names = ["n" * 512, "n" * 511 + "m", "Case-only", "case-only", "plain"]
    for at, name in enumerate(names):
        client.create_collection(name).add([f"r{at}"], np.ones((1, 2), "f4"))
    asked = [part for name in names for part in ("--collection", name)]
    files = export(cluster, *asked, "--to", tmp_path, "--format", suffix)["files"]
    paths = {file["collection"]: Path(file["file"]) for file in files}
    assert len({path.name.casefold() for path in paths.values()}) == len(names)
    assert paths["plain"].name == f"plain.{suffix}"
    for at, name in enumerate(names):
        client.delete_collection(name)
        ingest(cluster, paths[name], name)
        assert client.get_collection(name).get()["ids"] == [f"r{at}"]
        client.delete_collection(name)
    if suffix == "jsonl":
        heads = [json.loads(paths[name].read_text().splitlines()[0]) for name in names]
        assert [head["collection"] for head in heads] == names


def test_an_export_into_what_exists_with_another_index(
    cluster: RunningCluster, client: ClientAPI, tmp_path: Path
) -> None:
    add(client, "as-ip", NASTY, configuration={"hnsw": {"space": "ip"}})
    client.create_collection("as-l2")
    export(cluster, "--collection", "as-ip", "--to", tmp_path / "x.jsonl")
    asked = ["ingest", str(tmp_path / "x.jsonl"), "--router", cluster.address, "--collection"]
    refused = cli(*asked, "as-l2")
    assert (refused.returncode, "--space l2" in refused.stderr) == (1, True)
    assert client.get_collection("as-l2").count() == 0
    assert cli(*asked, "as-l2", "--space", "l2").returncode == 0
    assert client.get_collection("as-l2").count() == len(NASTY)
    assert cli(*asked, "as-cosine", "--space", "cosine").returncode == 0


def test_foreign_parquet(cluster: RunningCluster, client: ClientAPI, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "id": ["a", "b", "c"],
            "embedding": pa.array([[1.0, 2.0], [3.0, 4.0], None], pa.list_(pa.float64())),
            "metadata": [{"x": 1, "y": None}, {"x": None, "y": "t"}, None],
            "document": ["one", None, "three"],
        }
    )
    pq.write_table(table, tmp_path / "f.parquet")
    rejects = tmp_path / "rejects"
    ingest(cluster, tmp_path / "f.parquet", "foreign", "--rejects", str(rejects))
    got = client.get_collection("foreign").get()
    assert (got["ids"], got["documents"]) == (["a", "b"], ["one", None])
    assert got["metadatas"] == [{"x": 1}, {"y": "t"}]
    (bad,) = map(json.loads, rejects.read_text().splitlines())
    assert (bad["line"], "no embedding" in bad["reason"]) == (3, True)
    again = cli("ingest", str(tmp_path / "f.parquet"), "--collection", "foreign",
                "--rejects", str(rejects), "--router", cluster.address)  # fmt: skip
    assert (again.returncode, "earlier run" in again.stderr) == (1, True)
    pq.write_table(table.append_column("extra", [[1, 2, 3]]), tmp_path / "f.parquet")
    refused = cli("ingest", str(tmp_path / "f.parquet"), "--collection", "foreign",
                  "--router", cluster.address)  # fmt: skip
    assert (refused.returncode, "'extra'" in refused.stderr) == (1, True)
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "f.parquet").read_bytes()[:200])
    torn = cli("ingest", str(tmp_path / "torn.parquet"), "--collection", "foreign",
               "--router", cluster.address)  # fmt: skip
    assert (torn.returncode, "not a whole Parquet file" in torn.stderr) == (1, True)


def test_ctrl_c_of_an_ingest_says_how_to_go_on(
    cluster: RunningCluster, client: ClientAPI, tmp_path: Path
) -> None:
    path = tmp_path / "in.jsonl"
    rows = ({"id": f"r{n}", "embedding": [n, 1.0]} for n in range(5000))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    client.create_collection("broken-off")
    with subprocess.Popen(
        [*(sys.executable, "-m", "router.cli.main", "ingest", str(path), "--batch", "50"),
         *("--collection", "broken-off", "--rate", "500", "--router", cluster.address)],
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        until(lambda: client.get_collection("broken-off").count() > 100)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "records stored in broken-off" in err
    assert "run the same command again" in err
