"""How many of the waiting operations become one engine call. Pure.

Neighbours only, of one kind, on one collection at one epoch, with disjoint ids and different
identities: then the one call does what they would have done one after the other. An operation is
never split (it is applied wholly or not at all), so the first one is taken whatever its size.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from shard_node.operations import Write


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """What keeps one engine call near its target time; the time grows with the floats indexed."""

    rows: int
    floats: int

    def rows_for(self, dimension: int) -> int:
        """How many rows of that dimension one engine call may have."""
        return max(1, min(self.rows, self.floats // dimension)) if dimension else self.rows


def take(waiting: Iterable[Write], limits: GroupLimits) -> list[Write]:
    """The next group: the first waiting write and the neighbours that go with it."""
    group: list[Write] = []
    ids: set[str] = set()
    identities: set[tuple[str, int]] = set()
    dimension = 0
    for write in waiting:
        identity = (write.request_id, write.index)
        dimension = max(dimension, write.dimension)
        if group and (
            not _same_sort(group[0], write)
            or identity in identities
            or len(ids) + len(write.ids) > limits.rows_for(dimension)
            or not ids.isdisjoint(write.ids)
        ):
            break
        group.append(write)
        ids.update(write.ids)
        identities.add(identity)
        if write.conditional:
            break
    return group


def _same_sort(first: Write, other: Write) -> bool:
    """A conditional delete stands alone: it must look at the records right before it deletes."""
    return (
        first.kind is other.kind
        and first.collection_id == other.collection_id
        and first.epoch == other.epoch
        and not other.conditional
    )
