from chroma_router.v1 import types_pb2 as _types_pb2
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

class ShardRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SHARD_ROLE_UNSPECIFIED: _ClassVar[ShardRole]
    SHARD_ROLE_ACTIVE: _ClassVar[ShardRole]
    SHARD_ROLE_DRAINING: _ClassVar[ShardRole]

class RebalanceKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REBALANCE_KIND_UNSPECIFIED: _ClassVar[RebalanceKind]
    REBALANCE_KIND_BALANCE: _ClassVar[RebalanceKind]
    REBALANCE_KIND_DRAIN: _ClassVar[RebalanceKind]
    REBALANCE_KIND_PLACE: _ClassVar[RebalanceKind]

class RebalanceState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REBALANCE_STATE_UNSPECIFIED: _ClassVar[RebalanceState]
    REBALANCE_STATE_RUNNING: _ClassVar[RebalanceState]
    REBALANCE_STATE_PAUSED: _ClassVar[RebalanceState]
    REBALANCE_STATE_CANCELLING: _ClassVar[RebalanceState]
    REBALANCE_STATE_DONE: _ClassVar[RebalanceState]
    REBALANCE_STATE_CANCELLED: _ClassVar[RebalanceState]
    REBALANCE_STATE_FAILED: _ClassVar[RebalanceState]

class MoveStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MOVE_STAGE_UNSPECIFIED: _ClassVar[MoveStage]
    MOVE_STAGE_PLANNED: _ClassVar[MoveStage]
    MOVE_STAGE_COPYING: _ClassVar[MoveStage]
    MOVE_STAGE_CATCHING_UP: _ClassVar[MoveStage]
    MOVE_STAGE_VERIFIED: _ClassVar[MoveStage]
    MOVE_STAGE_FENCED: _ClassVar[MoveStage]
    MOVE_STAGE_SWITCHED: _ClassVar[MoveStage]
    MOVE_STAGE_TRIMMED: _ClassVar[MoveStage]
    MOVE_STAGE_CANCELLING: _ClassVar[MoveStage]
    MOVE_STAGE_CANCELLED: _ClassVar[MoveStage]
SHARD_STATE_UNSPECIFIED: ShardState
SHARD_STATE_SERVING: ShardState
SHARD_STATE_STARTING: ShardState
SHARD_STATE_UNREACHABLE: ShardState
SHARD_ROLE_UNSPECIFIED: ShardRole
SHARD_ROLE_ACTIVE: ShardRole
SHARD_ROLE_DRAINING: ShardRole
REBALANCE_KIND_UNSPECIFIED: RebalanceKind
REBALANCE_KIND_BALANCE: RebalanceKind
REBALANCE_KIND_DRAIN: RebalanceKind
REBALANCE_KIND_PLACE: RebalanceKind
REBALANCE_STATE_UNSPECIFIED: RebalanceState
REBALANCE_STATE_RUNNING: RebalanceState
REBALANCE_STATE_PAUSED: RebalanceState
REBALANCE_STATE_CANCELLING: RebalanceState
REBALANCE_STATE_DONE: RebalanceState
REBALANCE_STATE_CANCELLED: RebalanceState
REBALANCE_STATE_FAILED: RebalanceState
MOVE_STAGE_UNSPECIFIED: MoveStage
MOVE_STAGE_PLANNED: MoveStage
MOVE_STAGE_COPYING: MoveStage
MOVE_STAGE_CATCHING_UP: MoveStage
MOVE_STAGE_VERIFIED: MoveStage
MOVE_STAGE_FENCED: MoveStage
MOVE_STAGE_SWITCHED: MoveStage
MOVE_STAGE_TRIMMED: MoveStage
MOVE_STAGE_CANCELLING: MoveStage
MOVE_STAGE_CANCELLED: MoveStage

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
    __slots__ = ("name", "address", "state", "records", "data_bytes", "memory_bytes", "queued_operations", "queued_bytes", "problem", "collections", "role", "slots", "unowned_records")
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
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    UNOWNED_RECORDS_FIELD_NUMBER: _ClassVar[int]
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
    role: ShardRole
    slots: int
    unowned_records: int
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[_Union[ShardState, str]] = ..., records: _Optional[int] = ..., data_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., queued_operations: _Optional[int] = ..., queued_bytes: _Optional[int] = ..., problem: _Optional[str] = ..., collections: _Optional[_Iterable[_Union[ShardCollection, _Mapping]]] = ..., role: _Optional[_Union[ShardRole, str]] = ..., slots: _Optional[int] = ..., unowned_records: _Optional[int] = ...) -> None: ...

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

