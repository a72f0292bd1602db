from chroma_router.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OperationKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_KIND_UNSPECIFIED: _ClassVar[OperationKind]
    OPERATION_KIND_ADD: _ClassVar[OperationKind]
    OPERATION_KIND_UPDATE: _ClassVar[OperationKind]
    OPERATION_KIND_UPSERT: _ClassVar[OperationKind]
    OPERATION_KIND_DELETE: _ClassVar[OperationKind]

class RowOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROW_ORDER_UNSPECIFIED: _ClassVar[RowOrder]
    ROW_ORDER_SLOT: _ClassVar[RowOrder]
OPERATION_KIND_UNSPECIFIED: OperationKind
OPERATION_KIND_ADD: OperationKind
OPERATION_KIND_UPDATE: OperationKind
OPERATION_KIND_UPSERT: OperationKind
OPERATION_KIND_DELETE: OperationKind
ROW_ORDER_UNSPECIFIED: RowOrder
ROW_ORDER_SLOT: RowOrder

class HelloRequest(_message.Message):
    __slots__ = ("cluster_id", "shard", "protocol_version", "router_version")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    shard: str
    protocol_version: int
    router_version: str
    def __init__(self, cluster_id: _Optional[str] = ..., shard: _Optional[str] = ..., protocol_version: _Optional[int] = ..., router_version: _Optional[str] = ...) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("boot_id", "protocol_version", "node_version", "format_version", "high_sequence")
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    NODE_VERSION_FIELD_NUMBER: _ClassVar[int]
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    HIGH_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    boot_id: str
    protocol_version: int
    node_version: str
    format_version: int
    high_sequence: int
    def __init__(self, boot_id: _Optional[str] = ..., protocol_version: _Optional[int] = ..., node_version: _Optional[str] = ..., format_version: _Optional[int] = ..., high_sequence: _Optional[int] = ...) -> None: ...

