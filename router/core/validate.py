"""Refuses, before anything is sent to a shard, what one Chroma would refuse.

Sources: chromadb/api/types.py and rust/types/src/validators.rs at tag 1.5.9, and trials against the
engine. Where Chroma itself is lenient to its own harm, this is stricter:

  * A NaN or an infinity in metadata is refused. The engine stores a lone one as null, losing it;
    one in an array makes every later write to that collection fail ("Failed to pull logs").
  * A NaN or an infinity in a query is refused. The engine answers it with arbitrary records.
  * The key "chroma:uri" is reserved as "chroma:document" is. The engine takes it for the URI.
  * Arrays in a collection's metadata are refused. The engine panics.

A refusal is whole (nothing of the request happens) and names the record, what is wrong, and the
mend.
"""

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

import numpy as np
from google.protobuf.message import DecodeError

from chroma_router.v1 import types_pb2
from chroma_router.wire.errors import InvalidRequest, Reason
from router.core.limits import Limits
from router.core.schema import MetadataType, metadata_types
from router.core.where import check_where, check_where_document

_RESERVED_KEYS = frozenset({"chroma:document", "chroma:uri"})
_RESERVED_PREFIXES = ("#", "$")
_ARRAY_KINDS = frozenset({"string_array", "int_array", "float_array", "bool_array"})
_MIN_NAME_CHARACTERS = 3
_MAX_COLLECTION_NAME_BYTES = 512
_COLLECTION_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")

_INCLUDES = frozenset(types_pb2.Include.values()) - {types_pb2.INCLUDE_UNSPECIFIED}
_INCLUDE_NAMES = ", ".join(f"{types_pb2.Include.Name(i)} ({i})" for i in sorted(_INCLUDES))

# An error's text travels in HTTP/2 headers, which hold 8 KiB in all; an id alone may have 64 KiB.
_SHOWN_CHARACTERS = 40
_SHOWN_DUPLICATES = 10

_FLOAT = np.dtype("<f4")


class WriteKind(StrEnum):
    """What a write of records does."""

    ADD = "add"
    UPDATE = "update"
    UPSERT = "upsert"


@dataclass(frozen=True, slots=True)
class CheckedWrite:
    """What routing needs to know of a write that was found good."""

    ids: list[str]
    """The ids in the order of the records."""
    dimension: int | None
    """The dimension of its embeddings; None if it has none."""
    metadata_types: frozenset[MetadataType] = frozenset()
    """The keys and types of its records' metadata."""


def check_write(kind: WriteKind, records: Sequence[bytes], limits: Limits) -> CheckedWrite:
    """Checks a write of serialized Records, whole. Raises InvalidRequest."""
    if not records:
        _refuse(f"{kind}: no records; send at least one")
    if len(records) > limits.max_batch_records:
        raise InvalidRequest(
            f"Batch size {len(records)} is greater than max batch size {limits.max_batch_records}; "
            "send several batches",
            Reason.BATCH_TOO_LARGE,
        )
    ids: list[str] = []
    embeddings: list[bytes] = []
    embedded: list[int] = []
    fields: set[tuple[str, str]] = set()
    for position, data in enumerate(records):
        record = _parse_record(position, data)
        ids.append(record.id)
        _check_id(position, record.id, limits)
        if record.HasField("embedding"):
            embeddings.append(record.embedding)
            embedded.append(position)
        elif kind is not WriteKind.UPDATE:
            _refuse(f"{_record_name(position, record.id)} has no embedding; {kind} needs one")
        if record.metadata:
            _check_record_metadata(kind, position, record, fields)
    _check_unique(ids)
    dimension = None
    if embeddings:
        dimension = _check_rows(
            embeddings, lambda row: _record_name(embedded[row], ids[embedded[row]]), limits
        )
    return CheckedWrite(ids, dimension, metadata_types(fields))


def check_embeddings(
    embeddings: Sequence[bytes], limits: Limits, names: Sequence[str] | None = None
) -> int:
    """The dimension of a query's embeddings. Raises InvalidRequest if they are not good.

    `names` are what refusals call them; without, they are numbered.
    """
    if not embeddings:
        _refuse("embeddings: none given; send at least one query embedding")
    if len(embeddings) > limits.max_query_embeddings:
        _refuse(
            f"embeddings: {len(embeddings)} given, at most {limits.max_query_embeddings} are "
            "allowed; send several queries"
        )
    return _check_rows(
        embeddings, lambda row: names[row] if names else f"query embedding {row}", limits
    )


