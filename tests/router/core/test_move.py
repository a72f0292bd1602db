"""The protocol of a move against a naive peer, re-run from every step at which it was broken off.

Model: patroni's tests/test_quorum.py. The peer does what a step asks for and asserts, by what it
knows itself, that the step may come now. What happens when messages overtake one another, or nodes
die, is tests/sim's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from router.core import move as protocol
from router.core.move import (
    CANCELLABLE,
    ENDED,
    MOST_CATCH_UPS,
    PAUSABLE,
    Answer,
    Move,
    Stage,
    Step,
    pursue,
)

MOVE = Move("m", "r", 0, "c", "source", "target", frozenset({1, 2}))
FENCED = MOVE.entered(Stage.COPYING).entered(Stage.CATCHING_UP).entered(Stage.VERIFIED)
FENCED = FENCED.entered(Stage.FENCED, next_epoch=2)


@dataclass
class Peer:
    """Catalog, source and target in one. Records are counted in chunks of one record each."""

    move: Move = MOVE
    records: int = 3
    """How many the source has."""
    changes: int = 2
    """How many chunks of changes come after them."""
    leftovers: int = 0
    """What an older move has left at the target."""
    wrong: int = 0
    """How many of the records the target stores wrongly."""
    missing: int = 0
    """How many records the target has lost without anyone noticing."""
    disagreement: str = ""
    applied: int | None = None
    """The target's cursor: how many chunks have come; None: it knows nothing of the move."""
    captured: bool = False
    fenced: bool = False
    reads_fenced: bool = False
    switched: bool = False
    granted: bool = False
    at_source: int = 0
    at_target: int = 0
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.at_source = self.records
        self.at_target = self.leftovers

    def do(self, step: Step) -> Answer:  # noqa: C901, PLR0911
        """Does a step, if it may come now."""
        self.steps.append(step)
        match step:
            case protocol.Enter(stage, problem):
                return self._enter(stage, problem)
            case protocol.Arrive(afresh):
                assert not self.switched
                if afresh or (self.applied is None and self.at_target):
                    self.applied = None
                    return protocol.Arrived(0, not self.at_target, copy_done=False)
                self.applied = self.applied or 0
                return protocol.Arrived(self.applied, True, self.applied >= self.records)
            case protocol.Drop("source"):
                assert self.granted, "the source may believe that it owns what is deleted"
                self.at_source = max(0, self.at_source - 2)
                return not self.at_source
            case protocol.Drop():
                assert not self.switched, "the target owns what is deleted"
                assert self.move.stage in {Stage.PLANNED, Stage.COPYING, Stage.CANCELLING}
                self.at_target = max(0, self.at_target - 2)
                return not self.at_target
            case protocol.Capture():
                assert self.move.stage is Stage.COPYING
                self.captured = True
            case protocol.Transfer(begin, compare, compared):
                return self._transfer(begin, compare, compared)
            case protocol.Fence(begin):
                assert self.move.stage is Stage.FENCED
                self.fenced = True
                return self._transfer(begin, source_records=self.records)
            case protocol.CompareQueries():
                return self.disagreement
            case protocol.FenceReads():
                assert self.fenced, "reads are fenced before writes"
                assert self.applied == self.records + self.changes, "reads are fenced too early"
                self.reads_fenced = True
            case protocol.Switch():
                assert self.reads_fenced, "the source still answers reads"
                assert self.at_target == self.records, "the target does not have everything"
                self.switched = True
                self.move = self.move.entered(Stage.SWITCHED)
                return self.move
            case protocol.Grant():
                assert self.switched
                self.granted, self.fenced, self.captured = True, False, False
            case protocol.EndCapture():
                assert self.move.stage is Stage.CANCELLING
                self.captured = self.fenced = self.reads_fenced = False
            case protocol.EndArrival():
                assert not self.at_target, "forgotten before it was purged"
                self.applied = None
        return None

    def _enter(self, stage: Stage, problem: str) -> Move:
        next_epoch = 2 if stage is Stage.FENCED else 0
        self.move = self.move.entered(stage, next_epoch=next_epoch, problem=problem)
        if stage is Stage.TRIMMED:
            assert (self.at_source, self.at_target) == (0, self.records)
        if stage is Stage.CANCELLED:
            assert (self.at_source, self.at_target) == (self.records, 0)
        if stage in ENDED:
            assert not self.fenced
            assert not self.captured
        return self.move

    def _transfer(
        self,
        begin: object,
        compare: bool = False,
        compared: protocol.Place | None = None,
        source_records: int = -1,
    ) -> protocol.Transferred | protocol.OutOfStep:
        assert not self.switched, "something is copied after the switch"
        assert self.move.stage is not Stage.PLANNED
        if not self.captured or self.applied is None or begin != self.applied:
            return protocol.OutOfStep()
        everything = self.records + self.changes
        items = int(self.applied < everything)
        self.applied += items
        if items and self.applied <= self.records:
            self.at_target = self.applied
        caught_up = self.applied == everything
        place = (compared or (0, ""))[0] + 1
        comparing = compare and caught_up
        differs = comparing and self.wrong >= place
        return protocol.Transferred(
            end=self.applied,
            copy_done=self.applied >= self.records,
            caught_up=caught_up,
            items=items,
            compared=(place, "") if comparing else None,
            compare_done=comparing and place >= self.records,
            differences="record 1" if differs else "",
            source_records=source_records,
            target_records=self.at_target - self.missing,
        )


