"""What a mover says to the source of a move, and a naive target that takes what it is told."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from uuid import uuid4

from chroma_router.v1 import shard_pb2, types_pb2
from chroma_router.wire.slots import slot_of, slots_to_bitmap
from tests.shard_node.moving import EVEN, next_token
from tests.shard_node.running import (
    DOCUMENTS,
    EMBEDDINGS,
    METADATAS,
    URIS,
    CollectionCalls,
)

Place: TypeAlias = tuple[int, str]  # (slot, id)
Stored: TypeAlias = tuple[int, types_pb2.Record]  # with its sequence


@dataclass
class Leaving:
    """One move from a node. `cursor` is where its next chunk begins."""

    docs: CollectionCalls
    slots: frozenset[int] = EVEN
    id: str = field(default_factory=lambda: str(uuid4()))
    token: int = field(default_factory=next_token)
    cursor: shard_pb2.MoveCursor = field(default_factory=shard_pb2.MoveCursor)

    @property
    def ref(self) -> shard_pb2.MoveRef:
        return shard_pb2.MoveRef(
            move_id=self.id,
            collection_id=self.docs.id,
            token=self.token,
            slots=slots_to_bitmap(self.slots),
        )

    def renew(self) -> None:
        """Another mover has taken over."""
        self.token = next_token()

    def call(self, method: str, request: Any) -> Any:
        return self.docs.node.call(method, request)

    def begin(self) -> Any:
        return self.call("BeginCapture", shard_pb2.BeginCaptureRequest(move=self.ref))

    def read(
        self,
        max_records: int = 1000,
        max_bytes: int = 0,
        compare: bool = False,
        compared: Place | None = None,
    ) -> Any:
        """The next chunk; the cursor stays where it is."""
        request = shard_pb2.ReadMoveRequest(
            move=self.ref, begin=self.cursor, max_records=max_records, max_bytes=max_bytes,
            compare=compare,
        )  # fmt: skip
        if compared is not None:
            request.compared.sequence, request.compared.id = compared
        return self.call("ReadMove", request)

    def fence(self, next_epoch: int = 2, max_records: int = 1000) -> Any:
        request = shard_pb2.FenceSlotsRequest(
            move=self.ref, next_epoch=next_epoch, begin=self.cursor, max_records=max_records
        )
        return self.call("FenceSlots", request)

    def fence_reads(self) -> None:
        self.call("FenceReads", shard_pb2.FenceReadsRequest(move=self.ref))

    def end(self) -> None:
        self.call("EndCapture", shard_pb2.EndCaptureRequest(move=self.ref))

    def stored(self) -> dict[str, Stored]:
        """What the source has of the moving slots."""
        page = self.docs.page(include=[DOCUMENTS, METADATAS, EMBEDDINGS, URIS], limit=100_000)
        records = map(types_pb2.Record.FromString, page.records)
        rows = zip(page.ids, page.sequences, records, strict=True)
        return {i: (sequence, r) for i, sequence, r in rows if slot_of(i) in self.slots}


@dataclass
class Replica:
    """The target as a dictionary."""

    move: Leaving
    records: dict[str, Stored] = field(default_factory=dict)
    outcomes: list[shard_pb2.MovedOutcome] = field(default_factory=list)
    removals: int = 0

    def take(self, answer: Any) -> shard_pb2.MoveChunk:
        """Applies the chunk of a ReadMoveResponse, and moves the cursor behind it."""
        chunk = shard_pb2.MoveChunk.FromString(answer.chunk)
        assert chunk.begin == self.move.cursor
        assert chunk.end == answer.end
        puts = records_of(chunk)
        ids = [*puts, *chunk.removed]
        assert len(ids) == len(set(ids)) == answer.items
        assert all(slot_of(record_id) in self.move.slots for record_id in ids)
        for record_id in chunk.removed:
            self.records.pop(record_id, None)
        self.records.update(puts)
        self.outcomes.extend(chunk.outcomes)
        self.removals += len(chunk.removed)
        if ids or chunk.outcomes:
            assert chunk.end != chunk.begin
        self.move.cursor = chunk.end
        return chunk

    def catch_up(self, max_records: int = 1000) -> None:
        """Until nothing is left."""
        while not self.step(max_records):
            pass

    def step(self, max_records: int = 1000) -> bool:
        """One chunk; whether nothing is left."""
        answer = self.move.read(max_records)
        self.take(answer)
        return bool(answer.caught_up)


def records_of(part: shard_pb2.MoveChunk | shard_pb2.MoveComparison) -> dict[str, Stored]:
    """The records of a chunk, or of what it compares."""
    records: Iterable[types_pb2.Record] = map(types_pb2.Record.FromString, part.records)
    return {r.id: (s, r) for r, s in zip(records, part.sequences, strict=True)}
