"""A cap on a rate, over asyncio-throttle: the one place that imports it.

asyncio-throttle polls every few milliseconds, serves waiters in no order, keeps one time stamp for
each unit, and at a rate of 0 waits for ever. So: rates are checked, waiters queue on a lock (which
is fair), and units are counted in steps, which bounds the stamps. It is never the only bound on
memory.
"""

import asyncio
import math

from asyncio_throttle import Throttler

_STEPS_PER_SECOND = 100


class RateCap:
    """Lets at most `per_second` units pass in a second, averaged over a second or one step."""

    def __init__(self, per_second: float) -> None:
        if not (math.isfinite(per_second) and per_second > 0):
            raise ValueError(f"a rate must be a number above 0, got {per_second}")
        steps = min(_STEPS_PER_SECOND, max(1, math.floor(per_second)))
        self._units_per_step = max(per_second / steps, 1.0)
        period = max(1.0, 1.0 / per_second)
        self._throttler = Throttler(rate_limit=steps, period=period)
        self._turn = asyncio.Lock()
        self._credit = 0.0

    async def take(self, units: int) -> None:
        """Waits until `units` may pass. First come, first served."""
        async with self._turn:
            while self._credit < units:
                await self._throttler.acquire()  # type: ignore[no-untyped-call]
                self._credit += self._units_per_step
            self._credit -= units
