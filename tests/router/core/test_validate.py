"""What is refused before anything is sent, each with the name of the guilty and the mend."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_router.v1 import types_pb2
from chroma_router.wire.errors import InvalidRequest, Reason
from router.core.limits import Limits
from router.core.validate import (
    CheckedWrite,
    WriteKind,
    check_collection_metadata,
    check_collection_name,
    check_database_name,
    check_embeddings,
    check_filter,
    check_n_results,
    check_request_id,
    check_tenant_name,
    check_write,
    dimension_refusal,
)

LIMITS = Limits()
INF, NAN = float("inf"), float("nan")
Value = types_pb2.MetadataValue


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def record(
    record_id: str, embedding: bytes | None = None, **metadata: types_pb2.MetadataValue
) -> bytes:
    message = types_pb2.Record(id=record_id, embedding=embedding)
    for key, value in metadata.items():
        message.metadata[key].CopyFrom(value)
    return message.SerializeToString()


def with_key(key: str, value: types_pb2.MetadataValue) -> bytes:
    message = types_pb2.Record(id="a", embedding=floats(1))
    message.metadata[key].CopyFrom(value)
    return message.SerializeToString()


def refusal(kind: WriteKind, records: list[bytes], limits: Limits = LIMITS) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        check_write(kind, records, limits)
    return caught.value


@pytest.mark.parametrize("kind", WriteKind)
def test_a_good_write(kind: WriteKind) -> None:
    good = [
        record("a", floats(1, 2, 3), s=Value(string_value=""), i=Value(int_value=-(2**63))),
        record("b", floats(-0.0, 3.4e38, 1e-45), f=Value(float_value=0.5)),
        record("é\0", floats(0, 0, 0), n=Value(string_array=types_pb2.StringArray(values=[""]))),
    ]
    types = frozenset({("s", "string"), ("i", "int"), ("f", "float"), ("n", "string")})
    assert check_write(kind, good, LIMITS) == CheckedWrite(["a", "b", "é\0"], 3, types)


def test_an_update_may_leave_embeddings_out_or_change_nothing() -> None:
    records = [record("a"), record("b", floats(1, 2)), record("c")]
    assert check_write(WriteKind.UPDATE, records, LIMITS) == CheckedWrite(["a", "b", "c"], 2)
    assert check_write(WriteKind.UPDATE, records[:1], LIMITS) == CheckedWrite(["a"], None)


@pytest.mark.parametrize("kind", [WriteKind.ADD, WriteKind.UPSERT])
def test_add_and_upsert_need_embeddings(kind: WriteKind) -> None:
    error = refusal(kind, [record("a", floats(1)), record("b")])
    assert error.message == f"record 1 (id 'b') has no embedding; {kind} needs one"


@pytest.mark.parametrize("kind", WriteKind)
def test_an_empty_batch(kind: WriteKind) -> None:
    assert "no records" in refusal(kind, []).message


def test_a_batch_at_and_over_the_limit() -> None:
    records = [record(str(n), floats(1)) for n in range(LIMITS.max_batch_records + 1)]
    assert len(check_write(WriteKind.ADD, records[1:], LIMITS).ids) == 5_461
    error = refusal(WriteKind.ADD, records)
    assert error.reason is Reason.BATCH_TOO_LARGE
    assert "Batch size 5462 is greater than max batch size 5461" in error.message


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xff", "record 1 is not a valid Record message"),
        (b"\x0a\x02\xc3\x28", "record 1 is not a valid Record message"),  # an id, not UTF-8
        (b"\x0a\x03\xed\xa0\x80", "record 1 is not a valid Record message"),  # a lone surrogate
        (record("", floats(1)), "record 1: Empty ID"),
        (record("b" * 65_537, floats(1)), "the id has 65537 bytes, at most 65536"),
        (record("é" * 32_769, floats(1)), "the id has 65538 bytes, at most 65536"),
        (record("b", b""), "record 1 (id 'b'): the embedding has 0 bytes"),
        (record("b", b"12345"), "record 1 (id 'b'): the embedding has 5 bytes"),
        (record("b", floats(1, 2)), "record 1 (id 'b'): Inconsistent dimensions"),
        (record("b", floats(NAN)), "record 1 (id 'b'): Embeddings must not contain NaN"),
        (record("b", floats(INF)), "record 1 (id 'b'): Embeddings must not contain NaN"),
        (record("b", floats(-INF)), "record 1 (id 'b'): Embeddings must not contain NaN"),
    ],
)
@pytest.mark.parametrize("kind", WriteKind)
def test_a_bad_record_is_named(kind: WriteKind, data: bytes, text: str) -> None:
    error = refusal(kind, [record("a", floats(1)), data])
    assert text in error.message
    assert error.reason is Reason.INVALID_ARGUMENT
    assert len(error.message) < 300


@pytest.mark.parametrize("record_id", ["x" * 65_536, "é" * 32_768])
def test_the_longest_id_is_good(record_id: str) -> None:
    assert check_write(WriteKind.ADD, [record(record_id, floats(1))], LIMITS).ids == [record_id]


def test_an_update_names_the_record_not_the_embedding() -> None:
    records = [record("a"), record("b", floats(1, 2)), record("c"), record("d", floats(1, NAN))]
    message = refusal(WriteKind.UPDATE, records).message
    assert message.startswith("record 3 (id 'd'): ")
    assert "element 1" in message


@pytest.mark.parametrize("kind", WriteKind)
def test_the_dimension_is_bounded(kind: WriteKind) -> None:
    limits = Limits(max_dimension=4)
    assert check_write(kind, [record("a", floats(1, 2, 3, 4))], limits).dimension == 4
    assert (
        "dimension 5, at most 4" in refusal(kind, [record("a", floats(*range(5)))], limits).message
    )


def test_duplicates_are_named_once_each_and_clipped() -> None:
    ids = [f"{n:02}" + "x" * 9_000 for n in range(12)]
    error = refusal(WriteKind.ADD, [record(i, floats(1)) for i in [*ids, "u", *ids, ids[0]]])
    assert error.reason is Reason.DUPLICATE_IDS
    assert error.message.startswith("Expected IDs to be unique, found duplicates of: 00xxx")
    assert "09xxx" in error.message
    assert "10xxx" not in error.message
    assert error.message.endswith(" and 2 more")
    assert len(error.message) < 700


def test_few_duplicates_are_told_in_chromas_words() -> None:
    error = refusal(WriteKind.ADD, [record(i, floats(1)) for i in "abcab"])
    assert error.message == "Expected IDs to be unique, found duplicates of: a, b"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("", Value(int_value=1), "cannot be empty"),
        ("#a", Value(int_value=1), "cannot start with"),
        ("$a", Value(int_value=1), "cannot start with"),
        ("chroma:document", Value(string_value="x"), "reserved"),
        ("chroma:uri", Value(string_value="x"), "reserved"),
        ("k", Value(), "no kind"),
        ("k", Value(float_value=INF), "inf is not a finite number"),
        ("k", Value(float_value=NAN), "nan is not a finite number"),
        ("k", Value(string_array=types_pb2.StringArray()), "array is empty"),
        ("k", Value(int_array=types_pb2.IntArray()), "array is empty"),
        ("k", Value(float_array=types_pb2.FloatArray()), "array is empty"),
        ("k", Value(bool_array=types_pb2.BoolArray()), "array is empty"),
        ("k", Value(float_array=types_pb2.FloatArray(values=[1, -INF])), "NaN or an infinity"),
        ("k", Value(absent=False), "absent can only be true"),
    ],
)
@pytest.mark.parametrize("kind", WriteKind)
def test_bad_metadata_is_named(
    kind: WriteKind, key: str, value: types_pb2.MetadataValue, text: str
) -> None:
    message = refusal(kind, [with_key(key, value)]).message
    assert message.startswith(f"record 0 (id 'a'): metadata key {key!r}: ")
    assert text in message


def test_absent_is_for_update_and_upsert() -> None:
    removing = [with_key("k", Value(absent=True))]
    assert check_write(WriteKind.UPDATE, removing, LIMITS).ids == ["a"]
    assert check_write(WriteKind.UPSERT, removing, LIMITS).ids == ["a"]
    assert "update and upsert only" in refusal(WriteKind.ADD, removing).message


@given(st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), min_size=1, max_size=6))
def test_the_first_bad_element_is_found(rows: list[list[float]]) -> None:
    bad = [
        (row, element)
        for row, values in enumerate(rows)
        for element, value in enumerate(values)
        if value - value != 0
    ]
    embeddings = [floats(*values) for values in rows]
    if not bad:
        assert check_embeddings(embeddings, LIMITS) == 2
        return
    row, element = bad[0]
    with pytest.raises(InvalidRequest, match=f"query embedding {row}: .* element {element} is"):
        check_embeddings(embeddings, LIMITS)


@pytest.mark.parametrize(
    ("embeddings", "text"),
    [
        ([], "at least one"),
        ([floats(1)] * 1_001, "1001 given, at most 1000"),
        ([floats(1), b""], "query embedding 1: the embedding has 0 bytes"),
        ([floats(1), floats(1, 2)], "query embedding 1: Inconsistent dimensions"),
    ],
)
def test_bad_query_embeddings(embeddings: list[bytes], text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        check_embeddings(embeddings, LIMITS)


@pytest.mark.parametrize(("n_results", "text"), [(0, "zero"), (-1, "zero"), (100_001, "100000")])
def test_bad_n_results(n_results: int, text: str) -> None:
    check_n_results(1, LIMITS)
    check_n_results(100_000, LIMITS)
    with pytest.raises(InvalidRequest, match=text):
        check_n_results(n_results, LIMITS)


def test_the_hits_of_all_embeddings_are_bounded_together() -> None:
    check_n_results(200, LIMITS, 1000)
    check_n_results(100_000, LIMITS, 2)
    with pytest.raises(InvalidRequest, match="n_results: 201 for each of 1000 embeddings"):
        check_n_results(201, LIMITS, 1000)


@pytest.mark.parametrize(
    "good",
    [
        types_pb2.Filter(),
        types_pb2.Filter(by_ids=True),
        types_pb2.Filter(ids=["a", "b"], where='{"a": 1}', where_document='{"$contains": "x"}'),
        types_pb2.Filter(ids=map(str, range(100_000))),
    ],
)
def test_good_filters(good: types_pb2.Filter) -> None:
    check_filter(good, LIMITS)


@pytest.mark.parametrize(
    ("bad", "reason", "text"),
    [
        (
            types_pb2.Filter(ids=map(str, range(100_001))),
            Reason.INVALID_ARGUMENT,
            "100001 ids, at most 100000",
        ),
        (types_pb2.Filter(ids=["a", "a"]), Reason.DUPLICATE_IDS, "duplicates of: a"),
        (types_pb2.Filter(where="{}"), Reason.INVALID_ARGUMENT, "^where: "),
        (types_pb2.Filter(where_document="{}"), Reason.INVALID_ARGUMENT, "^where_document: "),
    ],
)
def test_bad_filters(bad: types_pb2.Filter, reason: Reason, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text) as caught:
        check_filter(bad, LIMITS)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    "name", ["abc", "a" * 512, "a.b-c_d", "1.2.3", "abc+def", "a" * 255 + "+" + "b" * 256]
)
def test_good_collection_names(name: str) -> None:
    check_collection_name(name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "3-512 characters"),
        ("ab", "3-512 characters"),
        ("a" * 513, "3-512 characters"),
        ("_abc", "3-512 characters"),
        ("abc-", "3-512 characters"),
        ("abc\n", "3-512 characters"),
        ("a b c", "3-512 characters"),
        ("été", "3-512 characters"),
        ("::1", "3-512 characters"),
        ("a..b", "two consecutive periods"),
        ("1.2.3.4", "ip address"),
        ("ab+def", "3-512 characters"),
        ("abc+1.2.3.4", "ip address"),
        ("abc+def+ghi", "3-512 characters"),
        ("a" * 256 + "+" + "b" * 256, "3-512 characters"),
    ],
)
def test_bad_collection_names(name: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text) as caught:
        check_collection_name(name)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("check", [check_database_name, check_tenant_name])
def test_database_and_tenant_names(check: Callable[[str], None]) -> None:
    check("abc")
    check("a b/é")
    for short in ("", "ab", "éé"):
        with pytest.raises(InvalidRequest, match="at least 3 characters"):
            check(short)


@pytest.mark.parametrize(
    "value",
    [
        Value(string_value=""),
        Value(int_value=0),
        Value(float_value=0.0),
        Value(bool_value=False),
    ],
)
def test_good_collection_metadata(value: types_pb2.MetadataValue) -> None:
    check_collection_metadata({})
    check_collection_metadata({"hnsw:space": value, "chroma-ish": value})


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("", Value(int_value=1), "cannot be empty"),
        ("#a", Value(int_value=1), "cannot start with"),
        ("$a", Value(int_value=1), "cannot start with"),
        ("k", Value(), "no kind"),
        ("k", Value(float_value=NAN), "finite"),
        ("k", Value(int_array=types_pb2.IntArray(values=[1])), "has no int_array"),
        ("k", Value(absent=True), "has no absent"),
    ],
)
def test_bad_collection_metadata(key: str, value: types_pb2.MetadataValue, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text) as caught:
        check_collection_metadata({"good": Value(int_value=1), key: value})
    assert caught.value.message.startswith(f"collection metadata key {key!r}: ")


def test_the_dimension_refusal_is_in_chromas_words() -> None:
    error = dimension_refusal(3, 1)
    assert error.message == "Collection expecting embedding with dimension of 3, got 1"
    assert error.reason is Reason.DIMENSION_MISMATCH


@pytest.mark.parametrize("good", ["", "x" * 128, "é" * 64])
def test_a_request_id_has_at_most_128_bytes(good: str) -> None:
    check_request_id(good, Limits())
    with pytest.raises(InvalidRequest, match="128"):
        check_request_id(good.ljust(len(good) + 129 - len(good.encode()), "x"), Limits())
