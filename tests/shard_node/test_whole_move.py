"""A whole move between two real nodes: the steps of router/core/move.py, done as a mover does them,
while clients write to the source."""

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import Reason
from chroma_router.wire.slots import slot_of
from router.core import move as protocol
from router.core.move import Move, Stage, Transferred, pursue
from tests.shard_node.moving import EVEN, ODD, Moving
from tests.shard_node.running import (
    ALL_SLOTS,
    DELETE,
    UPSERT,
    CollectionCalls,
    Row,
    floats,
    running,
    uuid7,
)

pytestmark = pytest.mark.integration

_METHODS = {protocol.Capture: "BeginCapture", protocol.FenceReads: "FenceReads"}


@dataclass
class Mover:
    """Does the steps; `stages` are those it has entered."""

    move: Move
    source: Moving
    target: Moving
    switched: threading.Event
    stages: list[Stage] = field(default_factory=list)

    def run(self) -> None:
        steps = pursue(self.move)
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration:
                return
            answer = self.do(step)

    def do(self, step: protocol.Step) -> Any:
        match step:
            case protocol.Enter(stage, problem):
                epoch = 2 if stage is Stage.FENCED else 0
                return self.entered(stage, next_epoch=epoch, problem=problem)
            case protocol.Arrive(afresh):
                ready = self.target.begin(afresh)
                cursor = self.target.cursor
                return protocol.Arrived(cursor, ready, cursor.copy_done)
            case protocol.Drop(shard):
                return self.side(shard).drop(limit=200).done
            case protocol.Transfer():
                return self.transfer(step)
            case protocol.Fence(begin):
                return self.fence(begin)
            case protocol.CompareQueries():
                return ""  # while clients write, the two are not at one position
            case protocol.Switch():
                self.compare_queries()
                return self.entered(Stage.SWITCHED)
            case protocol.Grant():
                self.target.docs.own(EVEN, epoch=2)
                self.source.docs.own(ODD, epoch=2)
                self.switched.set()
            case protocol.Capture() | protocol.FenceReads():
                self.ask(self.source, _METHODS[type(step)])
            case _:
                raise AssertionError(f"{step}: {self.move.problem}")
        return None

    def entered(self, stage: Stage, **more: Any) -> Move:
        self.stages.append(stage)
        self.move = self.move.entered(stage, **more)
        return self.move

    def side(self, shard: str) -> Moving:
        return self.source if shard == self.move.source else self.target

    def ask(self, side: Moving, method: str, **fields: Any) -> Any:
        request = getattr(shard_pb2, f"{method}Request")(move=side.ref, **fields)
        return side.call(method, request)

    def transfer(self, step: protocol.Transfer) -> Transferred:
        place = None
        if step.compared is not None:
            place = shard_pb2.Position(sequence=step.compared[0], id=step.compared[1])
        read = self.ask(
            self.source, "ReadMove", begin=step.begin, max_records=120, max_bytes=1 << 20,
            compare=step.compare, compared=place,
        )  # fmt: skip
        return self.brought(read)

    def fence(self, begin: Any) -> Transferred:
        fenced = self.ask(
            self.source, "FenceSlots", next_epoch=2, begin=begin, max_records=120, max_bytes=1 << 20
        )
        seen = self.brought(fenced.tail)
        return replace(seen, source_records=fenced.records)

    def brought(self, read: Any) -> Transferred:
        applied = self.ask(self.target, "ApplyMove", chunk=read.chunk)
        compared = (read.compared.sequence, read.compared.id) if read.HasField("compared") else None
        return Transferred(
            read.end, read.end.copy_done, read.caught_up, read.items, compared, read.compare_done,
            "; ".join(applied.differing), target_records=applied.records,
        )  # fmt: skip

    def compare_queries(self) -> None:
        """The slots are fenced: both sides have the same records. Their graphs differ, though."""
        vectors = [floats(n, n % 7, 1) for n in range(0, 600, 150)]
        theirs, mine = (side.preview(*vectors, n=5) for side in (self.source, self.target))
        assert all(slot_of(i) in EVEN for hits in [*theirs, *mine] for i, _ in hits)
        same = sum(len(set(a) & set(b)) for a, b in zip(theirs, mine, strict=True))
        assert same >= 10, (theirs, mine)


