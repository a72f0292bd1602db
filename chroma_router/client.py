"""Makers of chromadb's own clients over gRPC: the one line that an application changes."""

from typing import Any

import grpc
from chromadb.api.async_client import AsyncAdminClient as _AsyncAdminClient
from chromadb.api.async_client import AsyncClient as _AsyncClient
from chromadb.api.client import AdminClient as _AdminClient
from chromadb.api.client import Client as _Client
from chromadb.config import DEFAULT_DATABASE, DEFAULT_TENANT, Settings

from chroma_router.retry import RetryPolicy
from chroma_router.settings import AsyncClientSettings, ClientSettings

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 50_051


def Client(  # noqa: N802 - stands where chromadb.HttpClient stood
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    tenant: str = DEFAULT_TENANT,
    database: str = DEFAULT_DATABASE,
    *,
    api_key: str | None = None,
    tls: bool | grpc.ChannelCredentials = False,
    timeout: float = 60.0,
    retry: RetryPolicy | None = None,
    settings: Settings | None = None,
) -> _Client:
    """A chromadb client of the cluster whose router listens at `host`:`port`.

    `tls`: True trusts the system's roots; grpc.ssl_channel_credentials(…) for anything else.
    `timeout` in seconds bounds each call with its repeats. `retry` says how patient to be while a
    part of the cluster does not answer. `settings`: further chromadb settings, such as allow_reset.
    Clients with equal arguments share one channel; it is closed with the last of them. A client may
    be used by many threads, and after a fork by parent and child. A fork waits for the calls in
    flight, up to 10 s; a child that was forked beside a longer one can make no calls, and says so.

    Raises chroma_router.errors.UnavailableError when no router answers, NotFoundError for a tenant
    or database that does not exist, ValueError for an address that is none.
    """
    chosen = client_settings(
        host, port, api_key=api_key, tls=tls, timeout=timeout, retry=retry, settings=settings
    )
    return _Client(tenant=tenant, database=database, settings=chosen)


def AdminClient(  # noqa: N802 - as above
    host: str = DEFAULT_HOST, port: int = DEFAULT_PORT, **options: Any
) -> _AdminClient:
    """A chromadb admin client, for tenants and databases. `options` as those of Client."""
    return _AdminClient(settings=client_settings(host, port, **options))


async def AsyncClient(  # noqa: N802 - as above
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    tenant: str = DEFAULT_TENANT,
    database: str = DEFAULT_DATABASE,
    *,
    api_key: str | None = None,
    tls: bool | grpc.ChannelCredentials = False,
    timeout: float = 60.0,
    retry: RetryPolicy | None = None,
    settings: Settings | None = None,
) -> _AsyncClient:
    """As Client, for asyncio. The client belongs to the event loop that awaited it.

    After a fork the parent goes on with it; no child can make asyncio calls any more, and says so.
    """
    values = _values(host, port, api_key, tls, timeout, retry, settings)
    return await _AsyncClient.create(tenant, database, AsyncClientSettings(**values))


def AsyncAdminClient(  # noqa: N802 - as above
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    *,
    api_key: str | None = None,
    tls: bool | grpc.ChannelCredentials = False,
    timeout: float = 60.0,
    retry: RetryPolicy | None = None,
    settings: Settings | None = None,
) -> _AsyncAdminClient:
    """As AdminClient, for asyncio. It belongs to the event loop of its first call."""
    values = _values(host, port, api_key, tls, timeout, retry, settings)
    return _AsyncAdminClient(AsyncClientSettings(**values))


def client_settings(
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    *,
    api_key: str | None = None,
    tls: bool | grpc.ChannelCredentials = False,
    timeout: float = 60.0,
    retry: RetryPolicy | None = None,
    settings: Settings | None = None,
) -> ClientSettings:
    """Settings from which chromadb itself makes a System, a Client or an AdminClient."""
    return ClientSettings(**_values(host, port, api_key, tls, timeout, retry, settings))


def _values(
    host: str,
    port: int,
    api_key: str | None,
    tls: bool | grpc.ChannelCredentials,
    timeout: float,
    retry: RetryPolicy | None,
    settings: Settings | None,
) -> dict[str, Any]:
    ours = {"chroma_api_impl", "is_persistent", "persist_directory"}
    kept = {} if settings is None else settings.model_dump(exclude_unset=True, exclude=ours)
    return {
        **kept,
        "chroma_server_host": host,
        "chroma_server_http_port": port,
        "chroma_server_ssl_enabled": tls is not False,
        "credentials": None if isinstance(tls, bool) else tls,
        "api_key": api_key,
        "timeout_seconds": timeout,
        "retry": retry or RetryPolicy(),
    }
