"""A real node in a process of its own, and the calls of its router."""

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import psutil

from chroma_router.v1 import shard_pb2, shard_pb2_grpc, types_pb2
from chroma_router.wire.errors import ClusterError
from chroma_router.wire.records import record_to_bytes
from chroma_router.wire.slots import slots_to_bitmap
from chroma_router.wire.status import from_rpc_error
from shard_node.settings import MESSAGE_BYTES

ROOT = Path(__file__).parents[2]
CLUSTER = "0b8e3f0e-6f0c-4d57-9f0b-3a2d3f1f7f11"
ALL_SLOTS = frozenset(range(1024))
SECONDS = 30.0

ADD, UPDATE, UPSERT, DELETE = 1, 2, 3, 4
DOCUMENTS, METADATAS, EMBEDDINGS, DISTANCES, URIS = 1, 2, 3, 4, 5


def uuid7(age_seconds: float = 0) -> str:
    """A request id made that long ago."""
    milliseconds = int((time.time() - age_seconds) * 1000)
    return str(UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | uuid4().int & (1 << 62) - 1))


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


@dataclass
class Row:
    """A record to write, with its sequence."""

    id: str
    embedding: bytes | None = None
    document: str | None = None
    uri: str | None = None
    metadata: dict[str, Any] | None = None
    sequence: int = 1


