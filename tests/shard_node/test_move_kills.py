"""A move between two real nodes that are killed on the way, under one mover after the other."""

from pathlib import Path

import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import NotAllowed, Reason
from tests.shard_node.leaving import Leaving, Place
from tests.shard_node.moving import EVEN, ODD, Moving
from tests.shard_node.running import (
    ALL_SLOTS,
    DELETE,
    CollectionCalls,
    Node,
    running,
    uuid7,
)
from tests.shard_node.test_move_source import Writer

pytestmark = pytest.mark.integration


class Relay:
    """The mover: what the source says, the target is told."""

    def __init__(self, source: CollectionCalls, target: CollectionCalls) -> None:
        self.source, self.target = Leaving(source), Moving(target)
        self.target.id, self.target.token = self.source.id, self.source.token
        self.place: Place | None = None

    def renew(self) -> None:
        """Another mover takes over: all that it knows is in the nodes."""
        self.source.renew()
        self.target.token = self.source.token
        self.source.begin()
        self.target.arrive()
        self.source.cursor = self.target.cursor
        self.place = None

    def bring(self, answer: shard_pb2.ReadMoveResponse) -> shard_pb2.ApplyMoveResponse:
        request = shard_pb2.ApplyMoveRequest(move=self.target.ref, chunk=answer.chunk)
        applied: shard_pb2.ApplyMoveResponse = self.target.call("ApplyMove", request)
        self.source.cursor = answer.end
        if answer.HasField("compared"):
            self.place = (answer.compared.sequence, answer.compared.id)
        return applied

    def copied(self) -> None:
        while not self.source.cursor.copy_done:
            self.bring(self.source.read(50))

    def compared(self) -> None:
        done = False
        while not done:
            answer = self.source.read(60, compare=True, compared=self.place)
            applied = self.bring(answer)
            assert list(applied.differing) == []
            done = answer.compare_done


def restarted(node: Node, docs: CollectionCalls, slots: frozenset[int]) -> None:
    node.kill()
    node.start()
    docs.own(slots, epoch=docs.epoch)


def test_a_move_through_kills_and_movers(tmp_path: Path) -> None:
    with (
        running(tmp_path / "source", shard="shard-1") as first,
        running(tmp_path / "target", shard="shard-2") as second,
    ):
        docs = first.collection()
        there = second.collection(docs.id, slots=frozenset())
        writer, relay = Writer(docs, 11), Relay(docs, there)
        writer.fill()
        request = uuid7()
        deletion = {"where": '{"n":{"$lt":50}}', "request_id": request}
        deleted = docs.write(DELETE, **deletion).deleted
        assert deleted
        for _ in range(3):
            relay.renew()
            for _ in range(3):
                writer.write()
                relay.bring(relay.source.read(30))
            restarted(first, docs, ALL_SLOTS)
            restarted(second, there, frozenset())
        relay.renew()
        relay.copied()
        for _ in range(3):
            writer.write()
        relay.compared()
        writer.write()
        fenced = relay.source.fence(next_epoch=2)
        applied = relay.bring(fenced.tail)
        assert fenced.tail.caught_up
        assert applied.records == fenced.records
        expected = relay.source.stored()
        relay.source.fence_reads()
        restarted(first, docs, ALL_SLOTS)
        there.own(EVEN, epoch=2)
        docs.own(ODD, epoch=2, only=True)
        assert Leaving(there).stored() == expected
        with pytest.raises(NotAllowed) as refused:
            relay.source.read()
        assert refused.value.reason is Reason.MOVE_OUT_OF_STEP
        trimmed = Moving(docs, id=relay.source.id, token=relay.source.token)
        assert trimmed.drop_all() == len(expected)
        # Each tells what it has deleted of its own slots, and nothing is deleted a second time.
        told = [calls.write(DELETE, **deletion).deleted for calls in (docs, there)]
        assert sum(told) == deleted
        assert all(told)
        assert Leaving(there).stored() == expected
