"""The records that the proof begins with, and an endless supply of embeddings.

Records come in cells of a few dozen: a filter on the cell chooses so few of them that a query is
exhaustive and can be compared with brute force.
"""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Scalar: TypeAlias = str | int | float | bool
Matrix: TypeAlias = npt.NDArray[np.float32]

CELL_RECORDS = 48
"""At the beginning; workload.py keeps it below 100."""

RANKS = 10
"""Each record has a rank from 0 below that: what conditional deletes choose by."""

_GENERATED_DIMENSION = 384
_CLUSTERS = 64


class Vectors:
    """The embedding of each token. The first tokens have those of the corpus, further ones blends
    of two of them: distinct, and distributed as the corpus is."""

    def __init__(self, base: Matrix) -> None:
        self._base: Matrix = base / np.linalg.norm(base, axis=1, keepdims=True)

    @property
    def base(self) -> Matrix:
        """The embeddings of the corpus, of length 1."""
        return self._base

    def of(self, token: int) -> Matrix:
        """The embedding of a token, of length 1."""
        count = len(self._base)
        if token < count:
            row: Matrix = self._base[token]
            return row
        dice = np.random.default_rng(token)
        one, other = dice.integers(count, size=2)
        noise = dice.standard_normal(self._base.shape[1], np.float32) / self._base.shape[1] ** 0.5
        blended = self._base[one] + 0.5 * self._base[other] + 0.05 * noise
        return np.asarray(blended / np.linalg.norm(blended), np.float32)

    def all_of(self, tokens: list[int]) -> Matrix:
        """The embeddings of several tokens, row by row."""
        return np.stack([self.of(token) for token in tokens])


@dataclass(frozen=True, slots=True)
class Seed:
    """A record at the beginning; its token is its number."""

    id: str
    cell: str
    document: str | None
    metadata: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Corpus:
    """The records at the beginning."""

    seeds: list[Seed]
    vectors: Vectors

    def load_order(self) -> list[int]:
        """The tokens in the order in which they are loaded: those without a document last, since
        all records of one batch have the same parts."""
        return sorted(range(len(self.seeds)), key=lambda token: self.seeds[token].document is None)


def generated(records: int, seed: int) -> Corpus:
    """Clustered records."""
    dice = np.random.default_rng(seed)
    centres = dice.standard_normal((_CLUSTERS, _GENERATED_DIMENSION), np.float32)
    base = centres[dice.integers(_CLUSTERS, size=records)]
    base += 0.6 * dice.standard_normal(base.shape, np.float32)
    texts: list[tuple[str, str | None, Mapping[str, Scalar]]] = [
        (f"doc-{n}", f"document {n}" if n % 7 else None, {"group": n % 13, "weight": n / 8})
        for n in range(records)
    ]
    return _corpus(texts, base)


def packages(directory: Path, records: int | None) -> Corpus:
    """The packages of a folder (packages.jsonl.gz, packages.f16.npy), or the first of them."""
    with gzip.open(directory / "packages.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(records or 1 << 40), lines, strict=False)]
    base = np.load(directory / "packages.f16.npy")[: len(rows)].astype(np.float32)
    return _corpus([(row["id"], row["document"], row["metadata"]) for row in rows], base)


def _corpus(texts: list[tuple[str, str | None, Mapping[str, Scalar]]], base: Matrix) -> Corpus:
    cells = max(1, round(len(texts) / CELL_RECORDS))
    seeds = [
        # Neighbours of the corpus, which are alike, are in different cells.
        Seed(
            record_id,
            f"cell-{n % cells}",
            document,
            {**metadata, "cell": f"cell-{n % cells}", "token": n, "rank": n % RANKS},
        )
        for n, (record_id, document, metadata) in enumerate(texts)
    ]
    return Corpus(seeds, Vectors(base))
