"""Strategies: valid messages with hostile values put into them, and with their bytes mangled.

Works from descriptors, so that a new field or call of the contract is fuzzed without a change here.
"""

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from tests.fuzz.values import (
    EMBEDDINGS,
    FLOATS,
    INTEGERS,
    JSONS,
    LARGE_INTEGERS,
    NEGATIVE_INTEGERS,
    STRINGS,
    WHERES,
    varint,
)

Draw = Callable[[st.SearchStrategy[Any]], Any]

_F = FieldDescriptor
_SIGNED_64 = {_F.TYPE_INT64, _F.TYPE_SINT64, _F.TYPE_SFIXED64}
_UNSIGNED_64 = {_F.TYPE_UINT64, _F.TYPE_FIXED64}
_SIGNED_32 = {_F.TYPE_INT32, _F.TYPE_SINT32, _F.TYPE_SFIXED32}
_UNSIGNED_32 = {_F.TYPE_UINT32, _F.TYPE_FIXED32}
_INTEGERS = {
    **dict.fromkeys(_SIGNED_64, range(-(2**63), 2**63)),
    **dict.fromkeys(_UNSIGNED_64, range(2**64)),
    **dict.fromkeys(_SIGNED_32, range(-(2**31), 2**31)),
    **dict.fromkeys(_UNSIGNED_32, range(2**32)),
}
_MAX_DEPTH = 6
_COPIED_BYTES = 8 << 20
_WIRE_TYPES = 8


class Words:
    """Texts and bytes that mean something to the cluster at hand: ids, names, boot ids."""

    def __init__(self, texts: Sequence[str], blobs: Sequence[bytes] = ()) -> None:
        self.texts = list(texts)
        self.blobs = list(blobs)


def hostile_bytes(seeds: Sequence[Message], raw: Sequence[bytes], words: Words) -> Any:
    """Requests of one method as bytes. `seeds` are good ones, `raw` such as no message holds."""

    @st.composite
    def make(draw: Draw) -> bytes:
        how = draw(st.integers(0, 9))
        if raw and how < 3:
            data: bytes = draw(st.sampled_from(list(raw)))
        else:
            message = type(seeds[0])()
            message.CopyFrom(draw(st.sampled_from(list(seeds))))
            for _ in range(draw(st.integers(0, 3))):
                _spoil(draw, message, words, 0)
            data = message.SerializeToString()
        if how in {2, 8, 9}:
            for _ in range(draw(st.integers(1, 3))):
                data = _mangle(draw, data)
        return data

    return make()


def _spoil(draw: Draw, message: Message, words: Words, depth: int) -> None:
    """Sets one field of a message, or of one inside it, to something hostile, or clears it."""
    fields = message.DESCRIPTOR.fields
    if not fields or depth > _MAX_DEPTH:
        return
    field: Any = draw(st.sampled_from(list(fields)))
    kind = draw(st.integers(0, 9))
    if kind == 0:
        message.ClearField(field.name)
    elif _is_map(field):
        entries = getattr(message, field.name)
        entry = field.message_type.fields_by_name
        key = draw(_scalar(entry["key"], words))
        if entry["value"].type == _F.TYPE_MESSAGE:
            _spoil(draw, entries[key], words, depth + 1)
        else:
            entries[key] = draw(_scalar(entry["value"], words))
    elif field.is_repeated:
        _spoil_list(draw, getattr(message, field.name), field, words, depth)
    elif field.type == _F.TYPE_MESSAGE:
        inner = getattr(message, field.name)
        inner.SetInParent()
        _spoil(draw, inner, words, depth + 1)
    else:
        setattr(message, field.name, draw(_scalar(field, words)))


def _spoil_list(draw: Draw, values: Any, field: Any, words: Words, depth: int) -> None:
    if field.type == _F.TYPE_MESSAGE:
        item = draw(st.sampled_from(list(values))) if values and draw(st.booleans()) else None
        item = values.add() if item is None else item
        _spoil(draw, item, words, depth + 1)
        if draw(st.integers(0, 9)) == 0:
            copies = draw(st.sampled_from([1, 300, 6_000]))
            values.extend([item] * min(copies, _COPIED_BYTES // (item.ByteSize() + 1)))
        return
    value = draw(_scalar(field, words))
    if values and draw(st.booleans()):
        values[draw(st.integers(0, len(values) - 1))] = value
    else:
        size = len(value) if isinstance(value, str | bytes) else 1
        values.extend([value] * (draw(st.sampled_from([1, 2, 1_100])) if size < 1_000 else 1))


def _scalar(field: Any, words: Words) -> st.SearchStrategy[Any]:
    """Hostile values of a field that holds no message."""
    if field.type == _F.TYPE_STRING:
        return st.sampled_from(_texts(field.name, words))
    if field.type == _F.TYPE_BYTES:
        return st.one_of(st.sampled_from(EMBEDDINGS + words.blobs), st.binary(max_size=64))
    if field.type in _INTEGERS:
        allowed = _INTEGERS[field.type]
        values = [*INTEGERS, *LARGE_INTEGERS, *NEGATIVE_INTEGERS]
        return st.sampled_from([value for value in values if value in allowed])
    if field.type == _F.TYPE_ENUM:
        return st.sampled_from([0, 1, 2, 3, 4, 5, 6, 99, 2**31 - 1, -1])
    if field.type == _F.TYPE_BOOL:
        return st.booleans()
    return st.sampled_from(FLOATS if field.type == _F.TYPE_DOUBLE else [0.0, -1.5, *FLOATS[-3:]])


def _texts(name: str, words: Words) -> list[str]:
    if name in {"where", "where_document"}:
        return WHERES
    if name.endswith("json"):
        return JSONS
    return STRINGS + words.texts


def _is_map(field: Any) -> bool:
    entry: Descriptor | None = field.message_type
    return entry is not None and bool(entry.GetOptions().map_entry)


def _mangle(draw: Draw, data: bytes) -> bytes:
    """One wound to a message's bytes."""
    at: int = draw(st.integers(0, len(data)))
    more: bytes
    match draw(st.integers(0, 6)):
        case 0:
            return data[:at]
        case 1 if data:
            flipped = bytearray(data)
            flipped[at - 1] ^= 1 << draw(st.integers(0, 7))
            return bytes(flipped)
        case 2:
            more = draw(st.binary(max_size=20))
            return data[:at] + more + data[at:]
        case 3:
            field, kind = draw(st.integers(0, 40)), draw(st.integers(0, _WIRE_TYPES - 1))
            length = varint(draw(st.sampled_from([0, 1, 127, 2**20, 2**31 - 1, 2**32, 2**64 - 1])))
            return data[:at] + varint(field << 3 | kind) + length + data[at:]
        case 4:
            more = draw(st.sampled_from([b"\x0b", b"\x0b" * 99, b"\x0b" * 5_000]))
            return data[:at] + more + data[at:]
        case 5:
            return data[:at] + b"\xff\xfe\xc0\x80" + data[at + 4 :]
        case _:
            return data + data
