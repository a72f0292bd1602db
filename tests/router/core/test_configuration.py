"""What a change of a collection's configuration makes of it, and what undoing it leaves."""

import json
from typing import Any

import pytest

from chroma_router.wire.errors import InvalidRequest
from router.core.configuration import effective, merged, undone, undone_text

_CURRENT: dict[str, Any] = {
    "hnsw": {"space": "l2", "ef_search": 100, "sync_threshold": 1000},
    "spann": None,
    "embedding_function": {"type": "known", "name": "a", "config": {"model": "small"}},
}


def after(update: dict[str, Any]) -> dict[str, Any]:
    """The configuration after an update."""
    text = json.dumps(_CURRENT)
    found: dict[str, Any] = json.loads(merged(text, effective(text, update)))
    return found


def test_a_part_that_is_not_named_or_null_stays() -> None:
    update = {
        "hnsw": {"ef_search": 7, "space": None},
        "spann": None,
        "embedding_function": None,
    }
    hnsw = {"space": "l2", "ef_search": 7, "sync_threshold": 1000}
    assert after(update) == {**_CURRENT, "hnsw": hnsw}


def test_an_embedding_function_is_replaced_whole() -> None:
    other = {"type": "known", "name": "b", "config": {}}
    assert after({"embedding_function": other}) == {**_CURRENT, "embedding_function": other}


def test_what_the_engine_does_not_keep_is_not_kept_here() -> None:
    assert after({"hnsw": {"num_threads": 2}}) == _CURRENT


def test_what_cannot_be_changed_may_be_named_as_it_is_but_is_no_change() -> None:
    """A schema has no place for "space" in its index, and the engine reads none that has one."""
    update = {"hnsw": {"space": "l2", "resize_factor": 2}, "embedding_function": None}
    assert effective(json.dumps(_CURRENT), update) == {"hnsw": {"resize_factor": 2}}


@pytest.mark.parametrize(
    ("update", "named"),
    [
        ({"hnsw": 3}, "hnsw"),
        ({"hnsw": {"space": "ip"}}, "hnsw.space"),
        ({"hnsw": {"bogus": 1}}, "hnsw.bogus"),
        ({"hnsw": {"ef_search": -1}}, "hnsw.ef_search"),
        ({"hnsw": {"ef_search": 10.0}}, "hnsw.ef_search"),
        ({"hnsw": {"ef_search": True}}, "hnsw.ef_search"),
        ({"hnsw": {"ef_search": "7"}}, "hnsw.ef_search"),
        ({"hnsw": {"num_threads": 2**64}}, "hnsw.num_threads"),
        ({"hnsw": {"sync_threshold": 1}}, "hnsw.sync_threshold"),
        ({"hnsw": {"batch_size": 0}}, "hnsw.batch_size"),
        ({"hnsw": {"resize_factor": "2"}}, "hnsw.resize_factor"),
        ({"hnsw": {"resize_factor": 10**400}}, "hnsw.resize_factor"),
        ({"spann": {"ef_search": 7}}, "spann"),
        ({"embedding_function": {}}, "embedding_function.type"),
        ({"embedding_function": {"type": "known", "config": {}}}, "embedding_function.name"),
        ({"embedding_function": {"type": "known", "name": "a"}}, "embedding_function.config"),
    ],
)
def test_what_the_engine_would_not_take(update: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        after(update)


def test_a_function_nested_deeper_than_the_engine_reads() -> None:
    config: list[Any] = []
    for _ in range(200):
        config = [config]
    with pytest.raises(InvalidRequest, match="inside one another"):
        after({"embedding_function": {"type": "known", "name": "a", "config": config}})


def test_only_what_is_still_this_change_is_undone() -> None:
    before = {"hnsw": {"ef_search": 1, "batch_size": 2}, "keys": {}, "embedding_function": {"n": 1}}
    mine = {
        "hnsw": {"ef_search": 5, "batch_size": 6, "num_threads": 7},
        "keys": {},
        "embedding_function": {"n": 2, "m": 0},
    }
    now = {
        "hnsw": {"ef_search": 9, "batch_size": 6, "num_threads": 7},
        "keys": {"learnt": 1},
        "embedding_function": {"n": 3, "m": 0},
    }
    assert undone(mine, mine, before) == before
    assert undone(now, mine, before) == {
        "hnsw": {"ef_search": 9, "batch_size": 2},
        "keys": {"learnt": 1},
        "embedding_function": {"n": 3, "m": 0},
    }
    assert undone_text("", "", "") == ""
    assert undone_text('{"a": 2}', '{"a": 1}', '{"a": 0}') == '{"a": 2}'
    assert undone_text('{"a": 1}', '{"a": 1}', '{"a": 0}') == '{"a": 0}'
