"""A chunk of a move as the target takes it: parsed, refused if it can never be applied. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

from google.protobuf.message import DecodeError

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import InvalidRequest
from chroma_router.wire.records import RecordColumns
from chroma_router.wire.slots import slot_of
from shard_node.operations import Kind, check_ids, parse_puts, signed
from shard_node.state import MAX_INTEGER, Outcome, StagedRow

Place: TypeAlias = tuple[int, str]  # (slot, id)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the source has of the moving slots after one place and up to another, in order."""

    after: Place | None
    upto: Place | None
    records: list[RecordColumns]
    rows: list[StagedRow]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A MoveChunk; `rows` go with `records`. The cursors are serialized, equal if they are.

    `fenced`: clients' writes are held until it is applied.
    """

    begin: bytes
    end: bytes
    records: list[RecordColumns]
    rows: list[StagedRow]
    removed: list[str]
    outcomes: list[Outcome]
    comparison: Comparison | None
    fenced: bool

    @property
    def ids(self) -> list[str]:
        """All that it puts or removes."""
        return [*(row.id for row in self.rows), *self.removed]

    @classmethod
    def parse(cls, data: bytes, slots: frozenset[int]) -> "Chunk":
        """The chunk of a move of these slots. Raises InvalidRequest."""
        try:
            wire = shard_pb2.MoveChunk.FromString(data)
        except DecodeError as error:
            raise InvalidRequest(f"the chunk cannot be read: {error}") from error
        records = parse_puts(wire.records, wire.sequences)
        removed = list(wire.removed)
        check_ids(Kind.DELETE, removed)
        rows = _rows(records, wire.sequences)
        if not {row.id for row in rows}.isdisjoint(removed):
            raise InvalidRequest("a chunk puts and removes one record")
        _check_slots(slots, (row.slot for row in rows))
        _check_slots(slots, (slot_of(record_id) for record_id in removed))
        chunk = cls(
            wire.begin.SerializeToString(deterministic=True),
            wire.end.SerializeToString(deterministic=True),
            records, rows, removed, _outcomes(wire.outcomes, slots),
            _comparison(wire.comparison, slots) if wire.HasField("comparison") else None,
            wire.fenced,
        )  # fmt: skip
        if chunk.begin == chunk.end and (chunk.ids or chunk.outcomes):
            # Of a repeat it could not be told that it is one: outcomes would be taken in twice.
            raise InvalidRequest("a chunk that brings something ends where it begins")
        return chunk


def _rows(records: Iterable[RecordColumns], sequences: Iterable[int]) -> list[StagedRow]:
    pairs = zip(records, sequences, strict=True)
    return [StagedRow(record.id, slot_of(record.id), sequence) for record, sequence in pairs]


def _outcomes(wire: Iterable[shard_pb2.MovedOutcome], slots: frozenset[int]) -> list[Outcome]:
    """One for each identity: the source may have several, of different batches, and here they are
    of one."""
    merged: dict[tuple[str, int], Outcome] = {}
    for moved in wire:
        outcome = _outcome(moved, slots)
        identity = (outcome.request_id, outcome.index)
        if (known := merged.get(identity)) is not None:
            outcome = replace(
                known,
                slots=known.slots | outcome.slots,
                deleted_slots=known.deleted_slots + outcome.deleted_slots,
                at_microseconds=max(known.at_microseconds, outcome.at_microseconds),
            )
        merged[identity] = outcome
    return list(merged.values())


def _outcome(moved: shard_pb2.MovedOutcome, slots: frozenset[int]) -> Outcome:
    try:
        kind = Kind(moved.kind)
    except ValueError:
        raise InvalidRequest(f"operation kind {moved.kind} of an outcome is unknown") from None
    if not moved.request_id or not 1 <= moved.at <= MAX_INTEGER:
        raise InvalidRequest("an outcome has no request_id, or no time when it was applied")
    _check_slots(slots, [*moved.slots, *moved.deleted_slots])
    return Outcome(
        moved.request_id, moved.index, kind, frozenset(moved.slots), tuple(moved.deleted_slots),
        signed(moved.digest), moved.at,
    )  # fmt: skip


def _comparison(wire: shard_pb2.MoveComparison, slots: frozenset[int]) -> Comparison:
    after = (wire.after.sequence, wire.after.id) if wire.HasField("after") else None
    upto = (wire.upto.sequence, wire.upto.id) if wire.HasField("upto") else None
    records = parse_puts(wire.records, wire.sequences)
    rows = _rows(records, wire.sequences)
    _check_slots(slots, (row.slot for row in rows))
    places = [(row.slot, row.id) for row in rows]
    if (
        places != sorted(places)
        or (after is not None and places and places[0] <= after)
        or (upto is not None and places and places[-1] > upto)
    ):
        raise InvalidRequest("the records to compare are not in order, or not in their range")
    return Comparison(after, upto, records, rows)


def _check_slots(slots: frozenset[int], named: Iterable[int]) -> None:
    foreign = set(named) - slots
    if foreign:
        raise InvalidRequest(f"the chunk names slot {min(foreign)}, which does not move")