class CollectionDefinition(_message.Message):
    __slots__ = ("collection", "database_id", "created_at", "version")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    DATABASE_ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    collection: _types_pb2.Collection
    database_id: str
    created_at: int
    version: int
    def __init__(self, collection: _Optional[_Union[_types_pb2.Collection, _Mapping]] = ..., database_id: _Optional[str] = ..., created_at: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class SetOwnershipRequest(_message.Message):
    __slots__ = ("definition", "owned_slots", "boot_id", "ownership_only")
    DEFINITION_FIELD_NUMBER: _ClassVar[int]
    OWNED_SLOTS_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    OWNERSHIP_ONLY_FIELD_NUMBER: _ClassVar[int]
    definition: CollectionDefinition
    owned_slots: bytes
    boot_id: str
    ownership_only: bool
    def __init__(self, definition: _Optional[_Union[CollectionDefinition, _Mapping]] = ..., owned_slots: _Optional[bytes] = ..., boot_id: _Optional[str] = ..., ownership_only: _Optional[bool] = ...) -> None: ...

class SetOwnershipResponse(_message.Message):
    __slots__ = ("high_sequence", "configuration_json", "schema_json")
    HIGH_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_JSON_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_JSON_FIELD_NUMBER: _ClassVar[int]
    high_sequence: int
    configuration_json: str
    schema_json: str
    def __init__(self, high_sequence: _Optional[int] = ..., configuration_json: _Optional[str] = ..., schema_json: _Optional[str] = ...) -> None: ...

class DropCollectionRequest(_message.Message):
    __slots__ = ("collection_id", "epoch")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    epoch: int
    def __init__(self, collection_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class DropCollectionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Operation(_message.Message):
    __slots__ = ("collection_id", "epoch", "kind", "request_id", "index", "records", "ids", "sequences", "where", "where_document", "digest")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    WHERE_DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    epoch: int
    kind: OperationKind
    request_id: str
    index: int
    records: _containers.RepeatedScalarFieldContainer[bytes]
    ids: _containers.RepeatedScalarFieldContainer[str]
    sequences: _containers.RepeatedScalarFieldContainer[int]
    where: str
    where_document: str
    digest: int
    def __init__(self, collection_id: _Optional[str] = ..., epoch: _Optional[int] = ..., kind: _Optional[_Union[OperationKind, str]] = ..., request_id: _Optional[str] = ..., index: _Optional[int] = ..., records: _Optional[_Iterable[bytes]] = ..., ids: _Optional[_Iterable[str]] = ..., sequences: _Optional[_Iterable[int]] = ..., where: _Optional[str] = ..., where_document: _Optional[str] = ..., digest: _Optional[int] = ...) -> None: ...

class ApplyRequest(_message.Message):
    __slots__ = ("operations",)
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    operations: _containers.RepeatedCompositeFieldContainer[Operation]
    def __init__(self, operations: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ...) -> None: ...

class OperationResult(_message.Message):
    __slots__ = ("refused_reason", "message", "deleted", "node_epoch")
    REFUSED_REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    NODE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    refused_reason: str
    message: str
    deleted: int
    node_epoch: int
    def __init__(self, refused_reason: _Optional[str] = ..., message: _Optional[str] = ..., deleted: _Optional[int] = ..., node_epoch: _Optional[int] = ...) -> None: ...

class ApplyResponse(_message.Message):
    __slots__ = ("results", "apply_microseconds", "boot_id")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    APPLY_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[OperationResult]
    apply_microseconds: int
    boot_id: str
    def __init__(self, results: _Optional[_Iterable[_Union[OperationResult, _Mapping]]] = ..., apply_microseconds: _Optional[int] = ..., boot_id: _Optional[str] = ...) -> None: ...

class ShardQueryRequest(_message.Message):
    __slots__ = ("collection_id", "epoch", "embeddings", "n_results", "filter", "include", "ids_must_exist")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    N_RESULTS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    IDS_MUST_EXIST_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    epoch: int
    embeddings: _containers.RepeatedScalarFieldContainer[bytes]
    n_results: int
    filter: _types_pb2.Filter
    include: _containers.RepeatedScalarFieldContainer[_types_pb2.Include]
    ids_must_exist: bool
    def __init__(self, collection_id: _Optional[str] = ..., epoch: _Optional[int] = ..., embeddings: _Optional[_Iterable[bytes]] = ..., n_results: _Optional[int] = ..., filter: _Optional[_Union[_types_pb2.Filter, _Mapping]] = ..., include: _Optional[_Iterable[_Union[_types_pb2.Include, str]]] = ..., ids_must_exist: _Optional[bool] = ...) -> None: ...

class ShardQueryResult(_message.Message):
    __slots__ = ("ids", "distances", "hits")
    IDS_FIELD_NUMBER: _ClassVar[int]
    DISTANCES_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    distances: _containers.RepeatedScalarFieldContainer[float]
    hits: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., distances: _Optional[_Iterable[float]] = ..., hits: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ShardQueryResponse(_message.Message):
    __slots__ = ("results", "owned_records")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    OWNED_RECORDS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ShardQueryResult]
    owned_records: int
    def __init__(self, results: _Optional[_Iterable[_Union[ShardQueryResult, _Mapping]]] = ..., owned_records: _Optional[int] = ...) -> None: ...

class Position(_message.Message):
    __slots__ = ("sequence", "id")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    id: str
    def __init__(self, sequence: _Optional[int] = ..., id: _Optional[str] = ...) -> None: ...

class ShardGetRequest(_message.Message):
    __slots__ = ("collection_id", "epoch", "filter", "after", "limit", "keys_only", "include", "max_bytes", "deleted_by", "order")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    KEYS_ONLY_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    DELETED_BY_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    epoch: int
    filter: _types_pb2.Filter
    after: Position
    limit: int
    keys_only: bool
    include: _containers.RepeatedScalarFieldContainer[_types_pb2.Include]
    max_bytes: int
    deleted_by: str
    order: RowOrder
    def __init__(self, collection_id: _Optional[str] = ..., epoch: _Optional[int] = ..., filter: _Optional[_Union[_types_pb2.Filter, _Mapping]] = ..., after: _Optional[_Union[Position, _Mapping]] = ..., limit: _Optional[int] = ..., keys_only: _Optional[bool] = ..., include: _Optional[_Iterable[_Union[_types_pb2.Include, str]]] = ..., max_bytes: _Optional[int] = ..., deleted_by: _Optional[str] = ..., order: _Optional[_Union[RowOrder, str]] = ...) -> None: ...

class ShardGetResponse(_message.Message):
    __slots__ = ("ids", "sequences", "records", "more", "deleted_before", "delete_complete", "owned_records")
    IDS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    DELETED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    DELETE_COMPLETE_FIELD_NUMBER: _ClassVar[int]
    OWNED_RECORDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    sequences: _containers.RepeatedScalarFieldContainer[int]
    records: _containers.RepeatedScalarFieldContainer[bytes]
    more: bool
    deleted_before: int
    delete_complete: bool
    owned_records: int
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., sequences: _Optional[_Iterable[int]] = ..., records: _Optional[_Iterable[bytes]] = ..., more: _Optional[bool] = ..., deleted_before: _Optional[int] = ..., delete_complete: _Optional[bool] = ..., owned_records: _Optional[int] = ...) -> None: ...

