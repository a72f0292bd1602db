"""Two routers on one catalog file behave as one naive dictionary would."""

import asyncio
import dataclasses
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chroma_router.wire.errors import ClusterError
from router.catalog import DEFAULT_DATABASE, DEFAULT_TENANT, Catalog, check
from router.core.model import CollectionEntry, CollectionState
from tests.router.catalog.helpers import SHARDS, new, opened

_T = TypeVar("_T")

ROUTERS = st.sampled_from([0, 1])
DATABASES = st.sampled_from(["default_database", "books", "films"])
NAMES = st.sampled_from(["aaa", "bbb", "ccc"])
WHICH = st.integers(0, 7)


class CatalogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "catalog.db"
        self.routers: list[Catalog] = []
        # The twin: databases by name, collections by id in the order in which they were made.
        self.databases = {DEFAULT_DATABASE}
        self.collections: dict[str, CollectionEntry] = {}

    def run(self, call: Coroutine[Any, Any, _T]) -> _T:
        return self.runner.run(call)

    def refused(self, call: Coroutine[Any, Any, object]) -> bool:
        try:
            self.run(call)
        except ClusterError:
            return True
        return False

    def named(self, database: str, name: str) -> CollectionEntry | None:
        for entry in self.collections.values():
            active = entry.state is CollectionState.ACTIVE
            if active and (entry.database, entry.name) == (database, name):
                return entry
        return None

    def pick(self, which: int, state: CollectionState) -> CollectionEntry | None:
        there = [entry for entry in self.collections.values() if entry.state is state]
        return there[which % len(there)] if there else None

    @initialize()
    def begin(self) -> None:
        self.routers = [self.run(opened(self.path)), self.run(Catalog.open(self.path))]

    @rule(router=ROUTERS, name=DATABASES)
    def create_database(self, router: int, name: str) -> None:
        call = self.routers[router].create_database(name, DEFAULT_TENANT)
        assert self.refused(call) == (name in self.databases)
        self.databases.add(name)

    @rule(router=ROUTERS, name=DATABASES)
    def remove_database(self, router: int, name: str) -> None:
        holds = any(self.named(name, known) for known in ("aaa", "bbb", "ccc"))
        impossible = holds or name not in self.databases
        call = self.routers[router].remove_database(name, DEFAULT_TENANT)
        assert self.refused(call) == impossible
        if not impossible:
            self.databases.discard(name)

    @rule(router=ROUTERS, database=DATABASES, name=NAMES, get_or_create=st.booleans())
    def create(self, router: int, database: str, name: str, get_or_create: bool) -> None:
        call = self.routers[router].create_collection(new(name, database=database), get_or_create)
        present = self.named(database, name)
        if database not in self.databases or (present is not None and not get_or_create):
            assert self.refused(call)
            return
        entry, created = self.run(call)
        assert created == (present is None)
        if created:
            self.collections[entry.id] = entry
        else:
            assert entry == present

    @rule(router=ROUTERS, which=WHICH, name=NAMES, stale=st.booleans())
    def rename(self, router: int, which: int, name: str, stale: bool) -> None:
        entry = self.pick(which, CollectionState.ACTIVE)
        if entry is None:
            return
        expected = dataclasses.replace(entry, version=entry.version - stale)
        call = self.routers[router].update_collection(expected, name=name, metadata={"name": name})
        if stale or self.named(entry.database, name) not in (None, entry):
            assert self.refused(call)
            return
        changed = dataclasses.replace(
            entry, name=name, metadata={"name": name}, version=entry.version + 1
        )
        assert self.run(call) == changed
        self.collections[entry.id] = changed

    @rule(router=ROUTERS, which=WHICH, slot=st.integers(0, 1023), to=st.sampled_from(SHARDS))
    def move(self, router: int, which: int, slot: int, to: str) -> None:
        entry = self.pick(which, CollectionState.ACTIVE)
        if entry is not None:
            slot_map = entry.slot_map.reassigned([slot], to)
            changed = self.run(self.routers[router].replace_slot_map(entry, slot_map))
            wanted = dataclasses.replace(entry, slot_map=slot_map, version=entry.version + 1)
            assert changed == wanted
            self.collections[entry.id] = changed

    @rule(router=ROUTERS, which=WHICH)
    def begin_delete(self, router: int, which: int) -> None:
        entry = self.pick(which, CollectionState.ACTIVE)
        if entry is not None:
            doomed = self.run(self.routers[router].begin_delete(entry.id))
            self.collections[entry.id] = self.given_up(entry)
            assert doomed == self.collections[entry.id]

    @rule(router=ROUTERS, which=WHICH)
    def finish_delete(self, router: int, which: int) -> None:
        entry = self.pick(which, CollectionState.DELETING)
        if entry is not None:
            self.run(self.routers[router].finish_delete(entry.id))
            del self.collections[entry.id]

    @rule(router=ROUTERS)
    def reset(self, router: int) -> None:
        self.run(self.routers[router].reset())
        self.databases = {DEFAULT_DATABASE}
        for entry in list(self.collections.values()):
            if entry.state is CollectionState.ACTIVE:
                self.collections[entry.id] = self.given_up(entry)

    @rule(router=ROUTERS)
    def reopen(self, router: int) -> None:
        self.run(self.routers[router].close())
        self.routers[router] = self.run(Catalog.open(self.path, create=False))

    @invariant()
    def agrees(self) -> None:
        twin = sorted(self.collections.values(), key=lambda entry: entry.id)
        for catalog in self.routers:
            assert self.run(catalog.all_collections()) == twin
            databases = self.run(catalog.list_databases(DEFAULT_TENANT))
            assert [database.name for database in databases] == sorted(self.databases)
        for database in self.databases:
            listed = self.run(self.routers[0].list_collections(DEFAULT_TENANT, database))
            active = [
                entry
                for entry in twin
                if entry.state is CollectionState.ACTIVE and entry.database == database
            ]
            assert listed == active
            for entry in active:
                found = self.routers[1].find_collection(DEFAULT_TENANT, database, entry.name)
                assert self.run(found) == entry

    def teardown(self) -> None:
        for catalog in self.routers:
            self.run(catalog.close())
        self.runner.close()
        problems = check(self.path) if self.routers else []
        self.directory.cleanup()
        assert problems == []

    @staticmethod
    def given_up(entry: CollectionEntry) -> CollectionEntry:
        return dataclasses.replace(
            entry,
            state=CollectionState.DELETING,
            slot_map=dataclasses.replace(entry.slot_map, epoch=entry.slot_map.epoch + 1),
            version=entry.version + 1,
        )


TestCatalogMachine = CatalogMachine.TestCase
TestCatalogMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
