"""What an import reads: tenants, databases, collections and records of another Chroma.

Synchronous; `import_run` calls it from threads. It reads in bounded memory, but for the engine of
a directory, which holds the indexes of the collections that it reads.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import numpy as np
from chromadb.api.types import Include

from chroma_router.wire.records import record_to_bytes
from router.cli.command import Failed
from router.cli.definition import Definition
from router.cli.import_copy import DirectoryCopy
from router.cli.import_engine import Engine, LocalEngine, RemoteEngine
from router.cli.link import MAX_BATCH_BYTES

_HOST_AND_PORT = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}")
_IDS_AT_ONCE = 50_000
_FIRST_READ = 64
_PAGE = 1000
_EVERYTHING = cast(Include, ["embeddings", "documents", "metadatas", "uris"])


@dataclass(frozen=True, slots=True)
class SourceCollection:
    """A collection to be brought over."""

    id: str
    tenant: str
    database: str
    name: str
    definition: Definition
    count: int

    @property
    def label(self) -> str:
        """How it is called in messages."""
        return f"{self.tenant}/{self.database}/{self.name}"


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """Some of a collection's records, in insertion order."""

    ids: list[str]
    records: list[bytes]


class SourceBroken(Failed):
    """The source cannot be read, or it changes."""


class Source:
    """Another Chroma, open for reading."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        self._engine = engine

    def tenants(self) -> list[str]:
        """The names of its tenants, as far as they can be found out."""
        return ["default_tenant"]

    def databases(self, tenant: str) -> list[str]:
        """The names of a tenant's databases. Raises SourceBroken for a tenant it does not have."""
        try:
            self._engine.api.get_tenant(tenant)
            found = self._engine.api.list_databases(tenant=tenant)
        except Exception as error:
            raise SourceBroken(f"{self.name}: tenant {tenant}: {error}") from None
        return sorted(database["name"] for database in found)

    def collections(self, tenant: str, database: str) -> list[SourceCollection]:
        """The collections of a database, by name."""
        api = self._engine.api
        scope: dict[str, Any] = {"tenant": tenant, "database": database}
        try:
            models = api.list_collections(None, None, tenant, database)
            found = [(model, api._count(model.id, **scope)) for model in models]
        except Exception as error:
            raise SourceBroken(f"{self.name}: {tenant}/{database}: {error}") from None
        return sorted(
            (
                SourceCollection(
                    str(model.id), tenant, database, model.name, _definition(model), count
                )
                for model, count in found
            ),
            key=lambda collection: collection.name,
        )

    def prepare(self, collections: Sequence[SourceCollection]) -> None:
        """To be called before records of these collections are read."""

    def refresh(self) -> None:
        """Lets go of the memory that reading took. Nothing may be reading."""

    def close(self) -> None:
        """Lets go of everything."""
        self._engine.close()

    def ids(self, collection: SourceCollection, begin: int = 0) -> Iterator[list[str]]:
        """The ids from position `begin` on, in insertion order, many at once."""
        while True:
            ids = self._get(collection, limit=_IDS_AT_ONCE, offset=begin, include=[])["ids"]
            if ids:
                yield ids
            begin += len(ids)
            if len(ids) < _IDS_AT_ONCE:
                return

    def batches(
        self, collection: SourceCollection, size: int, begin: int = 0
    ) -> Iterator[SourceBatch]:
        """The records from position `begin` on, in insertion order, at most `size` in a batch.

        How many are read at once follows their size, so that memory stays bounded.
        """
        reading = min(size, _FIRST_READ)
        for ids in self.ids(collection, begin):
            at = 0
            while at < len(ids):
                chunk = ids[at : at + reading]
                records = self._records(collection, chunk)
                total = sum(map(len, records))
                yield from _cut(chunk, records)
                at += len(chunk)
                fitting = max(1, MAX_BATCH_BYTES * len(chunk) // max(total, 1))
                reading = min(size, fitting, 4 * reading)

    def _records(self, collection: SourceCollection, ids: list[str]) -> list[bytes]:
        got = self._get(collection, ids=ids, include=_EVERYTHING)
        if got["ids"] != ids:
            raise SourceBroken(
                f"{collection.label} changed while it was read; stop what writes to it, and run "
                "it again: it goes on where it stopped"
            )
        return [
            record_to_bytes(record_id, _row(collection, record_id, vector), document, uri, metadata)
            for record_id, vector, document, uri, metadata in zip(
                ids,
                got["embeddings"],
                got["documents"],
                got["uris"],
                map(_metadata, got["metadatas"]),
                strict=True,
            )
        ]

    def _get(self, collection: SourceCollection, **what: Any) -> Any:
        scope: dict[str, Any] = {"tenant": collection.tenant, "database": collection.database}
        try:
            return self._engine.api._get(UUID(collection.id), **what, **scope)
        except Exception as error:
            raise SourceBroken(
                f"{self.name} cannot be read at {collection.label}: {error}; run it again when "
                "that is mended: it goes on where it stopped"
            ) from None


class DirectorySource(Source):
    """A copy of a persistent directory, read by the engine in this process."""

    def __init__(self, directory: Path, temporary: Path | None) -> None:
        self._copy = DirectoryCopy(directory, temporary)
        try:
            super().__init__(str(directory), LocalEngine(self._copy.path))
        except BaseException:
            self._copy.close()
            raise

    def tenants(self) -> list[str]:
        return self._copy.tenants()

    def prepare(self, collections: Sequence[SourceCollection]) -> None:
        self._engine.close()
        self._copy.add_vectors([collection.id for collection in collections])
        self._engine = LocalEngine(self._copy.path)

    def refresh(self) -> None:
        self._engine.close()
        self._engine = LocalEngine(self._copy.path)

    def close(self) -> None:
        super().close()
        self._copy.close()


def is_server(place: str) -> bool:
    """Whether a source is the address of a server; else it is a directory."""
    return place.startswith(("http://", "https://"))


def open_source(place: str, temporary: Path | None, headers: Mapping[str, str]) -> Source:
    """The source at a directory or an http(s) address, which is sent the headers. Raises Failed."""
    if is_server(place):
        return Source(place, RemoteEngine(place, headers))
    if _HOST_AND_PORT.fullmatch(place) and not Path(place).is_dir():
        raise Failed(f"there is no directory {place}; for a server write http://{place}")
    return DirectorySource(Path(place), temporary)


def chosen(
    source: Source,
    tenants: Collection[str],
    databases: Collection[str],
    names: Collection[str],
) -> dict[tuple[str, str], list[SourceCollection]]:
    """The collections to bring over by tenant and database; an empty choice means all of them.

    With names, databases without such a collection are left out. Raises Failed for a name, tenant
    or database that the source does not have.
    """
    found: dict[tuple[str, str], list[SourceCollection]] = {}
    for tenant in tenants or source.tenants():
        for database in source.databases(tenant):
            if databases and database not in databases:
                continue
            there = source.collections(tenant, database)
            taken = [c for c in there if not names or c.name in names]
            if taken or not names:
                found[tenant, database] = taken
    missing = set(databases) - {database for _, database in found} if not names else set()
    if missing:
        raise Failed(f"{source.name} has no database {min(missing)}")
    missing = set(names) - {c.name for taken in found.values() for c in taken}
    if missing:
        raise Failed(
            f"{source.name} has no collection {min(missing)} there; `chroma-router import --from "
            f"{source.name} --dry-run` lists what it has"
        )
    return found


def _definition(model: Any) -> Definition:
    """The placement is left to the cluster, which looks for one in the metadata."""
    return Definition(
        metadata=dict(model.metadata or {}),
        configuration=model.configuration_json or {},
        schema=model.serialized_schema,
    )


def _row(collection: SourceCollection, record_id: str, vector: Any) -> bytes:
    if vector is None:
        raise SourceBroken(
            f"{collection.label}: the record {record_id!r} has no embedding; delete it there, or "
            "update it with one"
        )
    return np.asarray(vector, dtype="<f4").tobytes()


def _metadata(metadata: dict[str, Any] | None) -> dict[str, Any]:
    """Without keys that have no value: the engine keeps NaN as one, and gives none for absent."""
    return {key: value for key, value in (metadata or {}).items() if value is not None}


def _cut(ids: list[str], records: list[bytes]) -> Iterator[SourceBatch]:
    """Batches of at most MAX_BATCH_BYTES."""
    begin = size = 0
    for at, record in enumerate(records):
        if at > begin and size + len(record) > MAX_BATCH_BYTES:
            yield SourceBatch(ids[begin:at], records[begin:at])
            begin, size = at, 0
        size += len(record)
    yield SourceBatch(ids[begin:], records[begin:])
