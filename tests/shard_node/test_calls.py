"""What a router can ask of a node that runs without trouble."""

import json
import random
from typing import Any

import pytest

from chroma_router.v1 import shard_pb2, types_pb2
from chroma_router.wire.errors import (
    InvalidRequest,
    NotAllowed,
    NotFound,
    Reason,
    Stale,
)
from chroma_router.wire.records import metadata_from_wire
from chroma_router.wire.slots import slot_of
from tests.shard_node.running import (
    ADD,
    ALL_SLOTS,
    DELETE,
    DISTANCES,
    DOCUMENTS,
    METADATAS,
    UPDATE,
    UPSERT,
    CollectionCalls,
    Node,
    Row,
    floats,
)

pytestmark = pytest.mark.integration


def rows(count: int, dimension: int = 2, first: int = 0) -> list[Row]:
    rng = random.Random(count + first)
    return [
        Row(
            f"r{n}",
            floats(*(rng.uniform(-1, 1) for _ in range(dimension))),
            f"document {n}",
            metadata={"n": n, "even": n % 2 == 0},
            sequence=1000 + n,
        )
        for n in range(first, first + count)
    ]


# ------------------------------------------------------------------------------------ handshake


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cluster": "5b8e3f0e-6f0c-4d57-9f0b-3a2d3f1f7f11"}, Reason.WRONG_CLUSTER),
        ({"shard": "shard-2"}, Reason.WRONG_SHARD),
        ({"version": 2}, Reason.PROTOCOL_MISMATCH),
    ],
)
def test_hello_refuses_a_stranger(node: Node, options: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(NotAllowed) as refused:
        node.hello(**options)
    assert refused.value.reason is reason


def test_hello_wants_a_cluster_id(node: Node) -> None:
    with pytest.raises(InvalidRequest):
        node.hello(cluster="mine")


# ------------------------------------------------------------------------------------ ownership


def test_nothing_is_served_without_ownership(node: Node) -> None:
    unknown = CollectionCalls(node, "7c9f9d56-6a0b-44a5-ae1c-0c1d3a0d5f00")
    for call in (unknown.count, unknown.page, lambda: unknown.query(floats(1, 2))):
        with pytest.raises(Stale) as stale:
            call()
        assert stale.value.metadata == {"epoch": "0", "boot_id": node.hello().boot_id}
    (result,) = unknown.apply(unknown.operation(DELETE, ["a"]))
    assert (result.refused_reason, result.node_epoch) == ("STALE_EPOCH", 0)


def test_another_epoch_is_refused(docs: CollectionCalls) -> None:
    docs.own(epoch=5)
    docs.epoch = 4
    with pytest.raises(Stale) as stale:
        docs.count()
    assert stale.value.metadata["epoch"] == "5"
    (result,) = docs.apply(docs.operation(ADD, rows(1)))
    assert (result.refused_reason, result.node_epoch) == ("STALE_EPOCH", 5)
    with pytest.raises(Stale):
        docs.own(epoch=4)


def test_the_same_epoch_renews_but_never_changes(docs: CollectionCalls) -> None:
    docs.own(epoch=1)
    with pytest.raises(NotAllowed) as refused:
        docs.own(frozenset({1}), epoch=1)
    assert refused.value.reason is Reason.CATALOG_BEHIND


def test_ownership_for_another_boot_is_refused(docs: CollectionCalls) -> None:
    with pytest.raises(Stale) as stale:
        docs.own(epoch=2, boot_id="7c9f9d56-6a0b-44a5-ae1c-0c1d3a0d5f00")
    assert stale.value.reason is Reason.STALE_BOOT


def test_ownership_makes_the_collection_as_configured(docs: CollectionCalls) -> None:
    made = docs.own(epoch=2, version=2, configuration='{"hnsw":{"ef_search":77}}')
    assert '"ef_search": 77' in made.configuration_json
    assert '"space": "l2"' in made.configuration_json
    assert made.schema_json.startswith("{")
    again = docs.own(epoch=3, version=1, configuration='{"hnsw":{"ef_search":12}}')
    assert '"ef_search": 77' in again.configuration_json  # an older definition changes nothing


def test_a_configuration_that_the_engine_refuses(node: Node) -> None:
    with pytest.raises(InvalidRequest, match="unknown variant"):
        node.collection(space="manhattan")


def test_the_filled_in_configuration_and_schema_can_be_given_back(node: Node) -> None:
    """As the catalog does when it brings a collection to another shard."""
    made = node.collection(space="cosine").own(
        epoch=2, version=2, configuration='{"hnsw":{"space":"cosine","ef_search":42}}'
    )
    other = CollectionCalls(node, "aa9f9d56-6a0b-44a5-ae1c-0c1d3a0d5f00")
    again = other.own(version=2, configuration=made.configuration_json, schema=made.schema_json)
    assert json.loads(again.configuration_json) == json.loads(made.configuration_json)
    assert '"ef_search": 42' in again.configuration_json


def test_a_configuration_with_which_the_engine_would_not_live(node: Node) -> None:
    made = CollectionCalls(node, "bb9f9d56-6a0b-44a5-ae1c-0c1d3a0d5f00")
    for configuration in ('{"hnsw":{"max_neighbors":0}}', '{"hnsw":1}', '[{"hnsw":{}}]'):
        with pytest.raises(InvalidRequest, match="configuration"):
            made.own(configuration=configuration)
    made.own()
    made.write(ADD, *rows(3))
    assert made.count() == 3


def test_numbers_that_sqlite_cannot_keep(node: Node, docs: CollectionCalls) -> None:
    for epoch in (2**63, 2**64 - 1):
        for collection in (docs.id, "cc9f9d56-6a0b-44a5-ae1c-0c1d3a0d5f00"):
            request = shard_pb2.DropCollectionRequest(collection_id=collection, epoch=epoch)
            with pytest.raises(InvalidRequest, match="epoch"):
                node.call("DropCollection", request)
        with pytest.raises(InvalidRequest, match="epoch"):
            docs.own(epoch=epoch)
        docs.epoch = 1
        with pytest.raises(InvalidRequest, match="version"):
            docs.own(version=epoch)
    docs.own()
    assert docs.count() == 0


@pytest.mark.parametrize("kind", [ADD, UPDATE, UPSERT])
def test_sequences_that_do_not_go_with_the_ids(docs: CollectionCalls, kind: int) -> None:
    """Of an update they were not looked at, and the node ended."""
    docs.write(ADD, *rows(3))
    for sequences in ([1], [1, 2, 3, 4], [1, 2, 2**62 + 1]):
        operation = docs.operation(kind, rows(3))
        operation.sequences[:] = sequences
        (result,) = docs.apply(operation)
        assert result.refused_reason == Reason.INVALID_ARGUMENT
        assert "sequence" in result.message
    docs.write(ADD, Row("last", floats(1, 2), sequence=2**62))
    assert docs.count() == 4


def test_a_dropped_collection_never_comes_back(docs: CollectionCalls) -> None:
    docs.write(ADD, *rows(3))
    for _ in range(2):
        request = shard_pb2.DropCollectionRequest(collection_id=docs.id, epoch=2)
        docs.node.call("DropCollection", request)
    for call in (docs.count, lambda: docs.own(epoch=3), docs.page):
        with pytest.raises(NotFound):
            call()
    (result,) = docs.apply(docs.operation(ADD, rows(1)))
    assert result.refused_reason == "COLLECTION_NOT_FOUND"
    held = docs.node.stub.ListHoldings(shard_pb2.ListHoldingsRequest())
    assert [h.dropped for h in held if h.definition.collection.id == docs.id] == [True]


def test_holdings_and_stats(docs: CollectionCalls) -> None:
    docs.own(epoch=2, version=7)
    docs.write(ADD, *rows(4, dimension=5))
    (held,) = [
        h
        for h in docs.node.stub.ListHoldings(shard_pb2.ListHoldingsRequest())
        if h.definition.collection.id == docs.id
    ]
    assert (held.definition.collection.epoch, held.definition.collection.dimension) == (2, 5)
    assert held.definition.version == 7
    stats = docs.node.call("GetShardStats", shard_pb2.GetShardStatsRequest())
    assert stats.shard == "shard-1"
    assert stats.memory_bytes > 0
    (mine,) = [s for s in stats.holdings if s.collection_id == docs.id]
    assert (mine.epoch, mine.slots, mine.records, mine.unowned_records) == (2, 1024, 4, 0)


# ------------------------------------------------------------------------------------ writes


def test_records_come_back_as_they_were(docs: CollectionCalls) -> None:
    full = {
        "text": "x", "int": 2**53 + 1, "most": 2**63 - 1, "least": -(2**63), "float": 1.0,
        "yes": True, "texts": ["a", "b"], "ints": [1, 2**62], "floats": [1.0, 2.5],
        "flags": [True, False],
    }  # fmt: skip
    docs.write(ADD, Row("a", floats(1, 2), "text", "file:///a", full), Row("b", floats(3, 4)))
    a, b = docs.records()
    assert (a.id, a.embedding, a.document, a.uri) == ("a", floats(1, 2), "text", "file:///a")
    got = metadata_from_wire(a.metadata)
    assert got == full
    assert {key: type(value) for key, value in got.items()} == {
        key: type(value) for key, value in full.items()
    }
    assert not b.HasField("document")
    assert not b.HasField("uri")
    assert not b.metadata


def test_update_and_upsert_change_only_what_they_name(docs: CollectionCalls) -> None:
    docs.write(ADD, Row("a", floats(1, 2), "old", "u", {"p": 1, "q": 2}), Row("b", floats(3, 4)))
    docs.write(
        UPDATE,
        Row("a", None, "new", None, {"p": None, "r": 3}),
        Row("b", floats(9, 9)),
        Row("missing", floats(1, 1)),
    )
    docs.write(
        UPSERT, Row("a", floats(5, 5), None, None, {"q": 9}), Row("c", floats(6, 6), sequence=2)
    )
    a, b, c = docs.records()
    assert (a.embedding, a.document, a.uri) == (floats(5, 5), "new", "u")
    assert metadata_from_wire(a.metadata) == {"q": 9, "r": 3}
    assert (b.embedding, c.embedding) == (floats(9, 9), floats(6, 6))


def test_add_keeps_what_exists(docs: CollectionCalls) -> None:
    docs.write(ADD, Row("a", floats(1, 2), "first"))
    docs.write(ADD, Row("a", floats(3, 4), "second"), Row("b", floats(5, 6), sequence=2))
    assert [(r.id, r.document) for r in docs.records()] == [("a", "first"), ("b", "")]


def test_order_is_by_incarnation(docs: CollectionCalls) -> None:
    docs.write(ADD, Row("z", floats(1, 1), sequence=1), Row("y", floats(1, 1), sequence=2))
    docs.write(UPSERT, Row("z", floats(2, 2), sequence=9))  # keeps its place
    assert docs.ids() == ["z", "y"]
    docs.write(DELETE, "z")
    docs.write(ADD, Row("z", floats(1, 1), sequence=10))  # a new one
    assert docs.ids() == ["y", "z"]
    assert docs.node.hello().high_sequence >= 10


def test_only_the_guilty_operation_of_a_group_fails(docs: CollectionCalls) -> None:
    docs.write(ADD, Row("first", floats(0, 0)))
    results = docs.apply(
        docs.operation(ADD, [Row("a", floats(1, 2), sequence=2)]),
        docs.operation(ADD, [Row("b", floats(1, 2, 3), sequence=3)]),
        docs.operation(ADD, [Row("d", floats(1, 2), sequence=4)]),
    )
    assert [r.refused_reason for r in results] == ["", "INVALID_ARGUMENT", ""]
    assert "dimension of 2, got 3" in results[1].message
    assert docs.ids() == ["first", "a", "d"]
    assert docs.count() == 3


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (ADD, [Row("a", floats(1)), Row("a", floats(1))]),
        (ADD, [Row("", floats(1))]),
        (ADD, [Row("a")]),
        (ADD, [Row("a", b"123")]),
        (ADD, [Row("a", floats(float("nan")))]),
        (ADD, [Row("a", floats(1), metadata={"x": float("inf")})]),
        (ADD, [Row("a", floats(1), metadata={"x": None})]),
        (ADD, [Row("a", floats(1), metadata={"x": []})]),
        (ADD, [Row("a", floats(1), metadata={"#x": 1})]),
        (ADD, [Row("a", floats(1), metadata={"chroma:document": "x"})]),
        (ADD, []),
        (DELETE, ["a", "a"]),
        (9, ["a"]),
    ],
)
def test_malformed_operations_are_refused(
    docs: CollectionCalls, kind: int, wrong: list[Row | str]
) -> None:
    right = docs.operation(ADD, [Row("good", floats(1))])
    results = docs.apply(docs.operation(kind, wrong), right)
    assert results[0].refused_reason in {"INVALID_ARGUMENT", "DUPLICATE_IDS"}
    assert results[0].message
    assert results[1].refused_reason == ""
    assert docs.ids() == ["good"]


