"""Scan over real gRPC to scripted nodes: each record once, whatever happens around it."""

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chroma_router.v1 import records_pb2, shard_pb2, types_pb2
from chroma_router.wire.errors import InvalidRequest, NotFound, Unavailable
from chroma_router.wire.slots import slot_of
from router import scatter
from router.core.limits import Limits
from router.core.model import CollectionEntry
from router.core.paging import ScanCursor
from router.record_reads import RecordReads
from router.scatter import ReadPath
from router.service.scan import ScanService
from tests.router.scripted import Rig, ScriptedShard, away, rig

pytestmark = pytest.mark.timeout(30)

PAGE = 7


class World:
    """The records of one collection, as its owners hold them; changed by tests at any moment."""

    def __init__(self, router: Rig, entry: CollectionEntry) -> None:
        self.router, self.entry = router, entry
        self.records: dict[str, bool] = {}
        """By id: whether the condition holds."""
        for shard in router.shards.values():
            shard.then("ShardGet", *[self._answering(shard)] * 2000)
        limits = Limits(max_page_records=PAGE)
        reads = RecordReads(router.directory, ReadPath(router.cluster, router.directory), limits)
        self.service = ScanService(router.directory, reads, limits)

    def _answering(self, shard: ScriptedShard) -> Any:
        async def step(request: shard_pb2.ShardGetRequest) -> shard_pb2.ShardGetResponse:
            present = (await self.router.catalog.collection(self.entry.id)).slot_map
            if shard.epochs.get(self.entry.id, 0) != request.epoch:
                raise shard.stale(shard.epochs.get(self.entry.id, 0))
            assert request.order == shard_pb2.ROW_ORDER_SLOT
            assert present.epoch == request.epoch or shard.epochs[self.entry.id] < present.epoch
            chosen = [
                (slot_of(i), i)
                for i, holds in self.records.items()
                if present.owner(slot_of(i)) == shard.name
                and (holds or not request.filter.where)
                and (not request.filter.by_ids or i in set(request.filter.ids))
            ]
            after = (request.after.sequence, request.after.id) if request.HasField("after") else ()
            keys = sorted(key for key in chosen if key > after)
            page = keys[: request.limit]
            return shard_pb2.ShardGetResponse(
                ids=[i for _, i in page],
                sequences=[s for s, _ in page],
                records=[
                    types_pb2.Record(id=i).SerializeToString()
                    for _, i in page
                    if not request.keys_only
                ],
                more=len(keys) > len(page),
            )

        return step

    async def pages(self, **fields: Any) -> AsyncIterator[tuple[list[str], str]]:
        """The ids of each page, and its cursor."""
        request = records_pb2.ScanRequest(collection={"id": self.entry.id}, **fields)
        async for view in self.service.scan(request, lambda: time.monotonic() + 5):
            page = records_pb2.ScanResponse.FromString(view.SerializeToString())
            yield [record.id for record in page.records], page.cursor

    async def scanned(self, **fields: Any) -> list[str]:
        return [i async for ids, _ in self.pages(**fields) for i in ids]


@asynccontextmanager
async def world(path: Path, records: int, shards: int = 3) -> AsyncIterator[World]:
    async with rig(path, shards) as router:
        made = World(router, await router.collection())
        made.records = {f"id-{n}": n % 3 == 0 for n in range(records)}
        yield made


def in_order(ids: Any) -> list[str]:
    return sorted(ids, key=lambda i: (slot_of(i), i))


@pytest.mark.parametrize("records", [0, 1, PAGE, 100])
async def test_every_record_once_in_the_order_of_slots(tmp_path: Path, records: int) -> None:
    async with world(tmp_path, records) as here:
        pages = [page async for page in here.pages()]
        assert [i for ids, _ in pages for i in ids] == in_order(here.records)
        assert all(1 <= len(ids) <= PAGE for ids, _ in pages)
        assert [cursor for _, cursor in pages] == [
            ScanCursor(slot_of(ids[-1]), ids[-1]).encode() for ids, _ in pages
        ]