class AddShardRequest(_message.Message):
    __slots__ = ("name", "address")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class AddShardResponse(_message.Message):
    __slots__ = ("shard",)
    SHARD_FIELD_NUMBER: _ClassVar[int]
    shard: Shard
    def __init__(self, shard: _Optional[_Union[Shard, _Mapping]] = ...) -> None: ...

class DrainShardRequest(_message.Message):
    __slots__ = ("name", "options")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    options: RebalanceOptions
    def __init__(self, name: _Optional[str] = ..., options: _Optional[_Union[RebalanceOptions, _Mapping]] = ...) -> None: ...

class DrainShardResponse(_message.Message):
    __slots__ = ("rebalance",)
    REBALANCE_FIELD_NUMBER: _ClassVar[int]
    rebalance: Rebalance
    def __init__(self, rebalance: _Optional[_Union[Rebalance, _Mapping]] = ...) -> None: ...

class RemoveShardRequest(_message.Message):
    __slots__ = ("name", "force_lost", "dry_run")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FORCE_LOST_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    name: str
    force_lost: bool
    dry_run: bool
    def __init__(self, name: _Optional[str] = ..., force_lost: _Optional[bool] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class RemoveShardResponse(_message.Message):
    __slots__ = ("lost",)
    LOST_FIELD_NUMBER: _ClassVar[int]
    lost: _containers.RepeatedCompositeFieldContainer[LostPart]
    def __init__(self, lost: _Optional[_Iterable[_Union[LostPart, _Mapping]]] = ...) -> None: ...

class LostPart(_message.Message):
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

class RebalanceOptions(_message.Message):
    __slots__ = ("records_per_second", "query_agreement")
    RECORDS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    QUERY_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    records_per_second: int
    query_agreement: float
    def __init__(self, records_per_second: _Optional[int] = ..., query_agreement: _Optional[float] = ...) -> None: ...

class Move(_message.Message):
    __slots__ = ("id", "collection_id", "collection", "source", "target", "slots", "records", "bytes", "stage", "copied_records", "compared_records", "trimmed_records", "write_pause_microseconds", "read_pause_microseconds", "copy_microseconds", "problem")
    ID_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    COPIED_RECORDS_FIELD_NUMBER: _ClassVar[int]
    COMPARED_RECORDS_FIELD_NUMBER: _ClassVar[int]
    TRIMMED_RECORDS_FIELD_NUMBER: _ClassVar[int]
    WRITE_PAUSE_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    READ_PAUSE_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    COPY_MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    id: str
    collection_id: str
    collection: str
    source: str
    target: str
    slots: int
    records: int
    bytes: int
    stage: MoveStage
    copied_records: int
    compared_records: int
    trimmed_records: int
    write_pause_microseconds: int
    read_pause_microseconds: int
    copy_microseconds: int
    problem: str
    def __init__(self, id: _Optional[str] = ..., collection_id: _Optional[str] = ..., collection: _Optional[str] = ..., source: _Optional[str] = ..., target: _Optional[str] = ..., slots: _Optional[int] = ..., records: _Optional[int] = ..., bytes: _Optional[int] = ..., stage: _Optional[_Union[MoveStage, str]] = ..., copied_records: _Optional[int] = ..., compared_records: _Optional[int] = ..., trimmed_records: _Optional[int] = ..., write_pause_microseconds: _Optional[int] = ..., read_pause_microseconds: _Optional[int] = ..., copy_microseconds: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...

class Rebalance(_message.Message):
    __slots__ = ("id", "kind", "subject", "state", "options", "moves", "problem", "started_at", "ended_at", "records_per_second", "seconds_left", "mover")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    RECORDS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    MOVER_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: RebalanceKind
    subject: str
    state: RebalanceState
    options: RebalanceOptions
    moves: _containers.RepeatedCompositeFieldContainer[Move]
    problem: str
    started_at: int
    ended_at: int
    records_per_second: float
    seconds_left: float
    mover: str
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[RebalanceKind, str]] = ..., subject: _Optional[str] = ..., state: _Optional[_Union[RebalanceState, str]] = ..., options: _Optional[_Union[RebalanceOptions, _Mapping]] = ..., moves: _Optional[_Iterable[_Union[Move, _Mapping]]] = ..., problem: _Optional[str] = ..., started_at: _Optional[int] = ..., ended_at: _Optional[int] = ..., records_per_second: _Optional[float] = ..., seconds_left: _Optional[float] = ..., mover: _Optional[str] = ...) -> None: ...

