from chroma_router.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AddRequest(_message.Message):
    __slots__ = ("collection", "records", "request_id")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    collection: _types_pb2.CollectionRef
    records: _containers.RepeatedCompositeFieldContainer[_types_pb2.Record]
    request_id: str
    def __init__(self, collection: _Optional[_Union[_types_pb2.CollectionRef, _Mapping]] = ..., records: _Optional[_Iterable[_Union[_types_pb2.Record, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class AddResponse(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class UpsertRequest(_message.Message):
    __slots__ = ("collection", "records", "request_id")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    collection: _types_pb2.CollectionRef
    records: _containers.RepeatedCompositeFieldContainer[_types_pb2.Record]
    request_id: str
    def __init__(self, collection: _Optional[_Union[_types_pb2.CollectionRef, _Mapping]] = ..., records: _Optional[_Iterable[_Union[_types_pb2.Record, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class UpsertResponse(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class UpdateRequest(_message.Message):
    __slots__ = ("collection", "records", "request_id")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    collection: _types_pb2.CollectionRef
    records: _containers.RepeatedCompositeFieldContainer[_types_pb2.Record]
    request_id: str
    def __init__(self, collection: _Optional[_Union[_types_pb2.CollectionRef, _Mapping]] = ..., records: _Optional[_Iterable[_Union[_types_pb2.Record, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class UpdateResponse(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("collection", "filter", "limit", "request_id")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    collection: _types_pb2.CollectionRef
    filter: _types_pb2.Filter
    limit: int
    request_id: str
    def __init__(self, collection: _Optional[_Union[_types_pb2.CollectionRef, _Mapping]] = ..., filter: _Optional[_Union[_types_pb2.Filter, _Mapping]] = ..., limit: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ("deleted", "request_id")
    DELETED_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    request_id: str
    def __init__(self, deleted: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("collection", "filter", "limit", "offset", "include", "page_token")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    collection: _types_pb2.CollectionRef
    filter: _types_pb2.Filter
    limit: int
    offset: int
    include: _containers.RepeatedScalarFieldContainer[_types_pb2.Include]
    page_token: str
    def __init__(self, collection: _Optional[_Union[_types_pb2.CollectionRef, _Mapping]] = ..., filter: _Optional[_Union[_types_pb2.Filter, _Mapping]] = ..., limit: _Optional[int] = ..., offset: _Optional[int] = ..., include: _Optional[_Iterable[_Union[_types_pb2.Include, str]]] = ..., page_token: _Optional[str] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("records", "next_page_token")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[_types_pb2.Record]
    next_page_token: str
    def __init__(self, records: _Optional[_Iterable[_Union[_types_pb2.Record, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class QueryRequest(_message.Message):
    __slots__ = ("collection", "embeddings", "n_results", "filter", "include")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    N_RESULTS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    collection: _types_pb2.CollectionRef
    embeddings: _containers.RepeatedScalarFieldContainer[bytes]
    n_results: int
    filter: _types_pb2.Filter
    include: _containers.RepeatedScalarFieldContainer[_types_pb2.Include]
    def __init__(self, collection: _Optional[_Union[_types_pb2.CollectionRef, _Mapping]] = ..., embeddings: _Optional[_Iterable[bytes]] = ..., n_results: _Optional[int] = ..., filter: _Optional[_Union[_types_pb2.Filter, _Mapping]] = ..., include: _Optional[_Iterable[_Union[_types_pb2.Include, str]]] = ...) -> None: ...

class QueryResult(_message.Message):
    __slots__ = ("hits",)
    HITS_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[_types_pb2.Hit]
    def __init__(self, hits: _Optional[_Iterable[_Union[_types_pb2.Hit, _Mapping]]] = ...) -> None: ...

class QueryResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[QueryResult]
    def __init__(self, results: _Optional[_Iterable[_Union[QueryResult, _Mapping]]] = ...) -> None: ...

class CountRequest(_message.Message):
    __slots__ = ("collection",)
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    collection: _types_pb2.CollectionRef
    def __init__(self, collection: _Optional[_Union[_types_pb2.CollectionRef, _Mapping]] = ...) -> None: ...

class CountResponse(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...
