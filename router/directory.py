"""Collections as this router knows them: names resolved in the catalog, slot maps cached by id,
and nodes told what they own.

Owns the cache of collection entries. The cache may be old: nodes refuse calls at another epoch, and
`reconcile` then finds out who is behind (DESIGN.md, invariant 3) and mends it. Slots that are being
moved are fenced for a moment, and what touches them refused: `reconcile` then waits for the switch.
"""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence, Set
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
from router.concurrency import Flights, settled
from router.core import schema
from router.core.model import CollectionEntry
from router.fences import Fences

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

    def __init__(self, catalog: Catalog, cluster: Cluster, tasks: asyncio.TaskGroup) -> None:
        self._catalog = catalog
        self._cluster = cluster
        self._entries: OrderedDict[str, CollectionEntry] = OrderedDict()
        self._refreshes = Flights[CollectionEntry]()
        self._grants = Flights[CollectionEntry]()
        self._learning: dict[str, asyncio.Lock] = {}
        self._fences = Fences(self.refresh, tasks)

    async def resolve(self, ref: types_pb2.CollectionRef) -> CollectionEntry:
        """The collection that a request names; by id from the cache, by name from the catalog."""
        match ref.WhichOneof("collection"):
            case "id":
                known = self._entries.get(ref.id)
                return await self.usable(known) if known else await self.refresh(ref.id)
            case "name":
                entry = await self._catalog.find_collection(
                    ref.tenant or DEFAULT_TENANT, ref.database or DEFAULT_DATABASE, ref.name
                )
                return self.remember(await self.described(entry))
            case _:
                raise InvalidRequest("collection: neither id nor name is set; set one of them")

    def remember(self, entry: CollectionEntry) -> CollectionEntry:
        """Keeps an entry as the newest known, unless a newer one is known already.

        The mover calls it at the switch: calls that the fence holds go on at once.
        """
        known = self._entries.get(entry.id)
        if known is None or known.version < entry.version:
            self._entries[entry.id] = entry
            while len(self._entries) > MAX_ENTRIES:
                self._entries.popitem(last=False)
            if known is None or known.slot_map.epoch < entry.slot_map.epoch:
                self._fences.release(entry.id)
            return entry
        return known

    def forget(self, collection_id: str) -> None:
        """Lets go of a collection that was deleted."""
        self._entries.pop(collection_id, None)
        self._fences.release(collection_id)

    def fence_lifted(self, collection_id: str) -> None:
        """Lets calls go on that a fence has held and that a cancelled move holds no more."""
        self._fences.release(collection_id)

    async def refresh(self, collection_id: str) -> CollectionEntry:
        """Reads a collection from the catalog, once for all who ask at the same time; what is read
        is never from before the call. Raises NotFound when it is gone."""
        return await self._refreshes.join(collection_id, lambda: self._refresh(collection_id))

    async def _refresh(self, collection_id: str) -> CollectionEntry:
        try:
            entry = await self._catalog.collection(collection_id)
        except NotFound:
            self.forget(collection_id)
            raise
        return self.remember(await self.described(entry))

    async def usable(self, entry: CollectionEntry) -> CollectionEntry:
        """The entry, or the catalog's newest if it names a shard that is there no more. All its
        shards are known to the cluster when this returns, unless the catalog lacks one."""
        if self._cluster.knows(entry.slot_map.shards):
            return entry
        await self._cluster.refresh()  # one that was added, or perhaps one that was removed
        if self._cluster.knows(entry.slot_map.shards):
            return entry
        return await self.refresh(entry.id)

    async def described(self, entry: CollectionEntry) -> CollectionEntry:
        """The entry with configuration and schema as the engine reports them, defaults filled in.

        A collection is in the catalog before any node has it (a node must never hold one that the
        catalog does not know), so whoever meets it first asks its shards. Raises InvalidRequest
        when the engine refuses the configuration, NotFound when it is dropped meanwhile,
        Unavailable when no shard answers. All its shards are known to the cluster afterwards.
        """
        if not self._cluster.knows(entry.slot_map.shards):
            await self._cluster.refresh()
        if entry.version != UNDESCRIBED_VERSION:
            return entry
        shards = [self._cluster.shard(name) for name in entry.slot_map.shards]
        answers = await settled(self._described_by(shard, entry.id) for shard in shards)
        described = [a for a in answers if isinstance(a, shard_pb2.SetOwnershipResponse)]
        for answer in answers:
            if isinstance(answer, InvalidRequest | NotFound):
                raise answer
        if not described:
            raise Unavailable(
                f"none of the shards of collection [{entry.name}] answers; repeat when one is back",
                retry_after=1.0,
            )
        return await self._with_description(entry, described[0])

    async def _with_description(
        self, entry: CollectionEntry, described: shard_pb2.SetOwnershipResponse
    ) -> CollectionEntry:
        """Puts what an engine says of a new collection into the catalog, unless it is there."""
        texts = entry.configuration_json, entry.schema_json
        for _ in range(LEARN_ROUNDS):
            try:
                return await self._catalog.update_collection(
                    entry,
                    configuration_json=described.configuration_json,
                    schema_json=described.schema_json,
                )
            except Stale:
                entry = await self._catalog.collection(entry.id)
            if (entry.configuration_json, entry.schema_json) != texts:
                return entry  # another router was first
            # Something else of it has changed, such as its slot map where a shard was given up: it
            # is of a higher version now, at which nobody would ask for its description again.
        raise Stale(
            f"collection [{entry.name}] kept being changed; repeat the request",
            Reason.CONFLICT,
            retry_after=1.0,
        )

    async def push(self, entry: CollectionEntry) -> None:
        """Tells every shard of a collection its newest definition.

        One that is away learns it with its next grant, when its engine has begun anew. Raises
        InvalidRequest when an engine refuses the configuration.
        """
        entry = await self.usable(entry)
        shards = [self._cluster.shard(name) for name in entry.slot_map.shards]
        answers = await settled(self._described_by(shard, entry.id) for shard in shards)
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
        # A shard that took the write may be gone since; what it had has moved on to the others.
        asked = [self._cluster.shard(name) for name in shards if self._cluster.knows([name])]
        answers = await settled(self._described_by(shard, entry.id) for shard in asked)
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

    # ------------------------------------------------------------------ who is behind

    async def reconcile(self, used: CollectionEntry, error: ClusterError) -> CollectionEntry:
        """After a node refused a call as stale: finds who is behind and brings it up to date.

        Returns the entry to repeat the whole call with; `used` is the one that it was made with.
        `error.metadata` names the shard and the node's epoch (0: it was given none since it began).
        A call that a fence refused (SLOTS_FENCED) is held until there is news of the collection;
        now and then it returns without any, since a fence can be lifted: the call is then repeated.
        """
        name, node_epoch = error.metadata["shard"], int(error.metadata.get("epoch", "0"))
        known = self._entries.get(used.id)
        if (
            known is not None
            and used.slot_map.epoch < known.slot_map.epoch
            and node_epoch <= known.slot_map.epoch
        ):
            return await self.usable(known)  # many are refused at a switch: one of them has read it
        if error.reason is Reason.SLOTS_FENCED:
            await self._fences.wait(used.id)
            known = self._entries.get(used.id)
            return await self.usable(known) if known else await self.refresh(used.id)
        entry = await self.refresh(used.id)  # begins after the refusal: not older than the node
        if node_epoch > entry.slot_map.epoch:
            raise NotAllowed(
                f"shard {name} knows epoch {node_epoch} of collection [{entry.name}], the catalog "
                f"only {entry.slot_map.epoch}: the catalog is behind; stop the router and run "
                "`chroma-router catalog rebuild`",
                Reason.CATALOG_BEHIND,
            )
        if not self._cluster.knows([name]) and name not in entry.slot_map.shards:
            return entry  # it was removed: nobody needs it any more
        if entry.slot_map.epoch == used.slot_map.epoch or node_epoch < entry.slot_map.epoch:
            entry = await self._brought_up(name, entry)
        return entry

    async def _brought_up(self, name: str, entry: CollectionEntry) -> CollectionEntry:
        """Gives a node its ownership, once for all the calls that ask for it at the same time."""
        shard = self._cluster.shard(name)
        try:
            # Also a grant that began before this refusal will do: if it was the wrong one, the call
            # is refused again and comes back.
            return await self._grants.join(
                (name, entry.id), lambda: self._granted(shard, entry.id), under_way_will_do=True
            )
        except InvalidRequest as refused:
            # Not what the caller asked, which another shard may well have answered.
            raise InternalFailure(
                f"shard {name} refuses the definition of collection [{entry.name}] that the "
                f"catalog holds: {refused.message}; change the definition to one that it takes"
            ) from refused

    # --------------------------------------------------------------------- ownership

    async def grant(self, collection_id: str, shard_name: str) -> CollectionEntry:
        """Tells a shard what it owns of a collection, as the catalog has it from now on.

        Returns the entry that was given. Raises Unavailable when the shard does not answer or is
        not in the catalog, Stale when its node began anew meanwhile, NotFound when the collection
        is gone, InvalidRequest when the node refuses its definition.
        """
        if not self._cluster.knows([shard_name]):
            await self._cluster.refresh()
        shard = self._cluster.shard(shard_name)
        return await self._grants.join(
            (shard_name, collection_id), lambda: self._granted(shard, collection_id)
        )

    async def grant_all(
        self, entry: CollectionEntry, also: Iterable[str] = ()
    ) -> dict[str, ClusterError]:
        """Tells all shards of a collection, and those of `also`, what they own of it, at once.

        The errors of `grant` by shard; empty when all have taken it.
        """
        names = sorted({*entry.slot_map.shards, *also})
        answers = await settled(self.grant(entry.id, name) for name in names)
        return {
            name: answer
            for name, answer in zip(names, answers, strict=True)
            if isinstance(answer, ClusterError)
        }

    async def _granted(self, shard: Shard, collection_id: str) -> CollectionEntry:
        entry, _ = await self._give(shard, collection_id, ownership_only=True)
        # One that no shard has described is not kept: `described` asks for it.
        return entry if entry.version == UNDESCRIBED_VERSION else self.remember(entry)

    async def _described_by(
        self, shard: Shard, collection_id: str
    ) -> shard_pb2.SetOwnershipResponse:
        """Gives a node its ownership; what its engine says of the collection."""
        _, answer = await self._give(shard, collection_id, ownership_only=False)
        return answer

    async def _give(
        self, shard: Shard, collection_id: str, *, ownership_only: bool
    ) -> tuple[CollectionEntry, shard_pb2.SetOwnershipResponse]:
        """Tells a node what the catalog says that it owns; what was told, and the answer.

        Invariant 3 and DESIGN.md "Ownership": the catalog is read after the boot id is learnt, so a
        node that began anew is never given an ownership from before.
        """
        boot_id = await shard.client.hello()
        entry = await self._catalog.collection(collection_id)
        request = shard_pb2.SetOwnershipRequest(
            definition=definition_of(entry),
            owned_slots=entry.slot_map.bitmap_of(shard.name),
            boot_id=boot_id,
            ownership_only=ownership_only,
        )
        answer = await shard.client.set_ownership(request, GRANT_TIMEOUT)
        log.info(
            "ownership_given", shard=shard.name, collection=entry.id, epoch=entry.slot_map.epoch
        )
        return entry, answer


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
