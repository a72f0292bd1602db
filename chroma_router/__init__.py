"""What an application imports: Chroma's own clients over gRPC to a cluster of Chroma shards.

    import chroma_router

    client = chroma_router.Client("127.0.0.1", 50051)
    docs = client.get_or_create_collection("docs")

Importing this package imports nothing else: router and nodes need only `chroma_router.v1` and
`chroma_router.wire`, and chromadb alone costs 0.6 s and 76 MB. The names below load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chroma_router import errors
    from chroma_router.client import (
        AdminClient,
        AsyncAdminClient,
        AsyncClient,
        Client,
        client_settings,
    )
    from chroma_router.retry import RetryPolicy
    from chroma_router.wire.version import VERSION as __version__  # noqa: N811

__all__ = [
    "AdminClient",
    "AsyncAdminClient",
    "AsyncClient",
    "Client",
    "RetryPolicy",
    "__version__",
    "client_settings",
    "errors",
]

# Name → the module that has it, and its name there ("" for the module itself).
_LAZY = {
    "AdminClient": ("chroma_router.client", "AdminClient"),
    "AsyncAdminClient": ("chroma_router.client", "AsyncAdminClient"),
    "AsyncClient": ("chroma_router.client", "AsyncClient"),
    "Client": ("chroma_router.client", "Client"),
    "RetryPolicy": ("chroma_router.retry", "RetryPolicy"),
    "__version__": ("chroma_router.wire.version", "VERSION"),
    "client_settings": ("chroma_router.client", "client_settings"),
    "errors": ("chroma_router.errors", ""),
}


def __getattr__(name: str) -> object:
    try:
        module_name, attribute = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    module = import_module(module_name)
    value = getattr(module, attribute) if attribute else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
