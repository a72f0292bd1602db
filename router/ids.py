"""Fresh ids, for whatever brings none of its own."""

import os
import time

from chroma_router.wire.request_id import RANDOM_BYTES, new_request_id


def fresh_id() -> str:
    """A new UUIDv7."""
    return new_request_id(time.time_ns() // 1_000_000, os.urandom(RANDOM_BYTES))
