"""A pytest plugin that lets Chroma's own tests use a running cluster instead of a Chroma.

Loaded by the runner (tests/conformance/__main__.py), which starts the cluster and says in the
environment where it is. Chroma's tests get everything that they test from two fixtures of their
conftest, `system` and `system_http_server`; these two are replaced, and nothing else of Chroma or
its tests, but for one model: the default embedding function downloads one at its first use, so a
lexical one stands in for it.

Tests that ask for neither fixture cannot touch the cluster and are deselected. There is no list of
tests to skip.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import chromadb
import hypothesis
import pytest
from chromadb.api import ServerAPI
from chromadb.config import Settings, System
from chromadb.utils.embedding_functions.onnx_mini_lm_l6_v2 import ONNXMiniLM_L6_V2

import chroma_router
from router.embedding import lexical

ADDRESS = "CONFORMANCE_ADDRESS"
"""The environment variable with the router's address, HOST:PORT."""

EXAMPLES = "CONFORMANCE_EXAMPLES"
"""The environment variable with the most examples, and steps, of a property; empty: as Chroma has
it."""

CHROMA_TESTS = Path(chromadb.__file__).parent / "test"

_REPLACED = frozenset({"system", "system_http_server"})


@pytest.fixture
def _cluster() -> Iterator[System]:
    """A System of the cluster, which is made empty first."""
    host, _, port = os.environ[ADDRESS].rpartition(":")
    extra = Settings(allow_reset=True, anonymized_telemetry=False)
    system = System(chroma_router.client_settings(host, int(port), settings=extra))
    api = system.instance(ServerAPI)  # type: ignore[type-abstract] # the settings say which
    system.start()
    api.reset()
    yield system
    system.stop()


@pytest.hookimpl(tryfirst=True)
def pytest_plugin_registered(plugin: object) -> None:
    """Puts the cluster into Chroma's conftest before pytest reads the fixtures of it."""
    if getattr(plugin, "__file__", None) != str(CHROMA_TESTS / "conftest.py"):
        return
    assert isinstance(plugin, ModuleType)
    missing = _REPLACED - vars(plugin).keys()
    assert not missing, f"Chroma's conftest has no fixture {missing}: it is not the one we know"
    for name in _REPLACED:
        setattr(plugin, name, _cluster)
    _set_examples(plugin)
    ONNXMiniLM_L6_V2.__call__ = _embed  # type: ignore[method-assign,assignment]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the tests that can touch the cluster."""
    kept = [item for item in items if touches_the_cluster(getattr(item, "fixturenames", ()))]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_report_header() -> str:
    """Says what is tested."""
    return f"Chroma {chromadb.__version__}'s own tests against {os.environ[ADDRESS]}"


def touches_the_cluster(fixtures: Sequence[str]) -> bool:
    """Whether a test that uses these fixtures, directly or not, can reach the cluster."""
    return not _REPLACED.isdisjoint(fixtures)


def _embed(_self: object, input: Sequence[str]) -> list[Any]:
    return list(lexical(input))


def _set_examples(conftest: ModuleType) -> None:
    """Chroma's profile without its verbosity, and with fewer examples if that is asked for."""
    most = os.environ.get(EXAMPLES)
    bounds = {} if not most else {"max_examples": int(most), "stateful_step_count": int(most)}
    hypothesis.settings.register_profile(
        "conformance",
        hypothesis.settings.get_profile(conftest.CURRENT_PRESET),
        verbosity=hypothesis.Verbosity.normal,
        **bounds,
    )
    hypothesis.settings.load_profile("conformance")
    chosen_by_chroma = conftest.override_hypothesis_profile

    def bounded(**presets: hypothesis.settings | None) -> hypothesis.settings:
        """Some tests ask for more examples than the profile has."""
        chosen = chosen_by_chroma(**presets)
        return hypothesis.settings(
            chosen, **{name: min(bound, getattr(chosen, name)) for name, bound in bounds.items()}
        )

    conftest.override_hypothesis_profile = bounded  # type: ignore[attr-defined]
