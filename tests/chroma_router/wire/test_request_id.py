"""Request ids, against the standard library's reading of UUIDs."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_router.wire.request_id import RANDOM_BYTES, new_request_id, time_of

TIMES = st.integers(0, 2**48 - 1)
RANDOM = st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES)


@given(TIMES, RANDOM)
def test_is_a_uuid_of_version_7_with_that_time(now_ms: int, random: bytes) -> None:
    text = new_request_id(now_ms, random)
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int >> 80 == now_ms
    assert time_of(text) == time_of(text.upper()) == now_ms


@given(TIMES, RANDOM, RANDOM)
def test_all_other_bits_are_random(now_ms: int, one: bytes, other: bytes) -> None:
    # 4 bits of version and 2 of variant take the place of random ones.
    kept = ~(0xF << 76 | 0x3 << 62)
    same = int.from_bytes(one) & kept == int.from_bytes(other) & kept
    assert (new_request_id(now_ms, one) == new_request_id(now_ms, other)) is same


@given(TIMES, TIMES, RANDOM, RANDOM)
def test_sorts_by_time(early: int, late: int, one: bytes, other: bytes) -> None:
    if early != late:
        early, late = sorted((early, late))
        assert new_request_id(early, one) < new_request_id(late, other)


@pytest.mark.parametrize("size", [0, RANDOM_BYTES - 1, RANDOM_BYTES + 1])
def test_needs_ten_random_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="10 random bytes"):
        new_request_id(0, bytes(size))


@pytest.mark.parametrize("now_ms", [-1, 2**48])
def test_needs_a_time_of_48_bits(now_ms: int) -> None:
    with pytest.raises(ValueError, match="48 bits"):
        new_request_id(now_ms, bytes(RANDOM_BYTES))


@pytest.mark.parametrize(
    "request_id",
    [
        "",
        "my-own-id",
        "018f3c1e-7b7a-4c3e-9b1a-0123456789ab",  # version 4
        "018f3c1e-7b7a-7c3e-1b1a-0123456789ab",  # another variant
        "018f3c1e7b7a7c3e9b1a0123456789ab",
        "018f3c1e-7b7a-7c3e-9b1a-0123456789ab\n",
        " 018f3c1e-7b7a-7c3e-9b1a-0123456789ab",
    ],
)
def test_any_other_id_has_no_time(request_id: str) -> None:
    assert time_of(request_id) is None
