"""Index parameters that the engine takes and that then undo it: refused before anything is made.

Measured on Chroma 1.5.9 with records of 4 dimensions: with `max_neighbors` 0 the engine's process
ends, and again at each start; with 512 an upsert of 500 takes 0.2 s, with 1,000 (the most that
Chroma's own tests ask for) 0.7 s, and with 1,000,000 it also takes gigabytes, so that the node,
which kills an engine that hangs, serves none of its collections any more. The other two are the
engine's own bounds, which it checks too late.
"""

from collections.abc import Mapping

from chroma_router.wire.errors import InvalidRequest

_BOUNDS = {
    "max_neighbors": range(1, 1001),
    "sync_threshold": range(2, 2**31),
    "batch_size": range(2, 2**31),
}


def check(hnsw: object) -> None:
    """Raises InvalidRequest for the `hnsw` part of a configuration that is no object, or that has
    a parameter out of its bounds. None and what is left out are good."""
    if hnsw is None:
        return
    if not isinstance(hnsw, Mapping):
        raise InvalidRequest("configuration hnsw is not an object; send one such as {}")
    for name, allowed in _BOUNDS.items():
        number = hnsw.get(name)
        if isinstance(number, int) and number not in allowed:
            raise InvalidRequest(
                f"configuration hnsw.{name} is {number}, allowed are {allowed[0]} to {allowed[-1]}"
            )
