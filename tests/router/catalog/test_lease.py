"""One mover at a time, and none that goes on after another one has come."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chroma_router.wire.errors import Reason, Stale
from router.catalog import Catalog, schema
from router.core.lease import Lease
from router.core.rebalance import MoveProgress
from tests.router.catalog.helpers import leased, opened

TTL = 100


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Catalog]:
    catalog = await opened(tmp_path / "catalog.db")
    yield catalog
    await catalog.close()


@pytest.fixture
async def two(one: Catalog, tmp_path: Path) -> AsyncIterator[Catalog]:
    """Another router's view of the same file."""
    catalog = await Catalog.open(tmp_path / "catalog.db", create=False)
    yield catalog
    await catalog.close()


async def test_it_is_taken_over_once_it_has_expired(one: Catalog, two: Catalog) -> None:
    first = await one.moves.acquire("a", 0, TTL)
    assert first == Lease("a", 1, TTL)
    assert await two.moves.acquire("b", TTL - 1, TTL) is None
    assert await two.moves.holder(TTL - 1) == "a"
    assert await two.moves.holder(TTL) == ""
    second = await two.moves.acquire("b", TTL, TTL)
    assert second is not None
    assert (second.holder, second.expires_at) == ("b", 2 * TTL)
    assert second.token > first.token
    with pytest.raises(Stale, match="b has it") as stale:
        await one.moves.renew(first, TTL, TTL)
    assert stale.value.reason is Reason.STALE_TOKEN
    assert await one.moves.holder(TTL) == "b"


async def test_a_clock_that_was_set_back_keeps_no_dead_movers_lease(
    one: Catalog, two: Catalog
) -> None:
    first = await one.moves.acquire("a", 10**9, TTL)
    assert first is not None
    assert await two.moves.acquire("b", 10**9 - TTL, TTL) is None, "clocks may differ a little"
    second = await two.moves.acquire("b", 10**6, TTL)
    assert second is not None
    assert (second.holder, second.expires_at) == ("b", 10**6 + TTL)
    assert second.token > first.token


async def test_each_acquisition_of_ones_own_has_a_higher_token(one: Catalog) -> None:
    first = await leased(one)
    again = await leased(one)
    assert again.token == first.token + 1
    with pytest.raises(Stale):
        await one.moves.renew(first, 0, TTL)
    with pytest.raises(Stale):
        await one.moves.note(first, "some-move", MoveProgress())
    assert await one.moves.renew(again, 50, TTL) == Lease("router-1", again.token, 50 + TTL)


async def test_it_may_be_renewed_late_while_nobody_else_came(one: Catalog) -> None:
    lease = await leased(one)
    renewed = await one.moves.renew(lease, 10**6, TTL)
    assert renewed == Lease("router-1", lease.token, 10**6 + TTL)


async def test_given_back_it_is_free_at_once_and_allows_nothing(one: Catalog, two: Catalog) -> None:
    lease = await leased(one)
    await one.moves.release(lease)
    await one.moves.release(lease)
    assert await one.moves.holder(0) == ""
    with pytest.raises(Stale, match="it was given back"):
        await one.moves.renew(lease, 0, TTL)
    taken = await leased(two, "router-2")
    assert taken.token > lease.token
    # Of the one that was taken over nothing is given back any more.
    await one.moves.release(lease)
    assert await one.moves.holder(0) == "router-2"


async def test_tokens_are_above_those_that_nodes_may_have_seen(one: Catalog) -> None:
    """Else every move would be refused after an old copy was put in the catalog's place."""
    now_us = 1_800_000_000_000_000
    lease = await leased(one, now_us=now_us)
    assert lease.token == now_us
    assert (await leased(one, now_us=now_us - 5)).token == now_us + 1


async def test_signs_of_life_leave_the_revision_as_it_is(one: Catalog) -> None:
    lease = await leased(one)
    before = await one.revision()
    await one.moves.renew(lease, 1, TTL)
    assert await one.revision() == before


# Takes the lease whenever it can, and with it counts in a file that nothing else guards.
RACER = """
import asyncio, sys, time
from pathlib import Path
from chroma_router.wire.errors import Stale
from router.catalog import Catalog

async def main(path: Path, name: str) -> None:
    catalog = await Catalog.open(path)
    won = []
    while len(won) < 10:
        lease = await catalog.moves.acquire(name, time.time_ns() // 1000, 10_000_000)
        if lease is None:
            continue
        count = int((path.parent / "count").read_text())
        await catalog.moves.renew(lease, time.time_ns() // 1000, 10_000_000)
        (path.parent / "count").write_text(str(count + 1))
        won.append(lease.token)
        await catalog.moves.release(lease)
    print(*won)
    await catalog.close()

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


@pytest.mark.integration
def test_processes_that_race_for_it(tmp_path: Path) -> None:
    schema.create(tmp_path / "catalog.db")
    (tmp_path / "count").write_text("0")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path / "catalog.db"), name],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    won = [[int(token) for token in racer.communicate()[0].split()] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert (tmp_path / "count").read_text() == "20"
    tokens = [token for tokens in won for token in tokens]
    assert len(set(tokens)) == 20
    assert all(tokens == sorted(tokens) for tokens in won)