@dataclass
class Writer:
    """A client of the moving slots: it knows what is there once each of its writes is answered."""

    source: CollectionCalls
    target: CollectionCalls
    switched: threading.Event
    chance: random.Random
    records: dict[str, Row] = field(default_factory=dict)
    deleted: list[tuple[str, list[str]]] = field(default_factory=list)
    sequence: int = 0

    def write(self) -> None:
        ids = self.chance.sample([f"r{n}" for n in range(800)], 12)
        request_id = uuid7()
        if self.chance.random() < 0.3:
            here = [i for i in ids if i in self.records]
            self.send(DELETE, ids, request_id, where='{"n": {"$gte": 0}}')
            self.deleted.append((request_id, here))
            for record_id in here:
                del self.records[record_id]
            return
        rows = []
        for record_id in ids:
            self.sequence += 1
            known = self.records.get(record_id)
            sequence = known.sequence if known else self.sequence
            vector = floats(self.chance.randrange(600), self.chance.randrange(7), 1)
            document = f"text {self.sequence}"
            rows.append(Row(record_id, vector, document, None, {"n": self.sequence}, sequence))
        self.send(UPSERT, rows, request_id)
        self.records.update({row.id: row for row in rows})

    def send(self, kind: int, rows: Any, request_id: str, **more: Any) -> None:
        """To whom owns the slots, as a router would: it holds what is fenced, and splits."""
        left = list(rows)
        while left:
            moved = self.switched.is_set()
            for docs, slots in ((self.source, ODD if moved else ALL_SLOTS), (self.target, EVEN)):
                mine = [r for r in left if slot_of(getattr(r, "id", r)) in slots]
                if not mine or (docs is self.target and not moved):
                    continue
                epoch = 2 if moved else 1
                (result,) = docs.apply(
                    docs.operation(kind, mine, request_id, epoch=epoch, digest=7, **more)
                )
                if result.refused_reason in {Reason.SLOTS_FENCED, Reason.STALE_EPOCH}:
                    assert self.switched.wait(10), "the move never came to its switch"
                    break
                assert not result.refused_reason, result
                left = [r for r in left if r not in mine]

    def repeat_deletes(self) -> None:
        """Each figure is told right by the two owners together, and nothing more is deleted."""
        for request_id, here in self.deleted:
            figures = []
            for docs, slots in ((self.source, ODD), (self.target, EVEN)):
                ids = [i for i in here if slot_of(i) in slots] or []
                if ids:
                    (result,) = docs.apply(
                        docs.operation(
                            DELETE, ids, request_id, digest=7, where='{"n": {"$gte": 0}}'
                        )
                    )
                    assert not result.refused_reason, result
                    figures.append(result.deleted)
            assert sum(figures) == len(here)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[CollectionCalls, CollectionCalls]]:
    with (
        running(tmp_path / "one", shard="shard-1") as one,
        running(tmp_path / "two", shard="shard-2") as two,
    ):
        source = one.collection()
        yield source, two.collection(source.id, slots=frozenset())


@pytest.mark.timeout(120)
def test_a_move_under_writes(nodes: tuple[CollectionCalls, CollectionCalls]) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source, target = nodes
    here = Moving(source, EVEN)
    there = Moving(target, EVEN, id=here.id, token=here.token)
    switched, moved = threading.Event(), threading.Event()
    writer = Writer(source, target, switched, random.Random(seed))
    for _ in range(80):
        writer.write()
    move = Move(here.id, "rebalance", 0, source.id, "shard-1", "shard-2", EVEN)
    mover = Mover(move, here, there, switched)
    failures: list[BaseException] = []

    def write_on() -> None:
        try:
            while not moved.is_set():
                writer.write()
        except BaseException as error:
            failures.append(error)

    client = threading.Thread(target=write_on)
    client.start()
    try:
        mover.run()
    finally:
        moved.set()
        client.join()
    assert not failures, failures
    assert mover.stages == [
        Stage.COPYING, Stage.CATCHING_UP, Stage.VERIFIED, Stage.FENCED, Stage.SWITCHED,
        Stage.TRIMMED,
    ]  # fmt: skip
    for docs, slots in ((source, ODD), (target, EVEN)):
        docs.epoch = 2
        expected = [r for r in writer.records.values() if slot_of(r.id) in slots]
        expected.sort(key=lambda r: r.sequence)
        assert docs.count() == len(expected) > 50
        found = [(r.id, r.document, r.embedding) for r in docs.records()]
        assert found == [(r.id, r.document, r.embedding) for r in expected]
    writer.repeat_deletes()
    assert source.count() + target.count() == len(writer.records)
