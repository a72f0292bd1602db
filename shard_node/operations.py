"""An operation as the single writer takes it: parsed, and refused if it can never be applied."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from google.protobuf.message import DecodeError

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import InvalidRequest, Reason
from chroma_router.wire.records import Metadata, RecordColumns, record_from_bytes
from chroma_router.wire.sequences import MAX_SEQUENCE
from chroma_router.wire.slots import slot_of

ENGINE_ROWS = 5461  # the engine's get_max_batch_size: more does not go into one of its transactions
MAX_DELETED_IDS = 100_000  # in one delete; they go to the engine in steps


class Kind(IntEnum):
    """What an operation does; the numbers are the contract's."""

    ADD = shard_pb2.OPERATION_KIND_ADD
    UPDATE = shard_pb2.OPERATION_KIND_UPDATE
    UPSERT = shard_pb2.OPERATION_KIND_UPSERT
    DELETE = shard_pb2.OPERATION_KIND_DELETE


@dataclass(frozen=True, slots=True)
class Write:
    """One operation. `records` and `sequences` go row by row with `ids`, or are empty."""

    collection_id: str
    epoch: int
    kind: Kind
    request_id: str
    index: int
    ids: Sequence[str]
    slots: Sequence[int]
    records: Sequence[RecordColumns] = ()
    sequences: Sequence[int] = ()
    where: str = ""
    where_document: str = ""
    digest: int = 0  # of the whole request; the contract's 64 bits, read as a signed number

    @property
    def conditional(self) -> bool:
        """A delete that first looks which of its ids match."""
        return bool(self.where or self.where_document)

    @property
    def dimension(self) -> int:
        """Of the widest embedding; 0 without any."""
        return max((len(r.embedding) // 4 for r in self.records if r.embedding), default=0)

    def only(self, rows: Sequence[int]) -> "Write":
        """The same operation on some of its rows."""
        return replace(
            self,
            ids=[self.ids[i] for i in rows],
            slots=[self.slots[i] for i in rows],
            records=[self.records[i] for i in rows] if self.records else (),
            sequences=[self.sequences[i] for i in rows] if self.sequences else (),
        )


def parse(operation: shard_pb2.Operation) -> Write:
    """The write that an operation asks for. Raises InvalidRequest."""
    try:
        kind = Kind(operation.kind)
    except ValueError:
        raise InvalidRequest(f"operation kind {operation.kind} is unknown") from None
    if not operation.request_id:
        raise InvalidRequest("the operation has no request_id")
    ids = list(operation.ids)
    check_ids(kind, ids)
    records = _parsed(operation.records)
    sequences = list(operation.sequences)
    _check_rows(kind, ids, records, sequences)
    return Write(
        operation.collection_id, operation.epoch, kind, operation.request_id, operation.index,
        ids, [slot_of(i) for i in ids], records, sequences,
        operation.where, operation.where_document, signed(operation.digest),
    )  # fmt: skip


def parse_puts(data: Iterable[bytes], sequences: Sequence[int]) -> list[RecordColumns]:
    """Whole records with their sequences, as they are added to a shard. Raises InvalidRequest."""
    records = _parsed(data)
    ids = [record.id for record in records]
    check_ids(Kind.ADD, ids)
    if ids or sequences:
        _check_rows(Kind.ADD, ids, records, sequences)
    return records


def _parsed(data: Iterable[bytes]) -> list[RecordColumns]:
    try:
        return [record_from_bytes(record) for record in data]
    except (DecodeError, ValueError) as error:
        raise InvalidRequest(f"a record cannot be read: {error}") from error


def signed(number: int) -> int:
    """64 bits as SQLite keeps them."""
    return number - (1 << 64) if number >> 63 else number


def check_ids(kind: Kind, ids: Sequence[str]) -> None:
    """Raises InvalidRequest for too many of them, for one that is empty or named twice."""
    most = MAX_DELETED_IDS if kind is Kind.DELETE else ENGINE_ROWS
    if len(ids) > most:
        raise InvalidRequest(
            f"an operation of this kind has at most {most} records, got {len(ids)}",
            Reason.BATCH_TOO_LARGE,
        )
    if len(set(ids)) != len(ids):
        twice = [record_id for record_id, times in Counter(ids).items() if times > 1]
        raise InvalidRequest(f"ids named twice: {', '.join(twice[:10])}", Reason.DUPLICATE_IDS)
    if "" in ids and kind is not Kind.DELETE:  # there is none to delete, as with any missing id
        raise InvalidRequest("an id is empty")


def _check_rows(
    kind: Kind, ids: Sequence[str], records: Sequence[RecordColumns], sequences: Sequence[int]
) -> None:
    if kind is Kind.DELETE:
        if records or sequences:
            raise InvalidRequest("a delete carries ids only")
        return
    if not ids:
        raise InvalidRequest("the operation has no records")
    if [record.id for record in records] != ids:
        raise InvalidRequest("the ids and the records of the operation differ")
    if len(sequences) != len(ids) and (sequences or kind is not Kind.UPDATE):
        raise InvalidRequest(f"{len(ids)} records have {len(sequences)} sequences")
    if any(sequence > MAX_SEQUENCE for sequence in sequences):
        raise InvalidRequest("a sequence is over 2^62")
    for record in records:
        _check_record(kind, record)


def _check_record(kind: Kind, record: RecordColumns) -> None:
    """What the engine would take silently and wrongly, or refuse without naming the record."""
    if record.embedding is None:
        if kind is not Kind.UPDATE:
            raise InvalidRequest(f"record {record.id!r} has no embedding")
    elif not record.embedding or len(record.embedding) % 4:
        raise InvalidRequest(
            f"the embedding of record {record.id!r} has {len(record.embedding)} bytes, not a"
            " positive multiple of 4"
        )
    if record.metadata:
        _check_metadata(kind, record.id, record.metadata)


def _check_metadata(kind: Kind, record_id: str, metadata: Metadata) -> None:
    for key, value in metadata.items():
        if not key or key[0] in "#$" or key in {"chroma:document", "chroma:uri"}:
            raise InvalidRequest(f"record {record_id!r}: metadata key {key!r} is reserved or empty")
        if value is None and kind is Kind.ADD:
            raise InvalidRequest(f"record {record_id!r}: key {key!r} is absent in an add")
        for item in value if isinstance(value, list) else (value,):
            if isinstance(item, float) and not math.isfinite(item):
                raise InvalidRequest(f"record {record_id!r}: {key!r} is not a finite number")
