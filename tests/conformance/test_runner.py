"""The runner: which clusters it starts, with what tests, and that no test is left out unseen."""

import os
from pathlib import Path

import pytest

from tests.conformance import __main__ as runner
from tests.conformance import plugin


@pytest.mark.parametrize("tests", list(runner.SETS))
def test_every_test_that_is_named_is_there(tests: str) -> None:
    for name in runner.SETS[tests]:
        assert (plugin.CHROMA_TESTS / name).exists()
    for run in runner.smoke(()):
        for name in run.tests:
            assert Path(plugin.CHROMA_TESTS / name.partition("::")[0]).exists()


def test_the_smoke_has_every_kind_of_cluster() -> None:
    kinds = {(run.shards, run.placement) for run in runner.smoke(())}
    assert kinds == {(3, 0), (1, 0), (5, 0), (3, 1)}


def test_what_is_asked_for_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[runner.Run] = []
    statuses = iter([0, 3])

    def execute(run: runner.Run) -> int:
        seen.append(run)
        return next(statuses)

    monkeypatch.setattr(runner.Run, "execute", execute)
    assert runner.main([]) == 0
    words = ["--shards", "5", "--placement", "2", "core", "--examples", "7", "--", "-k", "one"]
    assert runner.main(words) == 3
    assert seen[0] == runner.Run(3, 0, runner.SETS["all"], None, [])
    assert seen[1] == runner.Run(5, 2, runner.CORE, 7, ["-k", "one"])
    assert seen[1].command()[-2:] == ["-k", "one"]


def test_the_environment_says_where_the_cluster_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMA_CLUSTER_TEST_ONLY", "1")
    monkeypatch.setenv("PROPERTY_TESTING_PRESET", "slow")
    environment = runner.Run(3, 0, ()).environment("127.0.0.1:1")
    assert environment[plugin.ADDRESS] == "127.0.0.1:1"
    assert environment["CHROMA_INTEGRATION_TEST_ONLY"] == "1"
    assert "CHROMA_CLUSTER_TEST_ONLY" not in environment
    assert environment["PROPERTY_TESTING_PRESET"] == "slow"
    assert environment["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("fixtures", "kept"),
    [(["client", "system"], True), (["system_http_server"], True), (["sqlite", "tmp_path"], False)],
)
def test_only_what_cannot_touch_a_cluster_is_deselected(fixtures: list[str], kept: bool) -> None:
    assert plugin.touches_the_cluster(fixtures) is kept
