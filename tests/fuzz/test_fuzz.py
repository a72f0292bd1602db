"""Hostile messages to every call of a running cluster: refused, nothing dies, memory is bounded.

`make fuzz` does it for a minute with a new seed; the test suite for a few seconds with a fixed one.
FUZZ_SECONDS and FUZZ_SEED (a number, or "new") set both. A failure prints the seed and the smallest
messages that hypothesis finds for it.
"""

import os
import random
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.messages import hostile_bytes
from tests.fuzz.target import Method, Target
from tests.support.cluster import running_cluster

SECONDS = float(os.environ.get("FUZZ_SECONDS", "4"))
_WANTED = os.environ.get("FUZZ_SEED", "20261122")
SEED = random.randrange(2**32) if _WANTED == "new" else int(_WANTED)
CALLS_A_ROUND = 100
GROWTH_BYTES = 500 << 20
"""How much memory the processes of a cluster of two shards may gain."""

pytestmark = [pytest.mark.integration, pytest.mark.timeout(SECONDS + 240)]


@pytest.fixture
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A cluster of its own: what is left of it is of no use to other tests."""
    with running_cluster(tmp_path_factory.mktemp("fuzz") / "data", 2) as cluster:
        target = Target(cluster)
        try:
            yield target
        finally:
            target.close()


def a_round(target: Target, number: int) -> None:
    """So many calls, each of a method and with a message that hypothesis draws."""

    @seed(number)
    @settings(
        max_examples=CALLS_A_ROUND,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def calls(data: st.DataObject) -> None:
        method: Method = data.draw(st.sampled_from(list(target.methods.values())))
        messages = hostile_bytes(method.seeds, method.raw, target.words)
        some = 3 if method.streams[0] else 1
        target.check(method, *data.draw(st.lists(messages, min_size=1, max_size=some)))

    calls()


def test_hostile_messages(target: Target) -> None:
    print(f"seed {SEED}, {SECONDS} seconds")
    target.check_alive()
    until, number, before = time.monotonic() + SECONDS, 0, target.memory()
    while time.monotonic() < until:
        a_round(target, SEED + number)
        target.restore()
        target.check_alive()
        growth = target.memory() - before
        assert growth < GROWTH_BYTES, f"{growth >> 20} MiB more after {number + 1} rounds"
        number += 1
    print(f"{number} rounds of {CALLS_A_ROUND} calls, {(target.memory() - before) >> 20} MiB more")
