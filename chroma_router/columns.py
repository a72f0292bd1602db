"""Chroma's columns and the contract's rows: from one to the other and back. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from chromadb.api.types import Embeddings, GetResult, Include, QueryResult, SearchResult
from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from numpy.typing import NDArray

from chroma_router.errors import InvalidArgumentError, UnsupportedError
from chroma_router.v1 import records_pb2, types_pb2
from chroma_router.wire.records import metadata_from_wire, metadata_to_wire

_FLOAT32 = np.dtype("<f4")

_INCLUDE: Mapping[str, types_pb2.Include] = {
    "documents": types_pb2.INCLUDE_DOCUMENTS,
    "metadatas": types_pb2.INCLUDE_METADATAS,
    "embeddings": types_pb2.INCLUDE_EMBEDDINGS,
    "distances": types_pb2.INCLUDE_DISTANCES,
    "uris": types_pb2.INCLUDE_URIS,
}

_SELECTABLE = ("#document", "#embedding", "#metadata", "#score")
"""What a search can select besides metadata keys, in the order of Chroma's Key."""


def include_to_wire(include: Include) -> list[types_pb2.Include]:
    """What to ask for. "data" is not asked for: Chroma's client loads it from the URIs."""
    try:
        return [_INCLUDE[part] for part in include if part != "data"]
    except KeyError as error:
        known = ", ".join([*_INCLUDE, "data"])
        raise InvalidArgumentError(f"include knows {known}, not {error}") from None


def embedding_rows(embeddings: Embeddings) -> list[bytes]:
    """Each embedding as little-endian float32; of any float or integer type, numpy arrays or lists.

    A value beyond float32 becomes infinite, as in Chroma's own client, and rows of different length
    stay so: the cluster refuses both in Chroma's words.
    """
    # What chromadb's Collection hands over for float32 rows: 100 of 384 take 15 us in place of 33.
    if all(
        isinstance(row, np.ndarray) and row.dtype == _FLOAT32 and row.ndim == 1
        for row in cast("Sequence[Any]", embeddings)
    ):
        return [row.tobytes() for row in embeddings]
    try:
        matrix = np.asarray(embeddings)
    except ValueError:  # ragged
        return [row for embedding in embeddings for row in embedding_rows([embedding])]
    if matrix.size == 0:
        return [b""] * len(embeddings)
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise InvalidArgumentError(
            "embeddings must be a list of rows of numbers, got "
            f"{matrix.ndim} dimensions of {matrix.dtype}"
        )
    with np.errstate(over="ignore"):
        data = matrix.astype(_FLOAT32, copy=False).tobytes()
    width = matrix.shape[1] * _FLOAT32.itemsize
    return [data[at : at + width] for at in range(0, len(data), width)]


def fill_records(
    into: RepeatedCompositeFieldContainer[types_pb2.Record],
    ids: Sequence[str],
    embeddings: Embeddings | None,
    metadatas: Sequence[Mapping[str, object] | None] | None,
    documents: Sequence[str | None] | None,
    uris: Sequence[str | None] | None,
) -> None:
    """Adds one record for each id. A column that is None leaves that part out of every record.

    Raises InvalidArgumentError for columns of different lengths and for a value that does not fit
    (an integer beyond 64 bits, text that is not Unicode), UnsupportedError for a metadata value of
    a kind that the cluster does not hold (a sparse vector).
    """
    absent = [None] * len(ids)
    rows = absent if embeddings is None else embedding_rows(embeddings)
    names = ("embeddings", "metadatas", "documents", "uris")
    parts: tuple[Sequence[Any], ...] = (
        rows,
        absent if metadatas is None else metadatas,
        absent if documents is None else documents,
        absent if uris is None else uris,
    )
    for name, part in zip(names, parts, strict=True):
        if len(part) != len(ids):
            raise InvalidArgumentError(f"got {len(ids)} ids and {len(part)} {name}")
    for record_id, row, metadata, document, uri in zip(ids, *parts, strict=True):
        try:
            record = into.add(id=record_id, embedding=row, document=document, uri=uri)
        except ValueError as error:
            raise InvalidArgumentError(f"record {record_id!r}: {error}") from error
        if metadata:
            try:
                metadata_to_wire(metadata, record.metadata)
            except TypeError as error:
                raise UnsupportedError(f"{error}, which this cluster does not hold") from error
            except ValueError as error:
                raise InvalidArgumentError(f"record {record_id!r}: {error}") from error


