"""The files that `ingest` reads, row by row in bounded memory: JSONL (also gzipped) and Parquet.

Synchronous. A file that `export` wrote brings its collection's definition along.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

from router.cli.command import Failed
from router.cli.definition import (
    FORMAT_KEY,
    BadDefinition,
    Definition,
    definition_from_json,
)

MAX_LINE_BYTES = 32 << 20
"""A longer line is bad: its record would not fit into one write."""

KEYS = frozenset({"id", "document", "metadata", "embedding", "uri"})
"""What a row may have."""

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stands in its file."""

    number: int
    """From 1; in JSONL the number of its line."""
    text: bytes
    """How it is shown when it is bad."""
    values: dict[str, Any] | None = None
    """None: they are the text, as JSON. An embedding may be bytes of float32 here."""
    problem: str | None = None
    """Why it cannot be read, if it cannot."""


class InputFile(Protocol):
    """A file of rows."""

    path: Path
    size: int
    """In bytes."""
    definition: Definition | None
    """That of the collection it was exported from, if it was."""

    @property
    def position(self) -> int:
        """How many bytes have been read."""
        ...

    def count(self) -> int:
        """How many rows there are, from the first."""
        ...

    def __iter__(self) -> Iterator[RawRow]: ...

    def close(self) -> None:
        """Closes the file."""
        ...


def open_input(path: Path) -> InputFile:
    """The file, by what its first bytes say it is. Raises Failed."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"PAR1":
        from router.cli.parquet import ParquetRows

        return ParquetRows(path)
    return LineFile(path)


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
        self.definition = self._head()
        self._rewind()

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()
        self._raw.close()

    @property
    def position(self) -> int:
        """How many bytes have been read, as they lie on the disk."""
        return self._raw.tell()

    def count(self) -> int:
        """How many rows there are; reads the file to its end and goes back to its beginning."""
        lines, last = 0, b"\n"
        try:
            while chunk := self._stream.read(_CHUNK):
                lines += chunk.count(b"\n")
                last = chunk[-1:]
        except (OSError, EOFError) as error:
            self._broken(error)
        self._rewind()
        return lines + (last != b"\n")

    def __iter__(self) -> Iterator[RawRow]:
        """Each row; a line that is too long comes as its first bytes."""
        number = 0 if self.definition is None else 1
        while text := self._read_line():
            number += 1
            whole = len(text) <= MAX_LINE_BYTES or text.endswith(b"\n")
            problem = None if whole else f"longer than {MAX_LINE_BYTES >> 20} MiB"
            yield RawRow(number, text.rstrip(b"\r\n"), problem=problem)
            while len(text) > MAX_LINE_BYTES and not text.endswith(b"\n"):
                text = self._read_line()  # the rest of a line that is too long is passed over

    def _head(self) -> Definition | None:
        """What the first line says, if it is the head of an export."""
        first = self._read_line()
        if FORMAT_KEY.encode() not in first:
            return None
        try:
            value = json.loads(first)
        except (ValueError, RecursionError):
            return None  # reported as a line, with its number
        if not isinstance(value, dict) or FORMAT_KEY not in value:
            return None
        try:
            return definition_from_json(value)
        except BadDefinition as error:
            raise Failed(f"{self.path}: {error}") from None

    def _rewind(self) -> None:
        """Goes to the first row."""
        self._stream.seek(0)
        if self.definition is not None:
            self._read_line()

    def _read_line(self) -> bytes:
        try:
            return self._stream.readline(MAX_LINE_BYTES + 1)
        except (OSError, EOFError) as error:
            self._broken(error)

    def _broken(self, error: Exception) -> NoReturn:
        raise Failed(f"{self.path} cannot be read to its end: {error}") from None