def _run(peer: Peer, steps: int = 1_000, *, answered: bool = True) -> bool:
    """One run of at most so many steps; the last one's answer is lost, or it is never done, if not
    `answered`. Whether the run came to its end."""
    run = pursue(peer.move)
    answer: Answer = None
    for done in range(steps + 1):
        try:
            step = run.send(answer)
        except StopIteration as end:
            return bool(end.value == peer.move)
        if done < steps or not answered:
            answer = peer.do(step)
    return False


def _run_into(peer: Peer, stage: Stage) -> None:
    """Runs until the catalog has the move at a stage."""
    run = pursue(peer.move)
    answer: Answer = None
    while peer.move.stage is not stage:
        answer = peer.do(run.send(answer))


PEERS: dict[str, Callable[[], Peer]] = {
    "plain": Peer,
    "nothing to move": lambda: Peer(records=0, changes=0),
    "many changes": lambda: Peer(changes=40),
    "leftovers": lambda: Peer(leftovers=5),
    "wrong copy": lambda: Peer(wrong=1),
    "wrong late": lambda: Peer(wrong=3),
    "queries disagree": lambda: Peer(disagreement="2 of 10"),
    "count differs": lambda: Peer(missing=1),
}
CANCELS = {"wrong copy", "wrong late", "queries disagree", "count differs"}


