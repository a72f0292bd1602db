"""Forks of processes whose client has been used, against a real gRPC server in this process."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from chroma_router.v1 import catalog_pb2, records_pb2
from tests.chroma_router.scripted import Script, serving

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(name="script", scope="module")
def _script() -> Iterator[Script]:
    """Answers every Get with the ids it asks for; one that names "slow-0" after a second."""

    def get(request: records_pb2.GetRequest) -> records_pb2.GetResponse:
        if "slow-0" in request.filter.ids:
            time.sleep(1)
        return records_pb2.GetResponse(records=[{"id": i} for i in request.filter.ids])

    def get_collection(_: catalog_pb2.GetCollectionRequest) -> catalog_pb2.GetCollectionResponse:
        some_id = "0190a0b0-0000-7000-8000-000000000001"
        return catalog_pb2.GetCollectionResponse(collection={"id": some_id, "name": "docs"})

    with serving(Script(defaults={"Get": get, "GetCollection": get_collection})) as script:
        yield script


def drive(
    script: Script, scenario: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}
    return subprocess.run(
        [sys.executable, "-m", "tests.chroma_router.fork_driver", scenario, str(script.port)],
        env={**inherited, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    "scenario", ["beside_threads", "prefork", "grandchildren", "pool", "leave", "closed"]
)
def test_a_forked_child_calls_and_the_parent_goes_on(script: Script, scenario: str) -> None:
    done = drive(script, scenario)
    assert done.returncode == 0, done.stdout + done.stderr


def test_grpcs_own_fork_support_does_no_harm(script: Script) -> None:
    done = drive(script, "beside_threads", {"GRPC_ENABLE_FORK_SUPPORT": "1"})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("scenario", "environment", "why"),
    [
        ("prefork", {"GRPC_ENABLE_FORK_SUPPORT": "0"}, "GRPC_ENABLE_FORK_SUPPORT switched off"),
        ("slow", {}, "calls in flight"),
        ("with_asyncio", {}, "use chroma_router.Client in it"),
    ],
)
def test_a_child_whose_grpc_is_dead_says_so_at_once(
    script: Script, scenario: str, environment: dict[str, str], why: str
) -> None:
    done = drive(script, scenario, environment)
    assert done.returncode == 3, done.stdout + done.stderr
    assert why in done.stdout