def test_delete_counts(docs: CollectionCalls) -> None:
    docs.write(ADD, *rows(10))
    assert docs.write(DELETE, "r0", "r1", "nobody").deleted == 3
    everything = [f"r{n}" for n in range(10)]
    assert docs.write(DELETE, *everything, where='{"n":{"$lt":5}}').deleted == 3
    assert docs.write(DELETE, *everything, where='{"n":{"$lt":5}}').deleted == 0
    contains = '{"$contains":"document 9"}'
    assert docs.write(DELETE, "r5", "r9", where_document=contains).deleted == 1
    assert docs.ids() == ["r5", "r6", "r7", "r8"]
    assert docs.count() == 4


def test_an_operation_larger_than_a_group_is_applied_whole(docs: CollectionCalls) -> None:
    docs.write(ADD, *rows(3000, dimension=64))
    assert docs.count() == 3000
    (result,) = docs.apply(docs.operation(ADD, rows(5462, dimension=64)))
    assert result.refused_reason == "BATCH_TOO_LARGE"


def test_a_delete_of_more_than_the_engine_takes_goes_in_steps(docs: CollectionCalls) -> None:
    for start in (0, 4000):
        docs.write(ADD, *rows(4000, first=start))
    ids = [f"r{n}" for n in range(7000)]
    operation = docs.operation(DELETE, ids)
    for _ in range(2):  # a repeat takes nothing more away
        (result,) = docs.apply(operation)
        assert (result.refused_reason, result.deleted) == ("", 7000)
        assert docs.count() == 1000
    (result,) = docs.apply(docs.operation(DELETE, [f"x{n}" for n in range(100_001)]))
    assert result.refused_reason == "BATCH_TOO_LARGE"


