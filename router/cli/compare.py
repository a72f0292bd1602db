"""Whether records of two places are the same: everything exactly, embeddings to 1e-5 relative."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from chroma_router.v1 import types_pb2

TOLERANCE = 1e-5
"""How far an embedding may be from its original, relative to its length. In a cosine collection the
engine keeps unit vectors and lengths, so what it gives back differs by about 1e-7."""


def differences(
    wanted: Sequence[bytes], found: Sequence[types_pb2.Record]
) -> list[tuple[str, str]]:
    """What differs, as (id of the wanted record, what is wrong); records stand in order.

    There are as many found as wanted.
    """
    result: list[tuple[str, str]] = []
    records = [types_pb2.Record.FromString(data) for data in wanted]
    for mine, theirs in zip(records, found, strict=True):
        problem = _problem(mine, theirs)
        if problem is not None:
            result.append((mine.id, problem))
    return result


def _problem(mine: types_pb2.Record, theirs: types_pb2.Record) -> str | None:
    if mine.id != theirs.id:
        return f"{theirs.id!r} stands in its place"
    if mine.embedding != theirs.embedding and not _close(mine.embedding, theirs.embedding):
        return "its embedding differs"
    for part in ("document", "uri"):
        if mine.HasField(part) != theirs.HasField(part) or getattr(mine, part) != getattr(
            theirs, part
        ):
            return f"its {part} differs"
    if mine.metadata != theirs.metadata:
        return "its metadata differ"
    return None


def _close(mine: bytes, theirs: bytes) -> bool:
    if len(mine) != len(theirs):
        return False
    a, b = _row(mine), _row(theirs)
    return bool(np.linalg.norm(a - b) <= TOLERANCE * np.linalg.norm(a))


def _row(data: bytes) -> npt.NDArray[np.float64]:
    return np.frombuffer(data, dtype="<f4").astype(np.float64)
