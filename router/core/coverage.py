"""Which part of a collection an answer saw, and how long shards that say nothing are waited for.

Purely: counts and names in, the Coverage of the contract and seconds out.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence

from chroma_router.v1 import types_pb2

STRAGGLER_SECONDS = 1.0
"""How long a partial read waits at least for shards that say nothing, once another has answered."""


def straggler_patience(elapsed: float, remaining: float) -> float:
    """How many more seconds silent shards get when another has answered, in a partial read.

    `elapsed` seconds is how long that answer took: shards of one collection hold about equally
    much, so one that takes three times as long (and at least STRAGGLER_SECONDS more) hangs. Never
    more than half of the `remaining` seconds: the deadline is not spent on it.
    """
    return min(max(STRAGGLER_SECONDS, 2 * elapsed), remaining / 2)


def coverage(
    asked_slots: Mapping[str, int], missing: Collection[str], told: Mapping[str, int]
) -> types_pb2.Coverage:
    """What an answer saw of the asked shards, given as the number of slots that each owns.

    `told` is how many records each shard told last; every answering one has told. A missing shard
    that never told is taken to hold what the others hold for as many slots. With no records to go
    by the share is that of the slots, and 1 when no shard had to be asked.
    """
    answered = [shard for shard in asked_slots if shard not in missing]
    known = [shard for shard in asked_slots if shard in told]
    known_slots = sum(asked_slots[shard] for shard in known)
    density = sum(told[shard] for shard in known) / known_slots if known_slots else 0.0
    weights: Mapping[str, float] = {
        shard: told.get(shard, density * slots) for shard, slots in asked_slots.items()
    }
    if not sum(weights.values()):
        weights = asked_slots
    total = sum(weights.values())
    return types_pb2.Coverage(
        asked_shards=asked_slots,
        answered_shards=answered,
        missing_shards=[shard for shard in asked_slots if shard in missing],
        record_share=sum(weights[shard] for shard in answered) / total if total else 1.0,
    )


class ToldCounts:
    """How many records of each collection each shard told last; of the newest collections only."""

    def __init__(self, most_collections: int) -> None:
        self._most = most_collections
        self._counts: OrderedDict[str, dict[str, int]] = OrderedDict()

    def learn(self, collection_id: str, shards: Sequence[str], counts: Mapping[str, int]) -> None:
        """Takes what shards have told. Of others than `shards`, the owners, nothing is kept."""
        known = self._counts.pop(collection_id, {})
        self._counts[collection_id] = {
            shard: count for shard, count in {**known, **counts}.items() if shard in shards
        }
        while len(self._counts) > self._most:
            self._counts.popitem(last=False)

    def of(self, collection_id: str) -> Mapping[str, int]:
        """What the shards of a collection told, by shard."""
        return self._counts.get(collection_id, {})
