"""Records in Parquet files. The only module that uses pyarrow, which is an extra.

One row is one record: `id`, `document`, `uri` (texts), `metadata` (a JSON text, since each record
has keys and types of its own), `embedding` (a list of float32). The definition of the collection is
in the file's own metadata.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from chroma_router.v1 import types_pb2
from chroma_router.wire.records import metadata_from_wire
from router.cli.command import Failed
from router.cli.definition import FORMAT_KEY, BadDefinition, Definition, definition_from_json
from router.cli.ingest_input import KEYS, RawRow

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    raise Failed(
        "Parquet needs pyarrow, which is not installed: `pip install 'chroma-router[parquet]'`; "
        "or use JSONL"
    ) from None

_ROWS = 256
"""Rows that are read at once."""


def require() -> None:
    """Importing this module has shown that Parquet can be used; else it raised Failed."""


class ParquetWriter:
    """Writes records to a Parquet file, one row group for each page of them."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self._path = path
        self._head = {FORMAT_KEY: json.dumps(head, ensure_ascii=False)}
        self._file: Any = None

    def write(self, records: Sequence[types_pb2.Record]) -> None:
        """Writes records with embeddings of one dimension behind those written before."""
        dimension = len(records[0].embedding) // 4
        floats = np.frombuffer(b"".join(r.embedding for r in records), dtype="<f4")
        columns = {
            "id": pa.array([r.id for r in records], pa.string()),
            "document": _texts(records, "document"),
            "metadata": pa.array([_metadata_text(r) for r in records], pa.string()),
            "uri": _texts(records, "uri"),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(floats), dimension),
        }
        table = pa.table(columns)
        if self._file is None:
            self._open(table.schema)
        self._file.write_table(table)

    def close(self) -> None:
        """Completes the file."""
        if self._file is None:
            names = ("id", "document", "metadata", "uri")
            fields = [(name, pa.string()) for name in names]
            self._open(pa.schema([*fields, ("embedding", pa.list_(pa.float32()))]))
        self._file.close()

    def _open(self, schema: Any) -> None:
        self._file = pq.ParquetWriter(
            self._path,
            schema.with_metadata(self._head),
            compression="zstd",
            use_dictionary=False,
        )


def _texts(records: Sequence[types_pb2.Record], part: Literal["document", "uri"]) -> Any:
    return pa.array([getattr(r, part) if r.HasField(part) else None for r in records], pa.string())


def _metadata_text(record: types_pb2.Record) -> str | None:
    if not record.metadata:
        return None
    return json.dumps(metadata_from_wire(record.metadata), ensure_ascii=False)


class ParquetRows:
    """A Parquet file as an input of `ingest`. Raises Failed for one that has not its columns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise Failed(f"{path} is not a whole Parquet file: {error}") from None
        self._rows_read = 0
        schema = self._file.schema_arrow
        unknown = set(schema.names) - KEYS
        if unknown or "id" not in schema.names:
            what = f"an unknown column {min(unknown)!r}" if unknown else "no column 'id'"
            raise Failed(
                f"{path} has {what}; known are {', '.join(sorted(KEYS))}. Everything else belongs "
                "into metadata, a JSON text or a struct"
            )
        self.definition = self._definition((schema.metadata or {}).get(FORMAT_KEY.encode()))

    def _definition(self, text: bytes | None) -> Definition | None:
        if text is None:
            return None
        try:
            return definition_from_json(json.loads(text))
        except (BadDefinition, ValueError, AttributeError) as error:
            raise Failed(f"{self.path}: {error}") from None

    @property
    def position(self) -> int:
        """How many bytes have been read, as rows of equal size."""
        return self.size * self._rows_read // max(self.count(), 1)

    def count(self) -> int:
        """How many rows there are."""
        return int(self._file.metadata.num_rows)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __iter__(self) -> Iterator[RawRow]:
        """Each row; one whose metadata are not JSON comes with a problem."""
        try:
            for batch in self._file.iter_batches(batch_size=_ROWS):
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                vectors = columns.pop("embedding", None)
                for at, values in enumerate(pa.table(columns).to_pylist()):
                    self._rows_read += 1
                    yield _row(self._rows_read, values, vectors, at)
        except (pa.ArrowException, OSError) as error:
            raise Failed(f"{self.path} cannot be read to its end: {error}") from None


def _row(number: int, values: dict[str, Any], vectors: Any, at: int) -> RawRow:
    text = json.dumps(values, ensure_ascii=False, default=str).encode()
    given = values.get("metadata")
    if isinstance(given, str):
        try:
            values["metadata"] = json.loads(given)
        except (ValueError, RecursionError) as error:
            return RawRow(number, text, problem=f"metadata: not JSON: {error}")
    elif isinstance(given, dict):  # a struct has the keys of all rows
        values["metadata"] = {key: value for key, value in given.items() if value is not None}
    if vectors is not None and vectors[at].is_valid:
        numbers = vectors[at].values.to_numpy(zero_copy_only=False)
        if numbers.dtype.kind not in "fiu":
            return RawRow(number, text, problem="embedding must be a list of numbers")
        with np.errstate(over="ignore"):  # becomes infinite, which validation refuses
            values["embedding"] = numbers.astype("<f4").tobytes()
    return RawRow(number, text, values)
