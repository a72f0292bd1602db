from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Include(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INCLUDE_UNSPECIFIED: _ClassVar[Include]
    INCLUDE_DOCUMENTS: _ClassVar[Include]
    INCLUDE_METADATAS: _ClassVar[Include]
    INCLUDE_EMBEDDINGS: _ClassVar[Include]
    INCLUDE_DISTANCES: _ClassVar[Include]
    INCLUDE_URIS: _ClassVar[Include]
INCLUDE_UNSPECIFIED: Include
INCLUDE_DOCUMENTS: Include
INCLUDE_METADATAS: Include
INCLUDE_EMBEDDINGS: Include
INCLUDE_DISTANCES: Include
INCLUDE_URIS: Include

class MetadataValue(_message.Message):
    __slots__ = ("string_value", "int_value", "float_value", "bool_value", "string_array", "int_array", "float_array", "bool_array", "absent")
    STRING_VALUE_FIELD_NUMBER: _ClassVar[int]
    INT_VALUE_FIELD_NUMBER: _ClassVar[int]
    FLOAT_VALUE_FIELD_NUMBER: _ClassVar[int]
    BOOL_VALUE_FIELD_NUMBER: _ClassVar[int]
    STRING_ARRAY_FIELD_NUMBER: _ClassVar[int]
    INT_ARRAY_FIELD_NUMBER: _ClassVar[int]
    FLOAT_ARRAY_FIELD_NUMBER: _ClassVar[int]
    BOOL_ARRAY_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    string_value: str
    int_value: int
    float_value: float
    bool_value: bool
    string_array: StringArray
    int_array: IntArray
    float_array: FloatArray
    bool_array: BoolArray
    absent: bool
    def __init__(self, string_value: _Optional[str] = ..., int_value: _Optional[int] = ..., float_value: _Optional[float] = ..., bool_value: _Optional[bool] = ..., string_array: _Optional[_Union[StringArray, _Mapping]] = ..., int_array: _Optional[_Union[IntArray, _Mapping]] = ..., float_array: _Optional[_Union[FloatArray, _Mapping]] = ..., bool_array: _Optional[_Union[BoolArray, _Mapping]] = ..., absent: _Optional[bool] = ...) -> None: ...

class StringArray(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class IntArray(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class FloatArray(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class BoolArray(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, values: _Optional[_Iterable[bool]] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("id", "embedding", "document", "uri", "metadata", "empty_metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: MetadataValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[MetadataValue, _Mapping]] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    EMPTY_METADATA_FIELD_NUMBER: _ClassVar[int]
    id: str
    embedding: bytes
    document: str
    uri: str
    metadata: _containers.MessageMap[str, MetadataValue]
    empty_metadata: bool
    def __init__(self, id: _Optional[str] = ..., embedding: _Optional[bytes] = ..., document: _Optional[str] = ..., uri: _Optional[str] = ..., metadata: _Optional[_Mapping[str, MetadataValue]] = ..., empty_metadata: _Optional[bool] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("record", "distance", "shard")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    record: Record
    distance: float
    shard: str
    def __init__(self, record: _Optional[_Union[Record, _Mapping]] = ..., distance: _Optional[float] = ..., shard: _Optional[str] = ...) -> None: ...

class CollectionRef(_message.Message):
    __slots__ = ("tenant", "database", "id", "name")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    database: str
    id: str
    name: str
    def __init__(self, tenant: _Optional[str] = ..., database: _Optional[str] = ..., id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("ids", "by_ids", "where", "where_document")
    IDS_FIELD_NUMBER: _ClassVar[int]
    BY_IDS_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    WHERE_DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    by_ids: bool
    where: str
    where_document: str
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., by_ids: _Optional[bool] = ..., where: _Optional[str] = ..., where_document: _Optional[str] = ...) -> None: ...

class Coverage(_message.Message):
    __slots__ = ("asked_shards", "answered_shards", "missing_shards", "record_share")
    ASKED_SHARDS_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_SHARDS_FIELD_NUMBER: _ClassVar[int]
    MISSING_SHARDS_FIELD_NUMBER: _ClassVar[int]
    RECORD_SHARE_FIELD_NUMBER: _ClassVar[int]
    asked_shards: _containers.RepeatedScalarFieldContainer[str]
    answered_shards: _containers.RepeatedScalarFieldContainer[str]
    missing_shards: _containers.RepeatedScalarFieldContainer[str]
    record_share: float
    def __init__(self, asked_shards: _Optional[_Iterable[str]] = ..., answered_shards: _Optional[_Iterable[str]] = ..., missing_shards: _Optional[_Iterable[str]] = ..., record_share: _Optional[float] = ...) -> None: ...

class Collection(_message.Message):
    __slots__ = ("id", "name", "tenant", "database", "metadata", "configuration_json", "schema_json", "dimension", "epoch", "placement_shards")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: MetadataValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[MetadataValue, _Mapping]] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_JSON_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_JSON_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_SHARDS_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    tenant: str
    database: str
    metadata: _containers.MessageMap[str, MetadataValue]
    configuration_json: str
    schema_json: str
    dimension: int
    epoch: int
    placement_shards: int
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., tenant: _Optional[str] = ..., database: _Optional[str] = ..., metadata: _Optional[_Mapping[str, MetadataValue]] = ..., configuration_json: _Optional[str] = ..., schema_json: _Optional[str] = ..., dimension: _Optional[int] = ..., epoch: _Optional[int] = ..., placement_shards: _Optional[int] = ...) -> None: ...

class WriteOutcome(_message.Message):
    __slots__ = ("request_id", "applied_shards", "refused_shards", "unknown_shards", "refused_ids", "unknown_ids", "refused_count", "unknown_count")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    APPLIED_SHARDS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_SHARDS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_SHARDS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_IDS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_IDS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_COUNT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    applied_shards: _containers.RepeatedScalarFieldContainer[str]
    refused_shards: _containers.RepeatedScalarFieldContainer[str]
    unknown_shards: _containers.RepeatedScalarFieldContainer[str]
    refused_ids: _containers.RepeatedScalarFieldContainer[str]
    unknown_ids: _containers.RepeatedScalarFieldContainer[str]
    refused_count: int
    unknown_count: int
    def __init__(self, request_id: _Optional[str] = ..., applied_shards: _Optional[_Iterable[str]] = ..., refused_shards: _Optional[_Iterable[str]] = ..., unknown_shards: _Optional[_Iterable[str]] = ..., refused_ids: _Optional[_Iterable[str]] = ..., unknown_ids: _Optional[_Iterable[str]] = ..., refused_count: _Optional[int] = ..., unknown_count: _Optional[int] = ...) -> None: ...
