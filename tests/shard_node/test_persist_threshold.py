"""How often the engine persists: what is asked for, what it gets, what is reported."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_node import persist_threshold

SCHEMA = {
    "defaults": {"float_list": {"vector_index": {"config": {"hnsw": {"sync_threshold": 7}}}}},
    "keys": {
        "#embedding": {"float_list": {"vector_index": {"config": {"hnsw": {"sync_threshold": 8}}}}}
    },
}


@pytest.mark.parametrize(
    ("configuration", "schema", "metadata", "asked"),
    [
        ({}, {}, None, 1000),
        ({"hnsw": {"sync_threshold": 20}}, {}, None, 20),
        ({"hnsw": None}, {}, {"hnsw:sync_threshold": 30}, 30),
        ({"hnsw": {"space": "cosine"}}, {}, {"hnsw:sync_threshold": 30}, 1000),
        ({"hnsw": {"space": "l2"}}, {}, {"hnsw:sync_threshold": 30}, 30),
        ({"hnsw": {"sync_threshold": 1000}}, {}, {"hnsw:sync_threshold": 30}, 30),
        ({"hnsw": {"sync_threshold": 20}}, {}, {"hnsw:sync_threshold": 30}, 20),
        ({"spann": {"space": "l2"}}, {}, {"hnsw:sync_threshold": 30}, 1000),
        ({}, SCHEMA, None, 8),
        ({"hnsw": {"space": "ip"}}, {"defaults": SCHEMA["defaults"]}, {"x": 1}, 7),
    ],
)
def test_what_is_asked_for(configuration: Any, schema: Any, metadata: Any, asked: int) -> None:
    got = persist_threshold.asked_for(json.dumps(configuration), json.dumps(schema), metadata)
    assert got == asked
    if not configuration and not schema and not metadata:
        assert persist_threshold.asked_for("", "", None) == asked


@given(st.integers(2, 10**6), st.integers(0, 10**8))
def test_never_above_what_is_asked_for(asked: int, records: int) -> None:
    threshold = persist_threshold.physical(asked, records)
    assert 1 < threshold <= asked
    assert threshold == asked or threshold >= 250


def test_a_large_index_is_persisted_less_often() -> None:
    assert persist_threshold.physical(1000, 0) == 250
    assert persist_threshold.physical(1000, 80_000) == 500
    assert persist_threshold.physical(1000, 10**6) == 1000


def test_the_report_has_what_was_asked_for() -> None:
    text = persist_threshold.reported(json.dumps(SCHEMA), 1000)
    assert json.loads(text) == json.loads(
        json.dumps(SCHEMA).replace("8", "1000").replace("7", "1000")
    )
    assert persist_threshold.reported("", 5) == ""
