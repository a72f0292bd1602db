"""A target whose engine or node is killed at any moment goes on from the cursor that it reports."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import Unavailable
from chroma_router.wire.slots import slot_of
from tests.shard_node.moving import EVEN, ODD, Moving, comparison, names
from tests.shard_node.running import (
    ADD,
    ALL_SLOTS,
    DELETE,
    CollectionCalls,
    Node,
    Row,
    floats,
    running,
    uuid7,
)

pytestmark = pytest.mark.integration

_CHUNKS, _KILLS = 16, 5
_SMALL_CALLS = {"CHROMA_ROUTER_NODE_GROUP_ROWS": "15"}  # so that a chunk is several engine calls


@dataclass
class Stream:
    """A source's chunks, and what is there after all of them."""

    request_id: str
    chunks: list[shard_pb2.MoveChunk] = field(default_factory=list)
    records: dict[str, Row] = field(default_factory=dict)
    deleted: int = 0

    @classmethod
    def of(cls, move: Moving, chance: random.Random) -> "Stream":
        stream, ids, sequence = cls(uuid7()), names(150), 0
        for _ in range(_CHUNKS):
            named = chance.sample(ids, 60)
            removed = named[: chance.randint(0, 20)]
            puts = []
            for record_id in named[len(removed) :]:
                sequence += 1
                document = chance.choice([None, f"text {sequence}"])
                metadata = chance.choice([None, {"n": sequence}, {"other": "x"}])
                vector = floats(sequence, chance.random())
                puts.append(Row(record_id, vector, document, None, metadata, sequence))
            deleted = [slot_of(i) for i in removed]
            stream.deleted += len(deleted)
            outcome = shard_pb2.MovedOutcome(
                request_id=stream.request_id, kind=shard_pb2.OPERATION_KIND_DELETE, at=10**15,
                slots=sorted(EVEN), deleted_slots=deleted,
            )  # fmt: skip
            chunk = move.chunk(puts, removed, outcomes=[outcome])
            stream.chunks.append(chunk)
            move.cursor = chunk.end
            for record_id in removed:
                stream.records.pop(record_id, None)
            stream.records.update({row.id: row for row in puts})
        return stream


def kill_node(node: Node) -> None:
    node.kill()
    node.start()


def kill_engine(node: Node) -> None:
    before = node.hello().boot_id
    node.kill_engine()
    while node.until_serving() == before:
        pass


def resume(docs: CollectionCalls, move: Moving) -> int:
    """As the next mover; how many chunks the target says it has."""
    docs.node.until_serving()
    docs.own(ODD)
    move.renew()
    assert move.begin() is True
    return move.cursor.changed_batch


@pytest.mark.parametrize("kill", [kill_engine, kill_node])
@pytest.mark.timeout(180)
def test_a_killed_target_goes_on(tmp_path: Path, kill: Callable[[Node], None]) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with running(tmp_path / "data", environment=_SMALL_CALLS) as node:
        docs = node.collection(slots=ODD)
        move = Moving(docs)
        stream = Stream.of(move, chance)
        assert move.begin() is True
        applied, seconds = 0, 0.0  # what a chunk takes
        kills = sorted(chance.sample(range(1, _CHUNKS), _KILLS))
        while applied < _CHUNKS:
            if not kills or applied < kills[0]:
                began = time.monotonic()
                move.send(stream.chunks[applied])
                applied, seconds = applied + 1, time.monotonic() - began
                continue
            del kills[0]
            request = shard_pb2.ApplyMoveRequest(
                move=move.ref, chunk=stream.chunks[applied].SerializeToString()
            )
            sent = threading.Event()
            call = node.stub.ApplyMove.future(request, timeout=30)
            call.add_done_callback(lambda _, sent=sent: sent.set())
            sent.wait(chance.uniform(0, seconds * 1.2))
            kill(node)
            reported = resume(docs, move)
            assert applied <= reported <= applied + 1
            assert reported == applied + 1 or not (call.done() and call.exception() is None)
            applied = reported
        rows = list(stream.records.values())
        answer = move.send(move.chunk(comparison=comparison(rows)))
        assert (answer.records, answer.differences) == (len(rows), 0), list(answer.differing)
        docs.own(ALL_SLOTS, epoch=2)
        assert docs.ids() == [row.id for row in sorted(rows, key=lambda row: row.sequence)]
        (result,) = docs.apply(docs.operation(DELETE, [], stream.request_id, where='{"n": 1}'))
        assert result.deleted == stream.deleted
        docs.write(ADD, Row(names(1, prefix="new")[0], floats(1, 1)))
        assert docs.count() == len(rows) + 1


@pytest.mark.timeout(120)
def test_a_killed_purge_is_finished(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with running(tmp_path / "data") as node:
        docs = node.collection(slots=ODD)
        mine = names(20, ODD)
        docs.write(ADD, *(Row(i, floats(n, 1), sequence=n) for n, i in enumerate(mine)))
        move = Moving(docs)
        assert move.begin() is True
        move.bring(*(Row(i, floats(n, 1), sequence=n) for n, i in enumerate(names(3000))))
        for _ in range(4):
            killer = threading.Timer(chance.uniform(0, 0.3), node.kill_engine)
            killer.start()
            try:
                while True:
                    assert not move.drop(limit=150).done
            except Unavailable:
                killer.join()
            node.until_serving()
            docs.own(ODD)
            move.renew()
            assert move.begin() is False
            assert move.cursor == shard_pb2.MoveCursor()
        move.drop_all()
        assert move.begin() is True
        assert docs.ids() == mine
        docs.own(ALL_SLOTS, epoch=2)
        assert docs.ids() == mine
