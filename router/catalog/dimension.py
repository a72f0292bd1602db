"""How a collection gets its dimension, when several routers write first to it at once.

A write whose router has not seen the dimension FIXED claims it first, and applies nothing before
its claim stands. `dimension_joiners` counts the claims that stand:

    NONE -- claim(d) --> PROPOSED(d, 1) -- claim(d) --> PROPOSED(d, 2) -- fix --> FIXED(d)
      ^---- retract (the last claim) ----'  <--- retract ---'

Only a write of which provably nothing was applied gives its claim back. So while any write that may
have been applied is on its way, a claim stands, and no other dimension gets in:

  * A claims, B joins, A is refused and retracts, B is applied: B's claim has kept the proposal.
    (Had A taken it back because A had made it, a third write could fix another dimension.)
  * A claims, B joins, B is refused and retracts while A is on its way: likewise the other way
    round. That nobody joined after B says nothing about A.
  * A claims, B joins, both are refused: the last one to retract frees the dimension. (If a joiner
    made the proposal stay for good, two refused writes would have fixed it.)
  * A fixes, then B is refused and retracts: FIXED stays.
  * A's router dies, or A's outcome stays unknown: its claim stands for ever, and with it the
    dimension, since something of it may have been applied. Strict, but safe.

Each standing claim belongs to the one proposal that there is, which cannot be replaced while a
claim to it stands; so a count suffices where otherwise each claim would need a name.

Pure: each function takes the entry as it is and returns it as it shall be, at the same version.
"""

import dataclasses

from chroma_router.wire.errors import InternalFailure
from router.core.model import CollectionEntry, DimensionState
from router.core.validate import dimension_refusal


def claimed(entry: CollectionEntry, dimension: int) -> CollectionEntry:
    """The entry with one more claim; as it is if the dimension is FIXED. Raises InvalidRequest."""
    if entry.dimension is not None and entry.dimension != dimension:
        raise dimension_refusal(entry.dimension, dimension)
    if entry.dimension_state is DimensionState.FIXED:
        return entry
    return dataclasses.replace(
        entry,
        dimension=dimension,
        dimension_state=DimensionState.PROPOSED,
        dimension_joiners=entry.dimension_joiners + 1,
    )


def fixed(entry: CollectionEntry, dimension: int) -> CollectionEntry:
    """The entry after something of this dimension was applied."""
    if entry.dimension is not None and entry.dimension != dimension:
        raise InternalFailure(
            f"embeddings of dimension {dimension} were stored in collection [{entry.name}], whose"
            f" dimension is {entry.dimension}: they were not claimed"
        )
    return dataclasses.replace(
        entry, dimension=dimension, dimension_state=DimensionState.FIXED, dimension_joiners=0
    )


def retracted(entry: CollectionEntry) -> CollectionEntry:
    """The entry with one claim less; as it is once the dimension is FIXED."""
    if entry.dimension_state is not DimensionState.PROPOSED:
        return entry
    if entry.dimension_joiners > 1:
        return dataclasses.replace(entry, dimension_joiners=entry.dimension_joiners - 1)
    return dataclasses.replace(
        entry, dimension=None, dimension_state=DimensionState.NONE, dimension_joiners=0
    )
