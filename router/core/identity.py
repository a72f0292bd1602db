"""Who a call is in logs, traces and errors: from its headers and its request, which may be hostile.

Nothing of a header is taken over that is not of the form it should have; the first valid one of
several sources counts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

# W3C Trace Context: version-trace_id-parent_id-flags, lower case. Later versions may add more
# fields behind a dash; version ff is none.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_TRACEPARENT_BYTES = 512
_TRACE_ID = re.compile(r"[0-9a-f]{32}")

_REQUEST_ID_BYTES = 128
_REQUEST_ID_HEADER = re.compile(r"[\x21-\x7e]{1,128}")  # visible ASCII


@dataclass(frozen=True, slots=True)
class CallIdentity:
    """The ids under which one call is found again."""

    request_id: str
    """The request's own, else that of its header x-request-id, else a new UUIDv7."""
    trace_id: str
    """32 hexadecimal digits."""

    @classmethod
    def of(cls, headers: Sequence[tuple[str, str | bytes]], request_id: str, fresh: str) -> Self:
        """The identity of a call with these headers, whose request names this request id (or "").

        `fresh` is a new UUIDv7. The trace id is that of a valid `traceparent`, else the request id
        if that is a UUID, else the fresh one.
        """
        sane = request_id.isprintable() and len(request_id.encode()) <= _REQUEST_ID_BYTES
        chosen = request_id if sane else ""
        chosen = chosen or _only(headers, "x-request-id", _REQUEST_ID_HEADER) or fresh
        trace_id = _trace_id(headers)
        if trace_id is None:
            candidate = chosen.replace("-", "").lower()
            trace_id = candidate if _TRACE_ID.fullmatch(candidate) else fresh.replace("-", "")
        return cls(chosen, trace_id)

    def metadata(self) -> dict[str, str]:
        """As an error's ErrorInfo and a log line carry it."""
        return {"request_id": self.request_id, "trace_id": self.trace_id}


def _trace_id(headers: Sequence[tuple[str, str | bytes]]) -> str | None:
    value = _only(headers, "traceparent", _TRACEPARENT)
    if value is None or len(value) > _TRACEPARENT_BYTES:
        return None
    version, trace_id, parent_id, more = _TRACEPARENT.fullmatch(value).groups()  # type: ignore[union-attr]
    if version == "00" and more is not None:
        return None
    zero = trace_id.strip("0") == "" or parent_id.strip("0") == ""
    return None if zero else str(trace_id)


def _only(
    headers: Sequence[tuple[str, str | bytes]], name: str, form: re.Pattern[str]
) -> str | None:
    """The value of a header that comes once and has the right form."""
    values = [value for key, value in headers if key == name]
    if len(values) != 1 or not isinstance(values[0], str) or not form.fullmatch(values[0]):
        return None
    return values[0]
