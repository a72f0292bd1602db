"""Messages between the node and its engine process: a length, then the value in marshal form.

Both ends are one interpreter by construction (the node starts `sys.executable`), so marshal's
version is never in question, and it is the fastest lossless form of plain values in CPython.
"""

import asyncio
import marshal
import socket
import struct
from typing import Any

FRAME_BYTES = 1 << 30  # more than any bounded request can ask for

_HEADER = struct.Struct("<Q")


class FrameTooLarge(ValueError):
    """The value is over the bound of a frame."""


def pack(value: Any) -> list[bytes]:
    """The header and the body of a value's frame."""
    body = marshal.dumps(value)
    if len(body) > FRAME_BYTES:
        raise FrameTooLarge(f"a message of {len(body)} bytes is over the bound of {FRAME_BYTES}")
    return [_HEADER.pack(len(body)), body]


def send(link: socket.socket, frame: list[bytes]) -> None:
    """Sends one packed frame over a blocking socket."""
    for part in frame:
        link.sendall(part)


def receive(link: socket.socket) -> Any:
    """The next value from a blocking socket. Raises EOFError when the other end is gone."""
    return marshal.loads(_exactly(link, _size(_exactly(link, _HEADER.size))))


async def receive_async(reader: asyncio.StreamReader) -> Any:
    """As `receive`, from a stream; asyncio.IncompleteReadError is an EOFError."""
    return marshal.loads(await reader.readexactly(_size(await reader.readexactly(_HEADER.size))))


def _size(header: bytes | bytearray) -> int:
    (size,) = _HEADER.unpack(header)
    if size > FRAME_BYTES:
        raise ConnectionError(f"a frame of {size} bytes: the link is damaged")
    return int(size)


def _exactly(link: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, filled = memoryview(data), 0
    while filled < size:
        got = link.recv_into(view[filled:])
        if got == 0:
            raise EOFError("the node is gone")
        filled += got
    return data
