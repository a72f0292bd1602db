"""Which conditions are known to hold for too many records to scan them. Pure, and bounded.

A condition that holds for few records is answered by a scan of these: exactly, and sooner than the
engine's filtered search (15 records: 5 ms against 15). To know that it is one costs a look-up of
all that it holds for, which for a broad condition is half of what the search itself costs. So it is
remembered of a broad one for how many records it held: until as many have changed as would make it
a selective one, it is not looked up again.
"""

from collections import OrderedDict
from typing import NamedTuple, TypeAlias

from chroma_router.v1 import types_pb2
from shard_node.holdings import Grant, Holding

MAX_SCANNED = 300
"""For how many records, at most, a condition is answered by a scan (docs/adr/0003)."""

_MOST_KNOWN = 512
_LONGEST = 4096  # characters of a condition that is remembered

_Key: TypeAlias = tuple[int, str, str]


class _Seen(NamedTuple):
    grant: Grant
    changed: int
    matching: int


class Selectivity:
    """What is known of conditions. It owns the memory of the last 512 broad ones."""

    def __init__(self) -> None:
        self._broad: OrderedDict[_Key, _Seen] = OrderedDict()

    def is_broad(self, holding: Holding, grant: Grant, filter_: types_pb2.Filter) -> bool:
        """Whether a condition surely holds for more than MAX_SCANNED records of a grant."""
        key = _key(holding, filter_)
        seen = self._broad.get(key)
        if seen is None:
            return False
        if seen.grant is grant and holding.changed - seen.changed < seen.matching - MAX_SCANNED:
            self._broad.move_to_end(key)
            return True
        del self._broad[key]
        return False

    def note(
        self,
        holding: Holding,
        grant: Grant,
        filter_: types_pb2.Filter,
        changed: int,
        matching: int,
    ) -> None:
        """A condition held for so many records of a grant, when `changed` had been changed."""
        if len(filter_.where) + len(filter_.where_document) > _LONGEST:
            return
        self._broad[_key(holding, filter_)] = _Seen(grant, changed, matching)
        if len(self._broad) > _MOST_KNOWN:
            self._broad.popitem(last=False)


def _key(holding: Holding, filter_: types_pb2.Filter) -> _Key:
    return holding.row.number, filter_.where, filter_.where_document
