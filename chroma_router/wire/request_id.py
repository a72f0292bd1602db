"""The identity of a request: minting a UUID of version 7 (RFC 9562), whose time tells its age."""

import re

RANDOM_BYTES = 10

_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.I)


def new_request_id(now_ms: int, random: bytes) -> str:
    """The text of a UUIDv7 of this time (milliseconds since the Unix epoch) and 10 random bytes.

    Raises ValueError for a time that does not fit 48 bits or another number of bytes.
    """
    if not 0 <= now_ms < 1 << 48:
        raise ValueError(f"the time of a UUIDv7 has 48 bits, got {now_ms}")
    if len(random) != RANDOM_BYTES:
        raise ValueError(f"a UUIDv7 needs {RANDOM_BYTES} random bytes, got {len(random)}")
    bits = now_ms << 80 | int.from_bytes(random)
    bits = bits & ~(0xF << 76) | 0x7 << 76  # version
    bits = bits & ~(0x3 << 62) | 0x2 << 62  # variant
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def time_of(request_id: str) -> int | None:
    """The time of a UUIDv7 in milliseconds since the Unix epoch; None for any other request id."""
    if _UUID7.fullmatch(request_id) is None:
        return None
    return int(request_id[:8] + request_id[9:13], 16)
