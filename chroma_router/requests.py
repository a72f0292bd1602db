"""Every operation of Chroma's server interface as a conversation in messages of the contract.

An operation is a generator: it yields a Call, is sent the answer, and returns what chromadb
expects. Whoever drives it does the talking (transport.py), synchronously or not; here is no
network, no clock and no random, so that one text serves both of chromadb's interfaces.
"""

import json
from collections.abc import Generator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, cast
from uuid import UUID

import numpy as np
from chromadb.api.collection_configuration import (
    CreateCollectionConfiguration,
    UpdateCollectionConfiguration,
    create_collection_configuration_to_json_str,
    update_collection_configuration_to_json_str,
)
from chromadb.api.types import (
    DeleteResult,
    Embeddings,
    GetResult,
    Include,
    QueryResult,
    Schema,
    SearchResult,
)
from chromadb.execution.expression.plan import Search
from chromadb.types import Collection as CollectionModel
from chromadb.types import Database, Tenant, Where, WhereDocument
from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from google.protobuf.message import Message

from chroma_router import columns
from chroma_router.errors import InvalidArgumentError
from chroma_router.retry import Repeat
from chroma_router.searches import fill_search
from chroma_router.v1 import catalog_pb2, cluster_pb2, records_pb2, types_pb2
from chroma_router.wire.placement import placement_in
from chroma_router.wire.records import metadata_from_wire, metadata_to_wire

MAX_QUERY_EMBEDDINGS = 1_000
MAX_QUERY_HITS = 200_000
"""Embeddings, and hits for all of them, of one QueryRequest; more go in several."""

MAX_SEARCHES = 100
"""Searches in one SearchRequest; more go in several."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the contract. `write`: its request carries a request id."""

    service: str
    name: str
    repeat: Repeat = Repeat.SAFE
    write: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One request to send. The driver fills in the request id of a write."""

    method: Method
    request: Message


R = TypeVar("R")
Operation: TypeAlias = Generator[Call, Any, R]

ADD = Method("RecordService", "Add", write=True)
UPSERT = Method("RecordService", "Upsert", write=True)
UPDATE = Method("RecordService", "Update", write=True)
DELETE = Method("RecordService", "Delete", write=True)
GET = Method("RecordService", "Get")
QUERY = Method("RecordService", "Query")
COUNT = Method("RecordService", "Count")
SEARCH = Method("RecordService", "Search")
CREATE_TENANT = Method("CatalogService", "CreateTenant", Repeat.IF_UNTRIED)
GET_TENANT = Method("CatalogService", "GetTenant")
CREATE_DATABASE = Method("CatalogService", "CreateDatabase", Repeat.IF_UNTRIED)
GET_DATABASE = Method("CatalogService", "GetDatabase")
LIST_DATABASES = Method("CatalogService", "ListDatabases")
DELETE_DATABASE = Method("CatalogService", "DeleteDatabase", Repeat.IF_UNTRIED)
CREATE_COLLECTION = Method("CatalogService", "CreateCollection", Repeat.IF_UNTRIED)
GET_OR_CREATE_COLLECTION = Method("CatalogService", "CreateCollection")
GET_COLLECTION = Method("CatalogService", "GetCollection")
LIST_COLLECTIONS = Method("CatalogService", "ListCollections")
COUNT_COLLECTIONS = Method("CatalogService", "CountCollections")
UPDATE_COLLECTION = Method("CatalogService", "UpdateCollection")
DELETE_COLLECTION = Method("CatalogService", "DeleteCollection", Repeat.IF_UNTRIED)
GET_VERSION = Method("ClusterService", "GetVersion")
RESET = Method("ClusterService", "Reset")


# --- the cluster --------------------------------------------------------------------------------


def version() -> Operation[cluster_pb2.GetVersionResponse]:
    """Versions, limits and the router's clock."""
    answer: cluster_pb2.GetVersionResponse
    answer = yield Call(GET_VERSION, cluster_pb2.GetVersionRequest())
    return answer


def reset() -> Operation[bool]:
    """Deletes everything."""
    yield Call(RESET, cluster_pb2.ResetRequest())
    return True