def check_n_results(n_results: int, limits: Limits, embeddings: int = 1) -> None:
    """Raises InvalidRequest unless so many hits may be asked for, for each of the embeddings."""
    if n_results < 1:
        _refuse(
            f"Number of requested results {n_results}, cannot be negative, or zero; "
            "ask for at least one"
        )
    if n_results > limits.max_results:
        _refuse(f"n_results: {n_results}, at most {limits.max_results} are allowed; ask for fewer")
    if n_results * embeddings > limits.max_query_hits:
        _refuse(
            f"n_results: {n_results} for each of {embeddings} embeddings are "
            f"{n_results * embeddings} hits, at most {limits.max_query_hits} are allowed in one "
            "query; ask for fewer, or send the embeddings in several queries"
        )


def check_include(include: Iterable[int]) -> None:
    """Raises InvalidRequest for a value that `Include` does not name, or that says nothing."""
    for value in include:
        if value not in _INCLUDES:
            _refuse(f"include: {value} is no part of a record; send {_INCLUDE_NAMES}")


def check_filter(filter_pb: types_pb2.Filter, limits: Limits) -> None:
    """Raises InvalidRequest for a filter that Chroma would refuse or that passes the limits."""
    if len(filter_pb.ids) > limits.max_filter_ids:
        _refuse(
            f"filter.ids: {len(filter_pb.ids)} ids, at most {limits.max_filter_ids} are allowed; "
            "ask in several parts"
        )
    _check_unique(filter_pb.ids)
    if filter_pb.where:
        check_where(filter_pb.where, limits)
    if filter_pb.where_document:
        check_where_document(filter_pb.where_document, limits)


def check_collection_name(name: str) -> None:
    """Raises InvalidRequest for a collection's name that Chroma refuses.

    As in Chroma a name may have one "+" between two parts that are good names themselves.
    """
    if "+" in name:
        if len(name) > _MAX_COLLECTION_NAME_BYTES or name.count("+") > 1:
            _refuse_collection_name(name)
        for part in name.split("+"):
            check_collection_name(part)
        return
    if _COLLECTION_NAME.fullmatch(name) is None:
        _refuse_collection_name(name)
    if ".." in name:
        _refuse(
            "Expected a name that does not contains two consecutive periods (..). "
            f"Got {_clipped(name)}"
        )
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return
    _refuse(f"Expected a name that is not a valid ip address. Got {_clipped(name)}")


def check_database_name(name: str) -> None:
    """Raises InvalidRequest for a database's name that Chroma refuses."""
    _check_short_name("database", name)


def check_tenant_name(name: str) -> None:
    """Raises InvalidRequest for a tenant's name that Chroma refuses."""
    _check_short_name("tenant", name)


def check_collection_metadata(metadata: Mapping[str, types_pb2.MetadataValue]) -> None:
    """Raises InvalidRequest for metadata that a collection cannot have. None at all is good."""
    for key, value in metadata.items():
        field = value.WhichOneof("kind")
        if problem := _key_problem(key) or _value_problem(field, value):
            _refuse(f"collection metadata key {_quoted(key)}: {problem}")
        if field in _ARRAY_KINDS or field == "absent":
            _refuse(
                f"collection metadata key {_quoted(key)}: a collection's metadata has no {field}; "
                "use a text, a number, true or false"
            )


def check_request_id(request_id: str, limits: Limits) -> None:
    """Raises InvalidRequest for a request id of more than 128 bytes. An empty one is none."""
    size = len(request_id.encode())
    if size > limits.max_request_id_bytes:
        raise InvalidRequest(
            f"request_id has {size} bytes, at most {limits.max_request_id_bytes} are allowed; "
            "use a UUID of version 7"
        )


def dimension_refusal(expected: int, got: int) -> InvalidRequest:
    """The refusal, in Chroma's own words, of an embedding that does not fit its collection."""
    return InvalidRequest(
        f"Collection expecting embedding with dimension of {expected}, got {got}",
        Reason.DIMENSION_MISMATCH,
        metadata={"expected": str(expected), "got": str(got)},
    )


def _parse_record(position: int, data: bytes) -> types_pb2.Record:
    try:
        return types_pb2.Record.FromString(data)
    except DecodeError as error:
        raise InvalidRequest(
            f"record {position} is not a valid Record message; all its text must be valid UTF-8 "
            f"({error})"
        ) from error


def _check_id(position: int, record_id: str, limits: Limits) -> None:
    if not record_id:
        _refuse(f"record {position}: Empty ID, ID must have at least one character")
    # A character has one to four bytes, so most ids need no second look.
    if len(record_id) * 4 > limits.max_id_bytes:
        size = len(record_id.encode())
        if size > limits.max_id_bytes:
            _refuse(
                f"{_record_name(position, record_id)}: the id has {size} bytes, at most "
                f"{limits.max_id_bytes} are allowed; use a shorter id"
            )


