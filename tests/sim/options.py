"""What a simulation is made of: how much is done, what goes wrong, and what is left out on purpose.

Everything here is declared; what it leads to is decided by the seed alone.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Mutations:
    """Parts of the protocol to leave out: with any of them the simulation has to fail."""

    no_fence: bool = False
    """FenceSlots gives the tail, and refuses nothing afterwards."""
    volatile_fence: bool = False
    """A crash forgets the fence."""
    no_boot_id: bool = False
    """A node takes an ownership that was read before it began anew."""
    no_read_fence: bool = False
    """A fence never covers reads."""
    ids_before_capture: bool = False
    """What is copied is listed some time before the capture begins."""
    merging_put: bool = False
    """The target upserts: what the source no longer has of a record stays."""
    no_purge: bool = False
    """A cancelled move leaves at the target what it has brought."""
    unchecked_trim: bool = False
    """The source is trimmed before it is given its new ownership; it does not look what it owns."""
    no_outcomes: bool = False
    """What is remembered of requests does not travel."""
    no_filter: bool = False
    """Nodes answer whole reads with all that they hold."""
    no_verify: bool = False
    """Nothing is compared before the switch."""
    no_epoch_check: bool = False
    """Nodes serve calls of any epoch."""
    no_token: bool = False
    """Nodes do not mind which mover calls."""


NO_MUTATION = Mutations()


@dataclass(frozen=True, slots=True)
class Options:
    """One simulation. Times are ticks: a message mostly takes 1 to 2. Chances are 0 to 1."""

    routers: int = 3
    """Two of them have movers, if there are as many."""
    clients: int = 3
    operations: int = 10
    """Of each client."""
    loaded: float = 0.7
    """Chance of each record to be there at first."""
    owners: tuple[str, ...] = ("a", "b", "base")
    """Among whom the slots are dealt at first."""
    moves: int = 2
    """At most; one after the other."""
    drain: float = 0.5
    """Chance that a move takes all that its source has."""
    lost: float = 0.02
    """Chance that a message, there or back, never arrives."""
    late: float = 0.02
    """Chance that it takes long, often past its caller's patience."""
    late_in: Mapping[str, float] = field(default_factory=dict)
    """The same for requests of these kinds."""
    latest: float = 100.0
    """Ticks that such a message takes at most."""
    cut: float = 0.002
    """Chance that with a message a time begins in which its sender cannot reach its receiver."""
    node_crash: float = 0.002
    """Chance that a node dies in a turn of its writer, before or after the commit."""
    crash_in: Mapping[str, float] = field(default_factory=dict)
    """The same for turns of these kinds."""
    fence_crash: float = 0.0
    """Chance that a node dies soon after it has fenced slots."""
    down: float = 10.0
    """Mean ticks until what died begins anew."""
    router_crash: float = 0.003
    """Chance that a router, and its mover, dies between two steps of a run or of a request."""
    stall: float = 0.01
    """Chance that a mover does nothing between two steps until its lease has long expired."""
    cancel: float = 0.25
    """Chance that the user cancels a move at some moment."""
    pause: float = 0.2
    """Chance that the user pauses it for a while."""
    wipe: float = 0.1
    """Chance that, after a move, a shard that owns nothing is given an empty directory."""
    copy_fault: float = 0.0
    """Chance that the target silently stores a copied record wrongly."""
    long_read: float = 0.15
    """Chance that a node takes long over a read."""
    give_up: float = 0.1
    """Chance that a client does not repeat a request whose outcome it does not know."""
    budget: float = 60.0
    """Ticks that a router spends on one request of a client."""
    repeat: float = 2.0
    """Mean ticks until a client repeats what it got no answer to."""
    look: float = 0.3
    """Chance that a client reads what it has just written."""
    refresh: float = 0.0
    """Chance that a router reads the slot map before a request, rather than use what it knows."""
    think: float = 8.0
    """Mean ticks between two requests of a client."""

    @classmethod
    def drawn(cls, rng: random.Random) -> "Options":
        """A mixture of faults: some seeds are calm, so that much gets done; some are rough."""
        pick = rng.choice
        return cls(
            routers=pick((2, 3, 5)),
            clients=pick((2, 3, 3, 4)),
            moves=pick((1, 1, 2)),
            lost=pick((0.0, 0.01, 0.05)),
            late=pick((0.0, 0.02, 0.06)),
            cut=pick((0.0, 0.0, 0.005)),
            down=pick((2.0, 12.0)),
            node_crash=pick((0.0, 0.003, 0.02)),
            crash_in=pick(({}, {}, {"fence_slots": 0.2, "fence_reads": 0.2}, {"apply_move": 0.1})),
            fence_crash=pick((0.0, 0.3)),
            router_crash=pick((0.0, 0.005, 0.02)),
            stall=pick((0.0, 0.01, 0.05)),
            cancel=pick((0.0, 0.3, 0.6)),
            pause=pick((0.0, 0.3)),
            wipe=pick((0.0, 0.5)),
            copy_fault=pick((0.0, 0.0, 0.0, 0.0, 0.2)),
            long_read=pick((0.05, 0.3)),
            budget=pick((10.0, 60.0)),
            repeat=pick((2.0, 2.0, 20.0)),
            refresh=pick((0.0, 0.3)),
            think=pick((4.0, 10.0, 16.0)),
        )
