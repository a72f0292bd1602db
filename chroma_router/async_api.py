"""Chroma's asyncio server interface over gRPC: signatures of chromadb, work of requests.py."""

from collections.abc import Sequence
from typing import TypeVar
from uuid import UUID

from chromadb.api import AsyncServerAPI
from chromadb.api.collection_configuration import (
    CreateCollectionConfiguration,
    UpdateCollectionConfiguration,
)
from chromadb.api.types import (
    CollectionMetadata,
    DeleteResult,
    Documents,
    Embeddings,
    GetResult,
    IDs,
    Include,
    IncludeMetadataDocuments,
    IncludeMetadataDocumentsDistances,
    IncludeMetadataDocumentsEmbeddings,
    IndexingStatus,
    Metadatas,
    QueryResult,
    ReadLevel,
    Schema,
    SearchResult,
    URIs,
    validate_batch,
)
from chromadb.auth import UserIdentity
from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT, Settings, System
from chromadb.execution.expression.plan import Search
from chromadb.types import Collection as CollectionModel
from chromadb.types import Database, Tenant, Where, WhereDocument
from overrides import override

from chroma_router import requests
from chroma_router.async_transport import AsyncTransport
from chroma_router.errors import unsupported
from chroma_router.settings import endpoint_of, options_of

R = TypeVar("R")


