"""When a child that died is started again. Pure: the caller tells it how long the child served."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How long to wait before a restart. Raises ValueError for numbers that make no sense."""

    first_pause_seconds: float = 0.1
    longest_pause_seconds: float = 10.0
    healthy_after_seconds: float = 30.0
    """A child that served so long has proved itself: its next restart is a first one again."""

    def __post_init__(self) -> None:
        if not 0 < self.first_pause_seconds <= self.longest_pause_seconds:
            raise ValueError("0 < first_pause_seconds <= longest_pause_seconds must hold")
        if self.healthy_after_seconds < 0:
            raise ValueError("healthy_after_seconds must not be negative")


@dataclass(slots=True)
class Backoff:
    """The pauses of one child: doubling from the first to the longest, reset by good service."""

    policy: RestartPolicy
    _pause: float = field(init=False)

    def __post_init__(self) -> None:
        self._pause = self.policy.first_pause_seconds

    def ended(self, served_seconds: float) -> float:
        """The child ended after serving so long (0: it never served). Seconds until its restart."""
        if served_seconds >= self.policy.healthy_after_seconds:
            self._pause = self.policy.first_pause_seconds
        pause = self._pause
        self._pause = min(2 * pause, self.policy.longest_pause_seconds)
        return pause