# --- tenants and databases ----------------------------------------------------------------------


def create_tenant(name: str) -> Operation[None]:
    """Makes a tenant."""
    yield Call(CREATE_TENANT, catalog_pb2.CreateTenantRequest(name=name))


def get_tenant(name: str) -> Operation[Tenant]:
    """Finds a tenant."""
    answer: catalog_pb2.GetTenantResponse
    answer = yield Call(GET_TENANT, catalog_pb2.GetTenantRequest(name=name))
    return Tenant(name=answer.tenant.name)


def create_database(name: str, tenant: str) -> Operation[None]:
    """Makes a database."""
    request = catalog_pb2.CreateDatabaseRequest(name=name, tenant=tenant)
    yield Call(CREATE_DATABASE, request)


def get_database(name: str, tenant: str) -> Operation[Database]:
    """Finds a database."""
    answer: catalog_pb2.GetDatabaseResponse
    request = catalog_pb2.GetDatabaseRequest(name=name, tenant=tenant)
    answer = yield Call(GET_DATABASE, request)
    return _database(answer.database)


def list_databases(
    limit: int | None, offset: int | None, tenant: str
) -> Operation[Sequence[Database]]:
    """The databases of a tenant."""
    answer: catalog_pb2.ListDatabasesResponse
    request = catalog_pb2.ListDatabasesRequest(
        tenant=tenant, limit=_size("limit", limit), offset=_size("offset", offset) or 0
    )
    answer = yield Call(LIST_DATABASES, request)
    return [_database(database) for database in answer.databases]


def delete_database(name: str, tenant: str) -> Operation[None]:
    """Deletes a database."""
    request = catalog_pb2.DeleteDatabaseRequest(name=name, tenant=tenant)
    yield Call(DELETE_DATABASE, request)


def _database(database: catalog_pb2.Database) -> Database:
    return Database(id=UUID(database.id), name=database.name, tenant=database.tenant)


# --- collections --------------------------------------------------------------------------------


def create_collection(
    name: str,
    schema: Schema | None,
    configuration: CreateCollectionConfiguration | None,
    metadata: Mapping[str, object] | None,
    get_or_create: bool,
    tenant: str,
    database: str,
) -> Operation[CollectionModel]:
    """Makes a collection, or finds the one that is there."""
    if metadata is not None and not metadata:
        # A map on the wire cannot tell empty from absent: refused here, in Chroma's words.
        raise InvalidArgumentError("Validation error: metadata: Metadata cannot be empty")
    request = catalog_pb2.CreateCollectionRequest(
        name=name,
        tenant=tenant,
        database=database,
        get_or_create=get_or_create,
        placement_shards=_placement(metadata),
    )
    if metadata is not None:
        _metadata_to_wire(metadata, request.metadata)
    if configuration:
        request.configuration_json = create_collection_configuration_to_json_str(
            configuration, cast("dict[str, Any] | None", metadata)
        )
    if schema is not None:
        request.schema_json = json.dumps(schema.serialize_to_json())
    answer: catalog_pb2.CreateCollectionResponse
    method = GET_OR_CREATE_COLLECTION if get_or_create else CREATE_COLLECTION
    answer = yield Call(method, request)
    return _collection(answer.collection)


def get_collection(
    name_or_id: str | UUID, tenant: str, database: str
) -> Operation[CollectionModel]:
    """Finds a collection by its name or its UUID."""
    answer: catalog_pb2.GetCollectionResponse
    request = catalog_pb2.GetCollectionRequest(collection=_ref(name_or_id, tenant, database))
    answer = yield Call(GET_COLLECTION, request)
    return _collection(answer.collection)


def list_collections(
    limit: int | None, offset: int | None, tenant: str, database: str
) -> Operation[Sequence[CollectionModel]]:
    """The collections of a database."""
    answer: catalog_pb2.ListCollectionsResponse
    request = catalog_pb2.ListCollectionsRequest(
        tenant=tenant,
        database=database,
        limit=_size("limit", limit),
        offset=_size("offset", offset) or 0,
    )
    answer = yield Call(LIST_COLLECTIONS, request)
    return [_collection(collection) for collection in answer.collections]


