"""A sharded collection's schema: the definition and what its shards discovered, against a twin."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core import schema
from router.core.schema import MAX_KEYS, may_grow, merged, metadata_types, with_configuration

TYPES = ("string", "int", "float", "bool")
KEYS = st.dictionaries(
    st.sampled_from("abcdef") | st.text(min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(TYPES), st.integers(0, 3).map(lambda n: {"index": n})),
    max_size=6,
)


def text(keys: Any, **more: Any) -> str:
    return json.dumps({"defaults": {"string": {"index": 9}}, "keys": keys, **more})


def types_of(schema_json: str) -> set[tuple[str, str]]:
    return {(key, name) for key, types in json.loads(schema_json)["keys"].items() for name in types}


@given(KEYS, st.lists(KEYS, max_size=4), st.randoms())
def test_the_union_in_any_order_and_the_definition_wins(
    defined: Any, shards: list[Any], random: Any
) -> None:
    own, told = text(defined, cmek="x"), [text(keys) for keys in shards]
    union = merged(own, told)
    assert types_of(union) == types_of(own).union(*map(types_of, told))
    for key, types in defined.items():
        for name, settings in types.items():
            assert json.loads(union)["keys"][key][name] == settings
    rest = json.loads(union)
    assert {**rest, "keys": None} == {**json.loads(own), "keys": None}
    assert merged(union, told) == union  # nothing new: the same text
    # One by one or at once, the same is known; with equal settings, as shards of one definition
    # have, even the same text.
    one_by_one = own
    random.shuffle(told)
    for shard in told:
        one_by_one = merged(one_by_one, [shard])
    assert types_of(one_by_one) == types_of(union)


@given(st.lists(st.sets(st.tuples(st.sampled_from("abcdef"), st.sampled_from(TYPES))), max_size=4))
def test_shards_of_one_definition_give_one_schema_in_any_order(shards: list[Any]) -> None:
    def told(met: Any) -> str:
        keys: dict[str, dict[str, Any]] = {}
        for key, name in met:
            keys.setdefault(key, {})[name] = {"index": name}
        return text(keys)

    own = text({"#document": {"string": {}}})
    texts = [told(met) for met in shards]
    assert merged(own, texts) == merged(own, reversed(texts))


def test_it_does_not_grow_for_ever() -> None:
    own = text({"#embedding": {"float_list": {}}})
    many = text({f"key-{n:06}": {"int": {}} for n in range(MAX_KEYS + 500)})
    full = merged(own, [many])
    keys = json.loads(full)["keys"]
    assert len(keys) == MAX_KEYS
    assert "#embedding" in keys
    assert not may_grow(full, frozenset({("other", "int")}))
    # A known key's further type is taken up still.
    further = merged(full, [text({"key-000000": {"bool": {}}, "other": {"bool": {}}})])
    assert types_of(further) - types_of(full) == {("key-000000", "bool")}


def test_what_makes_asking_worth_while() -> None:
    own = text({"a": {"string": {}, "int": {}}})
    assert not may_grow(own, frozenset())
    assert not may_grow(own, frozenset({("a", "string"), ("a", "int")}))
    assert may_grow(own, frozenset({("a", "string"), ("a", "bool")}))
    assert may_grow(own, frozenset({("b", "string")}))
    assert not may_grow("", frozenset({("b", "string")}))
    assert merged("", [own]) == ""
    assert merged(own, [""]) == own


def test_the_types_of_values() -> None:
    fields = {
        ("a", "string_value"), ("b", "int_value"), ("c", "float_value"), ("d", "bool_value"),
        ("a", "string_array"), ("b", "int_array"), ("c", "float_array"), ("e", "bool_array"),
        ("a", "int_value"), ("gone", "absent"), ("chroma:own", "int_value"),
    }  # fmt: skip
    assert metadata_types(fields) == {
        ("a", "string"), ("b", "int"), ("c", "float"), ("d", "bool"), ("e", "bool"), ("a", "int"),
    }  # fmt: skip


@pytest.mark.parametrize("place", ["defaults", "keys"])
def test_a_change_of_the_configuration_reaches_the_schema(place: str) -> None:
    def index(**hnsw: Any) -> Any:
        config = {"hnsw": {"ef_search": 1, "max_neighbors": 2, **hnsw}, "embedding_function": "old"}
        return {"float_list": {"vector_index": {"enabled": True, "config": config}}}

    before = {"defaults": index(), "keys": {"#embedding": index(), "tag": {"string": {}}}}
    update = {"hnsw": {"ef_search": 7, "max_neighbors": None}, "embedding_function": {"name": "f"}}
    after = json.loads(with_configuration(json.dumps(before), update))
    changed = after["defaults"] if place == "defaults" else after["keys"]["#embedding"]
    config = changed["float_list"]["vector_index"]["config"]
    assert config == {
        "hnsw": {"ef_search": 7, "max_neighbors": 2},
        "embedding_function": {"name": "f"},
    }
    assert after["keys"]["tag"] == {"string": {}}
    assert with_configuration("", update) == ""
    assert json.loads(with_configuration(text({}), update)) == json.loads(text({}))


def test_the_types_that_a_schema_names_are_read_once() -> None:
    own = text({"only-here": {"int": {}}})
    before = schema._known.cache_info().misses
    for _ in range(3):
        may_grow(own, frozenset({("only-here", "int")}))
    assert schema._known.cache_info().misses == before + 1
