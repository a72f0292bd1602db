"""Another Chroma's server interface: the engine on a directory, or a server over HTTP.

The only module of the command line that imports chromadb's interface; it reads and never writes.
"""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from chromadb.api import ServerAPI
from chromadb.config import Settings, System

from router.cli.command import Failed

_PORTS = {"http": 8000, "https": 443}


class Engine:
    """A server interface that is running. Tenants and databases are named in each call, so that
    none of them needs to be a default one."""

    def __init__(self, settings: Settings) -> None:
        self._system = System(settings)
        self.api: ServerAPI = self._system.instance(ServerAPI)  # type: ignore[type-abstract]
        self._system.start()

    def close(self) -> None:
        """Gives back what the engine holds."""
        self._system.stop()


class LocalEngine(Engine):
    """Chroma's engine in this process on a directory, to which it may write."""

    def __init__(self, directory: Path) -> None:
        settings = Settings(
            chroma_api_impl="chromadb.api.rust.RustBindingsAPI",
            is_persistent=True,
            persist_directory=str(directory),
            anonymized_telemetry=False,
        )
        super().__init__(settings)


class RemoteEngine(Engine):
    """A Chroma server, asked with these headers besides its own. Raises Failed when none answers,
    or one of another generation."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port or _PORTS[parts.scheme]
        except ValueError as error:
            raise Failed(f"--from {url}: {error}") from None
        if not parts.hostname or parts.path.strip("/"):
            raise Failed(f"--from {url}: give it as {parts.scheme}://HOST:PORT")
        settings = Settings(
            chroma_api_impl="chromadb.api.fastapi.FastAPI",
            chroma_server_host=parts.hostname,
            chroma_server_http_port=port,
            chroma_server_ssl_enabled=parts.scheme == "https",
            chroma_server_headers=dict(headers),
            anonymized_telemetry=False,
        )
        super().__init__(settings)
        try:
            version = self.api.get_version()
        except Exception as error:  # whatever an HTTP client and a stranger's answer may raise
            self.close()
            raise Failed(
                f"no Chroma server answers at {url} ({error}); start one with "
                "`chroma run --path DIR`, or give the directory itself; one that asks for "
                "credentials gets them with --header"
            ) from None
        if not version.startswith("1."):
            self.close()
            raise Failed(
                f"the server at {url} is Chroma {version}, whose interface is another one; "
                "bring it to Chroma 1.5.9 first"
            )
