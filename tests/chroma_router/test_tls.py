"""TLS and the API key, against a real TLS server with a certificate made for the test."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import chroma_router
from chroma_router.errors import UnavailableError
from tests.chroma_router.scripted import Script, serving

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")

ONCE = chroma_router.RetryPolicy(max_attempts=1)


@pytest.fixture(name="certificate", scope="module")
def _certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1; its key stands beside it as `key`."""
    directory: Path = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(directory / "key"), "-out", str(directory / "certificate")),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return directory / "certificate"


@pytest.fixture(name="script")
def _script(certificate: Path) -> Iterator[Script]:
    pair = (certificate.with_name("key").read_bytes(), certificate.read_bytes())
    with serving(Script(), credentials=grpc.ssl_server_credentials([pair])) as script:
        yield script


@pytest.fixture(name="trusted")
def _trusted(certificate: Path) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(certificate.read_bytes())


def test_credentials_make_a_secure_channel_and_the_key_travels_in_it(
    script: Script, trusted: grpc.ChannelCredentials
) -> None:
    with chroma_router.Client(
        "127.0.0.1", script.port, tls=trusted, api_key="secret", timeout=10
    ) as client:
        assert client.heartbeat() == 123
    assert script.seen
    assert all(seen["authorization"] == "Bearer secret" for _, _, seen in script.seen)


async def test_the_async_client_likewise(script: Script, trusted: grpc.ChannelCredentials) -> None:
    client = await chroma_router.AsyncClient(
        "127.0.0.1", script.port, tls=trusted, api_key="secret", timeout=10
    )
    assert await client.heartbeat() == 123
    admin = chroma_router.AsyncAdminClient(
        "127.0.0.1", script.port, tls=trusted, api_key="secret", timeout=10
    )
    assert await admin.get_tenant("somebody") == {"name": "somebody"}
    assert all(seen["authorization"] == "Bearer secret" for _, _, seen in script.seen)


@pytest.mark.parametrize("tls", [True, False])
def test_neither_a_stranger_nor_plain_text_is_trusted(script: Script, tls: bool) -> None:
    with pytest.raises(UnavailableError):
        chroma_router.Client("127.0.0.1", script.port, tls=tls, timeout=5, retry=ONCE)
    assert not script.seen


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "grpcs://127.0.0.1:{port}"])
def test_tls_alone_trusts_the_roots_of_the_system(
    script: Script, certificate: Path, address: str
) -> None:
    given = address.format(port=script.port)
    tls = "" if given.startswith("grpcs") else ", tls=True"
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            f"import chroma_router as c; print(c.Client({given!r}{tls}, timeout=20).heartbeat())",
        ],
        env={**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(certificate)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "123\n", done.stderr
