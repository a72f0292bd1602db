"""The bars of the proof: what is below one misses it, and nothing else does."""

from chroma_router.v1 import cluster_pb2
from tests.elastic.answers import Fault, Finding
from tests.elastic.kills import STAGES, plans
from tests.elastic.measure import Record
from tests.elastic.steps import Step
from tests.elastic.verdicts import (
    Verdict,
    correctness,
    faults_text,
    latency_table,
    of_copy,
    of_latency,
    of_steps,
)
from tests.elastic.victims import Victim, mover_pid


def step(
    *, moved: int = 300, after: tuple[int, ...] = (300, 300, 300), write_pause: int = 0
) -> Step:
    """A rebalance of one move, that copied 300 records in half a second."""
    move = cluster_pb2.Move(
        stage=cluster_pb2.MOVE_STAGE_TRIMMED,
        records=moved,
        copied_records=300,
        copy_microseconds=500_000,
        write_pause_microseconds=write_pause,
    )
    given_up = cluster_pb2.Move(stage=cluster_pb2.MOVE_STAGE_CANCELLED, records=999)
    rebalance = cluster_pb2.Rebalance(
        state=cluster_pb2.REBALANCE_STATE_DONE, moves=[move, given_up]
    )
    shards = {f"shard-{n}": records for n, records in enumerate(after)}
    return Step("2 -> 3", rebalance, 300, shards, 1.0)


def missed(verdicts: list[Verdict]) -> list[str]:
    """The bars that were missed."""
    return [verdict.bar for verdict in verdicts if not verdict.passed]


def test_a_good_rebalance_misses_nothing() -> None:
    assert missed(of_steps([step(), step(moved=330, after=(290, 300, 310))])) == []
    assert step().copy_rate == 600


def test_each_bar_of_a_rebalance() -> None:
    assert missed(of_steps([step(moved=331)])) == ["2 -> 3: moved records <= 1.1 x minimum"]
    assert missed(of_steps([step(after=(280, 300, 320))])) == [
        "2 -> 3: records per shard within 5% of even"
    ]
    assert missed(of_steps([step(write_pause=151_000)])) == ["write pause p99 <= 150 ms"]
    failed = step()
    failed.rebalance.state = cluster_pb2.REBALANCE_STATE_CANCELLED
    assert missed(of_steps([failed])) == ["2 -> 3: done"]


def test_a_fault_is_a_missed_bar_and_is_told() -> None:
    record = Record(phase="2 -> 3")
    assert missed(correctness(record)) == []
    record.found([Finding(Fault.LOST, "a did not come")] * 30, "client-1 get")
    assert missed(correctness(record)) == ["0 lost records"]
    told = faults_text(record).splitlines()
    assert told[0] == "lost: 30"
    assert len(told) == 21
    assert told[1].endswith("2 -> 3] client-1 get: a did not come")


def test_queries_may_be_twice_as_slow_while_slots_move() -> None:
    record = Record()
    for n in range(200):
        record.took("before", "query", 0.010)
        record.took("2 -> 3", "query", 0.019)
        record.took("3 -> 4", "query", 0.019 if n else 0.9)
    assert missed(of_latency(record, "before", ["2 -> 3", "3 -> 4"])) == []
    for _ in range(5):
        record.took("2 -> 3", "query", 0.025)
    assert missed(of_latency(record, "before", ["2 -> 3", "3 -> 4"])) == [
        "query p99 during moves <= 2 x before"
    ]
    assert "900.0" in latency_table(record)


def test_the_copy_rate_is_measured_by_the_engine_s() -> None:
    assert of_copy(50, 100).passed
    assert not of_copy(49, 100).passed


def test_plans_of_kills_are_of_all_victims_and_stages_and_repeatable() -> None:
    every = len(Victim) * (len(STAGES) + 1)
    drawn = plans(7, every)
    assert len({(plan.victim, plan.stage) for plan in drawn}) == every
    assert drawn == plans(7, every)
    assert drawn != plans(8, every)
    assert len(plans(7, every + 5)) == every + 5


def test_the_mover_is_known_by_its_process() -> None:
    named = cluster_pb2.Rebalance(mover="127.0.0.1:50051 host pid 4711")
    assert mover_pid(named) == 4711
    assert mover_pid(cluster_pb2.Rebalance()) is None
