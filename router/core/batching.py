"""How much of a shard's write queue goes into the next group: the policy of group commit.

Model. Applying a group of r rows takes about `fixed + r * per_row` seconds: the engine's fsyncs and
transaction, and the work per row. Measured on Chroma 1.5.9 at 384 dimensions (ENGINE.md): 25 rows
17 ms, 100 rows 39 ms, 500 rows 145 ms, so 5 to 10 ms fixed and 0.3 ms per row; at 1,536 dimensions
a row costs several times that. Both parts are fitted to the observed applies by exponentially
weighted least squares, and the group is made as large as fits the target time, because the engine
holds the interpreter's lock and stalls the node's reads for as long as an apply lasts.

There is no timer: while one group is applied, arrivals collect, and the next takes what is there.
"""

from collections.abc import Iterable
from dataclasses import dataclass

# ENGINE.md's figures, where the estimate begins.
_FIRST_FIXED_SECONDS = 0.0075
_FIRST_SECONDS_PER_ROW = 0.0003
_FIRST_ROWS = 50

# The weight of the newest observation: the estimate follows within about ten applies.
_WEIGHT = 0.1
# An apply counts as at most so many times what was expected. One stall (a checkpoint, a neighbour
# on the disk) then moves the estimate little; lasting slowness still gets through in a few steps.
_MAX_SURPRISE = 4.0
# The size changes by at most this factor at each observation.
_MAX_STEP = 2.0
# With sizes that vary less than this around their mean, a slope would be fitted to noise: applies
# of one size differ by a tenth, and that tenth would be divided by this.
_MIN_RELATIVE_SPREAD = 0.3
# Keeps divisions sane where applies are faster than the clock can tell.
_MIN_SECONDS_PER_ROW = 1e-7


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one group. Raises ValueError for limits that contradict each other."""

    target_apply_seconds: float = 0.05
    min_rows: int = 1
    max_rows: int = 1_000
    max_bytes: int = 16 * 1024 * 1024
    max_operations: int = 256

    def __post_init__(self) -> None:
        if not self.target_apply_seconds > 0:
            raise ValueError(
                f"target_apply_seconds must be above 0, got {self.target_apply_seconds}"
            )
        if not 1 <= self.min_rows <= self.max_rows:
            raise ValueError(
                f"min_rows must be from 1 to max_rows ({self.max_rows}), got {self.min_rows}"
            )
        if self.max_bytes < 1 or self.max_operations < 1:
            raise ValueError(
                "max_bytes and max_operations must be at least 1, got "
                f"{self.max_bytes} and {self.max_operations}"
            )


class AdaptiveBatch:
    """The group size of one shard, adapted to how long its applies take."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._fixed = _FIRST_FIXED_SECONDS
        self._per_row = _FIRST_SECONDS_PER_ROW
        # Exponentially weighted moments of (rows, seconds), begun as if the first figures had been
        # observed at sizes around _FIRST_ROWS.
        self._mean_rows = float(_FIRST_ROWS)
        self._mean_seconds = self._predict(_FIRST_ROWS)
        self._variance = float(_FIRST_ROWS**2)
        self._covariance = self._variance * self._per_row
        self._rows = self._clamp(self._wanted_rows())

    @property
    def rows(self) -> int:
        """How many rows the next group may have."""
        return round(self._rows)

    def observe(self, rows: int, seconds: float) -> None:
        """Learns from one applied group of `rows` rows (at least 1) that took `seconds`."""
        if rows < 1 or not seconds >= 0:
            raise ValueError(f"an apply has rows and takes time, got {rows} rows, {seconds} s")
        self._fit(rows, min(seconds, _MAX_SURPRISE * self._predict(rows)))
        low, high = self._rows / _MAX_STEP, self._rows * _MAX_STEP
        self._rows = self._clamp(min(max(self._wanted_rows(), low), high))

    def seconds_for(self, rows: int) -> float:
        """How long so many rows, in groups of the present size, are expected to take."""
        return rows / self._rows * self._predict(self.rows)

    def take(self, sizes: Iterable[tuple[int, int]]) -> int:
        """How many of the waiting operations, from the head, go into the next group.

        `sizes` are (rows, bytes) of the operations in their order; no more of it is read than
        needed. The group stays within `rows`, max_bytes and max_operations, but an operation is
        never split: the first goes in whatever its size, alone if it passes a limit by itself.
        0 only if nothing waits.
        """
        count = total_rows = total_bytes = 0
        for rows, size in sizes:
            total_rows += rows
            total_bytes += size
            if count and (total_rows > self.rows or total_bytes > self._limits.max_bytes):
                break
            count += 1
            if count == self._limits.max_operations:
                break
        return count

    def _predict(self, rows: int) -> float:
        return self._fixed + rows * self._per_row

    def _fit(self, rows: int, seconds: float) -> None:
        more_rows, more_seconds = rows - self._mean_rows, seconds - self._mean_seconds
        self._mean_rows += _WEIGHT * more_rows
        self._mean_seconds += _WEIGHT * more_seconds
        self._variance = (1 - _WEIGHT) * (self._variance + _WEIGHT * more_rows**2)
        self._covariance = (1 - _WEIGHT) * (self._covariance + _WEIGHT * more_rows * more_seconds)
        if self._variance > (_MIN_RELATIVE_SPREAD * self._mean_rows) ** 2 and self._covariance > 0:
            # No steeper than through the origin, since the fixed part is not below zero.
            slope = min(self._covariance / self._variance, self._mean_seconds / self._mean_rows)
        else:
            # Groups of one size do not tell the two parts apart: what was once taken for fixed is
            # forgotten in favour of the first figure. Is that wrong, the size moves and tells them.
            fixed = self._fixed + _WEIGHT * (_FIRST_FIXED_SECONDS - self._fixed)
            slope = (self._mean_seconds - fixed) / self._mean_rows
        self._per_row = max(slope, _MIN_SECONDS_PER_ROW)
        self._fixed = max(self._mean_seconds - self._per_row * self._mean_rows, 0.0)

    def _wanted_rows(self) -> float:
        """The size that meets the target, but none that spends most of its time on the fixed part.

        On a disk whose fsyncs alone pass the target, the smallest groups would be the worst answer:
        the queue would grow while each of them still takes too long.
        """
        spare = self._limits.target_apply_seconds - self._fixed
        return max(spare, self._fixed) / self._per_row

    def _clamp(self, rows: float) -> float:
        return min(max(rows, float(self._limits.min_rows)), float(self._limits.max_rows))