class PlanRebalanceRequest(_message.Message):
    __slots__ = ("drain",)
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    drain: str
    def __init__(self, drain: _Optional[str] = ...) -> None: ...

class PlanRebalanceResponse(_message.Message):
    __slots__ = ("rebalance", "shares", "seconds")
    REBALANCE_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    rebalance: Rebalance
    shares: _containers.RepeatedCompositeFieldContainer[PlannedShare]
    seconds: float
    def __init__(self, rebalance: _Optional[_Union[Rebalance, _Mapping]] = ..., shares: _Optional[_Iterable[_Union[PlannedShare, _Mapping]]] = ..., seconds: _Optional[float] = ...) -> None: ...

class PlannedShare(_message.Message):
    __slots__ = ("shard", "records_before", "records_after", "slots_before", "slots_after")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    RECORDS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_AFTER_FIELD_NUMBER: _ClassVar[int]
    SLOTS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    SLOTS_AFTER_FIELD_NUMBER: _ClassVar[int]
    shard: str
    records_before: int
    records_after: int
    slots_before: int
    slots_after: int
    def __init__(self, shard: _Optional[str] = ..., records_before: _Optional[int] = ..., records_after: _Optional[int] = ..., slots_before: _Optional[int] = ..., slots_after: _Optional[int] = ...) -> None: ...

class StartRebalanceRequest(_message.Message):
    __slots__ = ("options",)
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    options: RebalanceOptions
    def __init__(self, options: _Optional[_Union[RebalanceOptions, _Mapping]] = ...) -> None: ...

class StartRebalanceResponse(_message.Message):
    __slots__ = ("rebalance",)
    REBALANCE_FIELD_NUMBER: _ClassVar[int]
    rebalance: Rebalance
    def __init__(self, rebalance: _Optional[_Union[Rebalance, _Mapping]] = ...) -> None: ...

class GetRebalanceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetRebalanceResponse(_message.Message):
    __slots__ = ("rebalance",)
    REBALANCE_FIELD_NUMBER: _ClassVar[int]
    rebalance: Rebalance
    def __init__(self, rebalance: _Optional[_Union[Rebalance, _Mapping]] = ...) -> None: ...

class PauseRebalanceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PauseRebalanceResponse(_message.Message):
    __slots__ = ("rebalance",)
    REBALANCE_FIELD_NUMBER: _ClassVar[int]
    rebalance: Rebalance
    def __init__(self, rebalance: _Optional[_Union[Rebalance, _Mapping]] = ...) -> None: ...

class ResumeRebalanceRequest(_message.Message):
    __slots__ = ("options",)
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    options: RebalanceOptions
    def __init__(self, options: _Optional[_Union[RebalanceOptions, _Mapping]] = ...) -> None: ...

class ResumeRebalanceResponse(_message.Message):
    __slots__ = ("rebalance",)
    REBALANCE_FIELD_NUMBER: _ClassVar[int]
    rebalance: Rebalance
    def __init__(self, rebalance: _Optional[_Union[Rebalance, _Mapping]] = ...) -> None: ...

class CancelRebalanceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CancelRebalanceResponse(_message.Message):
    __slots__ = ("rebalance",)
    REBALANCE_FIELD_NUMBER: _ClassVar[int]
    rebalance: Rebalance
    def __init__(self, rebalance: _Optional[_Union[Rebalance, _Mapping]] = ...) -> None: ...

class PlaceCollectionRequest(_message.Message):
    __slots__ = ("collection", "placement_shards", "options")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_SHARDS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    collection: _types_pb2.CollectionRef
    placement_shards: int
    options: RebalanceOptions
    def __init__(self, collection: _Optional[_Union[_types_pb2.CollectionRef, _Mapping]] = ..., placement_shards: _Optional[int] = ..., options: _Optional[_Union[RebalanceOptions, _Mapping]] = ...) -> None: ...

class PlaceCollectionResponse(_message.Message):
    __slots__ = ("rebalance",)
    REBALANCE_FIELD_NUMBER: _ClassVar[int]
    rebalance: Rebalance
    def __init__(self, rebalance: _Optional[_Union[Rebalance, _Mapping]] = ...) -> None: ...
