"""What a mover's lease is: the right of one router at a time to carry out moves."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lease:
    """One acquisition of the lease. What it allows ends when another one has a higher token."""

    holder: str
    """The router, under a name that no other process has."""
    token: int
    """Rises with each acquisition, by any router; nodes refuse a lower one than they have seen."""
    expires_at: int
    """Microseconds since the Unix epoch: when another router may take it over."""
