"""CatalogService: tenants, databases and collections, kept in the catalog and told to the nodes."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Mapping
from typing import Any, cast

import structlog

from chroma_router.v1 import catalog_pb2, types_pb2
from chroma_router.wire.errors import (
    ClusterError,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Reason,
    Stale,
)
from chroma_router.wire.records import metadata_from_wire
from router.catalog import Catalog, Metadata, NewCollection
from router.concurrency import settled
from router.core import configuration
from router.core.model import CollectionEntry, DatabaseEntry, ShardRole
from router.core.placement import home_shards, placement
from router.core.schema import with_configuration
from router.core.slot_map import SlotMap
from router.core.validate import (
    check_collection_metadata,
    check_collection_name,
    check_database_name,
    check_tenant_name,
)
from router.directory import (
    DEFAULT_DATABASE,
    DEFAULT_TENANT,
    Directory,
    checked_json,
    collection_message,
)
from router.reaper import Reaper

log = structlog.get_logger(__name__)

FIRST_EPOCH = 1

CHANGE_ROUNDS = 20
"""How often a change of a collection is decided again because another one came first."""


class CatalogService:
    """The calls of CatalogService, free of gRPC."""

    def __init__(
        self,
        catalog: Catalog,
        directory: Directory,
        reaper: Reaper,
        tasks: asyncio.TaskGroup,
        *,
        default_placement_shards: int = 0,
    ) -> None:
        self._catalog = catalog
        self._directory = directory
        self._reaper = reaper
        self._tasks = tasks
        self._default_placement_shards = default_placement_shards

    async def create_tenant(
        self, request: catalog_pb2.CreateTenantRequest, _deadline: float
    ) -> catalog_pb2.CreateTenantResponse:
        """Makes a tenant."""
        check_tenant_name(request.name)
        await self._catalog.create_tenant(request.name)
        return catalog_pb2.CreateTenantResponse(tenant=catalog_pb2.Tenant(name=request.name))

    async def get_tenant(
        self, request: catalog_pb2.GetTenantRequest, _deadline: float
    ) -> catalog_pb2.GetTenantResponse:
        """Finds a tenant."""
        name = await self._catalog.get_tenant(request.name)
        return catalog_pb2.GetTenantResponse(tenant=catalog_pb2.Tenant(name=name))

    async def create_database(
        self, request: catalog_pb2.CreateDatabaseRequest, _deadline: float
    ) -> catalog_pb2.CreateDatabaseResponse:
        """Makes a database."""
        check_database_name(request.name)
        entry = await self._catalog.create_database(request.name, request.tenant or DEFAULT_TENANT)
        return catalog_pb2.CreateDatabaseResponse(database=_database(entry))

    async def get_database(
        self, request: catalog_pb2.GetDatabaseRequest, _deadline: float
    ) -> catalog_pb2.GetDatabaseResponse:
        """Finds a database."""
        entry = await self._catalog.get_database(request.name, request.tenant or DEFAULT_TENANT)
        return catalog_pb2.GetDatabaseResponse(database=_database(entry))

    async def list_databases(
        self, request: catalog_pb2.ListDatabasesRequest, _deadline: float
    ) -> catalog_pb2.ListDatabasesResponse:
        """Lists the databases of a tenant."""
        entries = await self._catalog.list_databases(
            request.tenant or DEFAULT_TENANT,
            request.limit if request.HasField("limit") else None,
            request.offset,
        )
        return catalog_pb2.ListDatabasesResponse(databases=[_database(e) for e in entries])

    async def delete_database(
        self, request: catalog_pb2.DeleteDatabaseRequest, deadline: float
    ) -> catalog_pb2.DeleteDatabaseResponse:
        """Deletes a database: first its collections, then itself."""
        tenant = request.tenant or DEFAULT_TENANT
        await self._catalog.get_database(request.name, tenant)
        for entry in await self._catalog.list_collections(tenant, request.name, None, 0):
            await self._delete(entry, deadline)
        await self._catalog.remove_database(request.name, tenant)
        return catalog_pb2.DeleteDatabaseResponse()

    async def create_collection(
        self, request: catalog_pb2.CreateCollectionRequest, _deadline: float
    ) -> catalog_pb2.CreateCollectionResponse:
        """Makes a collection, in the catalog first and then on its shards."""
        check_collection_name(request.name)
        check_collection_metadata(request.metadata)
        checked_json(request.configuration_json, "configuration_json")
        checked_json(request.schema_json, "schema_json")
        for _ in range(CHANGE_ROUNDS):
            try:
                entry, created = await self._made(request)
                break
            except NotFound as error:
                # Deleted by another request right after it was found: get_or_create begins anew.
                gone = error.reason is Reason.COLLECTION_NOT_FOUND
                if not (request.get_or_create and gone):
                    raise
            except Stale as error:
                # A shard that it was to be placed on takes no new data any more.
                if error.reason is not Reason.CONFLICT:
                    raise
        else:
            raise Stale(
                f"collection [{request.name}] could not be made: it kept being deleted, or the "
                "shards being changed, by concurrent requests; repeat",
                Reason.CONFLICT,
                retry_after=1.0,
            )
        self._directory.remember(entry)
        return catalog_pb2.CreateCollectionResponse(
            collection=collection_message(entry), created=created
        )

    async def _made(
        self, request: catalog_pb2.CreateCollectionRequest
    ) -> tuple[CollectionEntry, bool]:
        """The collection as its shards describe it, and whether it is a new one."""
        collection_id = str(uuid.uuid4())
        metadata = _metadata(request.metadata)
        shards = placement(request.placement_shards, metadata, self._default_placement_shards)
        homes = home_shards(collection_id, await self._active_shards(), shards)
        new = NewCollection(
            id=collection_id,
            name=request.name,
            tenant=request.tenant or DEFAULT_TENANT,
            database=request.database or DEFAULT_DATABASE,
            metadata=metadata,
            configuration_json=request.configuration_json,
            schema_json=request.schema_json,
            placement_shards=shards,
            created_at=time.time_ns() // 1000,
            slot_map=SlotMap.deal(FIRST_EPOCH, homes),
        )
        entry, created = await self._catalog.create_collection(new, request.get_or_create)
        made = not created
        try:
            entry = await self._directory.described(entry)
            made = True
        finally:
            if not made:
                # The engine refused the configuration, no shard is there, or the caller went away
                # before it could learn the id: as if never made.
                await self._delete(entry, deadline=0.0)
        return entry, created

    async def _active_shards(self) -> list[str]:
        """The shards that new collections are placed on. Raises NotAllowed if there is none."""
        known = await self._catalog.shards()
        active = [shard.name for shard in known if shard.role is ShardRole.ACTIVE]
        if not active:
            raise NotAllowed(
                "all shards of the cluster are being drained; add one with "
                "`chroma-router shards add`"
                if known
                else "the cluster has no shards; start the router with `--shard NAME=ADDRESS`",
                Reason.NO_SHARDS,
            )
        return active

    async def get_collection(
        self, request: catalog_pb2.GetCollectionRequest, _deadline: float
    ) -> catalog_pb2.GetCollectionResponse:
        """Finds a collection, as the catalog has it now."""
        entry = await self._current(request.collection)
        return catalog_pb2.GetCollectionResponse(collection=collection_message(entry))

    async def list_collections(
        self, request: catalog_pb2.ListCollectionsRequest, _deadline: float
    ) -> catalog_pb2.ListCollectionsResponse:
        """Lists the collections of a database."""
        entries = await self._catalog.list_collections(
            request.tenant or DEFAULT_TENANT,
            request.database or DEFAULT_DATABASE,
            request.limit if request.HasField("limit") else None,
            request.offset,
        )
        return catalog_pb2.ListCollectionsResponse(
            collections=[collection_message(entry) for entry in entries]
        )

    async def count_collections(
        self, request: catalog_pb2.CountCollectionsRequest, _deadline: float
    ) -> catalog_pb2.CountCollectionsResponse:
        """Counts the collections of a database."""
        count = await self._catalog.count_collections(
            request.tenant or DEFAULT_TENANT, request.database or DEFAULT_DATABASE
        )
        return catalog_pb2.CountCollectionsResponse(count=count)

    async def update_collection(
        self, request: catalog_pb2.UpdateCollectionRequest, _deadline: float
    ) -> catalog_pb2.UpdateCollectionResponse:
        """Changes a collection in the catalog, then on the shards that answer."""
        changes: dict[str, Any] = {}
        if request.HasField("new_name"):
            check_collection_name(request.new_name)
            changes["name"] = request.new_name
        if request.replace_metadata:
            check_collection_metadata(request.new_metadata)
            changes["metadata"] = _metadata(request.new_metadata) or {}
        update = checked_json(request.new_configuration_json, "new_configuration_json") or {}
        entry = await self._current(request.collection)
        if changes or update:
            entry = await self._change(entry, changes, update)
        return catalog_pb2.UpdateCollectionResponse(collection=collection_message(entry))

    async def delete_collection(
        self, request: catalog_pb2.DeleteCollectionRequest, deadline: float
    ) -> catalog_pb2.DeleteCollectionResponse:
        """Deletes a collection."""
        await self._delete(await self._current(request.collection), deadline)
        return catalog_pb2.DeleteCollectionResponse()

    async def _change(
        self, before: CollectionEntry, changes: dict[str, Any], update: dict[str, Any]
    ) -> CollectionEntry:
        """Changes the catalog, then the shards; taken back if the engine refuses the change.

        A caller that goes away, or whose time ends, does not stop it half way: the catalog would
        keep what no engine takes.
        """
        # `settled` returns the error of the change: raised in its task, it ended the group.
        changing = self._tasks.create_task(settled([self._changed(before, changes, update)]))
        (outcome,) = await asyncio.shield(changing)
        if isinstance(outcome, ClusterError):
            raise outcome
        return outcome

    async def _changed(
        self, before: CollectionEntry, changes: dict[str, Any], update: dict[str, Any]
    ) -> CollectionEntry:
        """`update` is merged into the configuration. Another change of the collection meanwhile
        (even a first write fixing its dimension is one) means deciding again, on what it is now."""
        for _ in range(CHANGE_ROUNDS):
            changes |= _configured(before, update)
            if not changes:
                return before
            try:
                entry = await self._catalog.update_collection(before, **changes)
                break
            except Stale:
                before = await self._directory.refresh(before.id)
        else:
            raise Stale(
                f"collection [{before.name}] kept being changed by others; repeat the request",
                Reason.CONFLICT,
                retry_after=1.0,
            )
        try:
            await self._directory.push(entry)
        except InvalidRequest:
            await self._take_back(before, entry)
            raise
        return self._directory.remember(entry)

    async def _take_back(self, before: CollectionEntry, refused: CollectionEntry) -> None:
        """Undoes the change that made `refused` of `before`, and nothing that came after it."""
        for _ in range(CHANGE_ROUNDS):
            now = await self._catalog.collection(before.id)
            with contextlib.suppress(Stale):
                now = await self._catalog.update_collection(now, **_undo(now, refused, before))
                self._directory.remember(now)
                with contextlib.suppress(InvalidRequest):  # another change's, which undoes itself
                    await self._directory.push(now)  # to shards that did take the refused one
                return
        log.error("change_not_taken_back", collection=before.id, version=refused.version)

    async def _current(self, ref: types_pb2.CollectionRef) -> CollectionEntry:
        """A collection as the catalog has it now, not as this router remembers it."""
        if ref.WhichOneof("collection") == "id":
            return await self._directory.refresh(ref.id)
        return await self._directory.resolve(ref)

    async def _delete(self, entry: CollectionEntry, deadline: float) -> None:
        """DESIGN.md: catalog to DELETING, nodes drop and remember, then the catalog forgets."""
        try:
            doomed = await self._catalog.begin_delete(entry.id)
        except NotFound:
            return  # another request was quicker
        self._directory.forget(entry.id)
        await self._reaper.finish(doomed, max(0.0, deadline - time.monotonic()))


def _configured(entry: CollectionEntry, update: dict[str, Any]) -> dict[str, Any]:
    """The catalog's changes for an update of the configuration. Raises InvalidRequest."""
    change = configuration.effective(entry.configuration_json, update)
    if not change:
        return {}
    return {
        "configuration_json": configuration.merged(entry.configuration_json, change),
        "schema_json": with_configuration(entry.schema_json, change),
    }


def _undo(now: CollectionEntry, mine: CollectionEntry, before: CollectionEntry) -> dict[str, Any]:
    """The catalog's changes that take back of `now` what made `mine` of `before`."""
    back: dict[str, Any] = {}
    if now.name == mine.name != before.name:
        back["name"] = before.name
    if now.metadata == mine.metadata != before.metadata:
        back["metadata"] = before.metadata or {}
    for field in ("configuration_json", "schema_json"):
        back[field] = configuration.undone_text(
            *(getattr(entry, field) for entry in (now, mine, before))
        )
    return back


def _metadata(wire: Mapping[str, types_pb2.MetadataValue]) -> Metadata | None:
    """Collection metadata that was checked to hold no arrays; None for none."""
    return cast(Metadata, metadata_from_wire(wire)) or None


def _database(entry: DatabaseEntry) -> catalog_pb2.Database:
    return catalog_pb2.Database(id=entry.id, name=entry.name, tenant=entry.tenant)
