"""What a mover says to the target of a move."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any
from uuid import uuid4

from chroma_router.v1 import shard_pb2
from chroma_router.wire.records import record_to_bytes
from chroma_router.wire.slots import slot_of, slots_to_bitmap
from tests.shard_node.running import CollectionCalls, Row

EVEN, ODD = frozenset(range(0, 1024, 2)), frozenset(range(1, 1024, 2))

_tokens = count(1)


def next_token() -> int:
    """Higher than all before: a node that several tests share wants them to rise."""
    return next(_tokens)


def names(number: int, slots: frozenset[int] = EVEN, prefix: str = "r") -> list[str]:
    """That many ids in the slots."""
    every = (f"{prefix}{n}" for n in count(1))
    return list(islice((i for i in every if slot_of(i) in slots), number))


def packed(rows: Iterable[Row]) -> list[bytes]:
    return [record_to_bytes(r.id, r.embedding, r.document, r.uri, r.metadata) for r in rows]


def in_order(rows: Iterable[Row]) -> list[Row]:
    """In the order of slots."""
    return sorted(rows, key=lambda row: (slot_of(row.id), row.id))


def comparison(
    rows: Iterable[Row],
    after: tuple[int, str] | None = None,
    upto: tuple[int, str] | None = None,
) -> shard_pb2.MoveComparison:
    """What the source has of the range."""
    ordered = in_order(rows)
    wire = shard_pb2.MoveComparison(
        records=packed(ordered), sequences=[row.sequence for row in ordered]
    )
    for place, into in ((after, wire.after), (upto, wire.upto)):
        if place is not None:
            into.sequence, into.id = place
    return wire


@dataclass
class Moving:
    """One move to a node. `cursor` is where its next chunk begins."""

    docs: CollectionCalls
    slots: frozenset[int] = EVEN
    id: str = field(default_factory=lambda: str(uuid4()))
    token: int = field(default_factory=next_token)
    capture: str = field(default_factory=lambda: str(uuid4()))
    cursor: shard_pb2.MoveCursor = field(default_factory=shard_pb2.MoveCursor)

    def renew(self) -> None:
        """Another mover has taken over."""
        self.token = next_token()

    @property
    def ref(self) -> shard_pb2.MoveRef:
        return shard_pb2.MoveRef(
            move_id=self.id,
            collection_id=self.docs.id,
            token=self.token,
            slots=slots_to_bitmap(self.slots),
        )

    def call(self, method: str, request: Any) -> Any:
        return self.docs.node.call(method, request)

    def begin(self, afresh: bool = False) -> bool:
        """BeginArrival; whether the target is ready. The cursor is then the target's."""
        answer = self.call(
            "BeginArrival", shard_pb2.BeginArrivalRequest(move=self.ref, afresh=afresh)
        )
        self.cursor = answer.applied
        return bool(answer.ready)

    def arrive(self) -> None:
        """Until the target is ready."""
        while not self.begin():
            self.drop_all()

    def chunk(
        self, puts: Sequence[Row] = (), removed: Sequence[str] = (), **more: Any
    ) -> shard_pb2.MoveChunk:
        """A chunk that begins at the cursor, and ends behind it if it brings something."""
        chunk = shard_pb2.MoveChunk(
            begin=self.cursor, end=self.cursor, records=packed(puts),
            sequences=[row.sequence for row in puts], removed=removed, **more,
        )  # fmt: skip
        if puts or removed or chunk.outcomes:
            chunk.end.capture_id = self.capture
            chunk.end.changed_batch += 1
        return chunk

    def send(self, chunk: shard_pb2.MoveChunk) -> Any:
        """ApplyMove; the cursor is then the chunk's end."""
        request = shard_pb2.ApplyMoveRequest(move=self.ref, chunk=chunk.SerializeToString())
        answer = self.call("ApplyMove", request)
        self.cursor = chunk.end
        return answer

    def bring(self, *puts: Row, removed: Sequence[str] = (), **more: Any) -> Any:
        return self.send(self.chunk(puts, removed, **more))

    def compare(self, rows: Iterable[Row], **range_: Any) -> Any:
        return self.send(self.chunk(comparison=comparison(rows, **range_)))

    def drop(self, limit: int = 5000) -> Any:
        return self.call("DropSlots", shard_pb2.DropSlotsRequest(move=self.ref, limit=limit))

    def drop_all(self) -> int:
        """DropSlots until nothing is left; how many records it dropped."""
        dropped, done = 0, False
        while not done:
            answer = self.drop()
            dropped, done = dropped + answer.dropped, answer.done
        return dropped

    def end(self) -> None:
        self.call("EndArrival", shard_pb2.EndArrivalRequest(move=self.ref))

    def preview(self, *embeddings: bytes, n: int = 10) -> list[list[tuple[str, float]]]:
        query = shard_pb2.ShardQueryRequest(
            collection_id=self.docs.id, embeddings=embeddings, n_results=n
        )
        answer = self.call("PreviewMove", shard_pb2.PreviewMoveRequest(move=self.ref, query=query))
        return [list(zip(r.ids, r.distances, strict=True)) for r in answer.results]
