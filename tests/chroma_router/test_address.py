"""What users write as a router's address."""

import pytest

from chroma_router.address import Address, parse_address


@pytest.mark.parametrize(
    ("host", "port", "target", "secure"),
    [
        ("127.0.0.1", 50051, "127.0.0.1:50051", False),
        ("localhost:7000", 50051, "localhost:7000", False),
        ("::1", 50051, "[::1]:50051", False),
        ("[::1]:7000", None, "[::1]:7000", False),
        ("[fe80::1]", 5, "[fe80::1]:5", False),
        ("grpc://router", 50051, "router:50051", False),
        ("https://router.example:443/", 50051, "router.example:443", True),
        ("grpcs://router", 1, "router:1", True),
        (" router ", 65535, "router:65535", False),
        ("unix:/run/router.sock", 50051, "unix:/run/router.sock", False),
        ("dns:///router:50051", None, "dns:///router:50051", False),
    ],
)
def test_addresses(host: str, port: int | None, target: str, secure: bool) -> None:
    assert parse_address(host, port) == Address(target, secure)


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("", 1),
        ("  ", 1),
        ("router", None),
        ("router", 0),
        ("router", 65536),
        ("router", True),
        ("router:", 1),
        ("router:x", 1),
        ("router:-1", 1),
        ("router/path", 1),
        ("ftp://router", 1),
        ("user@router", 1),
        ("[::1", 1),
        ("[::1]x", 1),
    ],
)
def test_what_is_no_address(host: str, port: int | None) -> None:
    with pytest.raises(ValueError, match=r"address of a router|not a port|no port"):
        parse_address(host, port)
