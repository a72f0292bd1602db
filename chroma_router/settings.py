"""chromadb's Settings for a client of this cluster.

chromadb 1.5.9 finds the running System of a client by `_get_identifier_from_settings`, which looks
at `settings.chroma_api_impl` and refuses every name but its own four; yet it makes the server
interface from `settings.require("chroma_api_impl")`. Nothing else in chromadb asks for either. So
these Settings answer the two questions apart: `require` names our class, and the attribute names
the family whose identifier rule is right for us, that of a store at a place: one System, and so one
channel, for all clients of one place with equal settings, ended with the last of them. (The HTTP
family would make two Systems for each client, and forget a reference to one of them for ever.) Our
place is `persist_directory`.

That needs no change of chromadb by anybody, and holds wherever a System is made of these Settings:
`chromadb.api.client.Client(settings=…)`, `Client.from_system(System(settings))`, chromadb's tests.
"""

import hashlib
from typing import Any, Self

import grpc
from chromadb.config import Settings
from overrides import override
from pydantic import ConfigDict, Field, model_validator

from chroma_router.address import parse_address
from chroma_router.retry import RetryPolicy
from chroma_router.transport import Endpoint

SYNC_API = "chroma_router.api.GrpcAPI"
ASYNC_API = "chroma_router.async_api.AsyncGrpcAPI"

DEFAULT_TIMEOUT_SECONDS = 60.0

_PLACE_FAMILY = "chromadb.api.rust.RustBindingsAPI"
_ASYNC_FAMILY = "chromadb.api.async_fastapi.AsyncFastAPI"


class ClientSettings(Settings):
    """Settings of the synchronous client. The address is chroma_server_host and -_http_port."""

    model_config = ConfigDict(arbitrary_types_allowed=True)  # type: ignore[assignment]

    chroma_api_impl: str = _PLACE_FAMILY
    is_persistent: bool = True
    anonymized_telemetry: bool = False

    timeout_seconds: float = Field(DEFAULT_TIMEOUT_SECONDS, gt=0)
    """The deadline of each call, its repeats included."""
    retry: RetryPolicy = RetryPolicy()
    api_key: str | None = Field(None, repr=False)
    credentials: Any = Field(None, exclude=True, repr=False)
    """grpc.ChannelCredentials; None: the system's trusted roots, if TLS is enabled at all."""

    @model_validator(mode="after")
    def _name_place(self) -> Self:
        endpoint = self.endpoint()
        told = self.model_dump_json(exclude={"persist_directory"})
        digest = hashlib.sha256(f"{told}{id(self.credentials)}".encode()).hexdigest()
        # Not by assignment: that would validate, and so come back here.
        self.__dict__["persist_directory"] = f"grpc://{endpoint.target}#{digest}"
        return self

    @override
    def require(self, key: str) -> Any:
        """The name of our class, and for all else what Settings has."""
        return SYNC_API if key == "chroma_api_impl" else super().require(key)

    def endpoint(self) -> Endpoint:
        """Where these settings say to call. Raises ValueError when they name no such place."""
        return _endpoint(self, self.api_key, self.credentials)


class AsyncClientSettings(ClientSettings):
    """Settings of the asyncio client. Each has its own System: a channel belongs to a loop."""

    chroma_api_impl: str = _ASYNC_FAMILY

    @override
    def require(self, key: str) -> Any:
        """The name of our class, and for all else what Settings has."""
        return ASYNC_API if key == "chroma_api_impl" else super().require(key)


def endpoint_of(settings: Settings) -> Endpoint:
    """Where any Settings say to call; a plain chromadb Settings has no more than an address."""
    if isinstance(settings, ClientSettings):
        return settings.endpoint()
    return _endpoint(settings, None, None)


def _endpoint(
    settings: Settings, api_key: str | None, credentials: grpc.ChannelCredentials | None
) -> Endpoint:
    if settings.chroma_server_host is None:
        raise ValueError("chroma_server_host is not set; it names the router to call")
    address = parse_address(settings.chroma_server_host, settings.chroma_server_http_port)
    if credentials is None and (settings.chroma_server_ssl_enabled or address.secure):
        credentials = grpc.ssl_channel_credentials()
    return Endpoint(address.target, credentials, api_key)


def options_of(settings: Settings) -> tuple[float, RetryPolicy]:
    """The deadline of a call in seconds, and the retry policy; the defaults for plain Settings."""
    if isinstance(settings, ClientSettings):
        return settings.timeout_seconds, settings.retry
    return DEFAULT_TIMEOUT_SECONDS, RetryPolicy()
