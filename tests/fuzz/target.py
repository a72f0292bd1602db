"""The cluster under fuzz: its calls, what they may answer, and how to see that it is still well."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import psutil
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from chroma_router.v1 import (
    catalog_pb2,
    catalog_pb2_grpc,
    cluster_pb2,
    cluster_pb2_grpc,
    records_pb2,
    records_pb2_grpc,
    shard_pb2,
    shard_pb2_grpc,
    types_pb2,
)
from chroma_router.wire.errors import Reason
from chroma_router.wire.status import from_rpc_error
from tests.fuzz.messages import Words
from tests.fuzz.values import GOOD_EMBEDDING, RANKS, floats, search_of
from tests.support.cluster import RunningCluster

Code = grpc.StatusCode

ALLOWED = {
    Code.INVALID_ARGUMENT,
    Code.RESOURCE_EXHAUSTED,
    Code.NOT_FOUND,
    Code.ALREADY_EXISTS,
    Code.UNIMPLEMENTED,
    Code.FAILED_PRECONDITION,
    Code.ABORTED,
}
"""What a hostile message may be refused with. UNKNOWN too, but only where it is the truth about a
write whose request id is too old."""

DEADLINE = 20.0
"""Seconds of each call; to pass it is a failure."""

TENANT, DATABASE = "fuzz-tenant", "fuzz-database"
VICTIMS = ("victim-l2", "victim-cosine", "victim-empty")
SHARD_VICTIM = str(uuid.UUID(int=0xF))
ALL_SLOTS = b"\xff" * 128
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]

_SERVICES = (records_pb2, catalog_pb2, cluster_pb2, shard_pb2)
# They would delete everything, or begin and end processes, rightly.
_NOT_CALLED = {"Reset", "AddShard", "RemoveShard"}


@dataclass(repr=False)
class Method:
    """One call: how to make it, and good requests to begin from."""

    name: str
    channel: grpc.Channel
    path: str
    input: Descriptor
    streams: tuple[bool, bool]
    seeds: list[Message]
    raw: list[bytes] = field(default_factory=list)

    def __repr__(self) -> str:
        return self.name

    def call(self, *messages: bytes) -> list[bytes]:
        """Its answers to these bytes; several only where the client may stream."""
        kind = {
            (False, False): self.channel.unary_unary,
            (False, True): self.channel.unary_stream,
            (True, True): self.channel.stream_stream,
        }[self.streams]
        make: Any = kind(self.path)
        if self.streams[0]:
            return list(make(iter(messages), timeout=DEADLINE))
        if self.streams[1]:
            return list(make(messages[0], timeout=DEADLINE))
        return [make(messages[0], timeout=DEADLINE)]


class Target:
    """A cluster of its own, with collections to be hurt and one, the canary, that must not be."""

    def __init__(self, cluster: RunningCluster) -> None:
        self._process = psutil.Process(cluster.process.pid)
        self._router = grpc.insecure_channel(cluster.address, options=OPTIONS)
        self._records = records_pb2_grpc.RecordServiceStub(self._router)
        self._catalog = catalog_pb2_grpc.CatalogServiceStub(self._router)
        status = cluster_pb2_grpc.ClusterServiceStub(self._router).GetStatus(
            cluster_pb2.GetStatusRequest()
        )
        self._shard = status.shards[0]
        self._cluster_id = status.cluster_id
        self._node = grpc.insecure_channel(self._shard.address, options=OPTIONS)
        self._shards = shard_pb2_grpc.ShardServiceStub(self._node)
        self._make_canary()
        self.words = Words([])
        self.methods: dict[str, Method] = {}
        self.restore()
        self._pids = self._alive()

    def close(self) -> None:
        """Ends the channels."""
        self._router.close()
        self._node.close()

    # ---------------------------------------------------------------------------- the victims

    def restore(self) -> None:
        """Makes the victims again where they were deleted, and the good requests about them."""
        database = catalog_pb2.CreateDatabaseRequest(name=DATABASE, tenant=TENANT)
        makes: list[tuple[Any, Message]] = [
            (self._catalog.CreateTenant, catalog_pb2.CreateTenantRequest(name=TENANT)),
            (self._catalog.CreateDatabase, database),
        ]
        for make, request in makes:
            try:
                make(request, timeout=DEADLINE)
            except grpc.RpcError as error:
                if from_rpc_error(error).code != Code.ALREADY_EXISTS.value[0]:
                    raise
        made = [self._victim(name) for name in VICTIMS]
        for ref in made[:2]:
            self._records.Upsert(
                records_pb2.UpsertRequest(collection=ref, records=_records()), timeout=DEADLINE
            )
        hello = shard_pb2.HelloRequest(
            cluster_id=self._cluster_id, shard=self._shard.name, protocol_version=1
        )
        boot = self._shards.Hello(hello).boot_id
        ids = [ref.id for ref in made]
        self.words = Words(
            [
                *VICTIMS,
                *ids,
                ids[0].upper(),
                TENANT,
                DATABASE,
                SHARD_VICTIM,
                boot,
                self._cluster_id,
            ],
            [record.SerializeToString() for record in _records()[:2]] + [ALL_SLOTS],
        )
        self.methods = {
            method.name: method for method in self._described(_seeds(made, hello, boot), made[0])
        }

    def _victim(self, name: str) -> types_pb2.CollectionRef:
        space = "cosine" if "cosine" in name else "l2"
        request = catalog_pb2.CreateCollectionRequest(
            name=name,
            tenant=TENANT,
            database=DATABASE,
            get_or_create=True,
            metadata={"hnsw:space": types_pb2.MetadataValue(string_value=space)},
        )
        answer = self._catalog.CreateCollection(request, timeout=DEADLINE)
        return types_pb2.CollectionRef(id=answer.collection.id)

    def _described(
        self, seeds: list[Message], collection: types_pb2.CollectionRef
    ) -> Iterator[Method]:
        for service in (s for file in _SERVICES for s in file.DESCRIPTOR.services_by_name.values()):
            channel = self._node if service.name == "ShardService" else self._router
            for method in service.methods:
                if method.name in _NOT_CALLED:
                    continue
                kind: Any = method.input_type._concrete_class
                yield Method(
                    name=method.name,
                    channel=channel,
                    path=f"/{service.full_name}/{method.name}",
                    input=method.input_type,
                    streams=(method.client_streaming, method.server_streaming),
                    seeds=[kind(), *(seed for seed in seeds if isinstance(seed, kind))],
                    raw=[search_of(r, collection) for r in RANKS]
                    if method.name == "Search"
                    else [],
                )

    # ---------------------------------------------------------------------------- the oracle

    def check(self, method: Method, *messages: bytes) -> None:
        """Makes a call and judges its answer."""
        try:
            answers = method.call(*messages)
        except grpc.RpcError as raised:
            code, text = raised.code(), raised.details() or ""
            reason = from_rpc_error(raised).reason
            self._judge(method, code, text, reason)
            return
        if method.name == "Apply":
            for result in shard_pb2.ApplyResponse.FromString(answers[0]).results:
                assert result.refused_reason != Reason.INTERNAL, (method.name, result.message)
        if method.streams[0]:
            for data in answers:
                error = records_pb2.BulkUpsertResponse.FromString(data).error
                if error.code:
                    code = next(c for c in Code if c.value[0] == error.code)
                    self._judge(method, code, error.message, Reason(error.reason))

    @staticmethod
    def _judge(method: Method, code: Any, text: str, reason: Reason) -> None:
        where = f"{method.name}: {code.name} {text}"
        assert code in ALLOWED or reason is Reason.UNKNOWN_OUTCOME, where
        assert "Traceback" not in text, where
        if code is Code.INVALID_ARGUMENT:
            assert any(word in text.lower() for word in _vocabulary(method.input)), (
                f"it names nothing of the request: {where}"
            )

    def memory(self) -> int:
        """Bytes that all processes of the cluster hold."""
        return sum(p.memory_info().rss for p in (self._process, *self._process.children(True)))

    def check_alive(self) -> None:
        """No process has been begun anew, and the canary answers as ever."""
        assert self._alive() == self._pids, "a process was restarted"
        count = records_pb2.CountRequest(collection=self._canary)
        assert self._records.Count(count, timeout=DEADLINE).count == len(_records())
        got = self._records.Get(
            records_pb2.GetRequest(collection=self._canary, include=_EVERYTHING), timeout=DEADLINE
        )
        assert list(got.records) == _records()
        query = records_pb2.QueryRequest(
            collection=self._canary, embeddings=[_records()[3].embedding], n_results=2
        )
        hits = self._records.Query(query, timeout=DEADLINE).results[0].hits
        assert [hit.record.id for hit in hits] == ["id-3", "id-2"]
        again = records_pb2.UpsertRequest(collection=self._canary, records=_records()[:1])
        self._records.Upsert(again, timeout=DEADLINE)

    def _alive(self) -> set[int]:
        return {process.pid for process in self._process.children(recursive=True)}

    def _make_canary(self) -> None:
        """In a tenant whose name no message can guess."""
        tenant = str(uuid.uuid4())
        self._catalog.CreateTenant(catalog_pb2.CreateTenantRequest(name=tenant))
        self._catalog.CreateDatabase(
            catalog_pb2.CreateDatabaseRequest(name="canary", tenant=tenant)
        )
        made = self._catalog.CreateCollection(
            catalog_pb2.CreateCollectionRequest(name="canary", tenant=tenant, database="canary")
        )
        self._canary = types_pb2.CollectionRef(id=made.collection.id)
        self._records.Add(records_pb2.AddRequest(collection=self._canary, records=_records()))


_EVERYTHING = [
    types_pb2.INCLUDE_DOCUMENTS,
    types_pb2.INCLUDE_METADATAS,
    types_pb2.INCLUDE_EMBEDDINGS,
    types_pb2.INCLUDE_URIS,
]


def _records() -> list[types_pb2.Record]:
    """Twenty good ones, each nearest to the one before it or after."""
    return [
        types_pb2.Record(
            id=f"id-{n}",
            embedding=floats(1.01**n, n, 1, 2),
            document=f"document {n} a",
            metadata={"n": types_pb2.MetadataValue(int_value=n)},
        )
        for n in range(20)
    ]


def _vocabulary(descriptor: Descriptor) -> set[str]:
    """The names of a message's fields, of those inside it too, and the words of Chroma's own
    refusals for a part of them."""
    seen: set[str] = set()
    words = {"message", "request", "batch", "regex"}
    left = [descriptor]
    while left:
        here = left.pop()
        if here.full_name in seen:
            continue
        seen.add(here.full_name)
        for part in here.fields:
            words.update(part.name.split("_"), {part.name})
            if part.message_type is not None:
                left.append(part.message_type)
    return {word.removesuffix("s") for word in words}


def _seeds(
    victims: list[types_pb2.CollectionRef], hello: shard_pb2.HelloRequest, boot: str
) -> list[Message]:
    """Good requests of every method."""
    return [*_router_seeds(victims), *_shard_seeds(hello, boot)]


def _router_seeds(victims: list[types_pb2.CollectionRef]) -> Iterator[Message]:
    named = types_pb2.CollectionRef(tenant=TENANT, database=DATABASE, name=VICTIMS[0])
    chosen = types_pb2.Filter(ids=["id-1", "id-2"], by_ids=True)
    matching = types_pb2.Filter(where='{"n": {"$gte": 3}}', where_document='{"$contains": "a"}')
    for ref in (*victims, named):
        for write in (
            records_pb2.AddRequest,
            records_pb2.UpsertRequest,
            records_pb2.UpdateRequest,
            records_pb2.BulkUpsertRequest,
        ):
            yield write(collection=ref, records=_records()[:2], request_id=str(uuid.uuid4()))
        for which in (chosen, matching):
            yield records_pb2.GetRequest(
                collection=ref, filter=which, limit=5, offset=1, include=_EVERYTHING
            )
            yield records_pb2.QueryRequest(
                collection=ref, embeddings=[GOOD_EMBEDDING], n_results=3, filter=which,
                include=_EVERYTHING,
            )  # fmt: skip
            yield records_pb2.ScanRequest(collection=ref, filter=which, include=_EVERYTHING)
            yield records_pb2.DeleteRequest(collection=ref, filter=which)
        yield records_pb2.GetRequest(collection=ref)
        yield records_pb2.CountRequest(collection=ref)
        yield records_pb2.DeleteRequest(collection=ref, filter=matching, limit=1)
        rank = records_pb2.Rank(knn=records_pb2.KnnRank(embedding=GOOD_EMBEDDING, limit=3))
        search = records_pb2.Search(filter=matching, rank=rank, limit=3, select=["#score", "n"])
        yield records_pb2.SearchRequest(collection=ref, searches=[search])
        yield catalog_pb2.GetCollectionRequest(collection=ref)
        yield catalog_pb2.DeleteCollectionRequest(collection=ref)
        yield catalog_pb2.UpdateCollectionRequest(
            collection=ref, new_configuration_json='{"hnsw": {"ef_search": 50}}'
        )
    place: dict[str, Any] = {"tenant": TENANT, "database": DATABASE}
    yield catalog_pb2.CreateCollectionRequest(name="made", get_or_create=True, **place)
    yield catalog_pb2.CreateTenantRequest(name="made-tenant")
    yield catalog_pb2.GetTenantRequest(name=TENANT)
    yield catalog_pb2.CreateDatabaseRequest(name="made-database", tenant=TENANT)
    yield catalog_pb2.GetDatabaseRequest(name=DATABASE, tenant=TENANT)
    yield catalog_pb2.DeleteDatabaseRequest(name="made-database", tenant=TENANT)
    yield catalog_pb2.ListDatabasesRequest(tenant=TENANT, limit=3)
    yield catalog_pb2.ListCollectionsRequest(limit=3, **place)
    yield catalog_pb2.CountCollectionsRequest(**place)


def _shard_seeds(hello: shard_pb2.HelloRequest, boot: str) -> Iterator[Message]:
    records = _records()[:3]
    here: dict[str, Any] = {"collection_id": SHARD_VICTIM, "epoch": 5}
    everything: dict[str, Any] = {"include": _EVERYTHING}
    matching = types_pb2.Filter(where='{"n": {"$gte": 3}}', where_document='{"$contains": "a"}')
    yield hello
    definition = shard_pb2.CollectionDefinition(
        collection=types_pb2.Collection(
            id=SHARD_VICTIM, name="shard-victim", tenant=TENANT, database=DATABASE, epoch=5
        ),
        version=1,
    )
    yield shard_pb2.SetOwnershipRequest(definition=definition, owned_slots=ALL_SLOTS, boot_id=boot)
    yield shard_pb2.DropCollectionRequest(collection_id=str(uuid.uuid4()), epoch=5)
    for kind in (
        shard_pb2.OPERATION_KIND_ADD,
        shard_pb2.OPERATION_KIND_UPDATE,
        shard_pb2.OPERATION_KIND_UPSERT,
    ):
        write = shard_pb2.Operation(
            kind=kind,
            request_id=str(uuid.uuid4()),
            records=[record.SerializeToString() for record in records],
            ids=[record.id for record in records],
            sequences=range(1, 4) if kind != shard_pb2.OPERATION_KIND_UPDATE else (),
            **here,
        )
        yield shard_pb2.ApplyRequest(operations=[write])
    delete = shard_pb2.Operation(
        kind=shard_pb2.OPERATION_KIND_DELETE, request_id="d", where='{"n": 1}', **here
    )
    yield shard_pb2.ApplyRequest(operations=[delete])
    embeddings = [GOOD_EMBEDDING]
    for which in (types_pb2.Filter(), matching):
        yield shard_pb2.ShardQueryRequest(
            embeddings=embeddings, n_results=3, filter=which, **here, **everything
        )
        yield shard_pb2.ShardGetRequest(filter=which, limit=10, **here, **everything)
    yield shard_pb2.ShardGetRequest(limit=10, keys_only=True, deleted_by="d", **here)
    yield shard_pb2.ShardGetRequest(limit=10, order=shard_pb2.ROW_ORDER_SLOT, **here)
    yield shard_pb2.ShardCountRequest(**here)
