"""What a change of a collection's configuration makes of it."""

import json

import pytest

from chroma_router.wire.errors import InvalidRequest
from router.service.catalog import merged_configuration

_CURRENT: dict[str, object] = {
    "hnsw": {"space": "l2", "ef_search": 100, "sync_threshold": 1000},
    "spann": None,
    "embedding_function": {"type": "known", "name": "a", "config": {"model": "small"}},
}


def merged(update: dict[str, object]) -> dict[str, object]:
    """The configuration after an update."""
    after: dict[str, object] = json.loads(merged_configuration(json.dumps(_CURRENT), update))
    return after


def test_a_part_that_is_not_named_or_null_stays() -> None:
    update: dict[str, object] = {
        "hnsw": {"ef_search": 7, "space": None},
        "spann": None,
        "embedding_function": None,
    }
    hnsw = {"space": "l2", "ef_search": 7, "sync_threshold": 1000}
    assert merged(update) == {**_CURRENT, "hnsw": hnsw}


def test_an_embedding_function_is_replaced_whole() -> None:
    other = {"type": "known", "name": "b", "config": {}}
    assert merged({"embedding_function": other}) == {**_CURRENT, "embedding_function": other}


def test_what_the_engine_does_not_keep_is_not_kept_here() -> None:
    assert merged({"hnsw": {"num_threads": 2}}) == _CURRENT


@pytest.mark.parametrize("update", [{"hnsw": {"space": "ip"}}, {"hnsw": 3}])
def test_what_cannot_be_changed(update: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="hnsw"):
        merged(update)
