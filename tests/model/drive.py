"""Drives two worlds through operations: a seeded stream of them, or a hypothesis state machine."""

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.model.compare import Mismatch, compare
from tests.model.operations import KINDS, OPENING, Operation, any_operation, operation_of
from tests.model.picker import HypothesisPicker, SeededPicker
from tests.model.world import World, error_class

WRITES = frozenset({"add", "upsert", "update", "delete"})

_EVERYTHING = {"include": ["documents", "metadatas", "uris", "embeddings"]}


@dataclass(slots=True)
class Pair:
    """One Chroma and a cluster that must not differ from it. `done` counts the operations that were
    not refused, by kind, `refused` the others, by the class of Chroma's exception."""

    one: World
    cluster: World
    refused: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)

    def begin(self) -> None:
        """Both begin anew, with what OPENING makes."""
        self.one.reset()
        self.cluster.reset()
        for operation in OPENING:
            self.perform(operation)

    def perform(self, operation: Operation) -> None:
        """Does an operation in both; raises Mismatch when they differ, in the answer or, after a
        write, in what they then hold."""
        one = self.one.perform(operation)
        cluster = self.cluster.perform(operation)
        compare(operation, one, cluster, self.one)
        if one.error is None:
            self.done[operation.kind] += 1
        else:
            self.refused[error_class(one.error)] += 1
        if operation.kind in WRITES:
            self._perform_read(operation)

    def _perform_read(self, after: Operation) -> None:
        read = Operation("get", _EVERYTHING, after.collection, after.database, after.kept)
        try:
            compare(read, self.one.perform(read), self.cluster.perform(read), self.one)
        except Mismatch as mismatch:
            raise Mismatch(f"after {after}: {mismatch}") from None


def run_stream(pair: Pair, seed: int, operations: int) -> None:
    """So many operations of a seed. Raises Mismatch with the step and what went before it."""
    pair.begin()
    pick = SeededPicker(seed)
    recent: deque[Operation] = deque(maxlen=6)
    begun = time.monotonic()
    for step in range(operations):
        operation = any_operation(pick)
        recent.append(operation)
        try:
            pair.perform(operation)
        except Mismatch as mismatch:
            before = "\n".join(f"  {step - len(recent) + 1 + n}: {o}" for n, o in enumerate(recent))
            raise Mismatch(
                f"seed {seed}, step {step}: {mismatch}\n last steps:\n{before}"
            ) from None
    print(
        f"seed {seed}: {operations} operations in {time.monotonic() - begun:.0f} s, "
        f"refused alike: {dict(pair.refused.most_common())}"
    )


def machine(pair: Pair) -> type[RuleBasedStateMachine]:
    """A state machine over the pair, whose failures hypothesis shrinks to a few operations."""

    class Model(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            pair.begin()

    for kind in KINDS:
        setattr(Model, kind, _rule_of(kind, pair))
    return Model


def _rule_of(kind: str, pair: Pair) -> Any:
    @st.composite
    def operations(draw: Any) -> Operation:
        def choose(strategy: st.SearchStrategy[Any]) -> Any:
            return draw(strategy)

        return operation_of(HypothesisPicker(choose), kind)

    @rule(operation=operations())
    def perform(self: RuleBasedStateMachine, operation: Operation) -> None:
        pair.perform(operation)

    perform.__name__ = kind
    return perform


def run_machine(pair: Pair, seed: int, examples: int, steps: int) -> None:
    """So many examples of at most so many steps. Raises Mismatch after shrinking it."""
    model = machine(pair)
    model._hypothesis_internal_use_seed = seed
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        model,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            verbosity=Verbosity.normal,
            suppress_health_check=list(HealthCheck),
        ),
    )
