"""Collections as this router knows them: names resolved in the catalog, slot maps cached by id,
and nodes told what they own.

Owns the cache of collection entries. The cache may be old: nodes refuse calls at another epoch, and
`reconcile` then finds out who is behind (DESIGN.md, invariant 3) and mends it.
"""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Sequence, Set
from typing import Any

import structlog

from chroma_router.v1 import shard_pb2, types_pb2
from chroma_router.wire.errors import (
    ClusterError,
    InternalFailure,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Reason,
    Stale,
    Unavailable,
)
from chroma_router.wire.records import metadata_to_wire
from router.catalog import Catalog
from router.cluster import Cluster, Shard
from router.concurrency import settled
from router.core import schema
from router.core.model import CollectionEntry

log = structlog.get_logger(__name__)

DEFAULT_TENANT = "default_tenant"
DEFAULT_DATABASE = "default_database"

GRANT_TIMEOUT = 20.0
"""Seconds for a node to take an ownership message; it may have to make a physical collection."""

MAX_ENTRIES = 10_000
"""Collections that are remembered; the oldest known is forgotten first, and read again."""

LEARN_TIMEOUT = 2.0
"""Seconds that a write which is applied may wait for its schema to be learnt."""

LEARN_ROUNDS = 20
"""How often a schema is merged again because another change of its collection came first."""

UNDESCRIBED_VERSION = 1
"""The version of an entry that no shard has described yet (see `Directory.described`)."""