async def test_filters(tmp_path: Path) -> None:
    async with world(tmp_path, 100) as here:
        wanted = [f"id-{n}" for n in range(20)]
        by_ids = await here.scanned(filter={"ids": [*wanted, "missing"], "by_ids": True})
        assert by_ids == in_order(wanted)
        holding = [i for i, holds in here.records.items() if holds]
        assert await here.scanned(filter={"where": '{"a": 1}'}) == in_order(holding)
        assert await here.scanned(filter={"by_ids": True}) == []
        here.records = dict.fromkeys(here.records, False)
        assert await here.scanned(filter={"where": '{"a": 1}'}) == []


@pytest.mark.parametrize("where", ["", '{"a": 1}'])
async def test_a_cursor_goes_on_behind_its_page(tmp_path: Path, where: str) -> None:
    async with world(tmp_path, 60) as here:
        chosen = {"filter": {"where": where}}
        whole = await here.scanned(**chosen)
        seen: list[str] = []
        async for ids, cursor in here.pages(**chosen):
            seen += ids
            del here.records[ids[-1]]  # the place stays when its record goes
            assert await here.scanned(cursor=cursor, **chosen) == whole[len(seen) :]
            here.records[ids[-1]] = True
        assert seen == whole


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("where", ["", '{"a": 1}'])
async def test_a_record_that_stays_comes_once_under_writes_moves_and_restarts(
    tmp_path: Path, seed: int, where: str
) -> None:
    """Against a naive twin: what was there all the time; what was never there."""
    picker = random.Random(seed)
    print(f"seed {seed}")
    async with world(tmp_path, 120) as here:
        chosen = [i for i, holds in here.records.items() if holds or not where]
        stay = set(chosen[::2])
        ever = set(here.records)
        seen: list[str] = []
        cursor = ""
        while True:
            ended = True
            async for ids, place in here.pages(cursor=cursor, filter={"where": where}):
                seen += ids
                event = picker.choice(["write", "delete", "move", "restart", "cursor", "none"])
                if event == "write":
                    new = f"new-{picker.randrange(1000)}"
                    here.records[new] = True
                    ever.add(new)
                elif event == "delete":
                    gone = picker.choice(list(here.records))
                    if gone not in stay:
                        del here.records[gone]
                elif event == "move":
                    present = await here.router.catalog.collection(here.entry.id)
                    moved = present.slot_map.reassigned(
                        picker.sample(range(1024), 300), picker.choice(["shard-1", "shard-2"])
                    )
                    await here.router.catalog.replace_slot_map(present, moved)
                    for shard in here.router.shards.values():
                        shard.epochs.pop(here.entry.id, None)
                elif event == "restart":
                    picker.choice(list(here.router.shards.values())).restart()
                elif event == "cursor":
                    cursor, ended = place, False
                    break
            if ended:
                break
        assert len(seen) == len(set(seen)), "none twice"
        assert seen == in_order(seen)
        assert stay <= set(seen) <= ever


async def test_a_shard_that_goes_away_ends_the_scan_and_its_cursor_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scatter, "UNAVAILABLE_WINDOW", 0.3)
    async with world(tmp_path, 60) as here:
        seen: list[str] = []
        cursor = ""
        steps = here.router.shards["shard-2"].steps["ShardGet"]

        async def scan() -> None:
            nonlocal cursor
            async for ids, place in here.pages():
                seen.extend(ids)
                cursor = place
                steps.extendleft(away() for _ in range(50))

        with pytest.raises(Unavailable) as failed:
            await scan()
        assert failed.value.metadata["shard"] == "shard-2"
        assert 0 < len(seen) <= PAGE
        while not callable(steps[0]):
            steps.popleft()
        assert seen + await here.scanned(cursor=cursor) == in_order(here.records)


async def test_a_scan_of_a_collection_that_is_deleted_ends(tmp_path: Path) -> None:
    async with world(tmp_path, 60) as here:

        async def scan() -> None:
            async for _ in here.pages():
                for shard in here.router.shards.values():
                    shard.steps["ShardGet"].appendleft(NotFound("dropped"))

        with pytest.raises(NotFound):
            await scan()


async def test_wrong_requests(tmp_path: Path) -> None:
    async with world(tmp_path, 1) as here:
        with pytest.raises(InvalidRequest, match="cursor"):
            await here.scanned(cursor="x")
        with pytest.raises(InvalidRequest, match="where"):
            await here.scanned(filter={"where": "{"})
