"""How long calls took lately: quantiles over a sliding window, in bounded memory.

Times and durations are given by the caller; there is no clock here.
"""

from math import ceil, isfinite, log, sqrt

# Durations are counted in buckets, each a tenth wider than the one before; a bucket answers with
# its geometric middle, so a quantile is off by at most sqrt(1.1) - 1, which is 4.9 %.
_GROWTH = 1.1
_LOG_GROWTH = log(_GROWTH)
_SHORTEST = 1e-5
_LONGEST = 1e3
_BUCKETS = ceil(log(_LONGEST / _SHORTEST) / _LOG_GROWTH)

MIN_OBSERVATIONS = 20
"""Of fewer, a p95 would be the slowest one."""


class LatencyWindow:
    """The durations of the last `seconds`, to within one of `slices` parts of it.

    Memory: one histogram of 194 counts for each slice. Durations below 10 microseconds count as 10
    microseconds, those above 1,000 seconds as 1,000 seconds.
    """

    def __init__(
        self, seconds: float, *, slices: int = 10, min_observations: int = MIN_OBSERVATIONS
    ) -> None:
        if not (isfinite(seconds) and seconds > 0 and slices >= 1 and min_observations >= 1):
            raise ValueError(
                "a window has a length above 0, slices and a least number of observations, got "
                f"{seconds} s, {slices} and {min_observations}"
            )
        self._slice_seconds = seconds / slices
        self._slices = slices
        self._min_observations = min_observations
        self._counts: dict[int, list[int]] = {}
        self._newest = 0

    def add(self, now: float, seconds: float) -> None:
        """Counts a call that ended at `now` (any clock in seconds that begins anywhere) and took
        `seconds` (0 or more). One that ended before the window is ignored."""
        if not seconds >= 0:
            raise ValueError(f"a duration is 0 or more seconds, got {seconds}")
        at = self._advance(now)
        if at <= self._newest - self._slices:
            return
        counts = self._counts.get(at)
        if counts is None:
            counts = self._counts[at] = [0] * _BUCKETS
        counts[_bucket(seconds)] += 1

    def quantile(self, now: float, q: float) -> float | None:
        """The duration in seconds that a share `q` (0 to 1) of the calls did not pass, to within
        5 %; None if there were too few calls to say."""
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile is from 0 to 1, got {q}")
        self._advance(now)
        merged = [sum(column) for column in zip(*self._counts.values(), strict=True)]
        total = sum(merged)
        if total < self._min_observations:
            return None
        rank = max(ceil(q * total), 1)
        for bucket, count in enumerate(merged):
            rank -= count
            if rank <= 0:
                return _SHORTEST * _GROWTH**bucket * sqrt(_GROWTH)
        raise AssertionError("a quantile is among the observations")

    def _advance(self, now: float) -> int:
        """The number of the slice of `now`. Slices that the window has left behind are dropped."""
        at = int(now // self._slice_seconds)
        if at > self._newest or not self._counts:
            self._newest = at
            for old in [number for number in self._counts if number <= at - self._slices]:
                del self._counts[old]
        return at


class Foreground:
    """How calls fare now, and how they fared in the calm before.

    Calls that end while it is busy do not count for the calm, and the calm does not age meanwhile:
    however long moves last, they are compared with the time before them.
    """

    def __init__(
        self,
        *,
        recent_seconds: float = 5.0,
        calm_seconds: float = 300.0,
        q: float = 0.95,
        min_observations: int = MIN_OBSERVATIONS,
    ) -> None:
        self._recent = LatencyWindow(recent_seconds, min_observations=min_observations)
        self._calm = LatencyWindow(calm_seconds, min_observations=min_observations)
        self._q = q
        self._busy_since: float | None = None
        self._busy_seconds = 0.0

    def begin_busy(self, now: float) -> None:
        """From `now` on it is not calm. Again: without effect."""
        if self._busy_since is None:
            self._busy_since = now

    def end_busy(self, now: float) -> None:
        """From `now` on it is calm again. Again: without effect."""
        if self._busy_since is not None:
            self._busy_seconds += max(now - self._busy_since, 0.0)
            self._busy_since = None

    def add(self, now: float, seconds: float) -> None:
        """Counts a call that ended at `now` and took `seconds`."""
        self._recent.add(now, seconds)
        if self._busy_since is None:
            self._calm.add(self._calm_time(now), seconds)

    def recent(self, now: float) -> float | None:
        """The quantile of the last seconds; None if there is hardly any traffic."""
        return self._recent.quantile(now, self._q)

    def baseline(self, now: float) -> float | None:
        """The quantile of the last minutes that were calm; None if there was hardly any traffic."""
        return self._calm.quantile(self._calm_time(now), self._q)

    def _calm_time(self, now: float) -> float:
        """How late it is on a clock that stands still while it is busy."""
        return (now if self._busy_since is None else self._busy_since) - self._busy_seconds


def _bucket(seconds: float) -> int:
    if seconds <= _SHORTEST:
        return 0
    if seconds >= _LONGEST:
        return _BUCKETS - 1
    return int(log(seconds / _SHORTEST) / _LOG_GROWTH)
