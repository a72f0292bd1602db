"""`make model-test`: the stream of operations and the state machine, on a cluster of its own."""

import argparse
import secrets
import tempfile
from pathlib import Path

from tests.model.drive import Pair, run_machine, run_stream
from tests.model.world import cluster_at, one_chroma
from tests.support.cluster import running_cluster


def main() -> None:
    """Raises what it finds."""
    parser = argparse.ArgumentParser(prog="python -m tests.model.run", description=__doc__)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--seed", type=int, default=None, help="of both parts; else a new one")
    parser.add_argument("--operations", type=int, default=5000, help="of the stream")
    parser.add_argument("--examples", type=int, default=25, help="of the state machine")
    parser.add_argument("--steps", type=int, default=30, help="at most, of an example")
    parser.add_argument("--one-shard", action="store_true", help="place collections on one shard")
    chosen = parser.parse_args()
    seed = secrets.randbelow(2**32) if chosen.seed is None else chosen.seed
    print(f"seed {seed}, {chosen.shards} shards", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="model-") as directory,
        running_cluster(
            Path(directory) / "cluster", chosen.shards, {"CHROMA_ROUTER_ALLOW_RESET": "true"}
        ) as running,
        one_chroma(Path(directory) / "one") as one,
        cluster_at(running.host, running.port, one_shard=chosen.one_shard) as cluster,
    ):
        pair = Pair(one, cluster)
        run_stream(pair, seed, chosen.operations)
        run_machine(pair, seed, chosen.examples, chosen.steps)


if __name__ == "__main__":
    main()
