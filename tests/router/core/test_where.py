"""The filter grammar: the same verdicts as one Chroma, with the place and the mend."""

import json
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chroma_router.wire.errors import InvalidRequest
from router.core.limits import Limits
from router.core.where import check_where, check_where_document

if TYPE_CHECKING:
    from chromadb.api.models.Collection import Collection

LIMITS = Limits()

GOOD_WHERE = [
    '{"a": "x"}',
    '{"a": 1}',
    '{"a": 1.5}',
    '{"a": true}',
    '{"a": {"$eq": "x"}}',
    '{"a": {"$ne": false}}',
    '{"a": {"$gt": 1}}',
    '{"a": {"$lte": -1.5}}',
    '{"a": {"$in": ["x", "y"]}}',
    '{"a": {"$nin": [1, 2]}}',
    '{"a": {"$in": [true, false]}}',
    '{"a": {"$in": [1.5]}}',
    '{"a": {"$contains": "x"}}',
    '{"a": {"$not_contains": 3}}',
    '{"a": {"$contains": true}}',
    '{"#document": {"$contains": "x"}}',
    '{"#document": {"$contains": ""}}',
    '{"": 1}',
    '{"a": 9223372036854775807}',
    '{"a": -9223372036854775808}',
    '{"$and": [{"a": 1}, {"$or": [{"b": 2}, {"c": {"$gt": 3}}]}]}',
    ' {"\\u00e9": "\\ud83d\\ude42"} ',
]
BAD_WHERE = [
    "{}",
    "[]",
    "7",
    '"a"',
    '{"a": 1, "b": 2}',
    '{"a": null}',
    '{"a": [1]}',
    '{"a": {}}',
    '{"a": {"$gt": 1, "$lt": 2}}',
    '{"a": {"$like": 1}}',
    '{"a": {"$gt": "x"}}',
    '{"a": {"$gt": true}}',
    '{"a": {"$gt": [1]}}',
    '{"a": {"$eq": null}}',
    '{"a": {"$eq": [1]}}',
    '{"a": {"$eq": {"b": 1}}}',
    '{"a": {"$in": 1}}',
    '{"a": {"$in": []}}',
    '{"a": {"$in": [1, "x"]}}',
    '{"a": {"$in": [1, true]}}',
    '{"a": {"$in": [1, 2.5]}}',
    '{"a": {"$in": [null]}}',
    '{"a": {"$in": [[1]]}}',
    '{"a": {"$contains": null}}',
    '{"a": {"$contains": ["x"]}}',
    '{"a": {"$regex": "x"}}',
    '{"#document": {"$contains": 1}}',
    '{"a": 9223372036854775808}',
    '{"a": {"$in": [9223372036854775808]}}',
    '{"a": 1e999}',
    '{"$and": []}',
    '{"$and": [{"a": 1}]}',
    '{"$and": {"a": 1}}',
    '{"$or": [{"a": 1}, 2]}',
    '{"$or": [{"a": 1}, {}]}',
    '{"$not": [{"a": 1}, {"b": 1}]}',
    '{"$in": ["a"]}',
    '{"$contains": "x"}',
    '{"a": {"$and": [{"b": 1}, {"c": 1}]}}',
]
GOOD_DOCUMENT = [
    '{"$contains": "x"}',
    '{"$not_contains": "x"}',
    '{"$regex": "a.*b"}',
    '{"$not_regex": "^a"}',
    '{"$and": [{"$contains": "x"}, {"$or": [{"$contains": "y"}, {"$regex": "z"}]}]}',
]
BAD_DOCUMENT = [
    "{}",
    "[]",
    '"x"',
    '{"$contains": ""}',
    '{"$contains": 1}',
    '{"$contains": ["x"]}',
    '{"$contains": "x", "$regex": "y"}',
    '{"$eq": "x"}',
    '{"a": "x"}',
    '{"$and": [{"$contains": "x"}]}',
    '{"$or": "x"}',
    '{"$or": [{"$contains": "x"}, "y"]}',
]


@pytest.fixture(scope="module")
def chroma() -> Iterator["Collection"]:
    """An empty collection of the real engine, in memory: the reference."""
    with warnings.catch_warnings():
        # chromadb imports what its own dependencies deprecate.
        warnings.simplefilter("ignore")
        import chromadb

        client = chromadb.EphemeralClient()
    collection = client.create_collection("where-grammar", embedding_function=None)
    collection.add(ids=["1"], embeddings=[1.0, 2.0])
    yield collection
    client.delete_collection("where-grammar")


