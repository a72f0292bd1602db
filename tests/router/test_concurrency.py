"""One call for all who ask the same at once: whose answer it is, and what an end of one does."""

import asyncio
import contextlib
import random

import pytest

from chroma_router.wire.errors import ClusterError, Unavailable
from router.concurrency import Flights

pytestmark = pytest.mark.timeout(10)


class Calls:
    """Calls that wait to be let through; each answers with its number, from 1."""

    def __init__(self) -> None:
        self.begun = 0
        self.under_way = 0
        self.most_under_way = 0
        self.steps: list[ClusterError] = []
        self._through = asyncio.Semaphore(0)

    async def call(self) -> int:
        self.begun += 1
        number = self.begun
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self._through.acquire()
        finally:
            self.under_way -= 1
        if self.steps:
            raise self.steps.pop(0)
        return number

    def let_through(self, number: int = 1) -> None:
        for _ in range(number):
            self._through.release()


async def turns(number: int = 5) -> None:
    """Lets every task go on as far as it can."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_who_asks_during_a_call_gets_the_answer_of_the_next_and_shares_it() -> None:
    calls, flights = Calls(), Flights[int]()
    first = asyncio.create_task(flights.join("a", calls.call))
    await turns()
    later = [asyncio.create_task(flights.join("a", calls.call)) for _ in range(50)]
    await turns()
    assert calls.begun == 1, "one at a time"
    calls.let_through(2)
    assert await first == 1
    assert set(await asyncio.gather(*later)) == {2}, "not of the call that began before they asked"
    assert calls.begun == 2


async def test_whom_a_call_under_way_will_do_rides_on_it() -> None:
    calls, flights = Calls(), Flights[int]()
    first = asyncio.create_task(flights.join("a", calls.call, under_way_will_do=True))
    await turns()
    riders = [
        asyncio.create_task(flights.join("a", calls.call, under_way_will_do=True))
        for _ in range(50)
    ]
    fresh = asyncio.create_task(flights.join("a", calls.call))
    await turns()
    calls.let_through(2)
    assert set(await asyncio.gather(first, *riders)) == {1}
    assert await fresh == 2


async def test_keys_do_not_wait_for_one_another() -> None:
    calls, flights = Calls(), Flights[int]()
    tasks = [asyncio.create_task(flights.join(key, calls.call)) for key in "ab"]
    await turns()
    assert calls.under_way == 2
    calls.let_through(2)
    assert sorted(await asyncio.gather(*tasks)) == [1, 2]


async def test_an_error_is_everybodys_and_the_next_call_is_another() -> None:
    calls, flights = Calls(), Flights[int]()
    calls.steps += [Unavailable("the first's"), Unavailable("the others'")]
    tasks = [asyncio.create_task(flights.join("a", calls.call)) for _ in range(5)]
    await turns()
    calls.let_through(2)
    for task in tasks:
        with pytest.raises(Unavailable, match="first's" if task is tasks[0] else "others'"):
            await task
    assert calls.begun == 2
    calls.let_through()
    assert await flights.join("a", calls.call) == 3


async def test_when_the_one_who_calls_goes_away_the_next_calls() -> None:
    calls, flights = Calls(), Flights[int]()
    tasks = [asyncio.create_task(flights.join("a", calls.call)) for _ in range(5)]
    await turns()
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    await turns()
    assert calls.under_way == 1
    calls.let_through(1)
    assert set(await asyncio.gather(*tasks[1:])) == {2}


async def test_a_defect_is_his_who_called() -> None:
    flights = Flights[int]()

    async def breaks() -> int:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError):
        await flights.join("a", breaks)
    assert not flights._lines, "nothing is kept of it"


@pytest.mark.parametrize("seed", range(30))
async def test_every_answer_is_of_a_call_that_began_after_it_was_asked_for(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    calls, flights = Calls(), Flights[int]()

    async def ask(*, ride: bool) -> None:
        begun, under_way = calls.begun, calls.under_way
        with contextlib.suppress(Unavailable):
            number = await flights.join("a", calls.call, under_way_will_do=ride)
            assert number > begun - (ride and under_way)

    tasks = []
    for _ in range(200):
        match rng.randrange(4):
            case 0 | 1:
                tasks.append(asyncio.create_task(ask(ride=rng.random() < 0.3)))
            case 2:
                calls.let_through()
                if rng.random() < 0.2:
                    calls.steps.append(Unavailable("away"))
            case 3 if tasks and rng.random() < 0.3:
                rng.choice(tasks).cancel()
        if rng.random() < 0.5:
            await asyncio.sleep(0)
    calls.let_through(1000)
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
    assert calls.most_under_way == 1
    assert not flights._lines, "nothing is kept of what has ended"
