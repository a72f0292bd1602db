"""Brings one collection of another Chroma into the cluster, in order, and proves that it is there.

The state of an import is in the cluster, not in a file. While a collection is being brought over
its metadata carry MARK with the UUID of the original; the mark goes when every record has been
compared. So an import can be taken up from any machine:

  * no collection of that name: it is made, with the mark;
  * a marked one: what follows the longest common beginning of both is taken back, and the copy goes
    on from there;
  * one without the mark: it may be a finished import, and only an equal beginning is added to.

Insertion order is the order in which a router hands out sequences, so one write of a collection is
under way at a time, and a write that broke is taken back whole before it is done again.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from chroma_router.v1 import catalog_pb2, types_pb2
from chroma_router.wire.errors import AlreadyExists, NotFound
from chroma_router.wire.records import metadata_to_wire
from router.cli.command import Failed
from router.cli.compare import differences
from router.cli.definition import definition_of
from router.cli.link import collection_ref
from router.cli.patient import PatientLink
from router.core.limits import Limits

if TYPE_CHECKING:
    from router.cli.import_source import Source, SourceBatch, SourceCollection

MARK = "chroma-router:import"
"""The metadata key of a collection that is being brought over; its value is the original's UUID."""

_SHOWN = 5
"""How many differing records a refusal names."""

T = TypeVar("T")


class Refused(Failed):
    """One collection cannot be brought over, or is not what it should be. Others may be fine."""


@dataclass(slots=True)
class ImportTally:
    """What has been done so far, over all collections."""

    total: int
    """How many records there are to bring over."""
    stored: int = 0
    """How many this run has written."""
    present: int = 0
    """How many were there before."""
    compared: int = 0

    @property
    def position(self) -> int:
        """Of 2 x total: each record is stored and compared."""
        return self.stored + self.present + self.compared


@dataclass(frozen=True, slots=True)
class Brought:
    """What came of one collection."""

    records: int
    stored: int
    """How many of them this run has written."""
    took_up: bool
    """Whether an unfinished import was taken up."""


@dataclass(slots=True)
class Importer:
    """Brings collections over, each by `bring`; several may run at once."""

    source: "Source"
    cluster: PatientLink
    batch: int
    """The most records in a write."""
    tally: ImportTally
    show: Callable[[], None]

    async def scope(self, tenant: str, database: str) -> None:
        """Makes a tenant and a database unless they exist."""
        catalog = self.cluster.link.catalog
        try:
            request = catalog_pb2.GetTenantRequest(name=tenant)
            await self.cluster.call(f"finding tenant {tenant}", catalog.GetTenant, request)
        except NotFound:
            await self._make(
                f"making tenant {tenant}",
                catalog.CreateTenant,
                catalog_pb2.CreateTenantRequest(name=tenant),
            )
        try:
            found = catalog_pb2.GetDatabaseRequest(name=database, tenant=tenant)
            await self.cluster.call(f"finding database {database}", catalog.GetDatabase, found)
        except NotFound:
            await self._make(
                f"making database {database}",
                catalog.CreateDatabase,
                catalog_pb2.CreateDatabaseRequest(name=database, tenant=tenant),
            )

    async def _make(self, what: str, method: Callable[..., Any], request: Message) -> None:
        # It may exist by now: by a try whose answer was lost, or by another import.
        with suppress(AlreadyExists):
            await self.cluster.call(what, method, request)

    async def bring(self, original: "SourceCollection", into: str) -> Brought:
        """Brings a collection over under the name `into`, or finds that it is there already.

        Raises Refused, SourceBroken, GaveUp, ClusterError.
        """
        ref = collection_ref(into, original.tenant, original.database)
        run = _Bringing(self, original, ref)
        target = await self._find_or_make(original, into)
        begin = await run.begin(target)
        marked = MARK in definition_of(target).metadata
        if begin < original.count and not marked:
            if begin:
                await run.compare(begin)
            await self._set_metadata(ref, {**original.definition.metadata, MARK: original.id})
            self.tally.compared -= begin  # compared again at the end, with the rest
            marked = True
        self.tally.present += begin
        stored = await run.copy(begin)
        records = await run.compare(None)
        if marked:
            await self._set_metadata(ref, original.definition.metadata)
        return Brought(records, stored, took_up=0 < begin < records)

    async def _find_or_make(self, original: "SourceCollection", into: str) -> types_pb2.Collection:
        marked = replace(
            original.definition, metadata={**original.definition.metadata, MARK: original.id}
        )
        request = catalog_pb2.CreateCollectionRequest(
            name=into, tenant=original.tenant, database=original.database, get_or_create=True
        )
        marked.fill(request)
        method = self.cluster.link.catalog.CreateCollection
        answer = await self.cluster.call(f"making {into}", method, request)
        self._check_definition(original, answer.collection)
        return answer.collection

    def _check_definition(self, original: "SourceCollection", target: types_pb2.Collection) -> None:
        found = definition_of(target)
        wanted = original.definition
        if found.metadata.get(MARK, original.id) != original.id:
            raise Refused(
                f"{original.label}: the cluster's {target.name} is being filled from another "
                "collection; finish that import, or delete the collection"
            )
        if not found.same_index(wanted):
            self._refuse(original, target, "another configuration")
        metadata = {key: value for key, value in found.metadata.items() if key != MARK}
        # One that is being filled gets the others at the end, when its mark goes.
        allowed = [wanted.metadata, *([wanted.early_metadata] if MARK in found.metadata else [])]
        if _typed(metadata) not in map(_typed, allowed):
            self._refuse(original, target, "other metadata")

    @staticmethod
    def _refuse(original: "SourceCollection", target: types_pb2.Collection, what: str) -> None:
        raise Refused(
            f"{original.label}: the cluster has a collection {target.name} already, with {what}; "
            "delete it, or bring this one over under another name with --collection "
            f"{original.name} --into NAME"
        )

    async def _set_metadata(
        self, ref: types_pb2.CollectionRef, metadata: dict[str, object]
    ) -> None:
        request = catalog_pb2.UpdateCollectionRequest(collection=ref, replace_metadata=True)
        metadata_to_wire(metadata, request.new_metadata)
        method = self.cluster.link.catalog.UpdateCollection
        await self.cluster.call(f"marking {ref.name}", method, request)


