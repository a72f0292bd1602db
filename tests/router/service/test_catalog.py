"""Collections are placed where data is taken, and changes that an engine refuses are taken back."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chroma_router.v1 import catalog_pb2, types_pb2
from chroma_router.wire.errors import InvalidRequest, NotAllowed, Reason, Stale
from router.catalog import Catalog
from router.core.model import CollectionEntry, ShardEntry, ShardRole
from router.reaper import Reaper
from router.service.catalog import CatalogService
from tests.router.scripted import Rig, rig

pytestmark = pytest.mark.timeout(15)

_SCHEMA: dict[str, Any] = {"defaults": {}, "keys": {"#embedding": {"float_list": {}}}}
_FUNCTION = {"type": "known", "name": "a", "config": {}}


@dataclass
class World:
    """A catalog service over scripted shards, and one collection."""

    router: Rig
    service: CatalogService
    entry: CollectionEntry

    async def update(self, **fields: Any) -> catalog_pb2.UpdateCollectionResponse:
        """Asks for a change of the collection."""
        request = catalog_pb2.UpdateCollectionRequest(
            collection=types_pb2.CollectionRef(id=self.entry.id), **fields
        )
        return await self.service.update_collection(request, 0.0)

    async def now(self) -> CollectionEntry:
        """The collection as the catalog has it."""
        return await self.router.catalog.collection(self.entry.id)


@asynccontextmanager
async def world(path: Path) -> AsyncIterator[World]:
    async with rig(path) as router, asyncio.TaskGroup() as tasks:
        reaper = Reaper(router.catalog, router.cluster, tasks)
        service = CatalogService(router.catalog, router.directory, reaper, tasks)
        for shard in router.shards.values():
            shard.schema_json = json.dumps(_SCHEMA)
        entry = await router.collection()
        text = json.dumps({"hnsw": {"ef_search": 1, "resize_factor": 1.0}})
        entry = await router.catalog.update_collection(entry, configuration_json=text)
        yield World(router, service, router.directory.remember(entry))


async def test_a_refused_change_whose_call_has_ended_is_taken_back(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        shard, refuse, taken = here.router.shards["shard-1"], asyncio.Event(), asyncio.Event()

        async def refused(_request: Any) -> None:
            taken.set()
            await refuse.wait()
            raise InvalidRequest("scripted: no")

        shard.then("SetOwnership", refused)
        call = asyncio.create_task(here.update(new_configuration_json='{"hnsw":{"ef_search":5}}'))
        await taken.wait()
        assert json.loads((await here.now()).configuration_json)["hnsw"]["ef_search"] == 5
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        refuse.set()
        while (after := await here.now()).version < here.entry.version + 2:
            await here.router.catalog.revision()
        assert after.configuration_json == here.entry.configuration_json


async def test_taking_back_leaves_what_others_changed_meanwhile(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        learnt = {**_SCHEMA, "keys": {**_SCHEMA["keys"], "word": {"string": {}}}}

        async def refused(_request: Any) -> None:
            now = await here.now()
            hnsw = json.loads(now.configuration_json)["hnsw"] | {"resize_factor": 3.0}
            await here.router.catalog.update_collection(
                now,
                name="renamed",
                metadata={"theirs": 1},
                configuration_json=json.dumps({"hnsw": hnsw, "embedding_function": _FUNCTION}),
                schema_json=json.dumps(learnt),
            )
            raise InvalidRequest("scripted: no")

        here.router.shards["shard-1"].then("SetOwnership", refused)
        wanted = types_pb2.MetadataValue(int_value=1)
        with pytest.raises(InvalidRequest, match="scripted: no"):
            await here.update(
                new_name="mine",
                replace_metadata=True,
                new_metadata={"mine": wanted},
                new_configuration_json='{"hnsw": {"ef_search": 5, "resize_factor": 2}}',
            )
        after = await here.now()
        assert after.name == "renamed"
        assert after.metadata == {"theirs": 1}
        assert json.loads(after.configuration_json) == {
            "hnsw": {"ef_search": 1, "resize_factor": 3.0},
            "embedding_function": _FUNCTION,
        }
        assert json.loads(after.schema_json) == learnt


async def test_a_refused_change_is_taken_back_whole(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.router.shards["shard-2"].then("SetOwnership", InvalidRequest("scripted: no"))
        value = types_pb2.MetadataValue(int_value=1)
        with pytest.raises(InvalidRequest):
            await here.update(
                new_name="mine",
                replace_metadata=True,
                new_metadata={"mine": value},
                new_configuration_json='{"hnsw": {"ef_search": 5}}',
            )
        after = await here.now()
        assert (after.name, after.metadata) == (here.entry.name, here.entry.metadata)
        assert json.loads(after.configuration_json) == json.loads(here.entry.configuration_json)


@pytest.mark.parametrize("value", ["NaN", "1e999", '"\\ud800"'])
async def test_what_python_reads_but_is_no_json_is_refused(tmp_path: Path, value: str) -> None:
    async with world(tmp_path) as here:
        function = f'{{"type": "known", "name": "a", "config": {{"x": {value}}}}}'
        with pytest.raises(InvalidRequest, match="new_configuration_json"):
            await here.update(new_configuration_json=f'{{"embedding_function": {function}}}')
        assert await here.now() == here.entry


async def _create(here: World, name: str) -> CollectionEntry:
    request = catalog_pb2.CreateCollectionRequest(name=name)
    answer = await here.service.create_collection(request, 0.0)
    return await here.router.catalog.collection(answer.collection.id)


async def _drain(here: World, number: int) -> None:
    shard = (await here.router.catalog.shards())[number]
    await here.router.catalog.set_shard_role(shard, ShardRole.DRAINING)


async def test_a_new_collection_is_placed_on_shards_that_take_data(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        assert (await _create(here, "both")).slot_map.shards == ("shard-1", "shard-2")
        await _drain(here, 0)
        assert (await _create(here, "other")).slot_map.shards == ("shard-2",)
        await _drain(here, 1)
        with pytest.raises(NotAllowed, match="are being drained; add one") as refused:
            await _create(here, "none")
        assert refused.value.reason is Reason.NO_SHARDS


async def test_a_drain_that_begins_meanwhile_means_placing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as here:
        before = await here.router.catalog.shards()
        answers = [before]

        async def stale_once() -> list[ShardEntry]:
            return answers.pop() if answers else await Catalog.shards(here.router.catalog)

        await _drain(here, 0)
        monkeypatch.setattr(here.router.catalog, "shards", stale_once)
        assert (await _create(here, "papers-2")).slot_map.shards == ("shard-2",)
        assert answers == []
        # One that never sees what is: it is told to repeat, and nothing is made.
        monkeypatch.setattr(here.router.catalog, "shards", lambda: _value(before))
        with pytest.raises(Stale, match="shards being changed") as refused:
            await _create(here, "papers-3")
        assert refused.value.retry_after
        assert len(await here.router.catalog.all_collections()) == 2


async def _value(shards: list[ShardEntry]) -> list[ShardEntry]:
    return shards
