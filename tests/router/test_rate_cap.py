"""The cap on a rate: the rate is kept, waiters are served in order, nonsense is refused."""

import asyncio
import time

import pytest

from router.rate_cap import RateCap


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_would_never_end_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        RateCap(rate)


@pytest.mark.parametrize(("rate", "units"), [(2000.0, 100), (200.0, 1), (1000.5, 3000)])
async def test_the_rate_is_kept(rate: float, units: int) -> None:
    cap, began, passed = RateCap(rate), time.monotonic(), 0
    while time.monotonic() - began < 1.3:
        async with asyncio.timeout(5):
            await cap.take(units)
        passed += units
    seconds = time.monotonic() - began
    # A first second's worth may pass at once, and one step more than was asked for.
    assert passed <= rate * (seconds + 1) + rate / 100 + units
    assert passed >= rate * (seconds - 0.5) - units


async def test_waiters_are_served_in_their_order() -> None:
    cap, order = RateCap(100), list[int]()

    async def take(n: int) -> None:
        await cap.take(25)
        order.append(n)

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        for n in range(6):
            tasks.create_task(take(n))
    assert order == list(range(6))


async def test_a_waiter_that_is_cancelled_lets_the_next_one_in() -> None:
    cap = RateCap(50)
    await cap.take(50)
    first = asyncio.create_task(cap.take(50))
    second = asyncio.create_task(cap.take(1))
    await asyncio.sleep(0.01)
    first.cancel()
    async with asyncio.timeout(5):
        await second