def _chroma_takes(collection: "Collection", **conditions: Any) -> bool:
    from chromadb.errors import InvalidArgumentError

    try:
        collection.get(**conditions)
    except (ValueError, InvalidArgumentError) as error:
        # Not the grammar's business: what a collection's schema has switched off.
        return "indexing is disabled" in str(error)
    return True


@pytest.mark.parametrize("text", GOOD_WHERE)
def test_good_where(chroma: "Collection", text: str) -> None:
    check_where(text, LIMITS)
    assert _chroma_takes(chroma, where=json.loads(text))


@pytest.mark.parametrize("text", BAD_WHERE)
def test_bad_where(chroma: "Collection", text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^where"):
        check_where(text, LIMITS)
    assert not _chroma_takes(chroma, where=json.loads(text))


@pytest.mark.parametrize("text", GOOD_DOCUMENT)
def test_good_where_document(chroma: "Collection", text: str) -> None:
    check_where_document(text, LIMITS)
    assert _chroma_takes(chroma, where_document=json.loads(text))


@pytest.mark.parametrize("text", BAD_DOCUMENT)
def test_bad_where_document(chroma: "Collection", text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^where_document"):
        check_where_document(text, LIMITS)
    assert not _chroma_takes(chroma, where_document=json.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        # Chroma's Python client refuses these, its server takes them.
        '{"#document": {"$regex": "a.*b"}}',
        '{"a": {"$in": [1.5, 2]}}',
    ],
)
def test_what_the_server_takes_is_good(text: str) -> None:
    check_where(text, LIMITS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{'a': 1}",
        '{"a": NaN}',
        '{"a": {"$in": [Infinity]}}',
        '{"a": "\\ud800"}',
        '{"a": 1} x',
        '{"a": ' + "9" * 5_000 + "}",
    ],
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="where: not JSON"):
        check_where(text, LIMITS)


def _nested(levels: int) -> dict[str, Any]:
    clause: dict[str, Any] = {"a": 1}
    for _ in range(levels):
        clause = {"$and": [{"b": 1}, clause]}
    return clause


@pytest.mark.parametrize(("levels", "good"), [(62, True), (63, True), (64, False), (80, False)])
def test_nesting_is_bounded_where_the_engine_bounds_it(
    chroma: "Collection", levels: int, good: bool
) -> None:
    text = json.dumps(_nested(levels))
    if good:
        check_where(text, LIMITS)
    else:
        with pytest.raises(InvalidRequest, match="127 objects and arrays"):
            check_where(text, LIMITS)
    assert _chroma_takes(chroma, where=json.loads(text)) is good


@pytest.mark.parametrize("text", ["[" * 200_000, '{"$and":[' * 100_000, '{"a":' * 2_000 + "1"])
def test_absurd_nesting_is_refused_too(text: str) -> None:
    with pytest.raises(InvalidRequest):
        check_where(text, LIMITS)


def test_size_is_bounded_in_bytes() -> None:
    limits = Limits(max_where_bytes=17)
    check_where('{"a": "éééé"}', limits)
    with pytest.raises(InvalidRequest, match="where: 18 bytes, at most 17"):
        check_where('{"a": "éééé1"}', limits)


def test_a_refusal_says_where_and_stays_short() -> None:
    bad = {"$and": [{"a": 1}, {"$or": [{"b": 1}, {"c": {"$in": ["x" * 5_000, 1]}}]}]}
    with pytest.raises(InvalidRequest) as refusal:
        check_where(json.dumps(bad), LIMITS)
    assert refusal.value.message.startswith('where.$and[1].$or[1]["c"]: $in takes values of one')
    assert len(refusal.value.message) < 250


JSON_VALUES = st.recursive(
    # No floats: lists that begin with one are where Chroma's client and server disagree.
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["$and", "$or", "$in", "$gt", "$contains", "a", "#document"]), inner
        )
    ),
    max_leaves=8,
)


@given(JSON_VALUES)
@example({"#document": ""})  # refused for a schema, which once passed for a matter of grammar
def test_agrees_with_chroma_on_noise(chroma: "Collection", value: Any) -> None:
    try:
        check_where(json.dumps(value), LIMITS)
    except InvalidRequest:
        good = False
    else:
        good = True
    # None is how the Python client says that there is no condition.
    assert value is None or _chroma_takes(chroma, where=value) is good