def get_result(records: Sequence[types_pb2.Record], include: Include) -> GetResult:
    """A GetResult as Chroma's own clients give it: None for each column that was not asked for."""
    return GetResult(
        ids=[record.id for record in records],
        embeddings=_embeddings(records) if "embeddings" in include else None,
        documents=_documents(records) if "documents" in include else None,
        uris=_uris(records) if "uris" in include else None,
        data=None,
        metadatas=_metadatas(records) if "metadatas" in include else None,
        included=include,
    )


def query_result(results: Sequence[records_pb2.QueryResult], include: Include) -> QueryResult:
    """A QueryResult as Chroma's own clients give it, with one list for each query embedding."""
    rows = [[hit.record for hit in result.hits] for result in results]
    return QueryResult(
        ids=[[record.id for record in row] for row in rows],
        embeddings=[_embeddings(row) for row in rows] if "embeddings" in include else None,
        documents=[_documents(row) for row in rows] if "documents" in include else None,
        uris=[_uris(row) for row in rows] if "uris" in include else None,
        data=None,
        metadatas=[_metadatas(row) for row in rows] if "metadatas" in include else None,
        distances=[[hit.distance for hit in result.hits] for result in results]
        if "distances" in include
        else None,
        included=include,
    )


def search_result(
    results: Sequence[records_pb2.SearchResult], selects: Sequence[Sequence[str]]
) -> SearchResult:
    """A SearchResult as Chroma's own clients give it, with one list for each search.

    A column that a search did not select is None there. `select` has its keys in Chroma's order:
    those with a meaning before metadata keys.
    """
    found = SearchResult(ids=[], documents=[], embeddings=[], metadatas=[], scores=[], select=[])
    for result, keys in zip(results, selects, strict=True):
        records = [hit.record for hit in result.hits]
        scores = [hit.score if hit.HasField("score") else None for hit in result.hits]
        fields = sorted({key for key in keys if key not in _SELECTABLE})
        found["ids"].append([record.id for record in records])
        found["documents"].append(_documents(records) if "#document" in keys else None)
        found["embeddings"].append(
            [np.frombuffer(record.embedding, _FLOAT32).tolist() for record in records]
            if "#embedding" in keys
            else None
        )
        found["metadatas"].append(_metadatas(records) if "#metadata" in keys or fields else None)
        found["scores"].append(scores if "#score" in keys else None)
        found["select"].append([*(key for key in _SELECTABLE if key in keys), *fields])
    return found


def _embeddings(records: Sequence[types_pb2.Record]) -> Any:
    """The embeddings as one matrix of float64, which is what Chroma's clients give (their elements
    are Python floats, which JSON knows, and float32 are not); an empty list where Chroma gives one.
    """
    if not records:
        return []
    values = np.frombuffer(b"".join([record.embedding for record in records]), _FLOAT32)
    matrix: NDArray[np.float64] = values.astype(np.float64).reshape(len(records), -1)
    return matrix


def _documents(records: Sequence[types_pb2.Record]) -> list[str]:
    # Chroma's type says str, its clients give None where a record has no document; so do we.
    values = [record.document if record.HasField("document") else None for record in records]
    return cast("list[str]", values)


def _uris(records: Sequence[types_pb2.Record]) -> list[str]:
    values = [record.uri if record.HasField("uri") else None for record in records]
    return cast("list[str]", values)


def _metadatas(records: Sequence[types_pb2.Record]) -> list[Any]:
    return [
        metadata_from_wire(record.metadata) if record.metadata or record.empty_metadata else None
        for record in records
    ]
