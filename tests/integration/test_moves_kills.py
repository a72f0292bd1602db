"""Processes killed -9 in the stages of a move, under clients that check every answer."""

import asyncio

import pytest

from chroma_router.retry import RetryPolicy
from chroma_router.v1 import cluster_pb2
from tests.elastic.corpus import generated
from tests.elastic.kills import Plan, kill_rounds, take_over
from tests.elastic.victims import Victim
from tests.elastic.workload import Load
from tests.elastic.world import loaded_world

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

RECORDS = 1200

FENCED = cluster_pb2.MOVE_STAGE_FENCED
CATCHING_UP = cluster_pb2.MOVE_STAGE_CATCHING_UP
SWITCHED = cluster_pb2.MOVE_STAGE_SWITCHED


@pytest.mark.parametrize(
    ("seed", "rounds"),
    [
        (1, [Plan(Victim.MOVER, FENCED, 0), Plan(Victim.SOURCE, CATCHING_UP, 0)]),
        (2, [Plan(Victim.TARGET, FENCED, 0), Plan(Victim.SOURCE_ENGINE, SWITCHED, 0)]),
    ],
    ids=["mover and source", "target and engine"],
)
def test_what_was_acknowledged_outlives_kills(seed: int, rounds: list[Plan]) -> None:
    killed = asyncio.run(kill_rounds(seed, rounds, RECORDS))
    failed = [verdict for verdict in killed.verdicts if not verdict.passed]
    assert not failed, killed.report


async def test_another_router_takes_over_within_three_seconds() -> None:
    retry = RetryPolicy(max_attempts=12)
    async with loaded_world(generated(RECORDS, 3), Load(10, 4), 3, retry=retry) as world:
        world.record.tolerant = True
        await world.workload.start()
        await world.operator.run("shards", "add")
        await world.operator.run("rebalance", "start", "--throttle", "150")
        seconds, before, after = await take_over(world)
        assert seconds <= 3.0
        assert after.id == before.id
        copied = sum(move.copied_records for move in after.moves)
        await world.operator.until(
            lambda r: sum(move.copied_records for move in r.moves) > copied, seconds=10
        )
        if world.second.down:
            world.second.start()
        await world.operator.run("rebalance", "resume", "--throttle", "0")
        ended = await world.operator.ended(60)
        assert ended.state == cluster_pb2.REBALANCE_STATE_DONE, ended
        await world.workload.stop()
        world.record.tolerant = False
        await world.check_whole()
        world.shared.check()
    assert not world.record.faults, world.record.shown
