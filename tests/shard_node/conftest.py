"""One node for the tests that leave it as they found it: each has a collection of its own."""

from collections.abc import Iterator

import pytest

from tests.shard_node.running import CollectionCalls, Node, running


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running(tmp_path_factory.mktemp("node") / "data") as started:
        yield started


@pytest.fixture
def docs(node: Node) -> CollectionCalls:
    """A fresh collection, all of its slots owned."""
    return node.collection()