# ------------------------------------------------------------------------------------ get


def test_pages_follow_each_other(docs: CollectionCalls) -> None:
    docs.write(ADD, *rows(25))
    seen: list[str] = []
    after: types_pb2.Record | Any = None
    while True:
        page = docs.page(limit=10, after=after, include=[DOCUMENTS])
        seen += page.ids
        if not page.more:
            break
        after = shard_pb2.Position(sequence=page.sequences[-1], id=page.ids[-1])
    assert seen == [f"r{n}" for n in range(25)]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"ids": ["r3", "nobody", "r1"], "by_ids": True}, ["r1", "r3"]),
        ({"by_ids": True}, []),
        ({"where": '{"n":{"$gte":22}}'}, ["r22", "r23", "r24"]),
        ({"where": '{"n":{"$gte":22}}', "ids": ["r24", "r1"], "by_ids": True}, ["r24"]),
        ({"where_document": '{"$contains":"document 7"}'}, ["r7"]),
        ({"where": '{"even":false}', "where_document": '{"$contains":"t 9"}'}, ["r9"]),
        ({"where": '{"n":-1}'}, []),
    ],
)
def test_filters(docs: CollectionCalls, chosen: dict[str, Any], expected: list[str]) -> None:
    docs.write(ADD, *rows(25))
    assert docs.ids(filter=chosen) == expected
    assert [r.id for r in docs.records(filter=chosen)] == expected


