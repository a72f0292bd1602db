from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ShardState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SHARD_STATE_UNSPECIFIED: _ClassVar[ShardState]
    SHARD_STATE_SERVING: _ClassVar[ShardState]
    SHARD_STATE_STARTING: _ClassVar[ShardState]
    SHARD_STATE_UNREACHABLE: _ClassVar[ShardState]
SHARD_STATE_UNSPECIFIED: ShardState
SHARD_STATE_SERVING: ShardState
SHARD_STATE_STARTING: ShardState
SHARD_STATE_UNREACHABLE: ShardState

class GetVersionRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetVersionResponse(_message.Message):
    __slots__ = ("router_version", "chroma_version", "max_batch_size", "max_message_bytes", "now_nanoseconds", "allow_reset")
    ROUTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHROMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NOW_NANOSECONDS_FIELD_NUMBER: _ClassVar[int]
    ALLOW_RESET_FIELD_NUMBER: _ClassVar[int]
    router_version: str
    chroma_version: str
    max_batch_size: int
    max_message_bytes: int
    now_nanoseconds: int
    allow_reset: bool
    def __init__(self, router_version: _Optional[str] = ..., chroma_version: _Optional[str] = ..., max_batch_size: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., now_nanoseconds: _Optional[int] = ..., allow_reset: _Optional[bool] = ...) -> None: ...

class Shard(_message.Message):
    __slots__ = ("name", "address", "state", "records", "data_bytes", "memory_bytes", "queued_operations", "queued_bytes", "problem", "collections")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    DATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUEUED_OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    state: ShardState
    records: int
    data_bytes: int
    memory_bytes: int
    queued_operations: int
    queued_bytes: int
    problem: str
    collections: _containers.RepeatedCompositeFieldContainer[ShardCollection]
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[_Union[ShardState, str]] = ..., records: _Optional[int] = ..., data_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., queued_operations: _Optional[int] = ..., queued_bytes: _Optional[int] = ..., problem: _Optional[str] = ..., collections: _Optional[_Iterable[_Union[ShardCollection, _Mapping]]] = ...) -> None: ...

class ShardCollection(_message.Message):
    __slots__ = ("collection_id", "name", "slots", "records")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    name: str
    slots: int
    records: int
    def __init__(self, collection_id: _Optional[str] = ..., name: _Optional[str] = ..., slots: _Optional[int] = ..., records: _Optional[int] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("cluster_id", "router_version", "collections", "records", "shards", "uptime_seconds")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    router_version: str
    collections: int
    records: int
    shards: _containers.RepeatedCompositeFieldContainer[Shard]
    uptime_seconds: float
    def __init__(self, cluster_id: _Optional[str] = ..., router_version: _Optional[str] = ..., collections: _Optional[int] = ..., records: _Optional[int] = ..., shards: _Optional[_Iterable[_Union[Shard, _Mapping]]] = ..., uptime_seconds: _Optional[float] = ...) -> None: ...

class ListShardsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListShardsResponse(_message.Message):
    __slots__ = ("shards",)
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    shards: _containers.RepeatedCompositeFieldContainer[Shard]
    def __init__(self, shards: _Optional[_Iterable[_Union[Shard, _Mapping]]] = ...) -> None: ...

class ResetRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResetResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
