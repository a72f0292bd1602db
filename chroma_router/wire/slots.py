"""The slot function: which of a collection's 1,024 hash buckets a record id falls into.

The formula is part of the public contract (docs/ARCHITECTURE.md, "Hashing"; golden vectors in
tests/chroma_router/wire/test_slots.py), so that clients in other languages can compute it.
"""

import mmh3

SLOT_BITS = 10
SLOT_COUNT = 1 << SLOT_BITS
SLOT_BITMAP_BYTES = SLOT_COUNT // 8

_SHIFT = 64 - SLOT_BITS


def slot_of(record_id: str) -> int:
    """The slot of a record id: the top 10 bits of the first half of MurmurHash3 x64 128 (seed 0).

    Raises UnicodeEncodeError for an id that is not valid Unicode (a lone surrogate).
    """
    first: int = mmh3.mmh3_x64_128_utupledigest(record_id.encode("utf-8"))[0]
    return first >> _SHIFT


def slots_to_bitmap(slots: frozenset[int]) -> bytes:
    """128 bytes: bit s (byte s // 8, bit s % 8 from the lowest) is set for each slot in `slots`."""
    bitmap = bytearray(SLOT_BITMAP_BYTES)
    for slot in slots:
        bitmap[slot >> 3] |= 1 << (slot & 7)
    return bytes(bitmap)


def slots_from_bitmap(bitmap: bytes) -> frozenset[int]:
    """The inverse of slots_to_bitmap. Raises ValueError unless `bitmap` has 128 bytes."""
    if len(bitmap) != SLOT_BITMAP_BYTES:
        raise ValueError(f"a slot bitmap has {SLOT_BITMAP_BYTES} bytes, got {len(bitmap)}")
    return frozenset(s for s in range(SLOT_COUNT) if bitmap[s >> 3] >> (s & 7) & 1)
