"""Exact nearest neighbours of a few queries among vectors that come in chunks. Pure.

Distances are those of the engine: l2 squared, cosine 1 - cos, ip 1 - dot, in float32.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Scored: TypeAlias = tuple[float, str]  # (distance, id)

_TINY = np.float32(1e-30)  # as the engine: a zero vector has cosine 0 to everything


def matrix(rows: Sequence[bytes]) -> Floats:
    """Rows of little-endian float32 as a matrix. Raises ValueError for ragged rows."""
    return np.frombuffer(b"".join(rows), dtype="<f4").reshape(len(rows), -1)


class ExactScan:
    """Keeps the `n` nearest for each query; equal distances in the order of ids."""

    def __init__(self, queries: Sequence[bytes], n: int, space: str) -> None:
        self._space, self._n = space, n
        self._queries = matrix(queries)
        if space == "cosine":
            self._queries = _normalised(self._queries)
        self._best: list[list[Scored]] = [[] for _ in queries]

    def add(self, ids: Sequence[str], vectors: Sequence[bytes]) -> None:
        """Looks at one chunk of records."""
        with np.errstate(all="ignore"):  # huge components overflow to infinity, as in the engine
            rows = self._distances(matrix(vectors))
        for best, distances in zip(self._best, rows, strict=True):
            best.extend(zip(distances.tolist(), ids, strict=True))
            best.sort()
            del best[self._n :]

    def best(self) -> list[list[Scored]]:
        """The nearest so far, nearest first."""
        return self._best

    def _distances(self, vectors: Floats) -> Floats:
        if self._space == "l2":
            rows = [((vectors - query) ** 2).sum(axis=1) for query in self._queries]
            return np.stack(rows)
        if self._space == "cosine":
            vectors = _normalised(vectors)
        dots: Floats = self._queries @ vectors.T
        return np.float32(1) - dots


def _normalised(rows: Floats) -> Floats:
    norms = np.linalg.norm(rows, axis=1, keepdims=True).astype(np.float32)
    unit: Floats = rows / (norms + _TINY)
    return unit