def count_collections(tenant: str, database: str) -> Operation[int]:
    """How many collections a database has."""
    answer: catalog_pb2.CountCollectionsResponse
    request = catalog_pb2.CountCollectionsRequest(tenant=tenant, database=database)
    answer = yield Call(COUNT_COLLECTIONS, request)
    return answer.count


def modify_collection(
    collection_id: UUID,
    new_name: str | None,
    new_metadata: Mapping[str, object] | None,
    new_configuration: UpdateCollectionConfiguration | None,
    tenant: str,
    database: str,
) -> Operation[None]:
    """Changes name, metadata or configuration."""
    request = catalog_pb2.UpdateCollectionRequest(
        collection=_ref(collection_id, tenant, database),
        new_name=new_name,
        replace_metadata=new_metadata is not None,
    )
    if new_metadata is not None:
        _metadata_to_wire(new_metadata, request.new_metadata)
    if new_configuration:
        request.new_configuration_json = update_collection_configuration_to_json_str(
            new_configuration
        )
    yield Call(UPDATE_COLLECTION, request)


def delete_collection(name: str, tenant: str, database: str) -> Operation[None]:
    """Deletes a collection."""
    request = catalog_pb2.DeleteCollectionRequest(collection=_ref(name, tenant, database))
    yield Call(DELETE_COLLECTION, request)


def _ref(name_or_id: str | UUID, tenant: str, database: str) -> types_pb2.CollectionRef:
    if isinstance(name_or_id, UUID):
        return types_pb2.CollectionRef(tenant=tenant, database=database, id=str(name_or_id))
    return types_pb2.CollectionRef(tenant=tenant, database=database, name=name_or_id)


def _collection(collection: types_pb2.Collection) -> CollectionModel:
    return CollectionModel(
        id=UUID(collection.id),
        name=collection.name,
        configuration_json=json.loads(collection.configuration_json or "{}"),
        serialized_schema=json.loads(collection.schema_json) if collection.schema_json else None,
        metadata=cast("Any", metadata_from_wire(collection.metadata))
        if collection.metadata
        else None,
        dimension=collection.dimension or None,
        tenant=collection.tenant,
        database=collection.database,
    )


def _metadata_to_wire(
    metadata: Mapping[str, object], into: MutableMapping[str, types_pb2.MetadataValue]
) -> None:
    try:
        metadata_to_wire(metadata, into)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"collection {error}; use a text, a 64-bit integer, a float, true or false"
        ) from error


def _placement(metadata: Mapping[str, object] | None) -> int:
    """The value of the contract's placement_shards, in which 0 leaves it to the cluster."""
    try:
        return placement_in(metadata)
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from None


# --- records ------------------------------------------------------------------------------------


class _WriteRequest(Protocol):
    @property
    def collection(self) -> types_pb2.CollectionRef: ...
    @property
    def records(self) -> "RepeatedCompositeFieldContainer[types_pb2.Record]": ...


_WRITES: Mapping[Method, type[Message]] = {
    ADD: records_pb2.AddRequest,
    UPSERT: records_pb2.UpsertRequest,
    UPDATE: records_pb2.UpdateRequest,
}


def write(
    method: Method,
    collection_id: UUID,
    ids: Sequence[str],
    embeddings: Embeddings | None,
    metadatas: Sequence[Mapping[str, object] | None] | None,
    documents: Sequence[str | None] | None,
    uris: Sequence[str | None] | None,
) -> Operation[bool]:
    """Adds, upserts or updates records, by `method`."""
    request = _WRITES[method]()
    filled = cast("_WriteRequest", request)
    filled.collection.id = str(collection_id)
    columns.fill_records(filled.records, ids, embeddings, metadatas, documents, uris)
    yield Call(method, request)
    return True


def delete(
    collection_id: UUID,
    ids: Sequence[str] | None,
    where: Where | None,
    where_document: WhereDocument | None,
    limit: int | None,
) -> Operation[DeleteResult]:
    """Deletes records."""
    request = records_pb2.DeleteRequest(
        filter=_filter(ids, where, where_document), limit=_size("limit", limit)
    )
    request.collection.id = str(collection_id)
    answer: records_pb2.DeleteResponse
    answer = yield Call(DELETE, request)
    return DeleteResult(deleted=answer.deleted)


