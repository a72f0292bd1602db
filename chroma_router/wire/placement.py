"""How a collection's metadata says on how many shards to place it."""

from collections.abc import Mapping

PLACEMENT_KEY = "placement:shards"
"""The metadata key: a number from 1, or "all". It is read when a collection is made, and kept."""

ALL_SHARDS = 2**32 - 1
"""The contract's placement_shards for all shards, whatever the cluster's default."""

_SHOWN_CHARACTERS = 60


def placement_in(metadata: Mapping[str, object] | None) -> int:
    """The value of the contract's placement_shards that metadata asks for; 0: it says nothing.

    Raises ValueError, with a text for the user, for a value that is no placement.
    """
    wanted = (metadata or {}).get(PLACEMENT_KEY)
    if wanted is None:
        return 0
    if wanted == "all":
        return ALL_SHARDS
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise ValueError(
            f"metadata {PLACEMENT_KEY!r} must be a number from 1, or 'all', got "
            f"{repr(wanted)[:_SHOWN_CHARACTERS]}"
        )
    return min(wanted, ALL_SHARDS)  # more than there are means all there are
