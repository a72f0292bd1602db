"""The simulation in short: the same seeds each time, and some new ones. `make sim` runs many."""

import random
import secrets

import pytest

from tests.sim import run as command
from tests.sim.linear import Seen, linearizable
from tests.sim.options import Mutations
from tests.sim.records import Kind, Request
from tests.sim.world import simulate

pytestmark = pytest.mark.timeout(180)

FIXED, NEW = 1600, 400
PARTS = 8


@pytest.mark.parametrize("part", range(PARTS))
def test_every_invariant_holds_in_the_same_seeds(part: int) -> None:
    for seed in range(part, FIXED, PARTS):
        _holds(seed)


def test_every_invariant_holds_in_new_seeds() -> None:
    first = secrets.randbelow(2**40)
    print(f"seeds from {first} on")
    for seed in range(first, first + NEW):
        _holds(seed)


def _holds(seed: int) -> None:
    outcome = simulate(seed)
    assert not outcome.violation, (
        f"{outcome.violation}; its trace: python -m tests.sim.run --seed {seed}"
    )


def test_a_seed_is_the_same_each_time() -> None:
    first, second = (simulate(11, tracing=True) for _ in range(2))
    assert first == second
    assert first.trace
    assert first.trace != simulate(12, tracing=True).trace


def test_seeds_cover_every_stage() -> None:
    stages = sum((simulate(seed).stages for seed in range(60)), start=simulate(60).stages)
    assert {str(stage) for stage in stages} == {
        "copying", "catching_up", "verified", "fenced", "switched", "trimmed", "cancelling",
        "cancelled",
    }  # fmt: skip


def test_the_command_tells_what_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--seed", "3"]) == 0
    assert "seed 3: every invariant holds" in capsys.readouterr().out

    def broken(seed: int, *, tracing: bool = False) -> object:
        return simulate(seed, mutations=Mutations(no_filter=True), tracing=tracing)

    monkeypatch.setattr(command, "simulate", broken)
    failing = next(seed for seed in range(50) if command.told(seed))
    capsys.readouterr()
    assert command.main(["--seed", str(failing)]) == 1
    assert f"seed {failing}: at " in capsys.readouterr().out


# ---------------------------------------------------------------------------------- the checker

PUT = Request(1, Kind.UPSERT, ("r",), (1, None, 0))
PATCHED = Request(2, Kind.UPSERT, ("r",), (None, 2, None))
GONE = Request(3, Kind.DELETE, ("r",))
IS_PUT, IS_PATCHED = (1, 1, None, 0), (1, 1, 2, 0)
NEVER = float("inf")


@pytest.mark.parametrize(
    ("seen", "possible"),
    [
        ([], True),
        ([Seen(0, 1, PUT), Seen(2, 3, None, IS_PUT)], True),
        ([Seen(0, 1, PUT), Seen(2, 3, None, None)], False),  # lost
        ([Seen(0, 5, PUT), Seen(2, 3, None, None), Seen(2, 3, None, IS_PUT)], True),
        ([Seen(0, 9, PUT), Seen(1, 2, None, IS_PUT), Seen(3, 4, None, None)], False),  # went back
        ([Seen(0, NEVER, PUT), Seen(2, 3, None, None), Seen(4, 5, None, IS_PUT)], True),
        ([Seen(0, NEVER, PUT), Seen(4, 5, None, None)], True),
        ([Seen(6, NEVER, PUT), Seen(4, 5, None, IS_PUT)], False),  # before it was asked for
        ([Seen(0, 1, PUT), Seen(2, 3, GONE), Seen(4, 5, None, IS_PUT)], False),  # returned
        ([Seen(0, 1, PUT), Seen(2, 3, PATCHED), Seen(4, 5, None, IS_PATCHED)], True),
        ([Seen(0, 1, PATCHED), Seen(2, 3, PUT), Seen(4, 5, None, IS_PATCHED)], False),
        ([Seen(0, 3, PATCHED), Seen(2, 5, PUT), Seen(6, 7, None, IS_PATCHED)], True),
        ([Seen(0, 1, PUT), Seen(2, 3, None, (2, *IS_PUT[1:]))], False),  # another sequence
    ],
)
def test_what_is_linearizable(seen: list[Seen], possible: bool) -> None:
    assert linearizable(None, seen) is possible
    random.Random(1).shuffle(seen)
    assert linearizable(None, seen) is possible