class Directory:
    """Finds collections and keeps the nodes' ownership in step with the catalog."""

    def __init__(self, catalog: Catalog, cluster: Cluster) -> None:
        self._catalog = catalog
        self._cluster = cluster
        self._entries: OrderedDict[str, CollectionEntry] = OrderedDict()
        self._grants: dict[tuple[str, str], asyncio.Lock] = {}
        self._learning: dict[str, asyncio.Lock] = {}

    async def resolve(self, ref: types_pb2.CollectionRef) -> CollectionEntry:
        """The collection that a request names; by id from the cache, by name from the catalog."""
        match ref.WhichOneof("collection"):
            case "id":
                return self._entries.get(ref.id) or await self.refresh(ref.id)
            case "name":
                entry = await self._catalog.find_collection(
                    ref.tenant or DEFAULT_TENANT, ref.database or DEFAULT_DATABASE, ref.name
                )
                return self.remember(await self.described(entry))
            case _:
                raise InvalidRequest("collection: neither id nor name is set; set one of them")

    def remember(self, entry: CollectionEntry) -> CollectionEntry:
        """Keeps an entry as the newest known, unless a newer one is known already."""
        known = self._entries.get(entry.id)
        if known is None or known.version < entry.version:
            self._entries[entry.id] = known = entry
            while len(self._entries) > MAX_ENTRIES:
                self._entries.popitem(last=False)
        return known

    def forget(self, collection_id: str) -> None:
        """Lets go of a collection that was deleted."""
        self._entries.pop(collection_id, None)

    async def refresh(self, collection_id: str) -> CollectionEntry:
        """Reads a collection from the catalog. Raises NotFound when it is gone."""
        try:
            entry = await self._catalog.collection(collection_id)
        except ClusterError:
            self.forget(collection_id)
            raise
        return self.remember(await self.described(entry))

    async def described(self, entry: CollectionEntry) -> CollectionEntry:
        """The entry with configuration and schema as the engine reports them, defaults filled in.

        A collection is in the catalog before any node has it (a node must never hold one that the
        catalog does not know), so whoever meets it first asks its shards. Raises InvalidRequest
        when the engine refuses the configuration, NotFound when it is dropped meanwhile,
        Unavailable when no shard answers.
        """
        if entry.version != UNDESCRIBED_VERSION:
            return entry
        shards = [self._cluster.shard(name) for name in entry.slot_map.shards]
        answers = await settled(self._give(shard, entry.id) for shard in shards)
        described = [a for a in answers if isinstance(a, shard_pb2.SetOwnershipResponse)]
        for answer in answers:
            if isinstance(answer, InvalidRequest | NotFound):
                raise answer
        if not described:
            raise Unavailable(
                f"none of the shards of collection [{entry.name}] answers; repeat when one is back",
                retry_after=1.0,
            )
        try:
            return await self._catalog.update_collection(
                entry,
                configuration_json=described[0].configuration_json,
                schema_json=described[0].schema_json,
            )
        except Stale:
            return await self._catalog.collection(entry.id)

    async def push(self, entry: CollectionEntry) -> None:
        """Tells every shard of a collection its newest definition.

        One that is away learns it with its next grant, when its engine has begun anew. Raises
        InvalidRequest when an engine refuses the configuration.
        """
        shards = [self._cluster.shard(name) for name in entry.slot_map.shards]
        answers = await settled(self._give(shard, entry.id) for shard in shards)
        for shard, answer in zip(shards, answers, strict=True):
            if isinstance(answer, InvalidRequest):
                raise answer
            if isinstance(answer, ClusterError):
                log.warning("definition_not_pushed", shard=shard.name, error=answer.message)

    async def learn_schema(
        self,
        entry: CollectionEntry,
        shards: Sequence[str],
        written: Set[schema.MetadataType],
        deadline: float,
    ) -> None:
        """Takes what these shards have discovered (router/core/schema.py) into the catalog.

        For a write that was applied and had metadata of types that the schema lacks. The shards are
        asked, since not all that is sent to them is stored: an add of an id that exists is not. The
        write is acknowledged after it, but never fails by it: what was not learnt is learnt with
        the next such write. `deadline` is on the clock of time.monotonic().
        """
        lock = self._learning.setdefault(entry.id, asyncio.Lock())
        patience = min(LEARN_TIMEOUT, deadline - time.monotonic())
        try:
            async with asyncio.timeout(max(0.0, patience)), lock:
                entry = await self.refresh(entry.id)
                # Another write has perhaps just learnt it for this one too.
                if schema.may_grow(entry.schema_json, written):
                    await self._learn(entry, shards)
        except (ClusterError, TimeoutError) as error:
            log.warning("schema_not_learnt", collection=entry.id, error=str(error))
        finally:
            if not lock.locked():
                self._learning.pop(entry.id, None)

    async def _learn(self, entry: CollectionEntry, shards: Sequence[str]) -> None:
        gifts = [self._give(self._cluster.shard(name), entry.id) for name in shards]
        answers = await settled(gifts)
        told = [a.schema_json for a in answers if isinstance(a, shard_pb2.SetOwnershipResponse)]
        for _ in range(LEARN_ROUNDS):
            entry = await self._catalog.collection(entry.id)
            text = schema.merged(entry.schema_json, told)
            if text == entry.schema_json:
                return
            try:
                self.remember(await self._catalog.update_collection(entry, schema_json=text))
            except Stale:
                continue
            return

    async def reconcile(self, used: CollectionEntry, error: ClusterError) -> CollectionEntry:
        """After a node refused a call as stale: finds who is behind and brings it up to date.

        Returns the entry to repeat the whole call with. `error.metadata` names the shard and the
        node's epoch (0: it was given none since it began).
        """
        shard = self._cluster.shard(error.metadata["shard"])
        node_epoch = int(error.metadata.get("epoch", "0"))
        entry = await self.refresh(used.id)
        if node_epoch > entry.slot_map.epoch:
            raise NotAllowed(
                f"shard {shard.name} knows epoch {node_epoch} of collection [{entry.name}], the "
                f"catalog only {entry.slot_map.epoch}: the catalog is behind; stop the router and "
                "run `chroma-router catalog rebuild`",
                Reason.CATALOG_BEHIND,
            )
        if entry.slot_map.epoch == used.slot_map.epoch or node_epoch < entry.slot_map.epoch:
            entry = await self._grant(shard, entry)
        return entry

    async def _grant(self, shard: Shard, entry: CollectionEntry) -> CollectionEntry:
        """Gives a node its ownership, once for all the calls that ask for it at the same time."""
        key = (shard.name, entry.id)
        lock = self._grants.setdefault(key, asyncio.Lock())
        waited = lock.locked()
        try:
            async with lock:
                if waited:  # another call has just given it, or will be refused again and come back
                    return entry
                await self._give(shard, entry.id)
        except InvalidRequest as refused:
            # Not what the caller asked, which another shard may well have answered.
            raise InternalFailure(
                f"shard {shard.name} refuses the definition of collection [{entry.name}] that the "
                f"catalog holds: {refused.message}; change the definition to one that it takes"
            ) from refused
        finally:
            if not lock.locked():
                self._grants.pop(key, None)
        return await self.refresh(entry.id)

    async def _give(self, shard: Shard, collection_id: str) -> shard_pb2.SetOwnershipResponse:
        """Tells a node what the catalog says that it owns.

        Invariant 3 and DESIGN.md "Ownership": the catalog is read after the boot id is learnt, so a
        node that began anew is never given an ownership from before.
        """
        boot_id = await shard.client.hello()
        entry = await self._catalog.collection(collection_id)
        request = shard_pb2.SetOwnershipRequest(
            definition=definition_of(entry),
            owned_slots=entry.slot_map.bitmap_of(shard.name),
            boot_id=boot_id,
        )
        answer = await shard.client.set_ownership(request, GRANT_TIMEOUT)
        log.info(
            "ownership_given", shard=shard.name, collection=entry.id, epoch=entry.slot_map.epoch
        )
        return answer


def collection_message(entry: CollectionEntry) -> types_pb2.Collection:
    """A collection as users see it on the wire."""
    message = types_pb2.Collection(
        id=entry.id,
        name=entry.name,
        tenant=entry.tenant,
        database=entry.database,
        configuration_json=entry.configuration_json,
        schema_json=entry.schema_json,
        dimension=entry.dimension or 0,
        epoch=entry.slot_map.epoch,
        placement_shards=entry.placement_shards,
    )
    if entry.metadata:
        metadata_to_wire(entry.metadata, message.metadata)
    return message


def definition_of(entry: CollectionEntry) -> shard_pb2.CollectionDefinition:
    """Everything that the catalog holds of a collection, for its nodes to keep."""
    return shard_pb2.CollectionDefinition(
        collection=collection_message(entry),
        database_id=entry.database_id,
        created_at=entry.created_at,
        version=entry.version,
    )


def checked_json(text: str, field: str) -> dict[str, Any] | None:
    """A JSON object that a client sent as text; None for the empty text. Raises InvalidRequest."""
    if not text:
        return None
    try:
        value = json.loads(text)
        # Python reads more than JSON has: NaN, numbers beyond all floats, halves of characters.
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{field} is not JSON: {error}; send a JSON object") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{field} is not a JSON object; send an object such as {{}}")
    return value
