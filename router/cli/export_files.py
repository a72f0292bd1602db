"""The files that `export` writes: JSONL, plain or gzipped, and Parquet; complete or not there.

What is written here `ingest` reads back without loss: embeddings bit for bit, the types of
metadata, and what a record leaves out.
"""

import contextlib
import gzip
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from chroma_router.v1 import types_pb2
from chroma_router.wire.records import metadata_from_wire
from router.cli.command import Failed

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
"""By which a file says what it is."""

_LONGEST_STEM = 200
"""Characters of a file's name before its suffix: file systems take 255 bytes, and a collection's
name is ASCII."""


class Writer(Protocol):
    """A file that is being written."""

    def write(self, records: Sequence[types_pb2.Record]) -> None:
        """Writes one or more records behind those written before."""
        ...

    def close(self) -> None:
        """Completes the file."""
        ...


class LineWriter:
    """Writes a JSONL file: the head in the first line, then one record a line."""

    def __init__(self, path: Path, head: dict[str, Any], *, zipped: bool) -> None:
        self._file: IO[bytes] | gzip.GzipFile
        self._file = gzip.GzipFile(path, "wb") if zipped else path.open("wb")
        self._line(head)

    def write(self, records: Sequence[types_pb2.Record]) -> None:
        """Writes records behind those written before."""
        for record in records:
            self._line(_row(record))

    def close(self) -> None:
        """Completes the file."""
        self._file.close()

    def _line(self, value: dict[str, Any]) -> None:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self._file.write(text.encode() + b"\n")


def _row(record: types_pb2.Record) -> dict[str, Any]:
    row: dict[str, Any] = {"id": record.id}
    if record.HasField("document"):
        row["document"] = record.document
    if record.metadata:
        row["metadata"] = metadata_from_wire(record.metadata)
    if record.HasField("uri"):
        row["uri"] = record.uri
    # As doubles, which hold every float32 exactly; written so that they are read back as they are.
    row["embedding"] = np.frombuffer(record.embedding, dtype="<f4").astype(np.float64).tolist()
    return row


def file_stems(names: Sequence[str]) -> dict[str, str]:
    """What the file of each collection is called, without its suffix.

    The collection's name, unless that is too long for a file or differs from another of them only
    in case, which some disks do not see: then its beginning and a hash of it, behind a "~", which
    no collection's name has.
    """
    alike = Counter(name.casefold() for name in names)
    return {
        name: name
        if len(name) <= _LONGEST_STEM and alike[name.casefold()] == 1
        else f"{name[: _LONGEST_STEM - 13]}~{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        for name in names
    }


@contextlib.contextmanager
def writer(path: Path, head: dict[str, Any], *, replace: bool) -> Iterator[Writer]:
    """A writer whose file appears under its name when all went well, durable; else nothing does.

    Raises Failed if the name is taken by then, unless it is to be replaced.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        file = _open(partial, path.name, head)
        with contextlib.closing(file):
            yield file
        _sync(partial)
        partial.chmod(0o666 & ~_umask())
        if replace:
            partial.replace(path)
        else:
            _claim(partial, path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def taken(path: Path) -> Failed:
    """Why a file is not written."""
    return Failed(f"{path} exists and is not overwritten; name another file, or say --force")


def _open(path: Path, name: str, head: dict[str, Any]) -> Writer:
    if name.endswith(".parquet"):
        from router.cli.parquet import ParquetWriter

        return ParquetWriter(path, head)
    return LineWriter(path, head, zipped=name.endswith(".gz"))


def _claim(partial: Path, path: Path) -> None:
    """Gives the file its name unless that is taken, in one step: no other file is lost."""
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        raise taken(path) from None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """The process's mask of file modes; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
