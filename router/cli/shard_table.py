"""How shards are shown, as JSON and as rows of a table."""

from typing import TYPE_CHECKING, Any

from router.cli.output import bytes_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chroma_router.v1 import cluster_pb2

COLUMNS = ("shard", "state", "role", "records", "share", "slots", "data", "memory", "queue")
NUMERIC = ("records", "share", "slots", "data", "memory", "queue")


def described(shards: "Iterable[cluster_pb2.Shard]") -> list[dict[str, Any]]:
    """The shards as JSON."""
    from chroma_router.v1.cluster_pb2 import ShardRole, ShardState

    found = list(shards)
    total = sum(shard.records for shard in found)
    return [
        {
            "name": shard.name,
            "state": ShardState.Name(shard.state).removeprefix("SHARD_STATE_").lower(),
            "role": ShardRole.Name(shard.role).removeprefix("SHARD_ROLE_").lower(),
            "records": shard.records,
            "share": shard.records / total if total else 0.0,
            "slots": shard.slots,
            "unowned_records": shard.unowned_records,
            "data_bytes": shard.data_bytes,
            "memory_bytes": shard.memory_bytes,
            "queued_operations": shard.queued_operations,
            "queued_bytes": shard.queued_bytes,
            "address": shard.address,
            "problem": shard.problem,
        }
        for shard in found
    ]


def rows_of(shards: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The shards as rows of a table with COLUMNS."""
    return [
        (
            shard["name"],
            shard["state"],
            shard["role"],
            f"{shard['records']:,}",
            f"{shard['share']:.1%}",
            f"{shard['slots']:,}",
            bytes_text(shard["data_bytes"]),
            bytes_text(shard["memory_bytes"]),
            f"{shard['queued_operations']} ({bytes_text(shard['queued_bytes'])})",
        )
        for shard in shards
    ]


def print_problems(shards: list[dict[str, Any]]) -> None:
    """One line for each shard with which something is wrong."""
    for shard in shards:
        if shard["problem"]:
            print(f"{shard['name']}: {shard['problem']}")
