"""Where a router listens: from what a user writes to the target that gRPC dials. Pure."""

from dataclasses import dataclass

_PLAIN = ("grpc://", "http://")
_SECURE = ("grpcs://", "https://")
_MAX_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Address:
    """A gRPC target, and whether the scheme that was written asks for TLS."""

    target: str
    secure: bool


def parse_address(host: str, port: int | None = None) -> Address:
    """The address of `host` and `port`.

    `host` may be a name, an IPv4 or IPv6 address, "NAME:PORT" or "[IPV6]:PORT" (whose port wins),
    any of these behind grpc://, grpcs://, http:// or https://, or a gRPC target of its own kind
    ("unix:PATH", "dns:///NAME:PORT"), which is taken as it is. Raises ValueError for anything else.
    """
    text, secure = host.strip(), False
    if text.startswith(("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:")):
        return Address(text, secure=False)
    for scheme in (*_PLAIN, *_SECURE):
        if text.lower().startswith(scheme):
            text, secure = text[len(scheme) :].rstrip("/"), scheme in _SECURE
            break
    name, written = _split(text)
    if not name or any(c in name for c in "/ \t\n@?#"):
        raise ValueError(f"not the address of a router: {host!r}; write a host name, or NAME:PORT")
    chosen = written if written is not None else port
    if chosen is None:
        raise ValueError(f"no port for {host!r}; give port=50051 or write {name}:50051")
    if isinstance(chosen, bool) or not 1 <= chosen <= _MAX_PORT:
        raise ValueError(f"not a port: {chosen!r}; a port is a number from 1 to {_MAX_PORT}")
    return Address(f"[{name}]:{chosen}" if ":" in name else f"{name}:{chosen}", secure)


def _split(text: str) -> tuple[str, int | None]:
    """The name and the port in "NAME", "NAME:PORT", "IPV6" or "[IPV6]:PORT"."""
    if text.startswith("["):
        name, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return "", None
        return name, _port(rest[1:]) if rest else None
    if text.count(":") == 1:
        name, _, written = text.partition(":")
        return name, _port(written)
    return text, None  # an IPv6 address has several colons, a name has none


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"not a port: {text!r}; a port is a number from 1 to {_MAX_PORT}")
    return int(text)
