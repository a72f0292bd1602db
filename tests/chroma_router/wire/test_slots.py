"""The slot function against golden vectors and a second implementation of MurmurHash3."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_router.wire.slots import (
    SLOT_BITMAP_BYTES,
    SLOT_COUNT,
    slot_of,
    slots_from_bitmap,
    slots_to_bitmap,
)

# Made with the reference below, not with mmh3. Part of the public contract: they never change.
GOLDEN = [
    ("", 0),
    ("a", 533),
    ("doc-1", 708),
    ("doc-2", 343),
    ("0123456789abcde", 664),
    ("0123456789abcdef", 303),
    ("0123456789abcdefg", 568),
    ("été", 334),
    ("日本語", 74),
    ("🙂", 374),
    ("x" * 1000, 531),
    ("018f3c1e-7b7a-7c3e-9b1a-0123456789ab", 165),
]

_MASK = 2**64 - 1
_C1, _C2 = 0x87C37B91114253D5, 0x4CF5AD432745937F


def _rotl(x: int, r: int) -> int:
    return (x << r | x >> 64 - r) & _MASK


def _mix1(k: int) -> int:
    return _rotl(k * _C1 & _MASK, 31) * _C2 & _MASK


def _mix2(k: int) -> int:
    return _rotl(k * _C2 & _MASK, 33) * _C1 & _MASK


def _finish(k: int) -> int:
    k ^= k >> 33
    k = k * 0xFF51AFD7ED558CCD & _MASK
    k ^= k >> 33
    k = k * 0xC4CEB9FE1A85EC53 & _MASK
    return k ^ k >> 33


def murmur3_x64_128(data: bytes) -> tuple[int, int]:
    """MurmurHash3_x64_128 with seed 0, after Austin Appleby's smhasher."""
    h1 = h2 = 0
    whole = len(data) // 16 * 16
    for start in range(0, whole, 16):
        h1 ^= _mix1(int.from_bytes(data[start : start + 8], "little"))
        h1 = ((_rotl(h1, 27) + h2) * 5 + 0x52DCE729) & _MASK
        h2 ^= _mix2(int.from_bytes(data[start + 8 : start + 16], "little"))
        h2 = ((_rotl(h2, 31) + h1) * 5 + 0x38495AB5) & _MASK
    tail = data[whole:]
    h2 ^= _mix2(int.from_bytes(tail[8:], "little"))
    h1 ^= _mix1(int.from_bytes(tail[:8], "little"))
    h1 ^= len(data)
    h2 ^= len(data)
    h1 = (h1 + h2) & _MASK
    h2 = (h2 + h1) & _MASK
    h1, h2 = _finish(h1), _finish(h2)
    h1 = (h1 + h2) & _MASK
    return h1, (h2 + h1) & _MASK


def test_the_reference_is_murmurhash3() -> None:
    # Guava's own test vector.
    h1, h2 = murmur3_x64_128(b"The quick brown fox jumps over the lazy dog")
    assert (h1, h2) == (0xE34BBC7BBC071B6C, 0x7A433CA9C49A9347)


@pytest.mark.parametrize(("record_id", "slot"), GOLDEN)
def test_golden_vectors(record_id: str, slot: int) -> None:
    assert slot_of(record_id) == slot


@given(st.text())
def test_agrees_with_the_reference(record_id: str) -> None:
    assert slot_of(record_id) == murmur3_x64_128(record_id.encode())[0] >> 54


def test_a_lone_surrogate_has_no_slot() -> None:
    with pytest.raises(UnicodeEncodeError):
        slot_of("\ud800")


def test_ids_spread_evenly_over_slots() -> None:
    counts = [0] * SLOT_COUNT
    for number in range(100 * SLOT_COUNT):
        counts[slot_of(f"doc-{number}")] += 1
    # A binomial count of mean 100 has a standard deviation of 10.
    assert min(counts) > 40
    assert max(counts) < 160


@given(st.frozensets(st.integers(0, SLOT_COUNT - 1)))
def test_bitmap_round_trip_and_layout(slots: frozenset[int]) -> None:
    bitmap = slots_to_bitmap(slots)
    assert len(bitmap) == SLOT_BITMAP_BYTES
    assert int.from_bytes(bitmap, "little") == sum(1 << slot for slot in slots)
    assert slots_from_bitmap(bitmap) == slots


@pytest.mark.parametrize("size", [0, SLOT_BITMAP_BYTES - 1, SLOT_BITMAP_BYTES + 1])
def test_a_bitmap_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="128 bytes"):
        slots_from_bitmap(bytes(size))
