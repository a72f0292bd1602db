"""The mutation check: without any one part of the protocol the simulation fails, and soon.

Each mutation has its own mixture of faults, biased to where the part that it leaves out matters,
and is found twice: by all checks, and by only what clients and operators can see. The same seeds
without the mutation hold.
"""

from dataclasses import fields, replace

import pytest

from tests.sim.options import NO_MUTATION, Mutations, Options
from tests.sim.world import simulate

pytestmark = pytest.mark.timeout(180)

_BUSY = Options(
    clients=4, operations=20, think=4.0, moves=2, lost=0.0, late=0.0, cut=0.0, node_crash=0.0,
    router_crash=0.0, stall=0.0, cancel=0.0, pause=0.0, wipe=0.0,
)  # fmt: skip
"""Much is written and read while moves go on, and nothing goes wrong but what is added."""


SCENARIOS: dict[str, tuple[Options, int]] = {
    "no_fence": (_BUSY, 60),
    # The source dies between fence and switch, and is back before the mover asks it again.
    "volatile_fence": (
        replace(
            _BUSY, fence_crash=1.0, down=0.3, late_in={"fence_reads": 1.0}, latest=20.0, think=3.0
        ),
        200,
    ),
    # A drained shard begins with an empty directory; an ownership from before is still under way.
    # (As long as the directory lives, the durable fence silences what an old ownership gives.)
    "no_boot_id": (
        replace(
            _BUSY,
            routers=30,
            moves=1,
            drain=1.0,
            owners=("a",),
            wipe=1.0,
            fence_crash=1.0,
            down=0.5,
            node_crash=0.01,
            late_in={"set_ownership": 0.5},
            latest=250.0,
            look=0.7,
            operations=30,
        ),
        150,
    ),
    # The source learns of the switch late, some routers later still.
    "no_read_fence": (
        replace(_BUSY, routers=6, late_in={"set_ownership": 0.5}, latest=60.0, look=0.7),
        200,
    ),
    "ids_before_capture": (replace(_BUSY, loaded=0.3, think=2.0), 200),
    "merging_put": (_BUSY, 60),
    "no_purge": (replace(_BUSY, cancel=1.0, operations=5), 60),
    # Reads that are under way from before the read fence to after the trim.
    "unchecked_trim": (replace(_BUSY, long_read=0.8, clients=6, think=1.0, look=1.0), 200),
    "no_outcomes": (replace(_BUSY, lost=0.1, give_up=0.0, budget=5.0, repeat=20.0), 200),
    "no_filter": (_BUSY, 20),
    "no_verify": (replace(_BUSY, copy_fault=0.5), 60),
    "no_epoch_check": (_BUSY, 20),
    # A mover sleeps past its lease, and goes on where it was.
    "no_token": (replace(_BUSY, stall=0.1, cancel=1.0, clients=1, operations=5, moves=3), 150),
}
"""Of each mutation: the mixture, and within how many seeds it is found."""


def test_every_mutation_has_a_scenario() -> None:
    assert SCENARIOS.keys() == {field.name for field in fields(Mutations)}


@pytest.mark.parametrize("strict", [True, False], ids=["all-checks", "what-clients-see"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_simulation_fails_without(name: str, strict: bool) -> None:
    options, seeds = SCENARIOS[name]
    without = Mutations(**{name: True})
    assert any(
        simulate(seed, options, without, strict=strict).violation for seed in range(seeds)
    ), f"{name} is not found within {seeds} seeds"


@pytest.mark.parametrize("name", SCENARIOS)
def test_and_holds_with_it(name: str) -> None:
    options, seeds = SCENARIOS[name]
    for seed in range(seeds):
        outcome = simulate(seed, options, NO_MUTATION)
        assert not outcome.violation, f"seed {seed}: {outcome.violation}"