def test_a_filtered_page_by_either_way(docs: CollectionCalls) -> None:
    docs.write(ADD, *rows(200))
    evens = [f"r{n}" for n in range(0, 200, 2)]
    for limit in (1, 3, 50, 99, 100, 101, 1000):  # small ones walk the index, large ones look up
        page = docs.page(filter={"where": '{"even":true}'}, limit=limit, keys_only=True)
        assert list(page.ids) == evens[:limit]
        assert page.more is (limit < 100)
        after = shard_pb2.Position(sequence=1010, id="r10")
        rest = docs.ids(filter={"where": '{"even":true}'}, limit=limit, after=after)
        assert rest == evens[6:][:limit]


def test_a_page_ends_before_it_is_too_large(docs: CollectionCalls) -> None:
    docs.write(ADD, *(Row(f"r{n}", floats(1), "x" * 1000, sequence=n) for n in range(9)))
    page = docs.page(max_bytes=3500, include=[DOCUMENTS])
    assert (list(page.ids), page.more) == (["r0", "r1", "r2"], True)
    page = docs.page(max_bytes=1, include=[DOCUMENTS])
    assert (list(page.ids), page.more) == (["r0"], True)


def test_a_malformed_condition(docs: CollectionCalls) -> None:
    docs.write(ADD, *rows(2))
    for call in (docs.page, lambda **f: docs.query(floats(1, 2), **f)):
        with pytest.raises(InvalidRequest, match="Invalid where clause"):
            call(filter={"where": '{"a":{"$foo":1}}'})
    (result,) = docs.apply(docs.operation(DELETE, ["r1"], where="{"))
    assert result.refused_reason == "INVALID_ARGUMENT"
    with pytest.raises(InvalidRequest):
        docs.page(limit=0)


