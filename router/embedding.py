"""Embedders that need no service: one lexical, one that is Chroma's own default model.

The lexical embedder hashes character n-grams. It finds texts that share words or parts of words
with the question, whatever their inflection; it knows nothing of meaning ("car" is not near
"automobile"). It is for demonstrations and tests without a download, not for production.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Protocol

import mmh3
import numpy as np
import numpy.typing as npt

DIMENSION = 384
_SHORTEST, _LONGEST = 3, 5
_WORD = re.compile(r"[^\W_]+")
_MASK = (1 << 63) - 1

Vectors = npt.NDArray[np.float32]


class EmbedderUnavailable(Exception):
    """An embedder cannot work here; the message says why and what mends it."""


class EmbedderName(StrEnum):
    """The embedders by name."""

    LEXICAL = "lexical"
    MINILM = "minilm"


class Embedder(Protocol):
    """Turns texts into vectors, one row each."""

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """The vectors of the texts, in their order."""
        ...


def embedder(name: EmbedderName) -> Embedder:
    """The embedder of a name. Raises EmbedderUnavailable."""
    return lexical if name is EmbedderName.LEXICAL else _minilm()


def lexical(texts: Sequence[str]) -> Vectors:
    """Hashed character n-grams of 3 to 5 within "<word>", of length 1, 384 d.

    Each n-gram of a word has the weight 1 + ln(times the word occurs). A text without a letter or
    digit hashes itself whole, so that no vector is zero.
    """
    rows = np.zeros((len(texts), DIMENSION), dtype=np.float32)
    for number, text in enumerate(texts):
        words = Counter(_WORD.findall(text.lower())) or Counter([text])
        hashed = [_hashed(word) for word in words]
        weights = [
            signs * (1.0 + math.log(count))
            for (_, signs), count in zip(hashed, words.values(), strict=True)
        ]
        places = np.concatenate([places for places, _ in hashed])
        row = np.bincount(places, np.concatenate(weights), DIMENSION)
        length = float(np.linalg.norm(row))
        if length > 0:
            rows[number] = row / length
        else:
            rows[number, 0] = 1.0
    return rows


@lru_cache(maxsize=1 << 16)
def _hashed(word: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The place and the sign of each n-gram of a word; signs let grams that collide cancel out."""
    framed = f"<{word}>"
    grams = [
        framed[start : start + size]
        for size in range(_SHORTEST, _LONGEST + 1)
        for start in range(len(framed) - size + 1)
    ] or [framed]
    digests = [
        mmh3.mmh3_x64_128_utupledigest(gram.encode("utf-8", "surrogatepass"))[0] for gram in grams
    ]
    places = np.array([(digest & _MASK) % DIMENSION for digest in digests])
    signs = np.array([1.0 if digest >> 63 else -1.0 for digest in digests])
    return places, signs


def _minilm() -> Embedder:
    """Chroma's default model. It is loaded, and where it is missing downloaded, at once."""
    from chromadb.utils.embedding_functions import ONNXMiniLM_L6_V2  # noqa: PLC0415 - slow

    try:
        model = ONNXMiniLM_L6_V2()
        model(["test"])
    except Exception as error:
        raise EmbedderUnavailable(
            f"the model all-MiniLM-L6-v2 cannot be had here ({type(error).__name__}: {error}); it "
            "is downloaded at its first use, which needs a network. Use --embedder lexical instead"
        ) from error

    def embed(texts: Sequence[str]) -> Vectors:
        return np.asarray(model(list(texts)), dtype=np.float32)

    return embed
