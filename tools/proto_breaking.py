"""Refuse changes of the contract that break its users: `buf breaking` against an earlier commit.

Compared is the work tree with the argument, a commit; without one with the point where this branch
left main, or on main itself with HEAD when proto/ has uncommitted changes, else with the commit
before HEAD. Where there is no earlier contract (first commit, shallow clone, no git) it says so and
exits 0.
"""

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def git(*arguments: str) -> bytes | None:
    """Output of a git command, or None when it failed."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def earlier_commit() -> str | None:
    """The commit to compare with, or None where there is none."""
    head = git("rev-parse", "--verify", "--quiet", "HEAD")
    if head is None:
        return None
    for base in ("origin/main", "main"):
        fork = git("merge-base", "HEAD", base)
        if fork is not None and fork != head:
            return fork.decode().strip()
    if git("status", "--porcelain", "--", "proto"):
        return head.decode().strip()
    before = git("rev-parse", "--verify", "--quiet", "HEAD~1")
    return before.decode().strip() if before else None


def main() -> int:
    """Compare; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("against", nargs="?", help="commit, branch or tag")
    against = parser.parse_args().against or earlier_commit()
    archive = git("archive", "--format=tar", against, "buf.yaml", "proto") if against else None
    if archive is None:
        print("buf breaking: skipped, no earlier contract to compare with")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(scratch, filter="data")
        buf = Path(sys.executable).parent / "buf"
        code = subprocess.run(
            [buf, "breaking", "--against", scratch], cwd=ROOT, check=False
        ).returncode
    if code != 0:
        print(
            f"The contract breaks its users (compared with {against}). Mend it, or name the break "
            "that is meant under `breaking.ignore_only` in buf.yaml.",
            file=sys.stderr,
        )
        return 1
    print(f"buf breaking: compatible with {against}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
