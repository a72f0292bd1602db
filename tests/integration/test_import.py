"""`import` from real Chromas, a directory and a server, into a real cluster: whole, in order, taken
up after kills, and never writing to the source."""

import functools
import hashlib
import http.server
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.api import ClientAPI
from chromadb.api.types import Schema, StringInvertedIndexConfig
from chromadb.config import Settings

import chroma_router
from tests.support.cluster import RunningCluster

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

MARK = "chroma-router:import"
SPACES = ("cosine", "ip", "l2")
EVERYTHING: Any = ["embeddings", "documents", "metadatas", "uris"]


def cli(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "router.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def bring(cluster: RunningCluster, origin: object, *more: str) -> Any:
    done = cli("import", "--from", str(origin), "--router", cluster.address, "--json", *more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def digest(directory: Path) -> str:
    """One hash of all names and contents."""
    found = hashlib.sha256()
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        found.update(str(file.relative_to(directory)).encode() + b"\0")
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def chroma_settings(directory: Path) -> Any:
    return Settings(
        is_persistent=True, persist_directory=str(directory), anonymized_telemetry=False
    )


@contextmanager
def chroma(directory: Path) -> Iterator[tuple[ClientAPI, Any]]:
    """A persistent Chroma and its administration; closed on leaving."""
    settings = chroma_settings(directory)
    client = chromadb.PersistentClient(str(directory), settings)
    try:
        yield client, chromadb.AdminClient(settings)
    finally:
        client.close()  # type: ignore[attr-defined]


def fill(client: ClientAPI, prefix: str, count: int = 300) -> None:
    """Three collections, one of each space, whose ids are not in the order of their insertion."""
    for space in SPACES:
        hnsw: Any = {"space": space, "ef_construction": 60, "max_neighbors": 8, "ef_search": 40}
        collection = client.create_collection(
            f"{prefix}-{space}",
            metadata={"about": space, "n": 2**60, "f": 1.0},
            configuration={"hnsw": hnsw},
        )
        vectors = np.random.default_rng(7).normal(size=(count, 6)).astype("f4")
        ids = [f"r{(n * 7919) % 10007:05d}" for n in range(count)]
        metadatas: list[Any] = [
            {"n": n, "f": float(n), "b": n % 2 == 0, "tags": ["x", "é", "x"], "ns": [2**62, -n]}
            if n % 3
            else None
            for n in range(count)
        ]
        documents = [
            None if n % 5 == 0 else "" if n % 5 == 1 else f"d{n} \0 😀" for n in range(count)
        ]
        uris = [f"file://{n}" if n % 4 else None for n in range(count)]
        collection.add(ids, vectors, metadatas, documents, uris=uris)  # type: ignore[arg-type]
        collection.delete([ids[5]])
        collection.update([ids[9]], vectors[:1], [{"n": -1}], ["changed"])
        collection.add([ids[5]], vectors[5:6])  # at the end now


def same(theirs: ClientAPI, ours: ClientAPI, name: str, into: str | None = None) -> None:
    """Everything of a collection but its UUID is equal."""
    wanted, found = theirs.get_collection(name), ours.get_collection(into or name)
    assert found.metadata == wanted.metadata
    assert found.configuration_json == wanted.configuration_json
    a: Any = wanted.get(include=EVERYTHING)
    b: Any = found.get(include=EVERYTHING)
    for got in (a, b):  # a record with a uri alone has {} in Chroma
        got["metadatas"] = [m or None for m in got["metadatas"] or ()]
    for part in ("ids", "documents", "metadatas", "uris"):
        assert a[part] == b[part], part
    kinds = [
        [{key: type(value) for key, value in (m or {}).items()} for m in got["metadatas"] or ()]
        for got in (a, b)
    ]
    assert kinds[0] == kinds[1]
    np.testing.assert_allclose(b["embeddings"], a["embeddings"], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Chroma with two tenants and three databases."""
    path = tmp_path_factory.mktemp("source") / "chroma"
    with chroma(path) as (client, admin):
        fill(client, "one")
        admin.create_database("other")
        admin.create_tenant("acme")
        admin.create_database("deep", "acme")
        admin.create_database("empty", "acme")
        client.set_tenant("default_tenant", "other")
        client.create_collection("never-filled", metadata={"hnsw:space": "ip"})
        client.set_tenant("acme", "deep")
        fill(client, "two", 40)
    return path


def test_a_directory_with_all_its_tenants(
    cluster: RunningCluster, directory: Path, tmp_path: Path
) -> None:
    before = digest(directory)
    shown = json.loads(cli("import", "--from", str(directory), "--dry-run", "--json").stdout)
    summary = bring(cluster, directory, "--batch", "64", "--temp", str(tmp_path))
    assert digest(directory) == before
    assert list(tmp_path.iterdir()) == [], "the copy is gone"
    places = {(c["tenant"], c["database"], c["collection"]) for c in summary["collections"]}
    assert places == {(c["tenant"], c["database"], c["collection"]) for c in shown["collections"]}
    assert len(places) == 7
    assert summary["records"] == summary["stored"] == 3 * 300 + 3 * 40
    again = bring(cluster, directory)
    assert (again["records"], again["stored"]) == (summary["records"], 0)
    copy = tmp_path / "copy"  # since opening it writes to it
    shutil.copytree(directory, copy)
    with chroma(copy) as (theirs, _):
        for tenant, database, name in places:
            theirs.set_tenant(tenant, database)
            ours = chroma_router.Client(
                host=cluster.host, port=cluster.port, tenant=tenant, database=database
            )
            same(theirs, ours, name)
    admin = chroma_router.Client(
        host=cluster.host, port=cluster.port, tenant="acme", database="empty"
    )
    assert admin.list_collections() == []


@contextmanager
def chroma_server(directory: Path) -> Iterator[str]:
    """`chroma run` on a free port; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from chromadb.cli.cli import app; app()"]
    with subprocess.Popen(
        [*command, "run", "--path", str(directory), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            until(lambda: answers(port))
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "did not happen in time"
        time.sleep(0.02)


def test_a_running_server(cluster: RunningCluster, tmp_path: Path) -> None:
    with chroma(tmp_path / "source") as (client, _):
        fill(client, "served")
        big = client.create_collection("served-big")
        big.add(["a", "b"], np.eye(2, dtype="f4"), documents=["x" * 2**20, "ä" * 2**20])
    with chroma_server(tmp_path / "source") as url:
        summary = bring(cluster, url)
        assert summary["stored"] == 3 * 300 + 2
        theirs = chromadb.HttpClient(port=int(url.rpartition(":")[2]))
        ours = chroma_router.Client(host=cluster.host, port=cluster.port)
        for name in (*(f"served-{space}" for space in SPACES), "served-big"):
            same(theirs, ours, name)
        assert (
            bring(cluster, url, "--collection", "served-l2", "--into", "elsewhere")["stored"] == 300
        )
        same(theirs, ours, "served-l2", "elsewhere")
    gone = cli("import", "--from", url, "--router", cluster.address)
    assert (gone.returncode, url in gone.stderr, "chroma run" in gone.stderr) == (1, True, True)


def test_index_metadata_that_were_changed_later(cluster: RunningCluster, tmp_path: Path) -> None:
    """Chroma keeps the index as it was made; beside a schema its engine refuses to make such."""
    schema = Schema().delete_index(config=StringInvertedIndexConfig(), key="note")
    ours = chroma_router.Client(host=cluster.host, port=cluster.port)
    with chroma(tmp_path / "source") as (theirs, _):
        for name, options in (("changed-schema", {"schema": schema}), ("changed-plain", {})):
            collection = theirs.create_collection(name, **options)  # type: ignore[arg-type]
            collection.add(["a"], np.ones((1, 2), "f4"))
            collection.modify(metadata={"hnsw:M": 5, "hnsw:construction_ef": 33, "x": True})
    names = ("changed-schema", "changed-plain")
    assert bring(cluster, tmp_path / "source")["stored"] == 2
    assert bring(cluster, tmp_path / "source")["stored"] == 0
    with chroma(tmp_path / "source") as (theirs, _):
        for name in names:
            same(theirs, ours, name)
    for name in names:
        file = tmp_path / f"{name}.jsonl"
        reached = ("--router", cluster.address)
        assert cli("export", "--collection", name, "--to", str(file), *reached).returncode == 0
        done = cli("ingest", str(file), "--collection", f"{name}-2", *reached)
        assert done.returncode == 0, done.stderr
        old, new = ours.get_collection(name), ours.get_collection(f"{name}-2")
        assert (new.metadata, new.configuration_json) == (old.metadata, old.configuration_json)


@contextmanager
def guarded(url: str, name: str, value: str) -> Iterator[str]:
    """A proxy before a server that lets through only what has this header; its address."""

    class Guard(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get(name) != value:
                self.send_error(401)
                return
            kind = {"Content-Type": "application/json"}
            asked = urllib.request.Request(url + self.path, body or None, kind, method=self.command)
            with urllib.request.urlopen(asked, timeout=30) as answer:
                found = answer.read()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)

        def do_POST(self) -> None:
            self.do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guard) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_server_that_asks_for_credentials(cluster: RunningCluster, tmp_path: Path) -> None:
    with chroma(tmp_path / "source") as (client, _):
        client.create_collection("guarded").add(["a"], np.ones((1, 2), "f4"))
    with (
        chroma_server(tmp_path / "source") as behind,
        guarded(behind, "x-chroma-token", "s3: cret") as url,
    ):
        refused = cli("import", "--from", url, "--router", cluster.address)
        assert (refused.returncode, "--header" in refused.stderr) == (1, True)
        given = ("--header", "x-other: y", "--header", "x-chroma-token: s3: cret")
        assert bring(cluster, url, *given)["stored"] == 1


def numbered(path: Path, name: str, count: int) -> None:
    """A collection of `count` records whose documents are their numbers."""
    with chroma(path) as (client, _):
        collection = client.get_or_create_collection(name)
        begin = collection.count()
        vectors = np.random.default_rng(3).normal(size=(count, 8)).astype("f4")
        for at in range(begin, count, 2000):
            some = range(at, min(at + 2000, count))
            collection.add([f"i{n}" for n in some], vectors[some], documents=[str(n) for n in some])


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl-c"])
def test_an_interrupted_import_goes_on(
    cluster: RunningCluster, tmp_path: Path, by: signal.Signals
) -> None:
    name, total = f"interrupted-{by.name}", 6000
    numbered(tmp_path / "source", name, total)
    before = digest(tmp_path / "source")
    ours = chroma_router.Client(host=cluster.host, port=cluster.port)
    copies = tmp_path / "copies"
    copies.mkdir()
    command = ["import", "--from", str(tmp_path / "source"), "--router", cluster.address,
               "--batch", "50", "--temp", str(copies)]  # fmt: skip

    def so_far() -> int:
        found = [c for c in ours.list_collections() if c.name == name]
        return found[0].count() if found else 0

    def more_than(count: int) -> bool:
        return so_far() > count

    reached = 0
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-m", "router.cli.main", *command], stderr=subprocess.PIPE, text=True
        ) as process:
            begun = reached
            until(functools.partial(more_than, begun + 300))
            os.kill(process.pid, by)
            _, err = process.communicate(timeout=60)
        reached = so_far()
        assert begun < reached < total
        assert ours.get_collection(name).metadata[MARK]
        if by is signal.SIGINT:
            assert (process.returncode, "goes on where it stopped" in err) == (130, True)
            assert list(copies.iterdir()) == []
        else:
            assert len(list(copies.iterdir())) == 1, "an older one was swept away"
    summary = json.loads(cli(*command, "--json").stdout)
    assert summary["records"] == total
    assert abs(summary["stored"] - (total - reached)) <= 50, "but for the broken write"
    collection = ours.get_collection(name)
    assert not collection.metadata
    got = collection.get(include=["documents"])
    assert got["ids"] == [f"i{n}" for n in range(total)]
    assert got["documents"] == [str(n) for n in range(total)]
    assert digest(tmp_path / "source") == before
    assert list(copies.iterdir()) == []


def test_a_hole_of_a_broken_write_is_mended_and_a_stranger_is_not_touched(
    cluster: RunningCluster, tmp_path: Path
) -> None:
    numbered(tmp_path / "source", "holes", 1000)
    bring(cluster, tmp_path / "source")
    ours = chroma_router.Client(host=cluster.host, port=cluster.port)
    with sqlite3.connect(tmp_path / "source" / "chroma.sqlite3") as link:
        ((original,),) = link.execute("SELECT id FROM collections").fetchall()
    collection = ours.get_collection("holes")
    collection.delete([f"i{n}" for n in range(800, 1000, 2)])
    collection.modify(metadata={MARK: original})
    summary = bring(cluster, tmp_path / "source")
    assert summary["stored"] == 200
    assert collection.get(include=[])["ids"] == [f"i{n}" for n in range(1000)]
    collection.modify(metadata={MARK: original})
    collection.add(["stranger"], np.ones((1, 8), dtype="f4"))
    refused = cli("import", "--from", str(tmp_path / "source"), "--router", cluster.address)
    assert (refused.returncode, "stranger" in refused.stderr) == (1, True)
    assert collection.count() == 1001


def test_what_differs_is_found_and_named(cluster: RunningCluster, tmp_path: Path) -> None:
    source = tmp_path / "source"
    numbered(source, "tampered", 500)
    bring(cluster, source)
    ours = chroma_router.Client(host=cluster.host, port=cluster.port)
    collection = ours.get_collection("tampered")

    def refusal() -> str:
        done = cli("import", "--from", str(source), "--router", cluster.address)
        assert done.returncode == 1
        assert "default_database/tampered" in done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    original = collection.get(["i123"], include=["embeddings"])["embeddings"]
    vector = np.asarray(original, dtype="f4")
    collection.update(["i123"], documents=["forged"], embeddings=vector)
    assert "'i123': its document differs" in refusal()
    collection.update(["i123"], documents=["123"], embeddings=vector * np.float32(1.001))
    assert "'i123': its embedding differs" in refusal()
    collection.update(["i123"], embeddings=vector, metadatas=[{"a": 1}])
    assert "'i123': its metadata differ" in refusal()
    collection.update(["i123"], embeddings=vector, metadatas=[{"a": None}])
    assert bring(cluster, source)["stored"] == 0
    collection.add(["extra"], vector)
    assert "'extra'" in refusal()
    collection.delete(["extra", "i7"])
    assert "'i8'" in refusal(), "the first that stands where another should"
    assert "--into NAME" in refusal()
    collection.modify(metadata={"mine": 1})
    assert "other metadata" in refusal()
    assert collection.count() == 499


def test_a_finished_import_follows_its_source(cluster: RunningCluster, tmp_path: Path) -> None:
    numbered(tmp_path / "source", "growing", 400)
    bring(cluster, tmp_path / "source")
    numbered(tmp_path / "source", "growing", 700)
    assert bring(cluster, tmp_path / "source")["stored"] == 300
    ours = chroma_router.Client(host=cluster.host, port=cluster.port)
    got = ours.get_collection("growing").get(include=[])
    assert got["ids"] == [f"i{n}" for n in range(700)]


def test_directories_that_are_refused(
    cluster: RunningCluster, tmp_path: Path, directory: Path
) -> None:
    def refusal(path: Path, *more: str) -> str:
        done = cli("import", "--from", str(path), "--router", cluster.address, *more)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        return done.stderr

    assert "no chroma.sqlite3" in refusal(tmp_path)
    assert "no collection absent" in refusal(directory, "--collection", "absent")
    shard = next(path for path in cluster.data.rglob("chroma.sqlite3"))
    assert "data directory of a shard" in refusal(shard.parent)
    columns = "dir, version, filename, sql, hash"
    newer = f"INSERT INTO migrations ({columns}) VALUES ('sysdb', 11, 'x', 'x', 'x')"
    for change, says in (
        ("DELETE FROM migrations WHERE dir = 'sysdb' AND version = 10", "older format"),
        ("UPDATE migrations SET version = 99 WHERE dir = 'metadb' AND version = 1", "older format"),
        (newer, "newer than 1.5.9"),
    ):
        shutil.copytree(directory, tmp_path / "changed")
        with closing(sqlite3.connect(tmp_path / "changed" / "chroma.sqlite3")) as link, link:
            link.execute(change)
        assert says in refusal(tmp_path / "changed")
        shutil.rmtree(tmp_path / "changed")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "chroma.sqlite3").write_bytes(b"nothing of the kind" * 100)
    assert "cannot be read" in refusal(tmp_path / "torn")