def _check_unique(ids: Iterable[str]) -> None:
    duplicates = [record_id for record_id, count in Counter(ids).items() if count > 1]
    if not duplicates:
        return
    shown = ", ".join(_clipped(record_id) for record_id in duplicates[:_SHOWN_DUPLICATES])
    more = len(duplicates) - _SHOWN_DUPLICATES
    raise InvalidRequest(
        f"Expected IDs to be unique, found duplicates of: {shown}"
        + (f" and {more} more" if more > 0 else ""),
        Reason.DUPLICATE_IDS,
    )


def _check_rows(rows: Sequence[bytes], name_of: Callable[[int], str], limits: Limits) -> int:
    """The one dimension of embeddings; `name_of` gives the name of a row for a refusal."""
    first = len(rows[0])
    for row, data in enumerate(rows):
        size = len(data)
        if size == 0 or size % _FLOAT.itemsize:
            _refuse(
                f"{name_of(row)}: the embedding has {size} bytes; send dimension x 4 bytes of "
                "little-endian float32"
            )
        if size != first:
            _refuse(
                f"{name_of(row)}: Inconsistent dimensions in provided embeddings: dimension "
                f"{size // _FLOAT.itemsize} where {name_of(0)} has {first // _FLOAT.itemsize}; "
                "send embeddings of one dimension"
            )
    dimension = first // _FLOAT.itemsize
    if dimension > limits.max_dimension:
        _refuse(
            f"{name_of(0)}: the embedding has dimension {dimension}, at most "
            f"{limits.max_dimension} is allowed"
        )
    finite = np.isfinite(np.frombuffer(b"".join(rows), dtype=_FLOAT))
    if not finite.all():
        row, element = divmod(int(finite.argmin()), dimension)
        _refuse(
            f"{name_of(row)}: Embeddings must not contain NaN or Infinity values, element "
            f"{element} is one; send finite numbers"
        )
    return dimension


def _check_record_metadata(
    kind: WriteKind, position: int, record: types_pb2.Record, fields: set[tuple[str, str]]
) -> None:
    """Enters each key with its value's field into `fields`."""
    for key, value in record.metadata.items():
        field = value.WhichOneof("kind")
        problem = _key_problem(key) or _value_problem(field, value)
        if problem is None and kind is WriteKind.ADD and field == "absent":
            problem = "absent is for update and upsert only; leave the key out"
        if problem is not None or field is None:
            name = _record_name(position, record.id)
            _refuse(f"{name}: metadata key {_quoted(key)}: {problem}")
        fields.add((key, field))


def _key_problem(key: str) -> str | None:
    if not key:
        return "Metadata key cannot be empty; name it"
    if key.startswith(_RESERVED_PREFIXES):
        return "Metadata key cannot start with '#' or '$'; rename it"
    if key in _RESERVED_KEYS:
        return "the key is reserved; use the record's document and uri fields, or rename it"
    return None


def _value_problem(field: str | None, value: types_pb2.MetadataValue) -> str | None:
    problem: str | None = None
    if field is None:
        problem = "the value has no kind; set one of MetadataValue's fields"
    elif field == "float_value":
        if not math.isfinite(value.float_value):
            problem = f"{value.float_value} is not a finite number; send a finite one or a text"
    elif field in _ARRAY_KINDS:
        values = getattr(value, field).values
        if not values:
            problem = "the array is empty; leave the key out or give it an element"
        elif field == "float_array" and not all(map(math.isfinite, values)):
            problem = "the array holds a NaN or an infinity; send finite numbers"
    elif field == "absent" and not value.absent:
        problem = "absent can only be true; leave the key out to keep its value"
    return problem


def _check_short_name(what: str, name: str) -> None:
    if len(name) < _MIN_NAME_CHARACTERS:
        _refuse(
            f"{what} name must be at least {_MIN_NAME_CHARACTERS} characters, got {_quoted(name)}"
        )


def _refuse_collection_name(name: str) -> NoReturn:
    _refuse(
        "Expected a name containing 3-512 characters from [a-zA-Z0-9._-], starting and ending with "
        f"a character in [a-zA-Z0-9]. Got: {_clipped(name)}"
    )


def _record_name(position: int, record_id: str) -> str:
    return f"record {position} (id {_quoted(record_id)})"


def _quoted(text: str) -> str:
    return repr(_clipped(text))


def _clipped(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _refuse(message: str) -> NoReturn:
    raise InvalidRequest(message)
