"""Held calls: what lets them go on, and that one task looks into the catalog for all of them."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from chroma_router.wire.errors import Unavailable
from router import fences
from router.fences import Fences

pytestmark = pytest.mark.timeout(10)


class Catalog:
    """Counts the looks into it; each may be news."""

    def __init__(self) -> None:
        self.looks: list[float] = []
        self.news_at = 0
        self.broken = False
        self.fences: Fences

    async def look(self, collection_id: str) -> None:
        self.looks.append(time.monotonic())
        if self.broken:
            raise Unavailable("busy")
        if len(self.looks) == self.news_at:
            self.fences.release(collection_id)


@asynccontextmanager
async def fenced() -> AsyncIterator[tuple[Fences, Catalog]]:
    catalog = Catalog()
    async with asyncio.TaskGroup() as tasks:
        catalog.fences = Fences(catalog.look, tasks)
        yield catalog.fences, catalog
    # The group has ended, so the task that looks has: nobody is held any more.
    assert not catalog.fences._holds


async def held(waits: Fences, number: int, key: str = "c") -> "list[asyncio.Task[None]]":
    tasks = [asyncio.create_task(waits.wait(key)) for _ in range(number)]
    await asyncio.sleep(0)
    return tasks


async def test_all_go_on_at_once_when_they_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fences, "PATIENCE_BASE", 5.0)
    monkeypatch.setattr(fences, "PATIENCE_CAP", 5.0)
    async with fenced() as (waits, _):
        tasks, others = await held(waits, 200), await held(waits, 1, "another")
        waits.release("c")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert all(task.done() for task in tasks)
        assert not others[0].done()
        waits.release("another")
        await others[0]


async def test_the_next_who_are_held_wait_for_the_next_release() -> None:
    async with fenced() as (waits, _):
        (first,) = await held(waits, 1)
        waits.release("c")
        await first
        (second,) = await held(waits, 1)
        await asyncio.sleep(0)
        assert not second.done()
        waits.release("c")
        await second


async def test_one_task_looks_for_all_of_a_collection_and_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fences, "PATIENCE_BASE", 5.0)
    monkeypatch.setattr(fences, "PATIENCE_CAP", 5.0)
    async with fenced() as (waits, catalog):
        catalog.news_at = 8
        began = time.monotonic()
        await asyncio.gather(*await held(waits, 256))
        assert len(catalog.looks) == 8
        assert time.monotonic() - began >= 8 * fences.POLL_BASE
        gaps = [b - a for a, b in zip(catalog.looks, catalog.looks[1:], strict=False)]
        assert gaps[-1] >= fences.POLL_CAP * 0.9


async def test_without_news_a_call_is_tried_again_later_and_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fences, "PATIENCE_BASE", 0.02)
    monkeypatch.setattr(fences, "PATIENCE_CAP", 0.1)
    monkeypatch.setattr(fences, "POLL_BASE", 0.005)
    async with fenced() as (waits, catalog):
        catalog.broken = True  # a catalog that does not answer holds nobody for ever either
        waited = []
        for _ in range(5):
            began = time.monotonic()
            await waits.wait("c")
            waited.append(time.monotonic() - began)
    assert 0.02 <= waited[0] < waited[2]
    assert waited[-1] >= 0.09
    assert max(waited) < 1.0


async def test_a_held_call_that_is_cancelled_leaves_nothing_behind() -> None:
    async with fenced() as (waits, catalog):
        (task,) = await held(waits, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(catalog.looks) == 0


async def test_a_release_of_what_nobody_waits_for_is_nothing() -> None:
    async with fenced() as (waits, _):
        waits.release("c")
