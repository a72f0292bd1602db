"""The rows of a file as serialized Records: checked and batched in bounded memory.

Synchronous; `ingest_run` calls it from a thread. It never sends anything.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from chroma_router.wire.errors import ClusterError
from chroma_router.wire.records import record_message
from router.cli.command import Failed
from router.cli.ingest_input import KEYS, InputFile, RawRow
from router.cli.link import MAX_BATCH_BYTES
from router.core.limits import Limits
from router.core.validate import WriteKind, check_write
from router.embedding import Embedder

_NUMBERS: set[type] = {int, float}


@dataclass(frozen=True, slots=True)
class Line:
    """A good line: its number from 1, its text, its record."""

    number: int
    text: bytes
    id: str
    record: bytes


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot be stored, and why."""

    number: int
    text: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines with different ids, and the bad lines found on the way."""

    lines: list[Line]
    bad: list[BadLine]
    position: int
    """How many bytes of the file have been read, as they lie on the disk."""
    embedded: bool = False
    """Whether the embedder made vectors of it."""


class _Refused(Exception):
    """Why a line is bad."""


@dataclass(slots=True)
class _Parsed:
    number: int
    text: bytes
    values: dict[str, Any]
    embedding: bytes | None


@dataclass(frozen=True, slots=True)
class BatchRules:
    """How large a batch may be, and where embeddings come from that the lines do not have."""

    max_records: int
    embeddings: npt.NDArray[Any] | None = None
    embedder: Embedder | None = None
    limits: Limits = field(default_factory=Limits)


def load_embeddings(path: Path, lines: int) -> npt.NDArray[Any]:
    """The rows of a .npy file, memory-mapped: row i belongs to line i + 1. Raises Failed."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise Failed(f"{path} is not a .npy file of numbers: {error}") from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != "f":
        shape = getattr(rows, "shape", "?")
        kind = getattr(rows, "dtype", "?")
        raise Failed(
            f"{path} has shape {shape} of {kind}; it must be a matrix of floats with one row a line"
        )
    if rows.shape[0] != lines:
        raise Failed(
            f"{path} has {rows.shape[0]} rows but the file has {lines} lines; "
            "row i must belong to line i"
        )
    if rows.shape[1] == 0:
        raise Failed(f"{path} has rows of dimension 0")
    return rows


def batches(file: InputFile, rules: BatchRules) -> Iterator[Batch]:
    """The file's lines in batches, in their order."""
    parsed: list[_Parsed] = []
    bad: list[BadLine] = []
    seen: dict[str, int] = {}
    size = 0
    for row in file:
        try:
            line = _parse(row, rules)
            if line.values["id"] in seen:
                raise _Refused(
                    f"the id {line.values['id']!r} stands already in line {seen[line.values['id']]}"
                )
        except _Refused as refusal:
            bad.append(BadLine(row.number, row.text, str(refusal)))
        else:
            seen[line.values["id"]] = row.number
            parsed.append(line)
            size += len(row.text) + len(line.embedding or b"")
        if len(parsed) + len(bad) >= rules.max_records or size >= MAX_BATCH_BYTES:
            yield _batch(file, parsed, bad, rules)
            parsed, bad, seen, size = [], [], {}, 0
    if parsed or bad:
        yield _batch(file, parsed, bad, rules)


def _batch(file: InputFile, parsed: list[_Parsed], bad: list[BadLine], rules: BatchRules) -> Batch:
    bare = [line for line in parsed if line.embedding is None]
    if bare:
        assert rules.embedder is not None
        vectors = rules.embedder([line.values["document"] for line in bare])
        for line, vector in zip(bare, vectors, strict=True):
            line.embedding = vector.astype("<f4").tobytes()
    lines: list[Line] = []
    for line in parsed:
        try:
            lines.append(_record(line, rules.limits))
        except _Refused as refusal:
            bad.append(BadLine(line.number, line.text, str(refusal)))
    bad.sort(key=lambda line: line.number)
    return Batch(lines, bad, file.position, embedded=bool(bare))


def _parse(row: RawRow, rules: BatchRules) -> _Parsed:
    if row.problem is not None:
        raise _Refused(row.problem)
    values: Any = row.values
    if values is None:
        if not row.text.strip():
            raise _Refused("empty; each line is one JSON object")
        try:
            values = json.loads(row.text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise _Refused(f"not JSON: {error}") from None
    if not isinstance(values, dict):
        raise _Refused("not a JSON object")
    unknown = values.keys() - KEYS
    if unknown:
        raise _Refused(
            f"unknown key {min(unknown)!r}; known are {', '.join(sorted(KEYS))}. "
            "Everything else belongs into metadata"
        )
    if "id" not in values:
        raise _Refused("no id")
    if not isinstance(values["id"], str) or not values["id"]:
        raise _Refused("the id must be a text that is not empty")
    for key in ("document", "uri"):
        if not isinstance(values.get(key), str | None):
            raise _Refused(f"{key} must be a text")
    if not isinstance(values.get("metadata"), dict | None):
        raise _Refused("metadata must be an object")
    return _Parsed(row.number, row.text, values, _embedding(row.number, values, rules))


def _embedding(number: int, values: dict[str, Any], rules: BatchRules) -> bytes | None:
    """The line's embedding from its row or from itself; None: it is to be made of its document."""
    if rules.embeddings is not None:
        row = rules.embeddings[number - 1].astype("<f4")
        return bytes(row.tobytes())
    given = values.get("embedding")
    if isinstance(given, bytes):
        return given
    if given is not None:
        if not isinstance(given, list) or not given or not _NUMBERS.issuperset(map(type, given)):
            raise _Refused("embedding must be a list of numbers")
        try:
            vector = np.asarray(given, dtype=np.float64)
        except OverflowError:
            raise _Refused("embedding holds a number that is no 32-bit float") from None
        with np.errstate(over="ignore"):  # becomes infinite, which validation refuses
            return bytes(vector.astype("<f4").tobytes())
    if rules.embedder is None:
        raise _Refused("no embedding; give --embeddings FILE.npy, or --embedder lexical")
    if not values.get("document"):
        raise _Refused("no embedding, and no document to make it of")
    return None


def _record(line: _Parsed, limits: Limits) -> Line:
    values = line.values
    try:
        record = record_message(
            values["id"],
            line.embedding,
            values.get("document"),
            values.get("uri"),
            values.get("metadata"),
        ).SerializeToString()
        check_write(WriteKind.UPSERT, [record], limits)
    except ClusterError as error:
        raise _Refused(error.message.removeprefix("record 0 ")) from None
    except (TypeError, ValueError) as error:
        raise _Refused(str(error)) from None
    return Line(line.number, line.text, values["id"], record)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
