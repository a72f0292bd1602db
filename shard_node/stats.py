"""How the node is, in numbers; answered from memory, so that a stuck engine cannot delay it."""

import asyncio
import os
import time
from pathlib import Path

from chroma_router.v1 import shard_pb2
from chroma_router.wire.version import VERSION
from shard_node.node import Node

_SIZE_SECONDS = 10.0  # a directory is walked at most so often


class StatsReader:
    """Answers GetShardStats. It owns a remembered size of the data directory."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._data_bytes, self._measure_at = 0, 0.0

    async def read(self) -> shard_pb2.GetShardStatsResponse:
        """See the contract."""
        if time.monotonic() >= self._measure_at:
            self._measure_at = time.monotonic() + _SIZE_SECONDS
            self._data_bytes = await asyncio.to_thread(_size_of, self._node.directory.path)
        node, engine = self._node, self._node.engine_pid
        response = shard_pb2.GetShardStatsResponse(
            shard=node.shard,
            cluster_id=node.cluster_id,
            node_version=VERSION,
            data_bytes=self._data_bytes,
            memory_bytes=_memory_of(os.getpid()) + (_memory_of(engine) if engine else 0),
            memory_limit_bytes=node.memory_limit_bytes,
            queued_operations=node.queued_operations,
        )
        if node.holdings is None:
            return response
        if engine is not None:
            response.boot_id = node.holdings.boot_id
        for collection_id, holding in node.holdings.live.items():
            stats = response.holdings.add(collection_id=collection_id)
            stats.epoch = holding.row.epoch
            stats.slots = sum(byte.bit_count() for byte in holding.row.owned)
            stats.records = sum(
                count
                for slot, count in enumerate(holding.counts)
                if holding.row.owned[slot >> 3] >> (slot & 7) & 1
            )
            stats.unowned_records = holding.total - stats.records
        return response


def _size_of(directory: Path) -> int:
    """Bytes that the files take on disk; files that vanish meanwhile do not count."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += (Path(folder) / name).stat().st_blocks * 512
            except OSError:
                continue
    return total


def _memory_of(pid: int) -> int:
    """Resident bytes of a process; 0 where the system has no /proc."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