class ShardCountRequest(_message.Message):
    __slots__ = ("collection_id", "epoch")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    epoch: int
    def __init__(self, collection_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class ShardCountResponse(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class GetShardStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetShardStatsResponse(_message.Message):
    __slots__ = ("shard", "cluster_id", "boot_id", "node_version", "data_bytes", "memory_bytes", "holdings", "memory_limit_bytes", "queued_operations")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUEUED_OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    shard: str
    cluster_id: str
    boot_id: str
    node_version: str
    data_bytes: int
    memory_bytes: int
    holdings: _containers.RepeatedCompositeFieldContainer[HoldingStats]
    memory_limit_bytes: int
    queued_operations: int
    def __init__(self, shard: _Optional[str] = ..., cluster_id: _Optional[str] = ..., boot_id: _Optional[str] = ..., node_version: _Optional[str] = ..., data_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., holdings: _Optional[_Iterable[_Union[HoldingStats, _Mapping]]] = ..., memory_limit_bytes: _Optional[int] = ..., queued_operations: _Optional[int] = ...) -> None: ...

class HoldingStats(_message.Message):
    __slots__ = ("collection_id", "epoch", "slots", "records", "unowned_records")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    UNOWNED_RECORDS_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    epoch: int
    slots: int
    records: int
    unowned_records: int
    def __init__(self, collection_id: _Optional[str] = ..., epoch: _Optional[int] = ..., slots: _Optional[int] = ..., records: _Optional[int] = ..., unowned_records: _Optional[int] = ...) -> None: ...

class ListHoldingsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListHoldingsResponse(_message.Message):
    __slots__ = ("definition", "owned_slots", "dropped")
    DEFINITION_FIELD_NUMBER: _ClassVar[int]
    OWNED_SLOTS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    definition: CollectionDefinition
    owned_slots: bytes
    dropped: bool
    def __init__(self, definition: _Optional[_Union[CollectionDefinition, _Mapping]] = ..., owned_slots: _Optional[bytes] = ..., dropped: _Optional[bool] = ...) -> None: ...

class ListSlotCountsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSlotCountsResponse(_message.Message):
    __slots__ = ("collection_id", "epoch", "counts", "record_bytes")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    RECORD_BYTES_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    epoch: int
    counts: _containers.RepeatedScalarFieldContainer[int]
    record_bytes: int
    def __init__(self, collection_id: _Optional[str] = ..., epoch: _Optional[int] = ..., counts: _Optional[_Iterable[int]] = ..., record_bytes: _Optional[int] = ...) -> None: ...

class MoveRef(_message.Message):
    __slots__ = ("move_id", "collection_id", "token", "slots")
    MOVE_ID_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    move_id: str
    collection_id: str
    token: int
    slots: bytes
    def __init__(self, move_id: _Optional[str] = ..., collection_id: _Optional[str] = ..., token: _Optional[int] = ..., slots: _Optional[bytes] = ...) -> None: ...

class MoveCursor(_message.Message):
    __slots__ = ("capture_id", "copied", "copy_done", "changed_batch", "changed_id", "outcome_batch")
    CAPTURE_ID_FIELD_NUMBER: _ClassVar[int]
    COPIED_FIELD_NUMBER: _ClassVar[int]
    COPY_DONE_FIELD_NUMBER: _ClassVar[int]
    CHANGED_BATCH_FIELD_NUMBER: _ClassVar[int]
    CHANGED_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_BATCH_FIELD_NUMBER: _ClassVar[int]
    capture_id: str
    copied: Position
    copy_done: bool
    changed_batch: int
    changed_id: str
    outcome_batch: int
    def __init__(self, capture_id: _Optional[str] = ..., copied: _Optional[_Union[Position, _Mapping]] = ..., copy_done: _Optional[bool] = ..., changed_batch: _Optional[int] = ..., changed_id: _Optional[str] = ..., outcome_batch: _Optional[int] = ...) -> None: ...

class MovedOutcome(_message.Message):
    __slots__ = ("request_id", "index", "kind", "slots", "deleted_slots", "at", "digest")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    DELETED_SLOTS_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    index: int
    kind: OperationKind
    slots: _containers.RepeatedScalarFieldContainer[int]
    deleted_slots: _containers.RepeatedScalarFieldContainer[int]
    at: int
    digest: int
    def __init__(self, request_id: _Optional[str] = ..., index: _Optional[int] = ..., kind: _Optional[_Union[OperationKind, str]] = ..., slots: _Optional[_Iterable[int]] = ..., deleted_slots: _Optional[_Iterable[int]] = ..., at: _Optional[int] = ..., digest: _Optional[int] = ...) -> None: ...

class MoveComparison(_message.Message):
    __slots__ = ("after", "upto", "records", "sequences")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    UPTO_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    after: Position
    upto: Position
    records: _containers.RepeatedScalarFieldContainer[bytes]
    sequences: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, after: _Optional[_Union[Position, _Mapping]] = ..., upto: _Optional[_Union[Position, _Mapping]] = ..., records: _Optional[_Iterable[bytes]] = ..., sequences: _Optional[_Iterable[int]] = ...) -> None: ...

class MoveChunk(_message.Message):
    __slots__ = ("begin", "end", "records", "sequences", "removed", "outcomes", "comparison", "fenced")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    COMPARISON_FIELD_NUMBER: _ClassVar[int]
    FENCED_FIELD_NUMBER: _ClassVar[int]
    begin: MoveCursor
    end: MoveCursor
    records: _containers.RepeatedScalarFieldContainer[bytes]
    sequences: _containers.RepeatedScalarFieldContainer[int]
    removed: _containers.RepeatedScalarFieldContainer[str]
    outcomes: _containers.RepeatedCompositeFieldContainer[MovedOutcome]
    comparison: MoveComparison
    fenced: bool
    def __init__(self, begin: _Optional[_Union[MoveCursor, _Mapping]] = ..., end: _Optional[_Union[MoveCursor, _Mapping]] = ..., records: _Optional[_Iterable[bytes]] = ..., sequences: _Optional[_Iterable[int]] = ..., removed: _Optional[_Iterable[str]] = ..., outcomes: _Optional[_Iterable[_Union[MovedOutcome, _Mapping]]] = ..., comparison: _Optional[_Union[MoveComparison, _Mapping]] = ..., fenced: _Optional[bool] = ...) -> None: ...

class BeginCaptureRequest(_message.Message):
    __slots__ = ("move",)
    MOVE_FIELD_NUMBER: _ClassVar[int]
    move: MoveRef
    def __init__(self, move: _Optional[_Union[MoveRef, _Mapping]] = ...) -> None: ...

class BeginCaptureResponse(_message.Message):
    __slots__ = ("capture_id", "records")
    CAPTURE_ID_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    capture_id: str
    records: int
    def __init__(self, capture_id: _Optional[str] = ..., records: _Optional[int] = ...) -> None: ...

class ReadMoveRequest(_message.Message):
    __slots__ = ("move", "begin", "max_records", "max_bytes", "compare", "compared")
    MOVE_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    MAX_RECORDS_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPARE_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    move: MoveRef
    begin: MoveCursor
    max_records: int
    max_bytes: int
    compare: bool
    compared: Position
    def __init__(self, move: _Optional[_Union[MoveRef, _Mapping]] = ..., begin: _Optional[_Union[MoveCursor, _Mapping]] = ..., max_records: _Optional[int] = ..., max_bytes: _Optional[int] = ..., compare: _Optional[bool] = ..., compared: _Optional[_Union[Position, _Mapping]] = ...) -> None: ...

class ReadMoveResponse(_message.Message):
    __slots__ = ("chunk", "end", "items", "caught_up", "compared", "compare_done")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    CAUGHT_UP_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    COMPARE_DONE_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    end: MoveCursor
    items: int
    caught_up: bool
    compared: Position
    compare_done: bool
    def __init__(self, chunk: _Optional[bytes] = ..., end: _Optional[_Union[MoveCursor, _Mapping]] = ..., items: _Optional[int] = ..., caught_up: _Optional[bool] = ..., compared: _Optional[_Union[Position, _Mapping]] = ..., compare_done: _Optional[bool] = ...) -> None: ...

class FenceSlotsRequest(_message.Message):
    __slots__ = ("move", "next_epoch", "begin", "max_records", "max_bytes")
    MOVE_FIELD_NUMBER: _ClassVar[int]
    NEXT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    MAX_RECORDS_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    move: MoveRef
    next_epoch: int
    begin: MoveCursor
    max_records: int
    max_bytes: int
    def __init__(self, move: _Optional[_Union[MoveRef, _Mapping]] = ..., next_epoch: _Optional[int] = ..., begin: _Optional[_Union[MoveCursor, _Mapping]] = ..., max_records: _Optional[int] = ..., max_bytes: _Optional[int] = ...) -> None: ...

class FenceSlotsResponse(_message.Message):
    __slots__ = ("tail", "records")
    TAIL_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    tail: ReadMoveResponse
    records: int
    def __init__(self, tail: _Optional[_Union[ReadMoveResponse, _Mapping]] = ..., records: _Optional[int] = ...) -> None: ...

class FenceReadsRequest(_message.Message):
    __slots__ = ("move",)
    MOVE_FIELD_NUMBER: _ClassVar[int]
    move: MoveRef
    def __init__(self, move: _Optional[_Union[MoveRef, _Mapping]] = ...) -> None: ...

class FenceReadsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EndCaptureRequest(_message.Message):
    __slots__ = ("move",)
    MOVE_FIELD_NUMBER: _ClassVar[int]
    move: MoveRef
    def __init__(self, move: _Optional[_Union[MoveRef, _Mapping]] = ...) -> None: ...

class EndCaptureResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BeginArrivalRequest(_message.Message):
    __slots__ = ("move", "afresh")
    MOVE_FIELD_NUMBER: _ClassVar[int]
    AFRESH_FIELD_NUMBER: _ClassVar[int]
    move: MoveRef
    afresh: bool
    def __init__(self, move: _Optional[_Union[MoveRef, _Mapping]] = ..., afresh: _Optional[bool] = ...) -> None: ...

class BeginArrivalResponse(_message.Message):
    __slots__ = ("applied", "ready")
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    applied: MoveCursor
    ready: bool
    def __init__(self, applied: _Optional[_Union[MoveCursor, _Mapping]] = ..., ready: _Optional[bool] = ...) -> None: ...

class ApplyMoveRequest(_message.Message):
    __slots__ = ("move", "chunk")
    MOVE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    move: MoveRef
    chunk: bytes
    def __init__(self, move: _Optional[_Union[MoveRef, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class ApplyMoveResponse(_message.Message):
    __slots__ = ("records", "differences", "differing", "apply_microseconds")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    DIFFERING_FIELD_NUMBER: _ClassVar[int]
    APPLY_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    records: int
    differences: int
    differing: _containers.RepeatedScalarFieldContainer[str]
    apply_microseconds: int
    def __init__(self, records: _Optional[int] = ..., differences: _Optional[int] = ..., differing: _Optional[_Iterable[str]] = ..., apply_microseconds: _Optional[int] = ...) -> None: ...

class EndArrivalRequest(_message.Message):
    __slots__ = ("move",)
    MOVE_FIELD_NUMBER: _ClassVar[int]
    move: MoveRef
    def __init__(self, move: _Optional[_Union[MoveRef, _Mapping]] = ...) -> None: ...

class EndArrivalResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DropSlotsRequest(_message.Message):
    __slots__ = ("move", "limit")
    MOVE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    move: MoveRef
    limit: int
    def __init__(self, move: _Optional[_Union[MoveRef, _Mapping]] = ..., limit: _Optional[int] = ...) -> None: ...

class DropSlotsResponse(_message.Message):
    __slots__ = ("dropped", "done", "left")
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    dropped: int
    done: bool
    left: int
    def __init__(self, dropped: _Optional[int] = ..., done: _Optional[bool] = ..., left: _Optional[int] = ...) -> None: ...

class PreviewMoveRequest(_message.Message):
    __slots__ = ("move", "query")
    MOVE_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    move: MoveRef
    query: ShardQueryRequest
    def __init__(self, move: _Optional[_Union[MoveRef, _Mapping]] = ..., query: _Optional[_Union[ShardQueryRequest, _Mapping]] = ...) -> None: ...

class PreviewMoveResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ShardQueryResult]
    def __init__(self, results: _Optional[_Iterable[_Union[ShardQueryResult, _Mapping]]] = ...) -> None: ...
