"""On which shards a collection lives: rendezvous hashing (highest random weight).

Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998. Each collection
ranks the shards by its own hash, so a new shard takes over only the collections that rank it high:
about 1 in n, and nothing moves between the others.
"""

from collections.abc import Iterable, Mapping

import mmh3

from chroma_router.wire.errors import InvalidRequest
from chroma_router.wire.placement import ALL_SHARDS, placement_in


def placement(asked: int, metadata: Mapping[str, object] | None, default: int) -> int:
    """On how many shards a new collection is placed, 0 for all: what was asked for in the request,
    else in the collection's metadata, else the default.

    They count as in the contract: 0 says nothing in `asked` and means all in `default`. Raises
    InvalidRequest for metadata that is heeded and is no placement.
    """
    try:
        wanted = asked or placement_in(metadata) or default
    except ValueError as error:
        raise InvalidRequest(f"{error}; mend it, or set placement_shards") from None
    return 0 if wanted == ALL_SHARDS else wanted


def home_shards(collection_id: str, shards: Iterable[str], count: int) -> tuple[str, ...]:
    """The home shards of a collection, sorted by name.

    `count` is how many there shall be; 0 means all, and more than there are means all there are.
    The weight of a shard is the first half, unsigned, of MurmurHash3 x64 128 (seed 0) of
    "{collection_id}/{shard}"; equal weights go by name. Raises ValueError for a negative count.
    """
    if count < 0:
        raise ValueError(f"a collection is placed on 0 (all) or more shards, got {count}")
    names = sorted(set(shards))
    if 0 < count < len(names):
        names.sort(key=lambda name: _weight(collection_id, name), reverse=True)
        names = sorted(names[:count])
    return tuple(names)


def _weight(collection_id: str, shard: str) -> int:
    weight: int = mmh3.mmh3_x64_128_utupledigest(f"{collection_id}/{shard}".encode())[0]
    return weight
