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
    __slots__ = ("collection", "filter", "limit", "offset", "include", "page_token", "allow_partial")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PARTIAL_FIELD_NUMBER: _ClassVar[int]
    collection: _types_pb2.CollectionRef
    filter: _types_pb2.Filter
    limit: int
    offset: int
    include: _containers.RepeatedScalarFieldContainer[_types_pb2.Include]
    page_token: str
    allow_partial: bool
    def __init__(self, collection: _Optional[_Union[_types_pb2.CollectionRef, _Mapping]] = ..., filter: _Optional[_Union[_types_pb2.Filter, _Mapping]] = ..., limit: _Optional[int] = ..., offset: _Optional[int] = ..., include: _Optional[_Iterable[_Union[_types_pb2.Include, str]]] = ..., page_token: _Optional[str] = ..., allow_partial: _Optional[bool] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("records", "next_page_token", "coverage")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[_types_pb2.Record]
    next_page_token: str
    coverage: _types_pb2.Coverage
    def __init__(self, records: _Optional[_Iterable[_Union[_types_pb2.Record, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., coverage: _Optional[_Union[_types_pb2.Coverage, _Mapping]] = ...) -> None: ...

class QueryRequest(_message.Message):
    __slots__ = ("collection", "embeddings", "n_results", "filter", "include", "allow_partial")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    N_RESULTS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PARTIAL_FIELD_NUMBER: _ClassVar[int]
    collection: _types_pb2.CollectionRef
    embeddings: _containers.RepeatedScalarFieldContainer[bytes]
    n_results: int
    filter: _types_pb2.Filter
    include: _containers.RepeatedScalarFieldContainer[_types_pb2.Include]
    allow_partial: bool
    def __init__(self, collection: _Optional[_Union[_types_pb2.CollectionRef, _Mapping]] = ..., embeddings: _Optional[_Iterable[bytes]] = ..., n_results: _Optional[int] = ..., filter: _Optional[_Union[_types_pb2.Filter, _Mapping]] = ..., include: _Optional[_Iterable[_Union[_types_pb2.Include, str]]] = ..., allow_partial: _Optional[bool] = ...) -> None: ...

class QueryResult(_message.Message):
    __slots__ = ("hits",)
    HITS_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[_types_pb2.Hit]
    def __init__(self, hits: _Optional[_Iterable[_Union[_types_pb2.Hit, _Mapping]]] = ...) -> None: ...

class QueryResponse(_message.Message):
    __slots__ = ("results", "coverage")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[QueryResult]
    coverage: _types_pb2.Coverage
    def __init__(self, results: _Optional[_Iterable[_Union[QueryResult, _Mapping]]] = ..., coverage: _Optional[_Union[_types_pb2.Coverage, _Mapping]] = ...) -> None: ...

class CountRequest(_message.Message):
    __slots__ = ("collection", "allow_partial")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PARTIAL_FIELD_NUMBER: _ClassVar[int]
    collection: _types_pb2.CollectionRef
    allow_partial: bool
    def __init__(self, collection: _Optional[_Union[_types_pb2.CollectionRef, _Mapping]] = ..., allow_partial: _Optional[bool] = ...) -> None: ...

class CountResponse(_message.Message):
    __slots__ = ("count", "coverage")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    count: int
    coverage: _types_pb2.Coverage
    def __init__(self, count: _Optional[int] = ..., coverage: _Optional[_Union[_types_pb2.Coverage, _Mapping]] = ...) -> None: ...

class ScanRequest(_message.Message):
    __slots__ = ("collection", "filter", "include", "cursor")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    collection: _types_pb2.CollectionRef
    filter: _types_pb2.Filter
    include: _containers.RepeatedScalarFieldContainer[_types_pb2.Include]
    cursor: str
    def __init__(self, collection: _Optional[_Union[_types_pb2.CollectionRef, _Mapping]] = ..., filter: _Optional[_Union[_types_pb2.Filter, _Mapping]] = ..., include: _Optional[_Iterable[_Union[_types_pb2.Include, str]]] = ..., cursor: _Optional[str] = ...) -> None: ...

class ScanResponse(_message.Message):
    __slots__ = ("records", "cursor")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[_types_pb2.Record]
    cursor: str
    def __init__(self, records: _Optional[_Iterable[_Union[_types_pb2.Record, _Mapping]]] = ..., cursor: _Optional[str] = ...) -> None: ...

class BulkUpsertRequest(_message.Message):
    __slots__ = ("collection", "records", "request_id")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    collection: _types_pb2.CollectionRef
    records: _containers.RepeatedCompositeFieldContainer[_types_pb2.Record]
    request_id: str
    def __init__(self, collection: _Optional[_Union[_types_pb2.CollectionRef, _Mapping]] = ..., records: _Optional[_Iterable[_Union[_types_pb2.Record, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class BulkUpsertResponse(_message.Message):
    __slots__ = ("batch", "request_id", "records", "error")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    batch: int
    request_id: str
    records: int
    error: BatchError
    def __init__(self, batch: _Optional[int] = ..., request_id: _Optional[str] = ..., records: _Optional[int] = ..., error: _Optional[_Union[BatchError, _Mapping]] = ...) -> None: ...

class BatchError(_message.Message):
    __slots__ = ("code", "reason", "message", "retry_after_milliseconds", "outcome", "trace_id")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    retry_after_milliseconds: int
    outcome: _types_pb2.WriteOutcome
    trace_id: str
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_milliseconds: _Optional[int] = ..., outcome: _Optional[_Union[_types_pb2.WriteOutcome, _Mapping]] = ..., trace_id: _Optional[str] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("collection", "searches", "allow_partial")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    SEARCHES_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PARTIAL_FIELD_NUMBER: _ClassVar[int]
    collection: _types_pb2.CollectionRef
    searches: _containers.RepeatedCompositeFieldContainer[Search]
    allow_partial: bool
    def __init__(self, collection: _Optional[_Union[_types_pb2.CollectionRef, _Mapping]] = ..., searches: _Optional[_Iterable[_Union[Search, _Mapping]]] = ..., allow_partial: _Optional[bool] = ...) -> None: ...

class Search(_message.Message):
    __slots__ = ("filter", "rank", "limit", "offset", "select", "group_by")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SELECT_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    filter: _types_pb2.Filter
    rank: Rank
    limit: int
    offset: int
    select: _containers.RepeatedScalarFieldContainer[str]
    group_by: GroupBy
    def __init__(self, filter: _Optional[_Union[_types_pb2.Filter, _Mapping]] = ..., rank: _Optional[_Union[Rank, _Mapping]] = ..., limit: _Optional[int] = ..., offset: _Optional[int] = ..., select: _Optional[_Iterable[str]] = ..., group_by: _Optional[_Union[GroupBy, _Mapping]] = ...) -> None: ...

class GroupBy(_message.Message):
    __slots__ = ("keys", "order_by", "keep", "largest")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    ORDER_BY_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    LARGEST_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[str]
    order_by: _containers.RepeatedScalarFieldContainer[str]
    keep: int
    largest: bool
    def __init__(self, keys: _Optional[_Iterable[str]] = ..., order_by: _Optional[_Iterable[str]] = ..., keep: _Optional[int] = ..., largest: _Optional[bool] = ...) -> None: ...

class Rank(_message.Message):
    __slots__ = ("knn", "value", "sum", "product", "maximum", "minimum", "difference", "quotient", "absolute", "exponential", "logarithm")
    KNN_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    PRODUCT_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    QUOTIENT_FIELD_NUMBER: _ClassVar[int]
    ABSOLUTE_FIELD_NUMBER: _ClassVar[int]
    EXPONENTIAL_FIELD_NUMBER: _ClassVar[int]
    LOGARITHM_FIELD_NUMBER: _ClassVar[int]
    knn: KnnRank
    value: float
    sum: RankList
    product: RankList
    maximum: RankList
    minimum: RankList
    difference: RankPair
    quotient: RankPair
    absolute: Rank
    exponential: Rank
    logarithm: Rank
    def __init__(self, knn: _Optional[_Union[KnnRank, _Mapping]] = ..., value: _Optional[float] = ..., sum: _Optional[_Union[RankList, _Mapping]] = ..., product: _Optional[_Union[RankList, _Mapping]] = ..., maximum: _Optional[_Union[RankList, _Mapping]] = ..., minimum: _Optional[_Union[RankList, _Mapping]] = ..., difference: _Optional[_Union[RankPair, _Mapping]] = ..., quotient: _Optional[_Union[RankPair, _Mapping]] = ..., absolute: _Optional[_Union[Rank, _Mapping]] = ..., exponential: _Optional[_Union[Rank, _Mapping]] = ..., logarithm: _Optional[_Union[Rank, _Mapping]] = ...) -> None: ...

class KnnRank(_message.Message):
    __slots__ = ("embedding", "limit", "default_value", "return_rank")
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VALUE_FIELD_NUMBER: _ClassVar[int]
    RETURN_RANK_FIELD_NUMBER: _ClassVar[int]
    embedding: bytes
    limit: int
    default_value: float
    return_rank: bool
    def __init__(self, embedding: _Optional[bytes] = ..., limit: _Optional[int] = ..., default_value: _Optional[float] = ..., return_rank: _Optional[bool] = ...) -> None: ...

class RankList(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[Rank]
    def __init__(self, parts: _Optional[_Iterable[_Union[Rank, _Mapping]]] = ...) -> None: ...

class RankPair(_message.Message):
    __slots__ = ("left", "right")
    LEFT_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    left: Rank
    right: Rank
    def __init__(self, left: _Optional[_Union[Rank, _Mapping]] = ..., right: _Optional[_Union[Rank, _Mapping]] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("results", "coverage")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[SearchResult]
    coverage: _types_pb2.Coverage
    def __init__(self, results: _Optional[_Iterable[_Union[SearchResult, _Mapping]]] = ..., coverage: _Optional[_Union[_types_pb2.Coverage, _Mapping]] = ...) -> None: ...

class SearchResult(_message.Message):
    __slots__ = ("hits",)
    HITS_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[SearchHit]
    def __init__(self, hits: _Optional[_Iterable[_Union[SearchHit, _Mapping]]] = ...) -> None: ...

class SearchHit(_message.Message):
    __slots__ = ("record", "score")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    record: _types_pb2.Record
    score: float
    def __init__(self, record: _Optional[_Union[_types_pb2.Record, _Mapping]] = ..., score: _Optional[float] = ...) -> None: ...
