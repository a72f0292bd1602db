"""One cluster for the tests that leave it as it was; those that hurt one start their own."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chromadb.api import ClientAPI
from chromadb.api.models.Collection import Collection

import chroma_router
from tests.support.cluster import RunningCluster, running_cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Three shards, shared by all tests of the session."""
    data: Path = tmp_path_factory.mktemp("cluster") / "data"
    with running_cluster(data, 3, {"CHROMA_ROUTER_ALLOW_RESET": "true"}) as running:
        yield running


@pytest.fixture
def client(cluster: RunningCluster) -> ClientAPI:
    """A client of the shared cluster."""
    return chroma_router.Client(host=cluster.host, port=cluster.port)


@pytest.fixture
def fresh(client: ClientAPI) -> Callable[..., Collection]:
    """Makes a collection of its own for a test."""

    def make(**options: object) -> Collection:
        return client.create_collection(f"test-{uuid.uuid4()}", **options)  # type: ignore[arg-type]

    return make