@dataclass
class Node:
    """A node process and a channel to it."""

    data: Path
    shard: str = "shard-1"
    listen: str = "127.0.0.1:0"
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> "Node":
        self.log = (self.data.parent / f"{self.data.name}.log").open("ab")
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "shard_node.main", "serve",
                "--name", self.shard, "--data", str(self.data), "--listen", self.listen,
            ],
            stdout=subprocess.PIPE,
            stderr=self.log,
            cwd=ROOT,
            env={**os.environ, **self.environment},
            text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready "), f"{line!r}: {Path(self.log.name).read_text()}"
        self.address = line.split("listen=")[1].strip()
        options = [("grpc.max_receive_message_length", MESSAGE_BYTES)]
        self.channel = grpc.insecure_channel(self.address, options)
        self.stub: Any = shard_pb2_grpc.ShardServiceStub(self.channel)
        return self

    def stop(self) -> int:
        """Its exit code. Does no harm to one that has ended."""
        self.channel.close()
        self.process.terminate()
        return self._ended()

    def kill(self) -> None:
        """As the machine would: the engine goes with it."""
        engine = self.engine()
        self.channel.close()
        self.process.kill()
        self._ended()
        psutil.wait_procs([engine], SECONDS)

    def engine(self) -> psutil.Process:
        return psutil.Process(self.process.pid).children()[0]

    def kill_engine(self) -> None:
        os.kill(self.engine().pid, signal.SIGKILL)

    def _ended(self) -> int:
        code = self.process.wait(SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()
        return code

    # ---------------------------------------------------------------------------- calls

    def call(self, method: str, request: Any, seconds: float = SECONDS) -> Any:
        """Raises the ClusterError that the node sent."""
        try:
            return getattr(self.stub, method)(request, timeout=seconds)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def hello(self, cluster: str = CLUSTER, shard: str = "", version: int = 1) -> Any:
        return self.call(
            "Hello",
            shard_pb2.HelloRequest(
                cluster_id=cluster, shard=shard or self.shard, protocol_version=version
            ),
        )

    def until_serving(self) -> str:
        """After the engine was lost: the new boot_id, as a router would wait for it."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                return str(self.hello().boot_id)
            except ClusterError as error:
                if error.retry_after is None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def until_queued(self, operations: int) -> None:
        """Until so many wait for the writer, or are under way."""
        queued = -1
        while queued != operations:
            stats = self.call("GetShardStats", shard_pb2.GetShardStatsRequest())
            queued = stats.queued_operations

    def collection(
        self, collection_id: str = "", space: str = "l2", **changes: Any
    ) -> "CollectionCalls":
        calls = CollectionCalls(self, collection_id or str(uuid4()), space)
        calls.own(**changes)
        return calls


@dataclass
class CollectionCalls:
    """The calls about one collection at one epoch."""

    node: Node
    id: str
    space: str = "l2"
    epoch: int = 1

    def own(
        self,
        slots: frozenset[int] = ALL_SLOTS,
        epoch: int = 1,
        boot_id: str = "",
        version: int = 1,
        metadata: dict[str, Any] | None = None,
        configuration: str = "",
        schema: str = "",
        seconds: float = SECONDS,
        only: bool = False,
    ) -> Any:
        request = self.ownership(
            slots, epoch, boot_id, version, metadata, configuration, schema, only
        )
        answer = self.node.call("SetOwnership", request, seconds)
        self.epoch = epoch
        return answer

    def ownership(
        self,
        slots: frozenset[int] = ALL_SLOTS,
        epoch: int = 1,
        boot_id: str = "",
        version: int = 1,
        metadata: dict[str, Any] | None = None,
        configuration: str = "",
        schema: str = "",
        only: bool = False,
    ) -> shard_pb2.SetOwnershipRequest:
        """`only`: nothing but the epoch and the slots."""
        definition = shard_pb2.CollectionDefinition(version=version)
        definition.collection.id, definition.collection.epoch = self.id, epoch
        definition.collection.name = "docs"
        definition.collection.configuration_json = (
            configuration or f'{{"hnsw":{{"space":"{self.space}"}}}}'
        )
        definition.collection.schema_json = schema
        for key, value in (metadata or {}).items():
            definition.collection.metadata[key].string_value = value
        return shard_pb2.SetOwnershipRequest(
            definition=definition,
            owned_slots=slots_to_bitmap(slots),
            boot_id=boot_id or self.node.hello().boot_id,
            ownership_only=only,
        )

    def operation(
        self,
        kind: int,
        rows: Sequence[Row | str],
        request_id: str = "",
        index: int = 0,
        **more: Any,
    ) -> shard_pb2.Operation:
        full = [row for row in rows if isinstance(row, Row)]
        return shard_pb2.Operation(
            collection_id=self.id,
            epoch=more.pop("epoch", self.epoch),
            kind=kind,  # type: ignore[arg-type]
            request_id=request_id or uuid7(),
            index=index,
            ids=[row if isinstance(row, str) else row.id for row in rows],
            records=[
                record_to_bytes(r.id, r.embedding, r.document, r.uri, r.metadata) for r in full
            ],
            sequences=[row.sequence for row in full],
            **more,
        )

    def apply(self, *operations: shard_pb2.Operation, seconds: float = SECONDS) -> list[Any]:
        request = shard_pb2.ApplyRequest(operations=operations)
        return list(self.node.call("Apply", request, seconds).results)

    def write(self, kind: int, *rows: Row | str, **more: Any) -> Any:
        """One operation that must succeed."""
        (result,) = self.apply(self.operation(kind, rows, **more))
        assert not result.refused_reason, result
        return result

    def count(self) -> int:
        request = shard_pb2.ShardCountRequest(collection_id=self.id, epoch=self.epoch)
        return int(self.node.call("ShardCount", request).count)

    def page(self, **fields: Any) -> Any:
        fields = {"epoch": self.epoch, "limit": 1000, **fields}
        filter_ = types_pb2.Filter(**fields.pop("filter", {}))
        request = shard_pb2.ShardGetRequest(collection_id=self.id, filter=filter_, **fields)
        return self.node.call("ShardGet", request)

    def ids(self, **fields: Any) -> list[str]:
        return list(self.page(keys_only=True, **fields).ids)

    def records(self, **fields: Any) -> list[types_pb2.Record]:
        fields = {"include": [DOCUMENTS, METADATAS, EMBEDDINGS, URIS], **fields}
        return [types_pb2.Record.FromString(data) for data in self.page(**fields).records]

    def query(self, *embeddings: bytes, **fields: Any) -> list[list[tuple[str, float]]]:
        found = self.answer(*embeddings, **fields)
        return [list(zip(r.ids, r.distances, strict=True)) for r in found.results]

    def answer(self, *embeddings: bytes, n: int = 10, **fields: Any) -> Any:
        filter_ = types_pb2.Filter(**fields.pop("filter", {}))
        seconds = fields.pop("seconds", SECONDS)
        fields = {"epoch": self.epoch, "include": [DISTANCES], **fields}
        request = shard_pb2.ShardQueryRequest(
            collection_id=self.id, embeddings=embeddings, n_results=n, filter=filter_, **fields
        )
        return self.node.call("ShardQuery", request, seconds)


@contextmanager
def running(data: Path, **options: Any) -> Iterator[Node]:
    """A node that has said Hello; stopped at the end if it still runs."""
    node = Node(data, **options).start()
    try:
        node.hello()
        yield node
    finally:
        node.stop()
