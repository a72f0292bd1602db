"""Page tokens."""

import base64
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_router.wire.errors import InvalidRequest
from chroma_router.wire.sequences import MAX_SEQUENCE
from chroma_router.wire.slots import slot_of
from router.core.paging import PageToken, ScanCursor

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


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_cursor_comes_back_as_it_was(record_id: str) -> None:
    cursor = ScanCursor(slot_of(record_id), record_id)
    text = cursor.encode()
    assert re.fullmatch(r"[A-Za-z0-9_-]+", text)
    assert ScanCursor.decode(text) == cursor


def test_a_cursor_is_pinned() -> None:
    assert ScanCursor.decode("WyJzY2FuLTEiLCJhIl0") == ScanCursor(slot_of("a"), "a")


def test_cursors_and_page_tokens_are_not_taken_for_each_other() -> None:
    with pytest.raises(InvalidRequest, match="cursor"):
        ScanCursor.decode(PageToken(7, "a", None).encode())
    with pytest.raises(InvalidRequest, match="page_token"):
        PageToken.decode(ScanCursor(slot_of("a"), "a").encode())


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "é",
        _token(5),
        _token([]),
        _token(["scan-1"]),
        _token(["scan-2", "a"]),
        _token(["scan-1", ""]),
        _token(["scan-1", 7]),
        _token(["scan-1", "\ud800"]),
        _token(["scan-1", "a", 0]),
        base64.urlsafe_b64encode(b"[" * 3_000).decode().rstrip("="),
    ],
)
def test_cursors_that_are_none_are_refused_with_the_mend(text: str) -> None:
    with pytest.raises(InvalidRequest, match="cursor of the last page unchanged"):
        ScanCursor.decode(text)


@pytest.mark.parametrize(("slot", "record_id"), [(0, ""), (slot_of("a") + 1, "a"), (-1, "a")])
def test_cursors_where_no_record_can_be_cannot_be_made(slot: int, record_id: str) -> None:
    with pytest.raises(ValueError, match=r"not empty|not the slot"):
        ScanCursor(slot, record_id)