def test_ids_of_any_form(docs: CollectionCalls) -> None:
    odd = ["é☃😀", "a\0b", "a\0c", "a", "'\"\\", "x" * 60_000]
    docs.write(ADD, *(Row(i, floats(1), sequence=n) for n, i in enumerate(odd)))
    assert docs.ids() == odd
    assert docs.ids(filter={"ids": odd, "by_ids": True}) == odd
    docs.write(DELETE, "a\0b")
    assert docs.ids() == [odd[0], *odd[2:]]
    assert docs.count() == 5


# ------------------------------------------------------------------------------------ query


def test_query_answers_with_contents(docs: CollectionCalls) -> None:
    docs.write(ADD, *(Row(f"r{n}", floats(n * n, 0), f"d{n}", None, {"n": n}) for n in range(5)))
    answer = docs.answer(
        floats(1, 0), floats(16, 0), n=2, include=[DOCUMENTS, METADATAS, DISTANCES]
    )
    first, second = answer.results
    assert (list(first.ids), list(first.distances)) == (["r1", "r0"], [0.0, 1.0])
    assert list(second.ids) == ["r4", "r3"]
    hit = types_pb2.Hit.FromString(second.hits[1])
    assert (hit.record.id, hit.record.document, hit.distance, hit.shard) == (
        "r3", "d3", 49.0, "shard-1",
    )  # fmt: skip
    assert metadata_from_wire(hit.record.metadata) == {"n": 3}
    assert not hit.record.HasField("embedding")


def test_equal_distances_are_in_the_order_of_ids(docs: CollectionCalls) -> None:
    docs.write(ADD, *(Row(i, floats(1, 1)) for i in "dbcae"))
    (hits,) = docs.query(floats(1, 1), n=5)
    assert [i for i, _ in hits] == list("abcde")


def test_a_collection_that_was_never_filled_answers_any_dimension(docs: CollectionCalls) -> None:
    assert docs.query(floats(1, 2, 3), floats(4, 5, 6)) == [[], []]


def test_query_by_ids(docs: CollectionCalls) -> None:
    docs.write(ADD, *rows(500))
    (hits,) = docs.query(floats(0, 0), filter={"ids": ["r3", "nobody", "r4"], "by_ids": True})
    assert sorted(i for i, _ in hits) == ["r3", "r4"]
    many = [f"r{n}" for n in range(400)]  # through the engine's own filter
    (hits,) = docs.query(floats(0, 0), n=400, filter={"ids": [*many, "nobody"], "by_ids": True})
    assert {i for i, _ in hits} <= set(many)
    assert len(hits) > 350  # its graph need not reach all
    assert docs.query(floats(0, 0), filter={"by_ids": True}) == [[]]
    (hits,) = docs.query(
        floats(0, 0), filter={"ids": many, "by_ids": True, "where": '{"n":{"$gt":397}}'}
    )
    assert sorted(i for i, _ in hits) == ["r398", "r399"]