@dataclass(slots=True)
class _Bringing:
    """One collection on its way."""

    run: Importer
    original: "SourceCollection"
    ref: types_pb2.CollectionRef

    async def begin(self, target: types_pb2.Collection) -> int:
        """From which record on to copy; what an unfinished import left behind that is taken back.

        Raises Refused when the cluster's records are not those of an import.
        """
        marked = MARK in definition_of(target).metadata
        common, rest = await self._common_beginning(whole=marked)
        if not marked:
            if rest:
                raise Refused(
                    f"{self.original.label}: the cluster has a collection {self.ref.name} already, "
                    f"with other records (first {rest[0]!r}); delete it, or bring this one over "
                    f"under another name with --collection {self.original.name} --into NAME"
                )
            return common
        if common == self.original.count and not rest:
            return common
        # A write of the interrupted import may still be on its way. Its records are among the next
        # ones, and a delete is applied behind it: then nothing of it is left.
        coming = await self._expected(common, set(rest))
        for at in range(0, len(rest), self.run.batch):
            await self.run.cluster.delete(self.ref, rest[at : at + self.run.batch])
        if coming:
            await self.run.cluster.delete(self.ref, coming)
        return common

    async def _common_beginning(self, *, whole: bool) -> tuple[int, list[str]]:
        """How many ids both begin with, and the ids in the cluster behind them; not `whole`: some
        of these, if there are any."""
        common = 0
        rest: list[str] = []
        mine: list[str] = []
        async with (
            aclosing(_each(self.run.source.ids(self.original))) as originals,
            aclosing(self.run.cluster.pages(self.ref, include=())) as pages,
        ):
            async for page in pages:
                ids = [record.id for record in page]
                while not rest and len(mine) < len(ids) and (more := await anext(originals, None)):
                    mine += more
                equal = 0 if rest else _equal_ids(mine, ids)
                common += equal
                rest += ids[equal:]
                del mine[:equal]
                if rest and not whole:
                    break
        return common, rest

    async def _expected(self, begin: int, rest: set[str]) -> list[str]:
        """The first ids behind `begin`, as many as a write may have.

        Raises Refused unless all of `rest` come from the original.
        """
        coming: list[str] = []
        strangers = set(rest)
        async with aclosing(_each(self.run.source.ids(self.original, begin))) as chunks:
            async for ids in chunks:
                coming += ids[: Limits().max_batch_records - len(coming)]
                strangers.difference_update(ids)
                if not strangers and len(coming) == Limits().max_batch_records:
                    break
        if strangers:
            raise Refused(
                f"{self.original.label}: somebody else has written to {self.ref.name} in the "
                f"cluster while it was brought over (record {min(strangers)!r}); delete that "
                "record or the collection, and run it again"
            )
        return coming

    async def copy(self, begin: int) -> int:
        """Copies everything from position `begin` on; how many records that were."""
        stored = 0
        if begin >= self.original.count:
            return stored
        async with aclosing(_each(self._batches(begin))) as batches:
            async for batch in batches:
                await self.run.cluster.add_in_order(self.ref, batch.ids, batch.records)
                stored += len(batch.ids)
                self.run.tally.stored += len(batch.ids)
                self.run.show()
        return stored

    def _batches(self, begin: int = 0) -> "Iterator[SourceBatch]":
        return self.run.source.batches(self.original, self.run.batch, begin)

    async def compare(self, limit: int | None) -> int:
        """Compares every record with its original; how many there are. Raises Refused."""
        compared = 0
        async with (
            aclosing(_each(self._batches())) as batches,
            aclosing(self.run.cluster.pages(self.ref, limit=limit)) as pages,
        ):
            found = _Records(pages)
            async for batch in batches:
                wanted = batch.records if limit is None else batch.records[: limit - compared]
                records = await found.take(len(wanted))
                wrong = differences(wanted[: len(records)], records)
                wrong += [(i, "it is not there") for i in batch.ids[len(records) : len(wanted)]]
                if wrong:
                    self._refuse(wrong)
                compared += len(wanted)
                self.run.tally.compared += len(wanted)
                self.run.show()
                if compared == limit:
                    return compared
            extra = await found.take(_SHOWN)
            if extra:
                self._refuse([(record.id, "the original does not have it") for record in extra])
        return compared

    def _refuse(self, wrong: list[tuple[str, str]]) -> None:
        first = "; ".join(f"{record_id!r}: {what}" for record_id, what in wrong[:_SHOWN])
        raise Refused(
            f"{self.original.label}: {self.ref.name} in the cluster is not equal to it: {first}. "
            "If somebody writes to either, stop that; then delete the collection in the cluster "
            "and run it again, or bring this one over under another name with --collection "
            f"{self.original.name} --into NAME"
        )


