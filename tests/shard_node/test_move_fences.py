"""What a fenced source refuses, for how long, what it goes on serving; and how epochs change."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import ClusterError, NotAllowed, Reason, Stale
from shard_node.service import ShardService
from tests.shard_node.leaving import Leaving
from tests.shard_node.moving import EVEN, ODD, names
from tests.shard_node.running import (
    ADD,
    ALL_SLOTS,
    DELETE,
    UPSERT,
    CollectionCalls,
    Node,
    Row,
    floats,
    running,
)

pytestmark = pytest.mark.integration

HERE, THERE = names(6), names(6, ODD)  # of the moving slots, and of the others


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Node]:
    """A node that the test may stop and kill."""
    with running(tmp_path / "data") as node:
        yield node


def row(record_id: str, value: float = 1) -> Row:
    return Row(record_id, floats(value), metadata={"n": 1})


def filled(node: Node) -> CollectionCalls:
    docs = node.collection()
    docs.write(ADD, *map(row, [*HERE, *THERE]))
    return docs


def captured(docs: CollectionCalls) -> Leaving:
    move = Leaving(docs)
    move.begin()
    return move


def reads(docs: CollectionCalls) -> list[Callable[[], Any]]:
    """Those that need every owned slot, or one that is fenced."""
    return [
        docs.count,
        docs.ids,
        lambda: docs.query(floats(1)),
        lambda: docs.ids(filter={"where": '{"n":1}'}),
        lambda: docs.ids(filter={"ids": [THERE[0], HERE[0]]}),
        lambda: docs.query(floats(1), filter={"ids": HERE[:1]}),
    ]


def writes(docs: CollectionCalls) -> list[shard_pb2.Operation]:
    return [
        docs.operation(UPSERT, [row(HERE[0])]),
        docs.operation(ADD, [row(THERE[1]), row(HERE[1])]),
        docs.operation(DELETE, [HERE[2]]),
        docs.operation(DELETE, [], where='{"n":2}'),
        docs.operation(DELETE, [THERE[0], HERE[3]], where='{"n":2}'),
    ]


def refuses_reads(docs: CollectionCalls, next_epoch: int = 2) -> None:
    for read in reads(docs):
        with pytest.raises(Stale) as refused:
            read()
        assert refused.value.reason is Reason.SLOTS_FENCED
        assert refused.value.metadata == {
            "boot_id": docs.node.hello().boot_id,
            "epoch": str(docs.epoch),
            "next_epoch": str(next_epoch),
        }


def refuses_writes(docs: CollectionCalls) -> None:
    for result in docs.apply(*writes(docs)):
        assert (result.refused_reason, result.node_epoch) == ("SLOTS_FENCED", docs.epoch)


def serves_others(docs: CollectionCalls) -> None:
    """What touches no moving slot."""
    docs.write(UPSERT, *map(row, THERE))
    docs.write(DELETE, THERE[0], where='{"n":2}')
    assert sorted(docs.ids(filter={"ids": THERE})) == sorted(THERE)
    assert len(docs.query(floats(1), filter={"ids": THERE})[0]) == len(THERE)
    assert docs.ids(filter={"by_ids": True}) == []


def serves_all(docs: CollectionCalls) -> None:
    for read in reads(docs):
        read()
    assert [result.refused_reason for result in docs.apply(*writes(docs))] == [""] * 5


# ------------------------------------------------------------------------------------ fences


def test_writes_are_fenced_first_then_reads_and_others_never(node: Node) -> None:
    docs, bystander = filled(node), filled(node)
    move = captured(docs)
    fenced = move.fence()
    assert fenced.records == len(HERE)
    refuses_writes(docs)
    for read in reads(docs):
        read()
    serves_others(docs)
    assert docs.count() == len(HERE) + len(THERE)  # nothing was written
    move.fence_reads()
    refuses_reads(docs)
    refuses_writes(docs)
    serves_others(docs)
    serves_all(bystander)
    move.fence_reads()
    assert move.fence().records == len(HERE)  # idempotent, and reads stay fenced
    refuses_reads(docs)


def test_the_tail_is_read_in_the_turn_of_the_fence(node: Node) -> None:
    docs = filled(node)
    move = captured(docs)
    docs.write(DELETE, HERE[0])
    before = move.read(max_records=1)
    tail = move.fence(max_records=2).tail
    assert (tail.items, tail.caught_up) == (2, False)
    move.cursor = tail.end
    rest = move.read()
    assert (rest.items, rest.caught_up) == (len(HERE) - 2, True)
    chunks = [shard_pb2.MoveChunk.FromString(part.chunk) for part in (before, tail, rest)]
    assert [chunk.fenced for chunk in chunks] == [False, True, True]


@pytest.mark.parametrize("fenced", [False, True])
async def test_the_rest_of_the_tail_goes_before_what_waits(fenced: bool) -> None:
    lanes: list[set[str]] = []

    async def turn(_: object, **lane: bool) -> shard_pb2.ReadMoveResponse:
        lanes.append({name for name, chosen in lane.items() if chosen})
        return shard_pb2.ReadMoveResponse()

    now = Mock()
    now.applier.turn, now.source.is_fenced.return_value = turn, fenced
    node = Mock(**{"incarnation.return_value": now})
    context = Mock(**{"time_remaining.return_value": None})
    await ShardService(node, Mock()).ReadMove(shard_pb2.ReadMoveRequest(), context)
    assert lanes == [{"urgent" if fenced else "background"}]


@pytest.mark.parametrize("how", ["kill", "stop", "engine"])
def test_a_fence_survives_and_then_holds_reads_too(mine: Node, how: str) -> None:
    docs = filled(mine)
    move = captured(docs)
    move.fence()
    boot_id = mine.hello().boot_id
    if how == "engine":
        mine.kill_engine()
    else:
        getattr(mine, how)()
        mine.start()
    while mine.until_serving() == boot_id:
        pass
    docs.own()  # at the same epoch
    refuses_writes(docs)
    refuses_reads(docs)
    serves_others(docs)
    move.fence_reads()
    move.renew()
    with pytest.raises(NotAllowed):  # not fenced under this token yet
        move.fence_reads()
    assert move.fence().records == len(HERE)
    move.fence_reads()
    docs.own(ODD, epoch=2)
    assert sorted(docs.ids()) == sorted(THERE)
    docs.write(UPSERT, row(THERE[0]))


def test_only_the_next_epoch_lifts_a_fence(mine: Node) -> None:
    docs = mine.collection(epoch=4)
    docs.write(ADD, *map(row, [*HERE, *THERE]))
    move = captured(docs)
    move.fence(next_epoch=6)
    move.fence_reads()
    docs.own(epoch=4)
    refuses_writes(docs)
    with pytest.raises(Stale):
        docs.own(epoch=3)
    docs.own(epoch=5, only=True)
    refuses_writes(docs)
    refuses_reads(docs, next_epoch=6)
    mine.kill()
    mine.start()
    docs.own(epoch=5)
    refuses_writes(docs)
    docs.own(epoch=6, only=True)  # the switch went to another map that leaves the slots here
    serves_all(docs)
    mine.kill()
    mine.start()
    docs.own(epoch=6)
    serves_all(docs)


def test_the_end_of_the_capture_lifts_its_fence_and_no_other(mine: Node) -> None:
    docs = filled(mine)
    few = frozenset({1, 3})
    move, other = captured(docs), Leaving(docs, slots=few)
    other.begin()
    move.token = other.token
    move.fence()
    other.fence()
    other.end()
    refuses_writes(docs)
    move.end()
    serves_all(docs)
    mine.kill()
    mine.start()
    docs.own()
    serves_all(docs)


def test_fences_that_are_not_to_be_had(node: Node) -> None:
    docs = node.collection(epoch=3)
    move = Leaving(docs)
    with pytest.raises(NotAllowed) as refused:
        move.fence(next_epoch=4)
    assert refused.value.reason is Reason.MOVE_OUT_OF_STEP
    move.begin()
    with pytest.raises(NotAllowed) as refused:
        move.fence_reads()
    assert refused.value.reason is Reason.MOVE_OUT_OF_STEP
    for epoch in (2, 3):
        with pytest.raises(Stale) as stale:
            move.fence(next_epoch=epoch)
        assert (stale.value.reason, stale.value.metadata["epoch"]) == (Reason.STALE_EPOCH, "3")
    for epoch in (0, 1, 2**63):
        with pytest.raises(ClusterError, match="epoch of a switch"):
            move.fence(next_epoch=epoch)
    docs.write(ADD, row(HERE[0]))
    assert docs.count() == 1


# ------------------------------------------------------------------------------------ epochs


def until_served(docs: CollectionCalls) -> None:
    """Until the node is at the epoch of these calls."""
    while True:
        try:
            docs.count()
        except Stale:
            continue
        return


def test_a_new_epoch_is_served_at_once_and_written_when_it_is_durable(mine: Node) -> None:
    docs = filled(mine)
    old = CollectionCalls(mine, docs.id, epoch=1)
    engine = mine.engine()
    engine.send_signal(signal.SIGSTOP)
    under_way = mine.stub.Apply.future(
        shard_pb2.ApplyRequest(operations=[docs.operation(ADD, [row("under way")])]), timeout=30
    )
    waiting = mine.stub.Apply.future(
        shard_pb2.ApplyRequest(operations=[docs.operation(DELETE, [THERE[0]])]), timeout=30
    )
    mine.until_queued(2)
    owning = mine.stub.SetOwnership.future(docs.ownership(ODD, epoch=2, only=True), timeout=30)
    new = CollectionCalls(mine, docs.id, epoch=2)
    until_served(new)
    assert new.count() == len(THERE)
    assert not owning.done()
    with pytest.raises(Stale):
        old.count()
    after = mine.stub.Apply.future(
        shard_pb2.ApplyRequest(operations=[new.operation(DELETE, [THERE[1]])]), timeout=30
    )
    engine.send_signal(signal.SIGCONT)
    assert under_way.result().results[0].refused_reason == ""
    answer = owning.result()
    assert (answer.configuration_json, answer.schema_json) == ("", "")
    (late,) = waiting.result().results  # the epoch went before it
    assert (late.refused_reason, late.node_epoch) == ("STALE_EPOCH", 2)
    assert after.result().results[0].refused_reason == ""
    assert sorted(new.ids()) == sorted(i for i in THERE if i != THERE[1])


def test_an_epoch_that_is_not_durable_is_not_written_at(mine: Node) -> None:
    """Its caller has gone away before its turn."""
    docs = filled(mine)
    engine = mine.engine()
    engine.send_signal(signal.SIGSTOP)
    under_way = mine.stub.Apply.future(
        shard_pb2.ApplyRequest(operations=[docs.operation(ADD, [row("under way")])]), timeout=30
    )
    mine.until_queued(1)
    owning = mine.stub.SetOwnership.future(docs.ownership(ODD, epoch=2, only=True), timeout=30)
    new = CollectionCalls(mine, docs.id, epoch=2)
    until_served(new)
    owning.cancel()
    mine.until_queued(1)  # the node has noticed that nobody waits for the turn
    written = mine.stub.Apply.future(
        shard_pb2.ApplyRequest(operations=[new.operation(DELETE, [THERE[1]])]), timeout=30
    )
    mine.until_queued(2)
    engine.send_signal(signal.SIGCONT)
    under_way.result()
    (result,) = written.result().results
    assert (result.refused_reason, result.node_epoch) == ("STALE_EPOCH", 1)
    new.own(ODD, epoch=2, only=True)
    new.write(DELETE, THERE[1])


def test_an_epoch_alone_needs_a_node_that_serves_the_definition(mine: Node) -> None:
    docs = filled(mine)
    newer = docs.own(epoch=2, version=2, only=True, metadata={"more": "said"})
    assert newer.configuration_json
    assert not docs.own(epoch=3, version=1, only=True).configuration_json
    # As after a switch: the catalog counts it as a change, and nothing else has changed.
    same = docs.own(epoch=3, version=5, only=True, metadata={"more": "said"})
    assert not same.configuration_json
    assert docs.own(epoch=3, version=1).configuration_json
    with pytest.raises(NotAllowed) as refused:
        docs.own(ODD, epoch=3, only=True)
    assert refused.value.reason is Reason.CATALOG_BEHIND
    with pytest.raises(Stale):
        docs.own(epoch=2, only=True)
    with pytest.raises(Stale) as stale:
        docs.own(epoch=4, boot_id="7c9f9d56-6a0b-44a5-ae1c-0c1d3a0d5f00", only=True)
    assert stale.value.reason is Reason.STALE_BOOT
    mine.kill()
    mine.start()
    mine.hello()
    docs.own(epoch=4, only=True)  # it is loaded first
    assert docs.count() == len(HERE) + len(THERE)


# ------------------------------------------------------------------------------------ numbers


def slot_counts(node: Node) -> dict[str, Any]:
    listed = node.stub.ListSlotCounts(shard_pb2.ListSlotCountsRequest(), timeout=30)
    return {answer.collection_id: answer for answer in listed}


def test_what_a_planner_asks(mine: Node) -> None:
    docs, empty = filled(mine), mine.collection()
    docs.own(EVEN, epoch=2)
    listed = slot_counts(mine)
    assert set(listed) == {docs.id, empty.id}
    counts = listed[docs.id]
    assert (len(counts.counts), sum(counts.counts), counts.epoch) == (1024, 12, 2)
    move = captured(docs)
    answer = move.read(max_records=3)
    assert counts.record_bytes == pytest.approx(len(answer.chunk) / 3, rel=0.5)
    assert (listed[empty.id].record_bytes, sum(listed[empty.id].counts)) == (0, 0)
    assert len(slot_counts(mine)) == 2
    stats = mine.call("GetShardStats", shard_pb2.GetShardStatsRequest())
    assert stats.queued_operations == 0
    assert stats.memory_limit_bytes > stats.memory_bytes > 0


def test_the_memory_that_an_operator_has_set(tmp_path: Path) -> None:
    bound = {"CHROMA_ROUTER_NODE_MEMORY_BYTES": str(5 << 30)}
    with running(tmp_path / "data", environment=bound) as node:
        stats = node.call("GetShardStats", shard_pb2.GetShardStatsRequest())
        assert stats.memory_limit_bytes == 5 << 30


def test_fences_and_captures_begin_in_bounded_time_whatever_is_queued(mine: Node) -> None:
    """An urgent call does not wait for the operations before it."""
    docs = filled(mine)
    move = captured(docs)
    operations = [
        docs.operation(UPSERT, [Row(f"q{n}-{i}", floats(*range(16))) for i in range(100)])
        for n in range(60)
    ]
    docs.own(ALL_SLOTS)
    many = mine.stub.Apply.future(shard_pb2.ApplyRequest(operations=operations), timeout=60)
    mine.until_queued(len(operations))
    move.fence()
    assert not many.done()
    refused = [result.refused_reason for result in many.result().results]
    assert "SLOTS_FENCED" in refused