@pytest.fixture(params=PEERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _ends_as(name: str) -> Stage:
    return Stage.CANCELLED if name in CANCELS else Stage.TRIMMED


def _interruptions(name: str) -> Iterator[tuple[int, bool]]:
    peer = PEERS[name]()
    assert _run(peer)
    for steps in range(len(peer.steps)):
        yield steps, True
        yield steps, False


# --------------------------------------------------------------------------------- transitions


@pytest.mark.parametrize(
    ("stage", "allowed"),
    [
        (Stage.PLANNED, {Stage.COPYING, Stage.CANCELLING, Stage.CANCELLED}),
        (Stage.COPYING, {Stage.CATCHING_UP, Stage.CANCELLING}),
        (Stage.CATCHING_UP, {Stage.VERIFIED, Stage.COPYING, Stage.CANCELLING}),
        (Stage.VERIFIED, {Stage.FENCED, Stage.COPYING, Stage.CANCELLING}),
        (Stage.FENCED, {Stage.SWITCHED, Stage.CANCELLING}),
        (Stage.SWITCHED, {Stage.TRIMMED}),
        (Stage.TRIMMED, set()),
        (Stage.CANCELLING, {Stage.CANCELLED}),
        (Stage.CANCELLED, set()),
    ],
)
def test_a_stage_leads_to_just_these(stage: Stage, allowed: set[Stage]) -> None:
    move = Move("m", "r", 0, "c", "a", "b", frozenset({7}), stage=stage, next_epoch=2)
    for wanted in Stage:
        if wanted not in allowed:
            with pytest.raises(ValueError, match=f"from {stage} never to {wanted}"):
                move.entered(wanted, next_epoch=2)
            continue
        entered = move.entered(wanted, problem="why")
        assert (entered.stage, entered.version) == (wanted, move.version + 1)
        assert (entered.problem, entered.next_epoch) == ("why", 2)
    assert move.ended is (not allowed)


def test_a_switched_move_cannot_be_undone_and_a_fenced_one_not_halted() -> None:
    assert Stage.SWITCHED not in CANCELLABLE
    assert {Stage.FENCED} == CANCELLABLE - PAUSABLE
    for stage in CANCELLABLE:
        move = Move("m", "r", 0, "c", "a", "b", frozenset({7}), stage=stage, next_epoch=2)
        assert move.entered(Stage.CANCELLING).stage is Stage.CANCELLING


def test_moves_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="to itself"):
        Move("m", "r", 0, "c", "a", "a", frozenset({7}))
    for slots in (frozenset[int](), frozenset({1024}), frozenset({-1, 3})):
        with pytest.raises(ValueError, match="slots"):
            Move("m", "r", 0, "c", "a", "b", slots)
    for stage in (Stage.FENCED, Stage.SWITCHED):
        with pytest.raises(ValueError, match="without the epoch"):
            Move("m", "r", 0, "c", "a", "b", frozenset({7}), stage=stage)
    with pytest.raises(ValueError, match="without the epoch"):
        FENCED.__class__("m", "r", 0, "c", "a", "b", frozenset({7}), Stage.VERIFIED).entered(
            Stage.FENCED
        )


# --------------------------------------------------------------------------------- whole runs


def test_a_move_ends(name: str) -> None:
    peer = PEERS[name]()
    assert _run(peer)
    assert peer.move.stage is _ends_as(name)
    assert bool(peer.move.problem) is (name in CANCELS)


def test_a_move_that_has_ended_has_no_steps() -> None:
    for stage in ENDED:
        move = Move("m", "r", 0, "c", "a", "b", frozenset({7}), stage=stage)
        with pytest.raises(StopIteration) as end:
            next(pursue(move))
        assert end.value.value is move


def test_the_order_of_the_steps() -> None:
    peer = Peer(records=1, changes=1)
    assert _run(peer)
    assert peer.steps == [
        protocol.Arrive(), protocol.Enter(Stage.COPYING),
        protocol.Capture(), protocol.Arrive(), protocol.Transfer(0),
        protocol.Enter(Stage.CATCHING_UP),
        protocol.Arrive(), protocol.Transfer(1, compare=True), protocol.CompareQueries(),
        protocol.Enter(Stage.VERIFIED),
        protocol.Arrive(), protocol.Transfer(2), protocol.Enter(Stage.FENCED),
        protocol.Arrive(), protocol.Fence(2), protocol.FenceReads(), protocol.Switch(),
        protocol.Grant(), protocol.Drop("source"), protocol.Enter(Stage.TRIMMED),
    ]  # fmt: skip


def test_a_run_broken_off_anywhere_is_taken_up_again(name: str) -> None:
    for steps, answered in _interruptions(name):
        peer = PEERS[name]()
        assert not _run(peer, steps, answered=answered)
        _run(peer)
        assert peer.move.stage is _ends_as(name), (steps, answered)