def test_query_by_ids_that_must_exist(docs: CollectionCalls) -> None:
    def ids(*asked: str, **more: str) -> dict[str, Any]:
        return {"filter": {"ids": asked, "by_ids": True, **more}, "ids_must_exist": True}

    with pytest.raises(NotFound, match=r"Error finding id.*'r1'") as refused:
        docs.query(floats(0, 0), **ids("r1"))
    assert refused.value.reason is Reason.RECORD_NOT_FOUND
    docs.write(ADD, *rows(50))
    assert [i for i, _ in docs.query(floats(0, 0), **ids("r1"))[0]] == ["r1"]
    assert docs.query(floats(0, 0), **ids()) == [[]]
    with pytest.raises(NotFound, match=r"'nobody-0', .*'nobody-9' and 5 more"):
        docs.query(floats(0, 0), **ids("r1", *(f"nobody-{n}" for n in range(15))))
    docs.write(DELETE, "r1")
    with pytest.raises(NotFound, match="'r1'"):
        docs.query(floats(0, 0), **ids("r1", "r2"))
    # What another shard owns is not this one's to know.
    docs.own(ALL_SLOTS - {slot_of("r1")}, epoch=2)
    assert [i for i, _ in docs.query(floats(0, 0), **ids("r1", "r2"))[0]] == ["r2"]


def test_the_arrays_of_a_dropped_collection_do_not_pass_to_another(node: Node) -> None:
    first = node.collection()
    first.write(ADD, *(Row(f"r{n}", floats(n), metadata={"tags": ["x"]}) for n in range(9)))
    node.call("DropCollection", shard_pb2.DropCollectionRequest(collection_id=first.id, epoch=1))
    second = node.collection()
    second.write(ADD, *(Row(f"r{n}", floats(n), metadata={"n": n}) for n in range(9)))
    assert [set(record.metadata) for record in second.records()] == [{"n"}] * 9
    assert second.ids(filter={"where": '{"tags":{"$contains":"x"}}'}) == []


def test_the_wrong_dimension(docs: CollectionCalls) -> None:
    docs.write(ADD, *rows(3))
    for query in ([floats(1, 2, 3)], [floats(1, 2), floats(1)], [b"123"], [b""]):
        with pytest.raises(InvalidRequest):
            docs.query(*query)


# ------------------------------------------------------------------------- records not owned


@pytest.mark.parametrize("space", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.01])
def test_unowned_records_never_answer(node: Node, space: str, share: float) -> None:
    docs = node.collection(space=space)
    everything = rows(1500, dimension=8)
    docs.write(ADD, *everything)
    owned_slots = frozenset(random.Random(share).sample(range(1024), max(1, int(1024 * share))))
    docs.own(owned_slots, epoch=2)
    owned = [row for row in everything if slot_of(row.id) in owned_slots]
    ids = [row.id for row in owned]
    assert docs.count() == len(owned)
    assert docs.ids(limit=2000) == ids
    assert docs.ids(limit=2000, filter={"where": '{"even":true}'}) == [
        i for i in ids if int(i[1:]) % 2 == 0
    ]
    queries = [rows(1, dimension=8, first=n)[0].embedding or b"" for n in range(5000, 5008)]
    for where, matching in (
        ({}, owned),
        ({"where": '{"n":{"$lt":300}}'}, [row for row in owned if int(row.id[1:]) < 300]),
    ):
        found = docs.query(*queries, n=10, filter=where, include=[DOCUMENTS])
        right = sum(
            len({i for i, _ in hits} & set(brute(query, matching, space)[:10]))
            for query, hits in zip(queries, found, strict=True)
        )
        assert all(len(hits) == min(10, len(matching)) for hits in found)
        assert right >= 0.97 * sum(min(10, len(matching)) for _ in queries)
        assert {i for hits in found for i, _ in hits} <= set(ids)
    stats = node.call("GetShardStats", shard_pb2.GetShardStatsRequest())
    (mine,) = [s for s in stats.holdings if s.collection_id == docs.id]
    assert (mine.records, mine.unowned_records) == (len(owned), 1500 - len(owned))


