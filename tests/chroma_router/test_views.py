"""The views keep the layout of the messages they are named after."""

from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from chroma_router.v1 import records_pb2, types_pb2, views_pb2

_TEXT = st.text(max_size=20)
_INT64 = st.integers(-(2**63), 2**63 - 1)
_VALUES = st.one_of(
    st.just(types_pb2.MetadataValue()),
    st.builds(types_pb2.MetadataValue, string_value=_TEXT),
    st.builds(types_pb2.MetadataValue, int_value=_INT64),
    st.builds(types_pb2.MetadataValue, float_value=st.floats(allow_nan=False)),
    st.builds(types_pb2.MetadataValue, bool_value=st.booleans()),
    st.builds(types_pb2.MetadataValue, absent=st.just(True)),
    st.builds(
        types_pb2.MetadataValue,
        string_array=st.builds(types_pb2.StringArray, values=st.lists(_TEXT, max_size=3)),
    ),
    st.builds(
        types_pb2.MetadataValue,
        int_array=st.builds(types_pb2.IntArray, values=st.lists(_INT64, max_size=3)),
    ),
)
_RECORDS = st.builds(
    types_pb2.Record,
    id=_TEXT,
    embedding=st.none() | st.binary(max_size=16),
    document=st.none() | _TEXT,
    uri=st.none() | _TEXT,
    metadata=st.dictionaries(_TEXT, _VALUES, max_size=3),
)
_REFS = st.builds(types_pb2.CollectionRef, tenant=_TEXT, database=_TEXT, id=_TEXT) | st.builds(
    types_pb2.CollectionRef, tenant=_TEXT, database=_TEXT, name=_TEXT
)
_HITS = st.builds(
    types_pb2.Hit,
    record=st.none() | _RECORDS,
    distance=st.none() | st.floats(width=32, allow_nan=False),
    shard=_TEXT,
)
_RESULTS = st.builds(records_pb2.QueryResult, hits=st.lists(_HITS, max_size=4))
_FOUND = st.builds(
    records_pb2.SearchResult,
    hits=st.lists(
        st.builds(
            records_pb2.SearchHit,
            record=_RECORDS,
            score=st.none() | st.floats(width=32, allow_nan=False),
        ),
        max_size=4,
    ),
)

WRITES: list[type[Message]] = [
    records_pb2.AddRequest,
    records_pb2.UpsertRequest,
    records_pb2.UpdateRequest,
]
PAIRS: list[tuple[type[Message], type[Message]]] = [
    *((views_pb2.WriteRequestView, request) for request in WRITES),
    (views_pb2.GetResponseView, records_pb2.GetResponse),
    (views_pb2.ScanResponseView, records_pb2.ScanResponse),
    (views_pb2.QueryResultView, records_pb2.QueryResult),
    (views_pb2.QueryResponseView, records_pb2.QueryResponse),
    (views_pb2.SearchHitView, records_pb2.SearchHit),
    (views_pb2.SearchResultView, records_pb2.SearchResult),
    (views_pb2.SearchResponseView, records_pb2.SearchResponse),
]


def _there_and_back(message: Message, view: type[Message]) -> Any:
    """The message seen by its view; through it nothing is lost or changed."""
    seen = view.FromString(message.SerializeToString())
    assert not _unknown_fields(seen)
    assert type(message).FromString(seen.SerializeToString()) == message
    return seen


def _unknown_fields(message: Message) -> bool:
    """Whether bytes were not recognised; discarding them would then make it shorter."""
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    return known.ByteSize() != message.ByteSize()


@pytest.mark.parametrize("kind", WRITES)
@given(_REFS | st.none(), st.lists(_RECORDS, max_size=4), _TEXT)
def test_writes(
    kind: Any,
    collection: types_pb2.CollectionRef | None,
    records: list[types_pb2.Record],
    request_id: str,
) -> None:
    message = kind(collection=collection, records=records, request_id=request_id)
    seen = _there_and_back(message, views_pb2.WriteRequestView)
    assert seen.collection == message.collection
    assert seen.HasField("collection") == message.HasField("collection")
    assert [types_pb2.Record.FromString(data) for data in seen.records] == records
    assert seen.request_id == request_id


@given(st.lists(_RECORDS, max_size=4), _TEXT)
def test_get_responses(records: list[types_pb2.Record], token: str) -> None:
    message = records_pb2.GetResponse(records=records, next_page_token=token)
    seen = _there_and_back(message, views_pb2.GetResponseView)
    assert [types_pb2.Record.FromString(data) for data in seen.records] == records
    made = views_pb2.GetResponseView(
        records=[record.SerializeToString() for record in records], next_page_token=token
    )
    assert records_pb2.GetResponse.FromString(made.SerializeToString()) == message


@given(st.lists(_RESULTS, max_size=3))
def test_query_responses(results: list[records_pb2.QueryResult]) -> None:
    message = records_pb2.QueryResponse(results=results)
    seen = _there_and_back(message, views_pb2.QueryResponseView)
    parsed = [[types_pb2.Hit.FromString(data) for data in part.hits] for part in seen.results]
    assert parsed == [list(result.hits) for result in results]
    made = views_pb2.QueryResponseView(
        results=[
            views_pb2.QueryResultView(hits=[hit.SerializeToString() for hit in result.hits])
            for result in results
        ]
    )
    assert records_pb2.QueryResponse.FromString(made.SerializeToString()) == message


@given(st.lists(_FOUND, max_size=3))
def test_search_responses(results: list[records_pb2.SearchResult]) -> None:
    message = records_pb2.SearchResponse(results=results)
    seen = _there_and_back(message, views_pb2.SearchResponseView)
    for result, view in zip(results, seen.results, strict=True):
        for hit, part in zip(result.hits, view.hits, strict=True):
            assert types_pb2.Record.FromString(part.record) == hit.record
            assert (part.HasField("score"), part.score) == (hit.HasField("score"), hit.score)


@pytest.mark.parametrize(("view", "message"), PAIRS)
def test_fields_agree(view: type[Message], message: type[Message]) -> None:
    _check_fields(view.DESCRIPTOR, message.DESCRIPTOR)


def test_every_view_is_checked() -> None:
    checked = {view.DESCRIPTOR.name for view, _ in PAIRS}
    assert checked == set(views_pb2.DESCRIPTOR.message_types_by_name)


def _check_fields(view: Any, message: Any) -> None:
    """Same names, numbers and cardinality; a part may be bytes where it is a message there."""
    assert [field.name for field in view.fields] == [field.name for field in message.fields]
    for ours, theirs in zip(view.fields, message.fields, strict=True):
        name = f"{view.name}.{ours.name}"
        assert ours.number == theirs.number, name
        assert ours.is_repeated == theirs.is_repeated, name
        assert ours.has_presence == theirs.has_presence or ours.type != theirs.type, name
        if ours.type == FieldDescriptor.TYPE_BYTES and theirs.message_type is not None:
            # Only a message that is no group has its bytes behind a length, as bytes have.
            assert theirs.type == FieldDescriptor.TYPE_MESSAGE, name
            assert not theirs.message_type.GetOptions().map_entry, name
            continue
        assert ours.type == theirs.type, name
        if ours.message_type is not None and ours.message_type is not theirs.message_type:
            _check_fields(ours.message_type, theirs.message_type)
