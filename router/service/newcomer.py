"""Whether a node may become a shard: its name and address, what it says, what it holds.

Nothing is changed here but this: a node of a fresh data directory takes on the cluster.
"""

import asyncio
import re
from collections.abc import Sequence

from chroma_router.wire.errors import (
    AlreadyExists,
    ClusterError,
    DeadlineExpired,
    InvalidRequest,
    NotAllowed,
    Reason,
    Unavailable,
    Unsupported,
)
from router.cluster import Cluster
from router.core.model import ShardEntry
from router.shard_client import ShardClient

PATIENCE_SECONDS = 5.0
"""How long a node that is just being started may take until it answers."""

_POLL_SECONDS = 0.1
_NAME = re.compile(r"[A-Za-z0-9._-]{1,63}")
_PORT = re.compile(r"[0-9]{1,5}")
_MAX_PORT = 65_535


def check_name(name: str) -> None:
    """Raises InvalidRequest for what is no shard's name."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"name: a shard's name has 1 to 63 letters, digits, '.', '_' or '-', got {name[:80]!r}"
        )


def check_address(address: str) -> None:
    """Raises InvalidRequest for what is no address of a node."""
    if address.startswith("unix:/"):
        return
    host, _, port = address.rpartition(":")
    plain = host and not any(c.isspace() or c in "/@?#" for c in host) and "://" not in address
    if not plain or not _PORT.fullmatch(port) or not 1 <= int(port) <= _MAX_PORT:
        raise InvalidRequest(
            "address: where a node listens is HOST:PORT or unix:PATH with an absolute path, got "
            f"{address[:120]!r}"
        )


def check_new(name: str, address: str, present: Sequence[ShardEntry]) -> None:
    """Raises AlreadyExists for a name or an address that a shard has; either may be empty."""
    for shard in present:
        if name == shard.name:
            raise AlreadyExists(
                f"shard {name} exists, at {shard.address}; choose another name, or if its node has "
                "moved restart the router with `--shard NAME=ADDRESS`",
                Reason.SHARD_EXISTS,
                metadata={"shard": name},
            )
        if address == shard.address:
            raise AlreadyExists(
                f"shard {shard.name} is at {address} already; give the address of another node",
                Reason.SHARD_EXISTS,
                metadata={"shard": shard.name},
            )


async def check_node(cluster: Cluster, name: str, address: str) -> None:
    """Agrees with the node, and sees that the catalog is not behind it.

    Raises NotAllowed (WRONG_CLUSTER, WRONG_SHARD, PROTOCOL_MISMATCH, CATALOG_BEHIND), Unavailable
    if it does not answer for PATIENCE_SECONDS.
    """
    client = cluster.client(name, address)
    try:
        await _greeted(client)
        # As at the start of a router: only what is seen twice is believed.
        problem = await cluster.behind(client) and await cluster.behind(client)
    finally:
        await client.close()
    if problem:
        raise NotAllowed(
            f"the node at {address} is ahead of the catalog: {problem}; it was a shard of this "
            "cluster and an old catalog was restored since, so restore the newest one, or give the "
            "node an empty data directory",
            Reason.CATALOG_BEHIND,
            metadata={"shard": name},
        )


async def _greeted(client: ShardClient) -> None:
    last: ClusterError = Unavailable("it does not answer")
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    await client.hello()
                except (Unavailable, DeadlineExpired) as error:
                    last = error
                else:
                    return
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise Unavailable(
            f"no shard node served within {PATIENCE_SECONDS:.0f} s: {last.message}. See that "
            f"`chroma-shard-node serve --name {client.name}` runs there and can be reached",
            last.reason if isinstance(last, Unavailable) else Reason.SHARD_UNAVAILABLE,
            metadata={"shard": client.name},
            retry_after=1.0,
        ) from None
    except Unsupported:
        raise NotAllowed(
            f"what serves at {client.address} is no shard node; give the address of one",
            Reason.WRONG_SHARD,
            metadata={"shard": client.name},
        ) from None