class AsyncGrpcAPI(AsyncServerAPI):
    """A cluster as chromadb's component: one per System, of one event loop."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        timeout, policy = options_of(system.settings)
        self._transport = AsyncTransport(endpoint_of(system.settings), timeout, policy)
        self._max_batch_size: int | None = None

    @override
    def start(self) -> None:
        super().start()
        self._transport.open()

    @override
    def stop(self) -> None:
        super().stop()
        self._transport.close()

    async def _run(self, operation: requests.Operation[R]) -> R:
        return await self._transport.run(operation)

    async def _write(
        self,
        method: requests.Method,
        collection_id: UUID,
        ids: IDs,
        embeddings: Embeddings | None,
        metadatas: Metadatas | None,
        documents: Documents | None,
        uris: URIs | None,
    ) -> bool:
        batch = (ids, embeddings, metadatas, documents, uris)
        validate_batch(batch, {"max_batch_size": await self.get_max_batch_size()})
        return await self._run(requests.write(method, collection_id, *batch))

    @override
    async def heartbeat(self) -> int:
        return (await self._run(requests.version())).now_nanoseconds

    @override
    async def get_version(self) -> str:
        return (await self._run(requests.version())).chroma_version

    @override
    async def get_max_batch_size(self) -> int:
        if self._max_batch_size is None:
            self._max_batch_size = (await self._run(requests.version())).max_batch_size
        return self._max_batch_size

    @override
    def get_settings(self) -> Settings:
        return self._system.settings

    @override
    async def get_user_identity(self) -> UserIdentity:
        return UserIdentity(user_id="", tenant=DEFAULT_TENANT, databases=[DEFAULT_DATABASE])

    @override
    async def reset(self) -> bool:
        return await self._run(requests.reset())

    @override
    async def create_tenant(self, name: str) -> None:
        await self._run(requests.create_tenant(name))

    @override
    async def get_tenant(self, name: str) -> Tenant:
        return await self._run(requests.get_tenant(name))

    @override
    async def create_database(self, name: str, tenant: str = DEFAULT_TENANT) -> None:
        await self._run(requests.create_database(name, tenant))

    @override
    async def get_database(self, name: str, tenant: str = DEFAULT_TENANT) -> Database:
        return await self._run(requests.get_database(name, tenant))

    @override
    async def list_databases(
        self,
        limit: int | None = None,
        offset: int | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> Sequence[Database]:
        return await self._run(requests.list_databases(limit, offset, tenant))

    @override
    async def delete_database(self, name: str, tenant: str = DEFAULT_TENANT) -> None:
        await self._run(requests.delete_database(name, tenant))

    @override
    async def list_collections(
        self,
        limit: int | None = None,
        offset: int | None = None,
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
    ) -> Sequence[CollectionModel]:
        return await self._run(requests.list_collections(limit, offset, tenant, database))

    @override
    async def count_collections(
        self, tenant: str = DEFAULT_TENANT, database: str = DEFAULT_DATABASE
    ) -> int:
        return await self._run(requests.count_collections(tenant, database))

    @override
    async def create_collection(
        self,
        name: str,
        schema: Schema | None = None,
        configuration: CreateCollectionConfiguration | None = None,
        metadata: CollectionMetadata | None = None,
        get_or_create: bool = False,
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
    ) -> CollectionModel:
        return await self._run(
            requests.create_collection(
                name, schema, configuration, metadata, get_or_create, tenant, database
            )
        )

    @override
    async def get_or_create_collection(
        self,
        name: str,
        schema: Schema | None = None,
        configuration: CreateCollectionConfiguration | None = None,
        metadata: CollectionMetadata | None = None,
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
    ) -> CollectionModel:
        return await self._run(
            requests.create_collection(
                name, schema, configuration, metadata, True, tenant, database
            )
        )

    @override
    async def get_collection(
        self, name: str, tenant: str = DEFAULT_TENANT, database: str = DEFAULT_DATABASE
    ) -> CollectionModel:
        return await self._run(requests.get_collection(name, tenant, database))

    @override
    async def get_collection_by_id(
        self, collection_id: UUID, tenant: str = DEFAULT_TENANT, database: str = DEFAULT_DATABASE
    ) -> CollectionModel:
        return await self._run(requests.get_collection(collection_id, tenant, database))

    @override
    async def _modify(
        self,
        id: UUID,
        new_name: str | None = None,
        new_metadata: CollectionMetadata | None = None,
        new_configuration: UpdateCollectionConfiguration | None = None,
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
    ) -> None:
        await self._run(
            requests.modify_collection(
                id, new_name, new_metadata, new_configuration, tenant, database
            )
        )

    @override
    async def delete_collection(
        self, name: str, tenant: str = DEFAULT_TENANT, database: str = DEFAULT_DATABASE
    ) -> None:
        await self._run(requests.delete_collection(name, tenant, database))

    @override
    async def _add(
        self,
        ids: IDs,
        collection_id: UUID,
        embeddings: Embeddings,
        metadatas: Metadatas | None = None,
        documents: Documents | None = None,
        uris: URIs | None = None,
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
    ) -> bool:
        return await self._write(
            requests.ADD, collection_id, ids, embeddings, metadatas, documents, uris
        )

    @override
    async def _upsert(
        self,
        collection_id: UUID,
        ids: IDs,
        embeddings: Embeddings,
        metadatas: Metadatas | None = None,
        documents: Documents | None = None,
        uris: URIs | None = None,
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
    ) -> bool:
        return await self._write(
            requests.UPSERT, collection_id, ids, embeddings, metadatas, documents, uris
        )

    @override
    async def _update(
        self,
        collection_id: UUID,
        ids: IDs,
        embeddings: Embeddings | None = None,
        metadatas: Metadatas | None = None,
        documents: Documents | None = None,
        uris: URIs | None = None,
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
    ) -> bool:
        return await self._write(
            requests.UPDATE, collection_id, ids, embeddings, metadatas, documents, uris
        )

    @override
    async def _delete(
        self,
        collection_id: UUID,
        ids: IDs | None = None,
        where: Where | None = None,
        where_document: WhereDocument | None = None,
        limit: int | None = None,
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
    ) -> DeleteResult:
        return await self._run(requests.delete(collection_id, ids, where, where_document, limit))

    @override
    async def _count(
        self,
        collection_id: UUID,
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
        read_level: ReadLevel = ReadLevel.INDEX_AND_WAL,
    ) -> int:
        return await self._run(requests.count(collection_id))

    @override
    async def _peek(
        self,
        collection_id: UUID,
        n: int = 10,
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
    ) -> GetResult:
        return await self._run(
            requests.get(
                collection_id, None, None, n, None, None, IncludeMetadataDocumentsEmbeddings
            )
        )

    @override
    async def _get(
        self,
        collection_id: UUID,
        ids: IDs | None = None,
        where: Where | None = None,
        limit: int | None = None,
        offset: int | None = None,
        where_document: WhereDocument | None = None,
        include: Include = IncludeMetadataDocuments,
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
    ) -> GetResult:
        return await self._run(
            requests.get(collection_id, ids, where, limit, offset, where_document, include)
        )

    @override
    async def _query(
        self,
        collection_id: UUID,
        query_embeddings: Embeddings,
        ids: IDs | None = None,
        n_results: int = 10,
        where: Where | None = None,
        where_document: WhereDocument | None = None,
        include: Include = IncludeMetadataDocumentsDistances,
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
    ) -> QueryResult:
        return await self._run(
            requests.query(
                collection_id, query_embeddings, ids, n_results, where, where_document, include
            )
        )

    @override
    async def _search(
        self,
        collection_id: UUID,
        searches: list[Search],
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
        read_level: ReadLevel = ReadLevel.INDEX_AND_WAL,
    ) -> SearchResult:
        return await self._run(requests.search(collection_id, searches))

    @override
    async def _fork(
        self,
        collection_id: UUID,
        new_name: str,
        tenant: str = DEFAULT_TENANT,
        database: str = DEFAULT_DATABASE,
    ) -> CollectionModel:
        raise unsupported("Collection forking")

    @override
    async def _fork_count(
        self, collection_id: UUID, tenant: str = DEFAULT_TENANT, database: str = DEFAULT_DATABASE
    ) -> int:
        raise unsupported("Fork count")

    @override
    async def _get_indexing_status(
        self, collection_id: UUID, tenant: str = DEFAULT_TENANT, database: str = DEFAULT_DATABASE
    ) -> IndexingStatus:
        raise unsupported("Indexing status")
