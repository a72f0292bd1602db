"""The lexical embedder: the same everywhere and for ever, near for common words."""

import hashlib

import numpy as np
import pytest

from router.embedding import DIMENSION, EmbedderName, embedder, lexical

TEXTS = ["Parse a date from a string.", "parsing dates", "Ünïcödé 日本語", "", "!?", "\ud800"]


def test_vectors_have_length_one() -> None:
    rows = lexical(TEXTS)
    assert rows.shape == (len(TEXTS), DIMENSION)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_a_text_has_one_vector_whatever_stands_beside_it() -> None:
    together = lexical(TEXTS)
    for text, row in zip(TEXTS, together, strict=True):
        assert (lexical([text])[0] == row).all()


def test_golden() -> None:
    row = lexical(["The quick brown fox jumps over the lazy dog"])[0]
    # Rounded, so that another order of addition in numpy makes no difference.
    digest = hashlib.sha256(np.round(row * 1000).astype("<i4").tobytes()).hexdigest()
    assert digest[:16] == "be26dbdbfd0eada7"


def test_common_words_are_near_and_case_does_not_matter() -> None:
    question, near, far = lexical(
        ["parse a date", "Parsing of DATES and times", "open a network socket"]
    )
    assert question @ near > question @ far + 0.1
    assert (lexical(["ABC def"]) == lexical(["abc DEF"])).all()


def test_the_embedder_of_a_name() -> None:
    assert embedder(EmbedderName.LEXICAL) is lexical
    assert lexical([]).shape == (0, DIMENSION)


@pytest.mark.parametrize("repeats", [1, 10, 1000])
def test_repeating_a_text_damps(repeats: int) -> None:
    once, often = lexical(["alpha beta", "alpha beta " * repeats])
    assert once @ often > 0.999