class _Records:
    """Records that come in pages, taken in other numbers."""

    def __init__(self, pages: AsyncIterator[Sequence[types_pb2.Record]]) -> None:
        self._pages = pages
        self._waiting: list[types_pb2.Record] = []

    async def take(self, count: int) -> list[types_pb2.Record]:
        """The next `count` records; fewer at the end."""
        while len(self._waiting) < count:
            page = await anext(self._pages, None)
            if page is None:
                break
            self._waiting.extend(page)
        taken = self._waiting[:count]
        del self._waiting[:count]
        return taken


async def _each(items: Iterator[T]) -> AsyncGenerator[T, None]:
    """The items, made in threads, each while the one before is being worked on."""
    coming = asyncio.ensure_future(asyncio.to_thread(next, items, None))
    try:
        while (item := await coming) is not None:
            coming = asyncio.ensure_future(asyncio.to_thread(next, items, None))
            yield item
    finally:
        # A thread cannot be cancelled: what it makes is waited for, so that nobody else asks the
        # same generator at the same time, nor closes the source under it.
        await asyncio.wait([coming])
        if not coming.cancelled():
            coming.exception()


def _equal_ids(mine: Sequence[str], theirs: Sequence[str]) -> int:
    """How many both begin with."""
    pairs = enumerate(zip(mine, theirs, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(mine), len(theirs)))


def _typed(metadata: dict[str, object]) -> dict[str, tuple[type, object]]:
    """Metadata such that 1, 1.0 and True differ."""
    return {key: (type(value), value) for key, value in metadata.items()}
