"""The clock that puts new records in order.

A hybrid logical clock (Kulkarni, Demirbas et al., "Logical Physical Clocks and Consistent Snapshots
in Globally Distributed Databases", OPODIS 2014) folded into one integer: microseconds since the
Unix epoch as long as the wall clock leads, and the last value plus one while it does not. So
insertion order is exact on one router, and across routers up to the skew of their clocks
(invariant 7).
"""

from chroma_router.wire.errors import InternalFailure
from chroma_router.wire.sequences import MAX_SEQUENCE


class SequenceClock:
    """Hands out sequences, each above every one handed out or witnessed before."""

    def __init__(self) -> None:
        self._last = 0

    def take(self, now_us: int, count: int) -> int:
        """Reserves `count` (at least 1) consecutive sequences and returns the first of them.

        `now_us` is the wall clock in microseconds since the Unix epoch; it may stand still or jump
        back. Raises InternalFailure, and reserves nothing, if the sequences would pass 2**62.
        """
        if count < 1:
            raise ValueError(f"at least one sequence is taken, got {count}")
        first = max(now_us, self._last + 1)
        self._last = _checked(first + count - 1)
        return first

    def witness(self, sequence: int) -> None:
        """Takes notice of a sequence that a node has stored: later ones will be above it.

        Raises InternalFailure, and takes no notice, if it is above 2**62.
        """
        self._last = max(self._last, _checked(sequence))


def _checked(sequence: int) -> int:
    if sequence > MAX_SEQUENCE:
        raise InternalFailure(
            f"sequence {sequence} is past {MAX_SEQUENCE}; check the clocks of the router hosts and "
            "of whoever wrote to the shards"
        )
    return sequence
