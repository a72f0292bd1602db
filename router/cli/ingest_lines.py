"""The lines of a JSONL file as serialized Records: read, checked and batched in bounded memory.

Synchronous; `ingest_run` calls it from a thread. It never sends anything.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt

from chroma_router.wire.errors import ClusterError
from chroma_router.wire.records import record_message
from router.cli.command import Failed
from router.core.limits import Limits
from router.core.validate import WriteKind, check_write
from router.embedding import Embedder

MAX_LINE_BYTES = 32 << 20
"""A longer line is bad: its record would not fit into one write."""

MAX_BATCH_BYTES = 8 << 20
"""A batch ends before its records pass so many bytes."""

_KEYS = {"id", "document", "metadata", "embedding", "uri"}
_NUMBERS: set[type] = {int, float}
_CHUNK = 1 << 20


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


class LineFile:
    """A JSONL file, gzipped if its first bytes say so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self._raw: IO[bytes] = path.open("rb")
        self._stream: IO[bytes] | gzip.GzipFile = self._raw
        if self._raw.read(2) == b"\x1f\x8b":
            self._stream = gzip.GzipFile(fileobj=self._raw)
        self._raw.seek(0)

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()
        self._raw.close()

    @property
    def position(self) -> int:
        """How many bytes have been read, as they lie on the disk."""
        return self._raw.tell()

    def count(self) -> int:
        """How many lines there are; reads the file to its end and goes back to its beginning."""
        lines, last = 0, b"\n"
        try:
            while chunk := self._stream.read(_CHUNK):
                lines += chunk.count(b"\n")
                last = chunk[-1:]
        except (OSError, EOFError) as error:
            self._broken(error)
        self._stream.seek(0)
        return lines + (last != b"\n")

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Each line's number and text; a line that is too long comes as its first bytes."""
        number = 0
        while text := self._read_line():
            number += 1
            yield number, text.rstrip(b"\r\n")
            while len(text) > MAX_LINE_BYTES and not text.endswith(b"\n"):
                text = self._read_line()  # the rest of a line that is too long is passed over

    def _read_line(self) -> bytes:
        try:
            return self._stream.readline(MAX_LINE_BYTES + 1)
        except (OSError, EOFError) as error:
            self._broken(error)

    def _broken(self, error: Exception) -> NoReturn:
        raise Failed(f"{self.path} cannot be read to its end: {error}") from None


def batches(file: LineFile, rules: BatchRules) -> Iterator[Batch]:
    """The file's lines in batches, in their order."""
    parsed: list[_Parsed] = []
    bad: list[BadLine] = []
    seen: dict[str, int] = {}
    size = 0
    for number, text in file:
        try:
            line = _parse(number, text, rules)
            if line.values["id"] in seen:
                raise _Refused(
                    f"the id {line.values['id']!r} stands already in line {seen[line.values['id']]}"
                )
        except _Refused as refusal:
            bad.append(BadLine(number, text, str(refusal)))
        else:
            seen[line.values["id"]] = number
            parsed.append(line)
            size += len(text) + len(line.embedding or b"")
        if len(parsed) + len(bad) >= rules.max_records or size >= MAX_BATCH_BYTES:
            yield _batch(file, parsed, bad, rules)
            parsed, bad, seen, size = [], [], {}, 0
    if parsed or bad:
        yield _batch(file, parsed, bad, rules)


def _batch(file: LineFile, parsed: list[_Parsed], bad: list[BadLine], rules: BatchRules) -> Batch:
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


def _parse(number: int, text: bytes, rules: BatchRules) -> _Parsed:
    if len(text) > MAX_LINE_BYTES:
        raise _Refused(f"longer than {MAX_LINE_BYTES >> 20} MiB")
    if not text.strip():
        raise _Refused("empty; each line is one JSON object")
    try:
        values = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _Refused(f"not JSON: {error}") from None
    if not isinstance(values, dict):
        raise _Refused("not a JSON object")
    unknown = values.keys() - _KEYS
    if unknown:
        raise _Refused(
            f"unknown key {min(unknown)!r}; known are {', '.join(sorted(_KEYS))}. "
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
    return _Parsed(number, text, values, _embedding(number, values, rules))


def _embedding(number: int, values: dict[str, Any], rules: BatchRules) -> bytes | None:
    """The line's embedding from its row or from itself; None: it is to be made of its document."""
    if rules.embeddings is not None:
        row = rules.embeddings[number - 1].astype("<f4")
        return bytes(row.tobytes())
    given = values.get("embedding")
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