def brute(query: bytes, candidates: list[Row], space: str) -> list[str]:
    """The ids by distance, in float64."""
    import numpy as np

    q = np.frombuffer(query, "<f4").astype(float)
    matrix = np.array([np.frombuffer(r.embedding or b"", "<f4") for r in candidates], dtype=float)
    if space == "l2":
        distances = ((matrix - q) ** 2).sum(axis=1)
    elif space == "ip":
        distances = 1 - matrix @ q
    else:
        distances = 1 - matrix @ q / (np.linalg.norm(matrix, axis=1) * np.linalg.norm(q))
    return [candidates[i].id for i in np.argsort(distances, kind="stable")]


def test_with_no_owned_slot_the_answer_is_empty(docs: CollectionCalls) -> None:
    docs.write(ADD, *rows(20))
    docs.own(frozenset(), epoch=2)
    assert (docs.count(), docs.ids(), docs.query(floats(1, 2, 3))) == (0, [], [[]])
    docs.own(ALL_SLOTS, epoch=3)
    assert docs.count() == 20


def test_a_write_to_a_slot_that_is_not_owned_is_a_defect(docs: CollectionCalls) -> None:
    docs.own(ALL_SLOTS - {slot_of("r1")}, epoch=2)
    results = docs.apply(*(docs.operation(ADD, [row]) for row in rows(3)))
    assert [r.refused_reason for r in results] == ["", "INTERNAL", ""]


def test_reads_tell_how_many_records_the_shard_owns(docs: CollectionCalls) -> None:
    records = rows(40)
    docs.write(ADD, *records)
    half = frozenset(range(512))
    docs.own(half, epoch=2)
    docs.epoch = 2
    owned = sum(slot_of(row.id) in half for row in records)
    assert 0 < owned < 40
    assert docs.count() == owned
    assert docs.page(limit=1).owned_records == owned
    assert docs.page(filter={"by_ids": True}).owned_records == owned
    assert docs.answer(floats(1, 2), n=1).owned_records == owned
    docs.own(frozenset(), epoch=3)
    docs.epoch = 3
    assert docs.page().owned_records == docs.answer(floats(1, 2)).owned_records == 0


@pytest.mark.parametrize("chosen", ["all", "half owned", "where", "ids"])
def test_records_in_the_order_of_slots(docs: CollectionCalls, chosen: str) -> None:
    records = [*rows(300), Row("\0", floats(1, 1)), Row("é", floats(1, 1))]
    docs.write(ADD, *records)
    ids = [row.id for row in records]
    condition: dict[str, Any] = {}
    if chosen == "half owned":
        owned = frozenset(range(0, 1024, 2))
        docs.own(owned, epoch=2)
        docs.epoch = 2
        ids = [i for i in ids if slot_of(i) in owned]
    elif chosen == "where":
        condition["filter"] = {"where": '{"even": true}'}
        ids = [i for i in ids if i.startswith("r") and int(i[1:]) % 2 == 0]
    elif chosen == "ids":
        ids = ids[250:]
        condition["filter"] = {"ids": [*ids, "missing"], "by_ids": True}
    wanted = sorted((slot_of(i), i) for i in ids)
    order = {"order": shard_pb2.ROW_ORDER_SLOT, **condition}
    whole = docs.page(keys_only=True, **order)
    assert list(zip(whole.sequences, whole.ids, strict=True)) == wanted
    paged: list[tuple[int, str]] = []
    more = True
    after: dict[str, Any] = {}
    while more:
        page = docs.page(limit=7, **order, **after)
        assert [types_pb2.Record.FromString(r).id for r in page.records] == list(page.ids)
        paged += zip(page.sequences, page.ids, strict=True)
        after = {"after": {"sequence": paged[-1][0], "id": paged[-1][1]}}
        more = page.more
    assert paged == wanted


def test_an_order_that_is_none_is_refused(docs: CollectionCalls) -> None:
    with pytest.raises(InvalidRequest, match="order"):
        docs.page(order=7)
