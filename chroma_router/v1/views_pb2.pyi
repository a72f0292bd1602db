from chroma_router.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WriteRequestView(_message.Message):
    __slots__ = ("collection", "records", "request_id")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    collection: _types_pb2.CollectionRef
    records: _containers.RepeatedScalarFieldContainer[bytes]
    request_id: str
    def __init__(self, collection: _Optional[_Union[_types_pb2.CollectionRef, _Mapping]] = ..., records: _Optional[_Iterable[bytes]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetResponseView(_message.Message):
    __slots__ = ("records", "next_page_token", "coverage")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedScalarFieldContainer[bytes]
    next_page_token: str
    coverage: _types_pb2.Coverage
    def __init__(self, records: _Optional[_Iterable[bytes]] = ..., next_page_token: _Optional[str] = ..., coverage: _Optional[_Union[_types_pb2.Coverage, _Mapping]] = ...) -> None: ...

class ScanResponseView(_message.Message):
    __slots__ = ("records", "cursor")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedScalarFieldContainer[bytes]
    cursor: str
    def __init__(self, records: _Optional[_Iterable[bytes]] = ..., cursor: _Optional[str] = ...) -> None: ...

class QueryResultView(_message.Message):
    __slots__ = ("hits",)
    HITS_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, hits: _Optional[_Iterable[bytes]] = ...) -> None: ...

class QueryResponseView(_message.Message):
    __slots__ = ("results", "coverage")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[QueryResultView]
    coverage: _types_pb2.Coverage
    def __init__(self, results: _Optional[_Iterable[_Union[QueryResultView, _Mapping]]] = ..., coverage: _Optional[_Union[_types_pb2.Coverage, _Mapping]] = ...) -> None: ...

class SearchHitView(_message.Message):
    __slots__ = ("record", "score")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    score: float
    def __init__(self, record: _Optional[bytes] = ..., score: _Optional[float] = ...) -> None: ...

class SearchResultView(_message.Message):
    __slots__ = ("hits",)
    HITS_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[SearchHitView]
    def __init__(self, hits: _Optional[_Iterable[_Union[SearchHitView, _Mapping]]] = ...) -> None: ...

class SearchResponseView(_message.Message):
    __slots__ = ("results", "coverage")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[SearchResultView]
    coverage: _types_pb2.Coverage
    def __init__(self, results: _Optional[_Iterable[_Union[SearchResultView, _Mapping]]] = ..., coverage: _Optional[_Union[_types_pb2.Coverage, _Mapping]] = ...) -> None: ...
