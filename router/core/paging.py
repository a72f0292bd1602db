"""Where to go on reading: the page token of a Get and the cursor of a Scan.

Each carries all that is needed, so any router can answer it, after any restart and at any epoch.
"""

import base64
import json
from dataclasses import dataclass
from typing import Any, Self

from chroma_router.wire.errors import InvalidRequest
from chroma_router.wire.sequences import MAX_SEQUENCE
from chroma_router.wire.slots import slot_of

_FORMAT = 1
_SCAN_FORMAT = "scan-1"  # no page token begins so: neither is taken for the other


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
        return _packed([_FORMAT, self.after_sequence, self.after_id, self.remaining])

    @classmethod
    def decode(cls, token: str) -> Self:
        """The inverse of encode. Raises InvalidRequest for any other text."""
        try:
            version, sequence, record_id, remaining = _unpacked(token)
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


@dataclass(frozen=True, slots=True)
class ScanCursor:
    """A place in the order of (slot, id). Raises ValueError for one where no record can be."""

    after_slot: int
    after_id: str
    """The scan goes on behind the record with this slot and id, whether or not it still exists."""

    def __post_init__(self) -> None:
        if not self.after_id:
            raise ValueError("a record's id is not empty")
        if slot_of(self.after_id) != self.after_slot:
            raise ValueError(f"{self.after_slot} is not the slot of its id")

    def encode(self) -> str:
        """The cursor as text of the URL-safe base64 alphabet, without padding."""
        return _packed([_SCAN_FORMAT, self.after_id])

    @classmethod
    def decode(cls, cursor: str) -> Self:
        """The inverse of encode. Raises InvalidRequest for any other text."""
        try:
            kind, record_id = _unpacked(cursor)
            if kind != _SCAN_FORMAT or type(record_id) is not str:
                raise ValueError("its contents are not those of a cursor")
            return cls(slot_of(record_id), record_id)
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidRequest(
                f"cursor is not one that this version gave out ({error}); send the cursor of the "
                "last page unchanged, or none to begin anew"
            ) from error


def _packed(values: list[object]) -> str:
    data = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _unpacked(text: str) -> Any:
    """Whatever JSON the text holds. Raises ValueError or RecursionError for none."""
    padded = text + "=" * (-len(text) % 4)
    return json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
