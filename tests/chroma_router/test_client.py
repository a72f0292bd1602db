"""chromadb's clients against a real gRPC server with scripted answers."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import chromadb.api.client
import chromadb.errors as chroma
import grpc
import numpy as np
import pytest
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.config import System

import chroma_router
from chroma_router.api import GrpcAPI
from chroma_router.wire.errors import Overloaded, Reason, Unavailable, error_for
from tests.chroma_router.scripted import Script, serving

VECTOR: Any = np.ones(2)
ID = UUID("0190a0b0-0000-7000-8000-000000000001")
FAST = chroma_router.RetryPolicy(initial_backoff_seconds=0.01, max_backoff_seconds=0.05)


@pytest.fixture(name="script")
def _script() -> Iterator[Script]:
    with serving(Script()) as script:
        yield script


@pytest.fixture(name="client")
def _client(script: Script) -> Iterator[chromadb.api.client.Client]:
    with chroma_router.Client("127.0.0.1", script.port, timeout=5, retry=FAST) as client:
        yield client


def api_of(client: chromadb.api.client.Client) -> GrpcAPI:
    api: Any = client._server
    assert type(api) is GrpcAPI
    return api


def add(client: chromadb.api.client.Client) -> None:
    api_of(client)._add(["a"], ID, [VECTOR])


def test_it_is_chromadbs_own_client(client: chromadb.api.client.Client) -> None:
    assert type(client) is chromadb.api.client.Client
    assert (client.heartbeat(), client.get_version()) == (123, "1.5.9")
    assert client.get_max_batch_size() == 5_461


def test_equal_clients_share_one_system_and_the_last_one_ends_it(script: Script) -> None:
    known = dict(SharedSystemClient._identifier_to_system)
    one = chroma_router.Client("127.0.0.1", script.port, timeout=5)
    two = chroma_router.Client("127.0.0.1", script.port, timeout=5)
    other = chroma_router.Client("127.0.0.1", script.port, timeout=6)
    assert one._server is two._server is not other._server
    one.close()
    assert api_of(two)._count(ID) == 7
    two.close()
    other.close()
    assert SharedSystemClient._identifier_to_system == known
    with pytest.raises(chroma.ChromaError, match="closed"):
        api_of(two)._count(ID)


def test_chromadb_makes_clients_of_our_settings_unpatched(script: Script) -> None:
    settings = chroma_router.client_settings("127.0.0.1", script.port, timeout=5)
    system = System(settings)
    client = chromadb.api.client.Client.from_system(system)
    assert client._system is system
    assert client.get_settings() == settings
    admin = chromadb.api.client.AdminClient.from_system(system)
    assert admin.get_tenant("default_tenant") == {"name": "default_tenant"}
    client.close()
    system.stop()


def test_a_write_keeps_its_request_id_over_repeats(
    script: Script, client: chromadb.api.client.Client
) -> None:
    script.then("Add", grpc.StatusCode.UNAVAILABLE, Unavailable("later"))
    add(client)
    ids = [request.request_id for request in script.requests("Add")]
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert UUID(ids[0]).version == 7
    add(client)
    assert script.requests("Add")[-1].request_id != ids[0]


def test_a_full_queue_is_waited_for_as_long_as_it_says(
    script: Script, client: chromadb.api.client.Client
) -> None:
    script.then("Add", Overloaded("full", retry_after=0.3))
    begun = time.monotonic()
    add(client)
    assert 0.3 <= time.monotonic() - begun < 2


def test_repeats_end_at_the_deadline(script: Script) -> None:
    with chroma_router.Client("127.0.0.1", script.port, timeout=0.5, retry=FAST) as client:
        script.then("Count", *[Unavailable("down", retry_after=0.1)] * 100)
        begun = time.monotonic()
        with pytest.raises(chroma_router.errors.UnavailableError, match="down"):
            api_of(client)._count(ID)
        assert time.monotonic() - begun < 1


def test_a_deadline_is_not_repeated(script: Script) -> None:
    with chroma_router.Client("127.0.0.1", script.port, timeout=0.3, retry=FAST) as client:
        api_of(client).get_max_batch_size()
        script.then("Add", lambda _r, _c: time.sleep(1))
        with pytest.raises(chroma_router.errors.DeadlineExceededError, match="not known"):
            add(client)
        assert len(script.requests("Add")) == 1


def test_making_a_tenant_is_not_repeated_blindly(
    script: Script, client: chromadb.api.client.Client
) -> None:
    admin = chromadb.api.client.AdminClient.from_system(client._system)
    script.then("CreateTenant", grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(chroma_router.errors.UnavailableError):
        admin.create_tenant("tenant")
    assert len(script.requests("CreateTenant")) == 1


@pytest.mark.parametrize("reason", list(Reason))
def test_errors_arrive_with_a_trace_id(
    script: Script, client: chromadb.api.client.Client, reason: Reason
) -> None:
    script.then("GetCollection", *[error_for(reason, "so it is")] * FAST.max_attempts)
    with pytest.raises(chroma.ChromaError, match="so it is") as caught:
        client.get_collection("docs")
    assert type(caught.value) is chroma_router.errors.EXCEPTION_BY_REASON[reason]
    sent = script.seen[-1][2]["traceparent"]
    assert caught.value.trace_id is not None
    assert caught.value.trace_id in sent


def test_a_batch_over_the_limit_is_refused_in_chromas_words(
    script: Script, client: chromadb.api.client.Client
) -> None:
    with pytest.raises(ValueError, match="Batch size 5462 exceeds maximum batch size 5461"):
        api_of(client)._add([str(n) for n in range(5_462)], ID, [VECTOR] * 5_462)
    assert not script.requests("Add")


def test_a_message_over_the_limit_names_the_mend(client: chromadb.api.client.Client) -> None:
    with pytest.raises(chroma.BatchSizeExceededError, match="send fewer records"):
        api_of(client)._add(["a"], ID, [VECTOR], documents=["x" * (65 << 20)])


def test_the_api_key_goes_with_every_call(script: Script) -> None:
    with chroma_router.Client("127.0.0.1", script.port, api_key="secret", timeout=5) as client:
        assert "secret" not in repr(client.get_settings())
    assert all(seen["authorization"] == "Bearer secret" for _, _, seen in script.seen)


def test_no_router_is_said_soon() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(chroma_router.errors.UnavailableError):
            chroma_router.Client("127.0.0.1", port, retry=FAST)


def test_a_restarted_router_is_found_again() -> None:
    with serving(Script()) as first:
        client = chroma_router.Client("127.0.0.1", first.port, timeout=10)
    counts: list[int] = []
    caller = threading.Thread(target=lambda: counts.append(api_of(client)._count(ID)))
    caller.start()
    time.sleep(0.5)
    with serving(Script(), first.port):
        caller.join(10)
        assert counts == [7]
        client.close()


def test_many_threads_share_a_client(client: chromadb.api.client.Client) -> None:
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda: counts.extend(api_of(client)._count(ID) for _ in range(20)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [7] * 160


def test_what_local_chroma_has_not(client: chromadb.api.client.Client) -> None:
    with pytest.raises(NotImplementedError, match="forking"):
        api_of(client)._fork(ID, "new")


async def test_the_async_client(script: Script) -> None:
    client = await chroma_router.AsyncClient("127.0.0.1", script.port, timeout=5, retry=FAST)
    script.then("Count", Unavailable("later"))
    api: Any = client._server
    assert await client.heartbeat() == 123
    assert await api._count(ID) == 7
    script.then("GetCollection", error_for("COLLECTION_NOT_FOUND", "Collection [x] does not exist"))
    with pytest.raises(chroma.NotFoundError, match=r"^Collection \[x\] does not exist$"):
        await client.get_collection("x")
    api.stop()
    await api._transport._closing


async def test_the_async_admin_client(script: Script) -> None:
    admin = chroma_router.AsyncAdminClient("127.0.0.1", script.port, timeout=5, retry=FAST)
    assert await admin.get_tenant("somebody") == {"name": "somebody"}
    assert (await admin.get_database("some", "somebody"))["name"] == "some"
    api: Any = admin._server
    api.stop()
    await api._transport._closing


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, {"nested": 1}, "\ud800"])
def test_what_does_not_fit_is_named_and_not_sent(
    script: Script, client: chromadb.api.client.Client, value: Any
) -> None:
    with pytest.raises(chroma.ChromaError, match="'year'"):
        api_of(client)._add(["a"], ID, [VECTOR], [{"year": value}])
    with pytest.raises(chroma.InvalidArgumentError, match="collection metadata value of 'year'"):
        client.create_collection("docs", metadata={"year": value})
    with pytest.raises(chroma.InvalidArgumentError, match="'year'"):
        api_of(client)._modify(ID, new_metadata={"year": value})
    for method in ("Add", "CreateCollection", "UpdateCollection"):
        assert not script.requests(method)


def test_text_that_is_not_unicode_names_its_record(client: chromadb.api.client.Client) -> None:
    for part in ({"documents": ["\ud800"]}, {"uris": ["\ud800"]}):
        with pytest.raises(chroma.InvalidArgumentError, match="record 'a'"):
            api_of(client)._add(["a"], ID, [VECTOR], **part)  # type: ignore[arg-type]
    with pytest.raises(chroma.InvalidArgumentError, match="record"):
        api_of(client)._add(["\ud800"], ID, [VECTOR])