def test_a_run_broken_off_twice_is_taken_up_again(name: str) -> None:
    for steps, answered in _interruptions(name):
        for more in range(8):
            peer = PEERS[name]()
            _run(peer, steps, answered=answered)
            _run(peer, more, answered=not answered)
            _run(peer)
            assert peer.move.stage is _ends_as(name), (steps, answered, more)


def test_a_move_cancelled_anywhere_is_undone(name: str) -> None:
    for steps, answered in _interruptions(name):
        peer = PEERS[name]()
        _run(peer, steps, answered=answered)
        stage = peer.move.stage
        if stage in CANCELLABLE:
            peer.move = peer.move.entered(Stage.CANCELLING)
        _run(peer)
        undone = stage not in {Stage.SWITCHED, Stage.TRIMMED}
        assert peer.move.stage is (Stage.CANCELLED if undone else Stage.TRIMMED)


@pytest.mark.parametrize("steps", range(13))
def test_a_target_that_was_emptied_is_brought_and_compared_everything_again(steps: int) -> None:
    peer = Peer()
    _run(peer, steps)
    assert peer.move.stage in PAUSABLE
    peer.applied, peer.at_target, done = None, 0, len(peer.steps)
    assert _run(peer)
    assert peer.move.stage is Stage.TRIMMED
    again = peer.steps[done:]
    compared = [s for s in again if isinstance(s, protocol.Transfer) and s.compare]
    assert len(compared) >= peer.records
    assert again.index(compared[-1]) < again.index(protocol.Enter(Stage.FENCED))


def test_a_target_that_was_emptied_under_the_fence_ends_the_move() -> None:
    peer = Peer(move=FENCED, captured=True)
    assert _run(peer)
    assert peer.move.stage is Stage.CANCELLED
    assert "the target lost" in peer.move.problem
    assert not any(isinstance(step, protocol.Fence) for step in peer.steps)


@pytest.mark.parametrize("stage", sorted(CANCELLABLE - {Stage.PLANNED}))
def test_a_source_that_knows_nothing_of_the_stream(stage: Stage) -> None:
    """Its capture is another one: the copy begins again, or under the fence the move ends."""
    peer = Peer()
    _run_into(peer, stage)

    def other_capture(begin: object, *arguments: object, **named: object) -> protocol.OutOfStep:
        return protocol.OutOfStep()

    run = pursue(peer.move)
    step = next(run)
    sound, peer._transfer = peer._transfer, other_capture  # type: ignore[method-assign]
    while not isinstance(step, protocol.Transfer | protocol.Fence):
        step = run.send(peer.do(step))
    peer.do(run.send(peer.do(step)))
    peer._transfer = sound  # type: ignore[method-assign]
    _run(peer)
    fenced = stage is Stage.FENCED
    assert peer.move.stage is (Stage.CANCELLED if fenced else Stage.TRIMMED)


def test_a_tail_that_never_gets_short_is_fenced_all_the_same() -> None:
    peer = Peer(changes=MOST_CATCH_UPS * 2)
    peer.move = FENCED.__class__("m", "r", 0, "c", "source", "target", MOVE.slots, Stage.VERIFIED)
    peer.captured, peer.applied, peer.at_target = True, peer.records, peer.records
    assert _run(peer)
    assert peer.move.stage is Stage.TRIMMED
    before = peer.steps.index(protocol.Enter(Stage.FENCED))
    assert sum(isinstance(step, protocol.Transfer) for step in peer.steps[:before]) == (
        MOST_CATCH_UPS
    )
    after = peer.steps[before:]
    assert sum(isinstance(step, protocol.Fence) for step in after) == 1
    assert sum(isinstance(step, protocol.Transfer) for step in after) == MOST_CATCH_UPS - 1


def test_an_answer_of_another_kind_is_a_defect() -> None:
    run = pursue(MOVE)
    next(run)
    with pytest.raises(AssertionError, match="not a Arrived"):
        run.send(None)
