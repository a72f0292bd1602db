"""Records over the wire and back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_router.v1 import types_pb2
from chroma_router.wire.records import RecordColumns, record_from_bytes, record_to_bytes

text = st.text(max_size=20)
int64 = st.integers(-(2**63), 2**63 - 1)
number = st.floats(allow_nan=False)
value = st.one_of(
    text, int64, number, st.booleans(), st.none(),
    *(st.lists(kind, min_size=1, max_size=4) for kind in (text, int64, number, st.booleans())),
)  # fmt: skip


@given(
    text,
    st.none() | st.binary(max_size=16),
    st.none() | text,
    st.none() | text,
    st.none() | st.dictionaries(text, value, min_size=1, max_size=5),
)
def test_nothing_is_lost(
    record_id: str,
    embedding: bytes | None,
    document: str | None,
    uri: str | None,
    metadata: dict[str, Any] | None,
) -> None:
    columns = RecordColumns(record_id, embedding, document, uri, metadata)
    back = record_from_bytes(record_to_bytes(*columns))
    assert back == columns
    assert repr(back.metadata and sorted(back.metadata.items())) == repr(
        metadata and sorted(metadata.items())
    )  # True is not 1, 1 is not 1.0


def test_a_value_without_a_kind_is_refused() -> None:
    record = types_pb2.Record(id="a")
    record.metadata["x"].SetInParent()
    with pytest.raises(ValueError, match="'x' has no kind"):
        record_from_bytes(record.SerializeToString())


@pytest.mark.parametrize("wrong", [object(), b"bytes", [1, "a"], [1, True], [1, 2.5], [None]])
def test_what_has_no_wire_form_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="'x'"):
        record_to_bytes("a", metadata={"x": wrong})


def test_an_empty_array_stays_one() -> None:
    assert record_from_bytes(record_to_bytes("a", metadata={"x": []})).metadata == {"x": []}
