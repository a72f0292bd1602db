"""Runs Chroma's own tests against clusters that it starts: `python -m tests.conformance --help`.

One run is one cluster, a choice of test files and one pytest process; `smoke` is several runs with
few examples. The exit status is that of the first run that failed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.plugin import ADDRESS, CHROMA_TESTS, EXAMPLES
from tests.support.cluster import running_cluster

ROOT = Path(__file__).parents[2]

CORE = (
    *("test_api.py", "test_client.py", "test_multithreaded.py", "api", "configurations"),
    *("data_loader", "client", "ef/test_multimodal_ef.py"),
)
PROPERTY = tuple(
    f"property/test_{name}.py"
    for name in (
        *("add", "embeddings", "filtering", "collections"),
        *("collections_with_database_tenant", "schema"),
    )
)
SETS = {"core": CORE, "property": PROPERTY, "all": (*CORE, *PROPERTY)}

# By these Chroma's tests choose what they are run against, and leave out what cannot work there.
_CHOOSING = frozenset(
    {
        *("CHROMA_RUST_BINDINGS_TEST_ONLY", "CHROMA_CLUSTER_TEST_ONLY", "CHROMA_INTEGRATION_TEST"),
        "MULTI_REGION",
    }
)


@dataclass(frozen=True, slots=True)
class Run:
    """A cluster and the tests that it shall pass."""

    shards: int
    placement: int
    """On how many shards collections are placed; 0: on all."""
    tests: Sequence[str]
    """Files and directories of Chroma's tests."""
    examples: int | None = None
    """Most examples and steps of a property; None: as many as Chroma wants."""
    options: Sequence[str] = ()
    """Further arguments of pytest."""

    @property
    def title(self) -> str:
        """What it is, for the log."""
        placed = f", collections on {self.placement}" if self.placement else ""
        return f"{self.shards} shard{'s' if self.shards > 1 else ''}{placed}"

    def environment(self, address: str) -> dict[str, str]:
        """The environment of the tests."""
        return {
            **{name: value for name, value in os.environ.items() if name not in _CHOOSING},
            "CHROMA_INTEGRATION_TEST_ONLY": "1",
            ADDRESS: address,
            EXAMPLES: str(self.examples or ""),
        }

    def command(self) -> list[str]:
        """The pytest process."""
        return [
            *(sys.executable, "-m", "pytest", "-c", str(ROOT / "tests/conformance/pytest.ini")),
            *("--rootdir", str(CHROMA_TESTS), "-p", "tests.conformance.plugin"),
            *(str(CHROMA_TESTS / test) for test in self.tests),
            *self.options,
        ]

    def execute(self) -> int:
        """Starts the cluster, runs the tests, stops the cluster; pytest's exit status."""
        print(f"=== {self.title}", flush=True)
        began = time.monotonic()
        settings = {
            "CHROMA_ROUTER_ALLOW_RESET": "true",
            "CHROMA_ROUTER_DEFAULT_PLACEMENT_SHARDS": str(self.placement),
        }
        with tempfile.TemporaryDirectory(prefix="conformance-") as directory:
            with running_cluster(Path(directory) / "data", self.shards, settings) as cluster:
                done = subprocess.run(
                    self.command(), cwd=ROOT, env=self.environment(cluster.address), check=False
                )
            if done.returncode:
                print(cluster.log.read_text()[-20_000:], file=sys.stderr)
        print(f"=== {self.title}: {time.monotonic() - began:.0f} s", flush=True)
        return done.returncode


def smoke(options: Sequence[str]) -> list[Run]:
    """What CI has time for: every kind of cluster, and tests of every kind of call."""
    few = (
        *("property/test_add.py::test_add_small", "property/test_filtering.py"),
        "property/test_embeddings.py::test_embeddings_state",
    )
    return [
        Run(3, 0, ("test_api.py", "api/test_schema_e2e.py"), 2, options),
        Run(1, 0, few, 2, options),
        Run(5, 0, few, 2, options),
        Run(3, 1, few, 2, options),
    ]


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser("conformance", description=__doc__, allow_abbrev=False)
    parser.add_argument("tests", nargs="?", choices=[*SETS, "smoke"], default="all")
    parser.add_argument("--shards", type=int, default=3, help="shards of the cluster (3)")
    parser.add_argument(
        "--placement", type=int, default=0, help="place each collection on so many shards (all)"
    )
    parser.add_argument("--examples", type=int, help="most examples of a property (Chroma's own)")
    parser.epilog = "What follows -- is handed to pytest."
    own, options = list(arguments), []
    if "--" in own:
        options = own[own.index("--") + 1 :]
        own = own[: own.index("--")]
    chosen = parser.parse_args(own)
    if chosen.tests == "smoke":
        runs = smoke(options)
    else:
        runs = [Run(chosen.shards, chosen.placement, SETS[chosen.tests], chosen.examples, options)]
    statuses = [run.execute() for run in runs]
    return next((status for status in statuses if status), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
