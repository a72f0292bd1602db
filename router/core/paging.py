"""The page token of a Get: where the next page begins and how much the limit still allows.

A token carries all that is needed, so any router can answer it, after any restart and at any epoch.
"""

import base64
import json
from dataclasses import dataclass
from typing import Self

from chroma_router.wire.errors import InvalidRequest
from router.core.sequence import MAX_SEQUENCE

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class PageToken:
    """A place in the order of records. Raises ValueError for values that no page can end with."""

    after_sequence: int
    after_id: str
    """The next page begins after the record with this sequence and id."""
    remaining: int | None
    """How many records may still come in all, at least 1; None: no limit."""

    def __post_init__(self) -> None:
        if not 0 <= self.after_sequence <= MAX_SEQUENCE:
            raise ValueError(f"sequence {self.after_sequence} is not in 0 to {MAX_SEQUENCE}")
        if not self.after_id:
            raise ValueError("a record's id is not empty")
        if self.remaining is not None and self.remaining < 1:
            raise ValueError(f"a next page has at least one record, got {self.remaining}")

    def encode(self) -> str:
        """The token as text of the URL-safe base64 alphabet, without padding."""
        values = [_FORMAT, self.after_sequence, self.after_id, self.remaining]
        data = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")

    @classmethod
    def decode(cls, token: str) -> Self:
        """The inverse of encode. Raises InvalidRequest for any other text."""
        try:
            padded = token + "=" * (-len(token) % 4)
            values = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
            version, sequence, record_id, remaining = values
            # bool is an int to isinstance, and so would be `true` in the token.
            types = type(sequence), type(record_id), type(remaining)
            if version != _FORMAT or types not in {(int, str, int), (int, str, type(None))}:
                raise ValueError("its contents are not those of a page token")
            return cls(sequence, record_id, remaining)
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidRequest(
                f"page_token is not one that this version gave out ({error}); send the "
                "next_page_token of the answer before unchanged, or none to begin anew"
            ) from error
