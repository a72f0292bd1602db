"""Page tokens."""

import base64
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_router.wire.errors import InvalidRequest
from router.core.paging import PageToken
from router.core.sequence import MAX_SEQUENCE

TOKENS = st.builds(
    PageToken,
    st.integers(0, MAX_SEQUENCE),
    st.text(min_size=1),
    st.none() | st.integers(1),
)


@given(TOKENS)
def test_round_trip(token: PageToken) -> None:
    text = token.encode()
    assert re.fullmatch(r"[A-Za-z0-9_-]+", text)
    assert PageToken.decode(text) == token


def test_pinned() -> None:
    # A token given out by one version must be readable by the next.
    assert PageToken.decode("WzEsNywiYSIsbnVsbF0") == PageToken(7, "a", None)


def test_the_longest_id_fits() -> None:
    token = PageToken(1, "é" * 32_768, 5)
    assert PageToken.decode(token.encode()) == token


def _token(values: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "é",
        "a b",
        "WzEsNywiYSIsbnVsbF0!",
        _token(5),
        _token({}),
        _token([]),
        _token([2, 7, "a", None]),
        _token([1, 7, "a"]),
        _token([1, 7, "a", None, 0]),
        _token([1, -1, "a", None]),
        _token([1, 2**63, "a", None]),
        _token([1, True, "a", None]),
        _token([1, 7.0, "a", None]),
        _token([1, 7, "", None]),
        _token([1, 7, 7, None]),
        _token([1, 7, "a", 0]),
        _token([1, 7, "a", True]),
        _token([1, 7, "a", "3"]),
        base64.urlsafe_b64encode(b"[" * 3_000).decode().rstrip("="),
        base64.urlsafe_b64encode(b"\xff\xfe").decode().rstrip("="),
    ],
)
def test_garbage_is_refused_with_the_mend(text: str) -> None:
    with pytest.raises(InvalidRequest, match="next_page_token of the answer before"):
        PageToken.decode(text)


@given(st.text(max_size=60))
def test_noise_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        PageToken.decode(text)


@pytest.mark.parametrize(
    ("sequence", "record_id", "remaining"),
    [(-1, "a", None), (MAX_SEQUENCE + 1, "a", None), (1, "", None), (1, "a", 0)],
)
def test_impossible_places_cannot_be_made(
    sequence: int, record_id: str, remaining: int | None
) -> None:
    with pytest.raises(ValueError, match=r"is not in|is not empty|at least one"):
        PageToken(sequence, record_id, remaining)
