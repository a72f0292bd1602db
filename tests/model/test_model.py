"""The model test in short, with fixed seeds; `make model-test` runs it in full with new ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.drive import Pair, run_machine, run_stream
from tests.model.world import cluster_at, one_chroma
from tests.support.cluster import running_cluster

# chromadb's own warnings about the bad values that it is given here.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:space .* is not supported by letters:UserWarning"),
]

SEED = 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """One Chroma and a cluster of three shards, to which nothing else is done."""
    base: Path = tmp_path_factory.mktemp("model")
    with (
        running_cluster(base / "cluster", 3, {"CHROMA_ROUTER_ALLOW_RESET": "true"}) as running,
        one_chroma(base / "one") as one,
        cluster_at(running.host, running.port) as cluster,
    ):
        yield Pair(one, cluster)


def test_a_stream_of_operations_has_equal_results(pair: Pair) -> None:
    run_stream(pair, SEED, 300)
    done = {kind for kind, count in pair.done.items() if count}
    assert {"add", "upsert", "update", "delete", "get", "query", "modify"} <= done
    assert 0 < pair.refused.total() < 150, pair.refused


def test_a_state_machine_finds_no_difference(pair: Pair) -> None:
    run_machine(pair, SEED, examples=3, steps=15)
