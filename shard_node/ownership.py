"""What a router tells the node to hold: grants, definitions and drops, under the single writer.

Durable before the reply, each of them; the grant itself lives only as long as the engine.
"""

import json
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID

import structlog

from chroma_router.v1 import shard_pb2, types_pb2
from chroma_router.wire.errors import (
    ClusterError,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Reason,
    Stale,
)
from chroma_router.wire.records import metadata_from_wire
from chroma_router.wire.slots import SLOT_BITMAP_BYTES, SLOT_COUNT
from shard_node import capture_state, index_bounds, persist_threshold
from shard_node.engine import Engine, EngineLost, EngineRefused, PhysicalCollection
from shard_node.holdings import Fence, Grant, Holding, Holdings
from shard_node.state import MAX_INTEGER, CollectionRow, State
from shard_node.state_thread import in_writer

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

# What the engine lets be changed of a configuration; the rest is fixed with the collection.
_CHANGEABLE_HNSW = ("ef_search", "num_threads", "batch_size", "resize_factor")
_PURGED_AT_ONCE = 5000

# The version of a definition that no engine has described yet.
_FIRST_VERSION = 1


class Ownership:
    """The changes of what the shard holds. Every method is a turn of the single writer."""

    def __init__(self, engine: Engine, state: State, writer: Executor, holdings: Holdings) -> None:
        self._engine, self._state, self._writer = engine, state, writer
        self._holdings = holdings

    def set_at_once(self, request: shard_pb2.SetOwnershipRequest) -> None:
        """Before the turn of `set`: a new epoch, and nothing else, takes effect for reads.

        So a switch holds them for as long as a message takes, whatever the writer is doing. Writes
        wait for the turn, which makes the epoch durable. Does nothing where more than the epoch is
        new. Raises what `set` would.
        """
        grant = self._checked(request)
        holding = self._holdings.live.get(request.definition.collection.id)
        if holding is not None and self._is_epoch_alone(request, holding):
            self._give(holding, grant)

    async def set(self, request: shard_pb2.SetOwnershipRequest) -> shard_pb2.SetOwnershipResponse:
        """See the contract."""
        collection = request.definition.collection
        grant = self._checked(request)
        holding = self._holdings.live.get(collection.id)
        if holding is not None and self._is_epoch_alone(request, holding):
            await self._store(holding, self._row(request, holding.physical, holding))
            self._give(holding, grant)
            return shard_pb2.SetOwnershipResponse(high_sequence=self._holdings.high_sequence)
        try:
            physical = await self._physical(request.definition, holding)
        except EngineRefused as refused:
            error = refused.as_error()
            if isinstance(error, InvalidRequest):  # of the text, the engine says only where in it
                error = InvalidRequest(f"configuration, schema or metadata: {error.message}")
            raise error from refused
        row = self._row(request, physical.id, holding)
        if holding is None:
            row = await self._in_writer(capture_state.put_owned, self._state, row)
            holding = Holding(row, physical.id, [0] * SLOT_COUNT)
            self._holdings.live[collection.id] = holding
        else:
            await self._store(holding, row)
        if holding.grant is None:
            await self._load(physical)
        holding.space = _space(physical)
        self._give(holding, grant)
        return shard_pb2.SetOwnershipResponse(
            high_sequence=self._holdings.high_sequence,
            configuration_json=physical.configuration_json,
            schema_json=physical.schema_json,
        )

    async def _store(self, holding: Holding, row: CollectionRow) -> None:
        if row != holding.row:
            holding.row = await self._in_writer(capture_state.put_owned, self._state, row)
            holding.lift_fences(row.epoch)

    @staticmethod
    def _is_epoch_alone(request: shard_pb2.SetOwnershipRequest, holding: Holding) -> bool:
        """Whether the node serves the collection as it is defined already.

        A switch is a change of the catalog's entry too, so a higher version need not say more.
        """
        return (
            request.ownership_only
            and holding.grant is not None
            and (
                request.definition.version <= holding.row.definition_version
                or _content(request.definition) == _content(holding.definition)
            )
        )

    @staticmethod
    def _give(holding: Holding, grant: Grant) -> None:
        """Grants, unless a later epoch has taken effect meanwhile; what is granted again stays the
        same value, so that no read under way takes it for a change."""
        if holding.grant is None or holding.grant.epoch < grant.epoch:
            holding.grant = grant
            holding.lift_fences(grant.epoch)

    async def drop(self, collection_id: str, epoch: int) -> None:
        """Remembers the drop durably, then deletes what there is of the collection."""
        _check_uuid(collection_id)
        _check_number("epoch", epoch)
        if collection_id in self._holdings.dropped:
            return
        holding = self._holdings.live.get(collection_id)
        if holding is not None and epoch < holding.row.epoch:
            raise self._behind(holding, epoch, holding.row.epoch)
        gone = CollectionRow(
            number=holding.row.number if holding else 0,
            id=collection_id,
            physical=holding.physical if holding else "",
            epoch=epoch,
            owned=bytes(SLOT_BITMAP_BYTES),
            definition=shard_pb2.CollectionDefinition(
                collection=types_pb2.Collection(id=collection_id, epoch=epoch)
            ).SerializeToString(),
            definition_version=holding.row.definition_version if holding else 0,
            dropped=True,
        )
        gone = await self._in_writer(capture_state.put_dropped, self._state, gone)
        self._holdings.live.pop(collection_id, None)
        self._holdings.dropped[collection_id] = gone
        await self._purge(gone)

    async def resume_drops(self) -> None:
        """At the engine's start: finishes the drops that a stop has interrupted."""
        for row in list(self._holdings.dropped.values()):
            if row.physical is None:
                continue
            try:
                await self._purge(row)
            except EngineLost:
                raise
            except ClusterError as error:  # such as a full disk: at the next start then
                _log.warning("a drop is not finished yet", collection=row.id, error=error.message)

    async def _purge(self, row: CollectionRow) -> None:
        try:
            await self._engine.delete_collection(row.id)
        except EngineRefused as refused:
            if not isinstance(refused.as_error(), NotFound):
                raise refused.as_error() from refused
        while await self._in_writer(self._state.purge_records, row.number, _PURGED_AT_ONCE):
            pass
        purged = await self._in_writer(self._state.put_collection, replace(row, physical=None))
        self._holdings.dropped[row.id] = purged
        _log.info("collection dropped", collection=row.id)

    def _checked(self, request: shard_pb2.SetOwnershipRequest) -> Grant:
        collection = request.definition.collection
        _check_uuid(collection.id)
        if request.boot_id != self._holdings.boot_id:
            raise Stale(
                f"the engine's boot_id is {self._holdings.boot_id}, not {request.boot_id}: say"
                " Hello, then read the catalog again",
                Reason.STALE_BOOT,
                metadata={"boot_id": self._holdings.boot_id},
            )
        if collection.id in self._holdings.dropped:
            raise NotFound(f"collection {collection.id} was dropped and never comes back")
        if collection.epoch < 1:
            raise InvalidRequest("the epoch of an ownership is at least 1")
        _check_number("epoch", collection.epoch)
        _check_number("version", request.definition.version)
        try:
            grant = Grant.of(collection.epoch, request.owned_slots)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
        holding = self._holdings.live.get(collection.id)
        if holding is None:
            return grant
        newest = Grant.of(holding.row.epoch, holding.row.owned)
        if holding.grant is not None and holding.grant.epoch > newest.epoch:
            newest = holding.grant  # it is not durable yet
        if grant.epoch < newest.epoch:
            raise self._behind(holding, grant.epoch, newest.epoch)
        if grant.epoch == newest.epoch and grant != newest:
            raise NotAllowed(
                f"collection {collection.id}: epoch {grant.epoch} gave this shard other slots"
                " before; the catalog is not the one that gave them: chroma-router catalog rebuild",
                Reason.CATALOG_BEHIND,
            )
        return grant

    def _behind(self, holding: Holding, epoch: int, here: int) -> Stale:
        return Stale(
            f"collection {holding.row.id}: epoch {epoch} is below the node's {here}",
            Reason.STALE_EPOCH,
            metadata={"boot_id": self._holdings.boot_id, "epoch": str(here)},
        )

    async def _physical(
        self, definition: shard_pb2.CollectionDefinition, holding: Holding | None
    ) -> PhysicalCollection:
        """The engine's collection, made if there is none, at the definition if that is newer."""
        collection = definition.collection
        try:
            metadata: dict[str, Any] | None = metadata_from_wire(collection.metadata) or None
            wanted = json.loads(collection.configuration_json or "{}")
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"collection {collection.id}: {error}") from error
        if not isinstance(wanted, dict):
            raise InvalidRequest(f"collection {collection.id}: configuration_json is not an object")
        if holding is None or not isinstance(wanted.get("hnsw"), dict):
            index_bounds.check(wanted.get("hnsw"))
        arguments: tuple[str, str | None, str | None, dict[str, Any] | None]
        if definition.version > _FIRST_VERSION and collection.schema_json:
            # Described by an engine before: its schema says everything, and the engine refuses a
            # configuration (or metadata such as "hnsw:space") beside it.
            arguments = (collection.id, None, collection.schema_json, None)
        else:
            arguments = (
                collection.id, collection.configuration_json or None,
                collection.schema_json or None, metadata,
            )  # fmt: skip
        physical = await self._engine.create_collection(*arguments)
        present = json.loads(physical.configuration_json)
        if holding is None:
            await self._check_index(collection.id, present)
        change: dict[str, Any] = {}
        newer = holding is None or definition.version > holding.row.definition_version
        if definition.version > _FIRST_VERSION and newer:
            # A first definition is what the engine has just made the collection of: where it has a
            # schema beside its configuration, the engine has weighed them against each other.
            change = _configuration_change(wanted, present)
        asked = persist_threshold.asked_for(
            collection.configuration_json, collection.schema_json, metadata
        )
        if holding is None or holding.grant is None:  # not loaded yet
            records = holding.total if holding else 0
            threshold = persist_threshold.physical(asked, records)
            if threshold != (present.get("hnsw") or {}).get("sync_threshold"):
                change.setdefault("hnsw", {})["sync_threshold"] = threshold
        if change:
            await self._engine.update_collection(physical.id, None, json.dumps(change))
            physical = await self._engine.create_collection(*arguments)
        return physical._replace(
            configuration_json=persist_threshold.reported(physical.configuration_json, asked),
            schema_json=persist_threshold.reported(physical.schema_json, asked),
        )

    async def _check_index(self, collection_id: str, present: dict[str, Any]) -> None:
        """Whatever said it, configuration, schema or metadata: nothing has used the index yet."""
        try:
            index_bounds.check(present.get("hnsw"))
        except InvalidRequest:
            await self._engine.delete_collection(collection_id)
            raise

    async def _load(self, physical: PhysicalCollection) -> None:
        try:
            await self._engine.load(physical.id)
        except EngineRefused as refused:
            raise refused.as_error() from refused

    @staticmethod
    def _row(
        request: shard_pb2.SetOwnershipRequest,
        physical: str,
        holding: Holding | None,
    ) -> CollectionRow:
        definition = request.definition
        serialized = definition.SerializeToString(deterministic=True)
        version = definition.version
        if holding is not None and version <= holding.row.definition_version:
            serialized, version = holding.row.definition, holding.row.definition_version
        return CollectionRow(
            number=holding.row.number if holding else 0,
            id=definition.collection.id,
            physical=physical,
            epoch=definition.collection.epoch,
            owned=request.owned_slots,
            definition=serialized,
            definition_version=version,
            dropped=False,
        )

    async def _in_writer(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await in_writer(self._writer, work, *arguments)


def _content(definition: shard_pb2.CollectionDefinition) -> bytes:
    """A definition without what counts its changes."""
    bare = shard_pb2.CollectionDefinition()
    bare.CopyFrom(definition)
    bare.version = bare.collection.epoch = 0
    return bare.SerializeToString(deterministic=True)


def load_holdings(state: State, boot_id: str) -> Holdings:
    """What the shard holds, from the state; nothing is granted. Runs in the writer's thread."""
    holdings = Holdings(boot_id, state.high_sequence())
    for row in state.collections():
        if row.dropped:
            holdings.dropped[row.id] = row
        elif row.physical is not None:
            counts = state.slot_counts(row.number)
            # Whether reads were fenced too is not known any more, so they are.
            fences = {
                stored.move: Fence(stored.slots, stored.next_epoch, stored.token, reads=True)
                for stored in capture_state.fences(state, row.number)
            }
            holdings.live[row.id] = Holding(row, row.physical, counts, fences=fences)
    return holdings


def _check_uuid(text: str) -> None:
    try:
        canonical = str(UUID(text))
    except ValueError:
        canonical = ""
    if canonical != text:
        raise InvalidRequest(f"{text!r} is not a UUID in its usual text form")


def _check_number(field: str, number: int) -> None:
    if number > MAX_INTEGER:
        raise InvalidRequest(f"{field} {number} is above {MAX_INTEGER}: no catalog counts so far")


def _space(physical: PhysicalCollection) -> str:
    hnsw = json.loads(physical.configuration_json).get("hnsw") or {}
    return str(hnsw.get("space", "l2"))


def _configuration_change(wanted: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
    """What to tell the engine so that its configuration becomes the wanted one."""
    change: dict[str, Any] = {}
    ours, theirs = wanted.get("hnsw") or {}, present.get("hnsw") or {}
    hnsw = {
        key: ours[key] for key in _CHANGEABLE_HNSW if key in ours and ours[key] != theirs.get(key)
    }
    if hnsw:
        change["hnsw"] = hnsw
    function = wanted.get("embedding_function")
    if function is not None and function != present.get("embedding_function"):
        change["embedding_function"] = function
    return change
