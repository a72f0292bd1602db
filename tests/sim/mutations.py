"""The mutations that are in the protocol itself: `pursue` with steps left out."""

from collections.abc import Callable
from dataclasses import replace

from router.core.move import (
    Answer,
    Drop,
    Fence,
    Grant,
    Move,
    Run,
    Stage,
    Transfer,
    Transferred,
)
from tests.sim.options import Mutations


def mutated(pursue: Callable[[Move], Run], move: Move, mutations: Mutations) -> Run:
    """The run of a move, without what the mutations leave out."""
    if not (mutations.no_purge or mutations.unchecked_trim or mutations.no_verify):
        return pursue(move)
    return _without(pursue, move, mutations)


def _without(pursue: Callable[[Move], Run], move: Move, mutations: Mutations) -> Run:
    run = pursue(move)
    step = next(run)
    while True:
        answer: Answer
        if mutations.no_purge and isinstance(step, Drop) and move.stage is Stage.CANCELLING:
            answer = True
        elif mutations.unchecked_trim and isinstance(step, Grant):
            # Trimmed first, given its ownership then.
            while not (yield Drop(move.source)):
                pass
            answer = yield step
        elif mutations.no_verify and isinstance(step, Transfer | Fence):
            plain = replace(step, compare=False) if isinstance(step, Transfer) else step
            answer = _as_if_equal((yield plain))
        else:
            answer = yield step
        if isinstance(answer, Move):
            move = answer
        try:
            step = run.send(answer)
        except StopIteration as end:
            ended: Move = end.value
            return ended


def _as_if_equal(answer: Answer) -> Answer:
    """Nothing was compared, neither records nor counts."""
    if not isinstance(answer, Transferred):
        return answer
    return replace(answer, compare_done=answer.caught_up, source_records=0, target_records=0)