def count(collection_id: UUID) -> Operation[int]:
    """How many records a collection holds."""
    request = records_pb2.CountRequest()
    request.collection.id = str(collection_id)
    answer: records_pb2.CountResponse
    answer = yield Call(COUNT, request)
    return answer.count


def get(
    collection_id: UUID,
    ids: Sequence[str] | None,
    where: Where | None,
    limit: int | None,
    offset: int | None,
    where_document: WhereDocument | None,
    include: Include,
) -> Operation[GetResult]:
    """Reads records, page by page until there is no more."""
    request = records_pb2.GetRequest(
        filter=_filter(ids, where, where_document),
        limit=_size("limit", limit),
        offset=_size("offset", offset) or 0,
        include=columns.include_to_wire(include),
    )
    request.collection.id = str(collection_id)
    records: list[types_pb2.Record] = []
    answer: records_pb2.GetResponse
    while True:
        answer = yield Call(GET, request)
        records.extend(answer.records)
        if not answer.next_page_token:
            return columns.get_result(records, include)
        request.page_token = answer.next_page_token


def query(
    collection_id: UUID,
    query_embeddings: Embeddings,
    ids: Sequence[str] | None,
    n_results: int,
    where: Where | None,
    where_document: WhereDocument | None,
    include: Include,
) -> Operation[QueryResult]:
    """Finds the nearest records, of more query embeddings than one request takes in several."""
    rows = columns.embedding_rows(query_embeddings)
    results: list[records_pb2.QueryResult] = []
    request = records_pb2.QueryRequest(
        n_results=_size("n_results", n_results),
        # Chroma does not check these ids for repeats; the contract wants each once.
        filter=_filter(None if ids is None else list(dict.fromkeys(ids)), where, where_document),
        include=columns.include_to_wire(include),
    )
    request.collection.id = str(collection_id)
    answer: records_pb2.QueryResponse
    most = max(1, min(MAX_QUERY_EMBEDDINGS, MAX_QUERY_HITS // max(1, request.n_results)))
    for first in range(0, max(len(rows), 1), most):
        request.embeddings[:] = rows[first : first + most]
        answer = yield Call(QUERY, request)
        results.extend(answer.results)
    return columns.query_result(results, include)


def search(collection_id: UUID, searches: Sequence[Search]) -> Operation[SearchResult]:
    """Ranks records, by more searches than one request takes in several requests."""
    payloads = [search.to_dict() for search in searches]
    messages: list[records_pb2.Search] = []
    for payload in payloads:
        messages.append(records_pb2.Search())
        fill_search(messages[-1], payload, _json)
    results: list[records_pb2.SearchResult] = []
    answer: records_pb2.SearchResponse
    for first in range(0, len(messages), MAX_SEARCHES):
        request = records_pb2.SearchRequest(searches=messages[first : first + MAX_SEARCHES])
        request.collection.id = str(collection_id)
        answer = yield Call(SEARCH, request)
        results.extend(answer.results)
    return columns.search_result(results, [payload["select"]["keys"] for payload in payloads])


def _filter(
    ids: Sequence[str] | None,
    where: Where | None,
    where_document: WhereDocument | None,
) -> types_pb2.Filter:
    return types_pb2.Filter(
        ids=ids or (),
        by_ids=ids is not None,
        where=_json("where", where) if where else "",
        where_document=_json("where_document", where_document) if where_document else "",
    )


def _json(name: str, condition: Where | WhereDocument) -> str:
    try:
        return json.dumps(condition, default=_plain, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{name} cannot be written as JSON: {error}") from error


def _plain(value: object) -> object:
    """A numpy scalar or array as the Python value that JSON knows."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a value has type {type(value).__name__}")


def _size(name: str, value: int | None) -> int | None:
    """A number that fits the contract's uint32, or None."""
    if value is not None and not 0 <= value < 1 << 32:
        raise InvalidArgumentError(f"{name} must be a number from 0 to {2**32 - 1}, got {value}")
    return value
