"""The target of a move on a real node: chunks by hand, faults, comparisons, drops."""

import signal
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import grpc
import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Reason,
    Stale,
)
from chroma_router.wire.slots import slot_of
from chroma_router.wire.status import from_rpc_error
from tests.shard_node.moving import EVEN, ODD, Moving, comparison, names, packed
from tests.shard_node.running import (
    ADD,
    ALL_SLOTS,
    DELETE,
    SECONDS,
    UPSERT,
    CollectionCalls,
    Node,
    Row,
    floats,
    uuid7,
)

pytestmark = pytest.mark.integration

OTHER = str(uuid4())
ONE, TWO = names(2)
(FOREIGN,) = names(1, ODD)


@pytest.fixture
def docs(node: Node) -> CollectionCalls:
    """A fresh collection, of which the node owns the odd slots."""
    return node.collection(slots=ODD)


@pytest.fixture
def move(docs: CollectionCalls) -> Moving:
    """A move of the even slots that may begin."""
    made = Moving(docs)
    assert made.begin() is True
    return made


def row(record_id: str, n: float = 1, **fields: Any) -> Row:
    return Row(record_id, floats(n, 1), **{"sequence": round(n), **fields})


def refused(error: type[ClusterError], reason: Reason, work: Any) -> ClusterError:
    with pytest.raises(error) as caught:
        work()
    assert caught.value.reason is reason, caught.value
    return caught.value


def lose_engine(node: Node) -> None:
    """Until another serves. Whatever was granted is not any more."""
    before = node.hello().boot_id
    node.kill_engine()
    while node.until_serving() == before:
        pass


# ------------------------------------------------------------------------------------ arrivals


def test_a_target_without_anything_of_the_slots_is_ready_at_once(docs: CollectionCalls) -> None:
    move = Moving(docs)
    for _ in range(2):
        assert move.begin() is True
        assert move.cursor == shard_pb2.MoveCursor()


def test_records_that_an_older_move_left_go_first(docs: CollectionCalls, move: Moving) -> None:
    move.bring(*map(row, names(3)))
    other = Moving(docs, EVEN - {2})
    assert other.begin() is False
    # It has taken the older one's place.
    refused(NotAllowed, Reason.MOVE_OUT_OF_STEP, lambda: other.bring(row(names(1)[0])))
    other.drop_all()
    assert other.begin() is True
    assert other.cursor == shard_pb2.MoveCursor()


def test_an_arrival_goes_on_where_it_was_or_afresh_if_asked(move: Moving) -> None:
    first, second = names(2)
    move.bring(row(first))
    applied = move.cursor
    move.renew()
    assert move.begin() is True
    assert move.cursor == applied
    move.bring(row(second))
    assert move.begin(afresh=True) is False
    assert move.drop_all() == 2
    assert move.begin() is True
    assert move.cursor == shard_pb2.MoveCursor()


def test_an_arrival_of_other_slots_begins_anew(move: Moving) -> None:
    move.bring(row(names(1)[0]))
    move.slots = EVEN - {slot_of(names(1)[0])}
    assert move.begin() is True  # nothing of these is here
    assert move.cursor == shard_pb2.MoveCursor()


def test_an_arrival_that_ended_is_forgotten(move: Moving) -> None:
    move.bring(row(names(1)[0]))
    for _ in range(2):
        move.end()
    refused(NotAllowed, Reason.MOVE_OUT_OF_STEP, lambda: move.bring(row(names(1)[0])))
    assert move.begin() is False  # what it has brought is still here


# ------------------------------------------------------------------------------------ chunks


def test_put_replaces_the_whole_record(docs: CollectionCalls, move: Moving) -> None:
    one, two, three = names(3)
    move.bring(
        Row(one, floats(1, 0), "old", "uri:old", {"a": 1, "gone": "x", "list": [1]}, sequence=5),
        row(two, 6),
        row(three, 7),
    )
    answer = move.bring(Row(one, floats(0, 3), metadata={"a": 1.0}, sequence=9), removed=[three])
    assert answer.records == 2
    docs.own(ALL_SLOTS, epoch=2)
    record, _ = sorted(docs.records(), key=lambda r: r.id == two)
    assert (record.id, record.embedding) == (one, floats(0, 3))
    assert not record.HasField("document")
    assert not record.HasField("uri")
    assert dict(record.metadata) == {"a": record.metadata["a"]}
    assert record.metadata["a"].float_value == 1.0
    page = docs.page(keys_only=True)
    assert list(zip(page.ids, page.sequences, strict=True)) == [(two, 6), (one, 9)]
    assert docs.query(floats(0, 3), n=1)[0][0] == (one, 0.0)


def test_a_record_that_is_removed_and_comes_back_is_the_new_one(
    docs: CollectionCalls, move: Moving
) -> None:
    one, never = names(2)
    move.bring(row(one, 3, document="first"))
    assert move.bring(removed=[one, never]).records == 0
    assert move.bring(row(one, 8, document="second")).records == 1
    docs.own(ALL_SLOTS, epoch=2)
    assert [(r.id, r.document) for r in docs.records()] == [(one, "second")]


def test_sequences_are_kept_and_order_what_is_read(docs: CollectionCalls, move: Moving) -> None:
    mine, theirs = names(20, ODD, "m"), names(20)
    docs.write(ADD, *(row(i, 2 * n) for n, i in enumerate(mine)))
    move.bring(*(row(i, 2 * n + 1) for n, i in reversed(list(enumerate(theirs)))))
    docs.own(ALL_SLOTS, epoch=2)
    assert docs.ids() == [i for pair in zip(mine, theirs, strict=True) for i in pair]
    assert docs.node.hello().high_sequence >= 39


def test_a_large_chunk_goes_in_several_calls_of_the_engine(
    docs: CollectionCalls, move: Moving
) -> None:
    many = names(1300)
    assert move.bring(*(row(i, n) for n, i in enumerate(many))).records == 1300
    again = [row(i, n, document="again") for n, i in enumerate(many[:700])]
    answer = move.bring(*again, removed=many[700:])
    assert answer.records == 700
    assert answer.apply_microseconds > 0
    docs.own(ALL_SLOTS, epoch=2)
    assert docs.ids() == many[:700]
    assert {r.document for r in docs.records()} == {"again"}


def test_a_repeat_of_the_last_chunk_is_applied_already(docs: CollectionCalls, move: Moving) -> None:
    one, two, three = names(3)
    first = move.chunk([row(one), row(two)])
    move.send(first)
    second = move.chunk([row(three)], removed=[one])
    for _ in range(2):
        assert move.send(second).records == 2
    refused(NotAllowed, Reason.MOVE_OUT_OF_STEP, lambda: move.send(first))
    move.cursor = second.end
    beyond = move.chunk([row(one)])
    beyond.begin.changed_batch += 7
    refused(NotAllowed, Reason.MOVE_OUT_OF_STEP, lambda: move.send(beyond))
    docs.own(ALL_SLOTS, epoch=2)
    assert sorted(docs.ids()) == sorted([two, three])


def test_a_chunk_that_the_engine_refuses_leaves_the_cursor(
    docs: CollectionCalls, move: Moving
) -> None:
    one, two = names(2)
    move.bring(row(one))
    cursor = move.cursor
    with pytest.raises(InvalidRequest, match="dimension"):
        move.bring(Row(two, floats(1, 2, 3)), outcomes=[outcome(uuid7(), [slot_of(two)])])
    assert move.begin() is True
    assert move.cursor == cursor
    docs.write(ADD, row(names(1, ODD)[0]))  # its batch lands: what was refused does not count
    assert move.begin() is True
    assert move.cursor == cursor
    assert move.bring(row(two)).records == 2


def test_a_call_that_was_given_up_does_not_come_between(
    docs: CollectionCalls, move: Moving
) -> None:
    many, engine = names(700), docs.node.engine()  # two calls of the engine
    old = move.chunk([row(i, document="old") for i in many])
    request = shard_pb2.ApplyMoveRequest(move=move.ref, chunk=old.SerializeToString())
    engine.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineExpired):  # its first engine call is under way
            docs.node.call("ApplyMove", request, 0.2)
    finally:
        engine.send_signal(signal.SIGCONT)
    move.renew()
    move.begin()
    assert move.cursor == shard_pb2.MoveCursor()
    assert move.bring(*(row(i, 2, document="new") for i in many)).records == 700
    docs.own(ALL_SLOTS, epoch=2)
    assert {(r.document, r.embedding) for r in docs.records()} == {("new", floats(2, 1))}


def test_the_calls_that_wait_are_bounded(docs: CollectionCalls, move: Moving) -> None:
    engine = docs.node.engine()
    request = shard_pb2.ApplyMoveRequest(
        move=move.ref, chunk=move.chunk([row(ONE)]).SerializeToString()
    )
    engine.send_signal(signal.SIGSTOP)
    try:
        calls = [docs.node.stub.ApplyMove.future(request, timeout=SECONDS) for _ in range(20)]
        refusals = [call for call in calls if _refused_at_once(call)]
    finally:
        engine.send_signal(signal.SIGCONT)
    assert len(refusals) == 12
    assert {call.result().records for call in calls if call not in refusals} == {1}


def _refused_at_once(call: Any) -> bool:
    try:
        call.result(0.5)
    except grpc.FutureTimeoutError:
        return False
    except grpc.RpcError as error:
        refusal = from_rpc_error(error)
        assert refusal.reason is Reason.QUEUE_FULL
        return refusal.retry_after is not None
    raise AssertionError("a stopped engine cannot have applied it")


def test_clients_write_between_the_engine_calls_of_a_chunk(
    docs: CollectionCalls, move: Moving
) -> None:
    many, mine = names(1500), names(200, ODD)
    chunk = move.chunk([row(i, n) for n, i in enumerate(many)])
    request = shard_pb2.ApplyMoveRequest(move=move.ref, chunk=chunk.SerializeToString())
    call = docs.node.stub.ApplyMove.future(request, timeout=SECONDS)
    written = 0
    while not call.done() and written < len(mine):
        docs.write(ADD, row(mine[written], written))
        written += 1
    assert call.result().records == 1500
    assert written > 1, "no write was answered while the chunk was applied"
    assert move.begin() is True
    assert move.cursor == chunk.end
    assert docs.ids() == mine[:written]
    docs.own(ALL_SLOTS, epoch=2)
    assert docs.count() == 1500 + written


def test_what_is_left_under_a_fence_goes_before_what_waits(
    docs: CollectionCalls, move: Moving
) -> None:
    wide = floats(*range(384))  # of which a group has 100 at most
    brought = [Row(i, wide) for i in names(450)]
    move.bring(*brought)
    waiting = [
        docs.operation(UPSERT, [Row(i, wide) for i in names(50, ODD, f"q{call}-")])
        for call in range(60)
    ]
    many = docs.node.stub.Apply.future(shard_pb2.ApplyRequest(operations=waiting), timeout=SECONDS)
    docs.node.until_queued(len(waiting))
    before = docs.count()
    move.bring(*brought, fenced=True)  # ten calls of the engine, between which nothing is written
    between = docs.count() - before
    assert between <= 700, f"{between} records were written meanwhile"
    assert all(not result.refused_reason for result in many.result().results)


# ------------------------------------------------------------------------------------ outcomes


def outcome(request_id: str, slots: Sequence[int], **fields: Any) -> shard_pb2.MovedOutcome:
    kind = shard_pb2.OPERATION_KIND_DELETE
    fields = {"kind": kind, "at": 10**15, **fields}
    return shard_pb2.MovedOutcome(request_id=request_id, slots=slots, **fields)


def test_a_delete_that_the_source_applied_is_told_by_the_target_once(
    docs: CollectionCalls, move: Moving
) -> None:
    gone = names(5)
    slots = sorted(map(slot_of, gone))
    request_id = uuid7()
    # In two steps at the source, so in two batches.
    chunk = move.chunk(
        [row(i) for i in names(2, prefix="left")],
        outcomes=[
            outcome(request_id, [], deleted_slots=slots[:3]),
            outcome(request_id, sorted(EVEN), deleted_slots=slots[3:]),
        ],
    )
    for _ in range(3):
        move.send(chunk)
    docs.own(ALL_SLOTS, epoch=2)
    docs.write(ADD, *(row(i) for i in [*gone, *names(2, ODD)]))
    repeat = docs.operation(DELETE, [], request_id, where='{"a": {"$ne": 1}}')
    for _ in range(2):
        (result,) = docs.apply(repeat)
        assert result.deleted == 5 + 2  # the even ones are gone already, the odd ones go now
    assert docs.count() == 5 + 2


def test_outcomes_alone_move_the_cursor_with_them(docs: CollectionCalls, move: Moving) -> None:
    (one,) = names(1)
    request_id = uuid7()
    chunk = move.chunk(outcomes=[outcome(request_id, [slot_of(one)], kind=ADD)])
    for _ in range(2):
        move.send(chunk)
    lose_engine(docs.node)
    docs.own(ODD)
    assert move.begin() is True
    assert move.cursor == chunk.end
    docs.own(ALL_SLOTS, epoch=2)
    docs.write(ADD, row(one), request_id=request_id)
    assert docs.count() == 0  # it was added, and deleted since, at the source


def test_outcomes_of_an_older_move_are_forgotten_before_a_new_one(
    docs: CollectionCalls, move: Moving
) -> None:
    one, _ = names(2)
    mine = names(1, ODD)[0]
    request_id = uuid7()
    docs.write(ADD, row(mine), request_id=request_id)
    move.bring(outcomes=[outcome(request_id, [slot_of(one)], kind=ADD)])
    other = Moving(docs)
    assert other.begin() is True
    docs.own(ALL_SLOTS, epoch=2)
    docs.write(ADD, row(mine), row(one), request_id=request_id)
    assert sorted(docs.ids()) == sorted([mine, one])


# ------------------------------------------------------------------------------------ ownership


def test_what_arrives_is_not_seen_before_it_is_owned(docs: CollectionCalls, move: Moving) -> None:
    mine, theirs = names(3, ODD), names(50)
    docs.write(ADD, *(row(i, 100 + n) for n, i in enumerate(mine)))
    move.bring(*(row(i, n) for n, i in enumerate(theirs)))
    assert docs.count() == 3
    assert docs.ids() == mine
    assert [i for i, _ in docs.query(floats(0, 1), n=10)[0]] == mine
    asked = {"by_ids": True, "ids": [*theirs[:2], mine[0]]}
    assert docs.ids(filter=asked) == mine[:1]
    docs.write(DELETE, where='{"a": {"$ne": 1}}')
    assert docs.count() == 0
    (result,) = docs.apply(docs.operation(ADD, [row(theirs[0])]))
    assert result.refused_reason == Reason.INTERNAL
    assert "does not own" in result.message
    docs.own(ALL_SLOTS, epoch=2)
    assert docs.ids() == theirs


def test_owned_slots_take_no_part(docs: CollectionCalls, move: Moving) -> None:
    move.bring(row(names(1)[0]))
    docs.own(ALL_SLOTS, epoch=2)
    calls = [
        move.begin,
        lambda: move.bring(row(names(2)[1])),
        move.drop,
        Moving(docs, frozenset({0, 1})).begin,
    ]
    for call in calls:
        error = refused(NotAllowed, Reason.MOVE_OUT_OF_STEP, call)
        assert "owns" in error.message
    assert docs.count() == 1


def test_slots_of_the_last_ownership_take_no_part_until_another_is_given(
    docs: CollectionCalls,
) -> None:
    docs.write(ADD, *map(row, names(3, ODD)))
    move = Moving(docs, ODD)
    lose_engine(docs.node)
    for call in (move.begin, move.drop, lambda: move.bring(row(names(1, ODD)[0]))):
        refused(Stale, Reason.STALE_EPOCH, call)
    docs.own(ODD)
    refused(NotAllowed, Reason.MOVE_OUT_OF_STEP, move.drop)
    docs.own(frozenset(), epoch=2)
    assert move.drop_all() == 3


def test_unknown_and_dropped_collections(node: Node, docs: CollectionCalls) -> None:
    stranger = Moving(CollectionCalls(node, OTHER))
    for call in (stranger.begin, stranger.drop, stranger.bring, stranger.preview):
        refused(Stale, Reason.STALE_EPOCH, call)
    move = Moving(docs)
    node.call("DropCollection", shard_pb2.DropCollectionRequest(collection_id=docs.id, epoch=2))
    for call in (move.begin, move.drop, move.bring, move.preview):
        refused(NotFound, Reason.COLLECTION_NOT_FOUND, call)
    move.end()


# ------------------------------------------------------------------------------------ tokens


def test_a_mover_that_was_replaced_is_refused(docs: CollectionCalls, move: Moving) -> None:
    old = Moving(docs, id=move.id, token=move.token)
    move.renew()
    assert move.begin() is True
    calls = [old.begin, lambda: old.bring(row(names(1)[0])), old.drop, old.end, old.preview]
    for call in calls:
        error = refused(Stale, Reason.STALE_TOKEN, call)
        assert int(error.metadata["highest"]) >= move.token
    assert move.bring(row(names(1)[0])).records == 1


@pytest.mark.parametrize(
    "change",
    [
        {"move_id": "m"},
        {"collection_id": "c"},
        {"token": 0},
        {"token": 1 << 63},
        {"slots": b"\xff"},
        {"slots": bytes(128)},
    ],
)
def test_a_move_that_none_has_named_so(move: Moving, change: dict[str, Any]) -> None:
    ref = move.ref
    for name, value in change.items():
        setattr(ref, name, value)
    query = shard_pb2.ShardQueryRequest(collection_id=ref.collection_id)
    for method, request in (
        ("BeginArrival", shard_pb2.BeginArrivalRequest(move=ref)),
        ("ApplyMove", shard_pb2.ApplyMoveRequest(move=ref)),
        ("EndArrival", shard_pb2.EndArrivalRequest(move=ref)),
        ("DropSlots", shard_pb2.DropSlotsRequest(move=ref, limit=1)),
        ("PreviewMove", shard_pb2.PreviewMoveRequest(move=ref, query=query)),
    ):
        with pytest.raises(InvalidRequest):
            move.call(method, request)


@pytest.mark.parametrize(
    "fields",
    [
        {"records": [b"\xff"]},
        {"records": packed([row(ONE)])},  # without a sequence
        {"sequences": [1]},
        {"records": packed([row(ONE), row(ONE)]), "sequences": [1, 2]},
        {"records": packed([row(ONE)]), "sequences": [(1 << 62) + 1]},
        {"records": packed([row(FOREIGN)]), "sequences": [1]},
        {"records": packed([Row(ONE)]), "sequences": [1]},  # no embedding
        {"records": packed([row(ONE, metadata={"#": 1})]), "sequences": [1]},
        {"records": packed([row(ONE)]), "sequences": [1], "removed": [ONE]},
        {"removed": [ONE, ONE]},
        {"removed": [FOREIGN]},
        {"outcomes": [outcome("", [slot_of(ONE)])]},
        {"outcomes": [outcome("q", [slot_of(ONE)], kind=9)]},
        {"outcomes": [outcome("q", [slot_of(ONE)], at=0)]},
        {"outcomes": [outcome("q", [slot_of(FOREIGN)])]},
        {"outcomes": [outcome("q", [slot_of(ONE)], deleted_slots=[slot_of(FOREIGN)])]},
        {"comparison": comparison([row(FOREIGN)])},
        {"comparison": comparison([row(ONE)], after=(slot_of(ONE), ONE))},
        {"comparison": comparison([row(ONE)], upto=(0, ""))},
        {
            "comparison": shard_pb2.MoveComparison(
                records=packed(sorted([row(ONE), row(TWO)], key=lambda r: -slot_of(r.id))),
                sequences=[1, 1],
            )
        },
    ],
    ids=str,
)  # fmt: skip
def test_a_chunk_that_no_source_has_made(move: Moving, fields: dict[str, Any]) -> None:
    chunk = move.chunk()
    chunk.MergeFrom(shard_pb2.MoveChunk(**fields))
    chunk.end.changed_batch = 1
    with pytest.raises(InvalidRequest):
        move.send(chunk)
    assert move.begin() is True
    assert move.cursor == shard_pb2.MoveCursor()


def test_a_chunk_that_brings_something_but_goes_nowhere(move: Moving) -> None:
    chunk = move.chunk([row(ONE)])
    chunk.end.CopyFrom(chunk.begin)
    with pytest.raises(InvalidRequest, match="ends where it begins"):
        move.send(chunk)


# ------------------------------------------------------------------------------------ comparison


def source_row(n: int, **changes: Any) -> Row:
    fields: dict[str, Any] = {
        "embedding": floats(n, 2, 3), "document": f"text {n}", "uri": f"uri:{n}",
        "metadata": {"n": n, "list": [1, 2]}, "sequence": 100 + n,
    }  # fmt: skip
    return Row(RECORDS[n], **{**fields, **changes})


RECORDS = names(40)


@pytest.mark.parametrize("space", ["l2", "cosine", "ip"])
def test_what_was_brought_compares_equal(node: Node, space: str) -> None:
    docs = node.collection(space=space, slots=ODD)
    move = Moving(docs)
    move.arrive()
    rows = [source_row(n) for n in range(40)]
    bare = Row(names(1, prefix="bare")[0], floats(0, 0, 1), sequence=7)
    answer = move.bring(*rows, bare, comparison=comparison([*rows, bare]))
    assert (answer.differences, list(answer.differing)) == (0, [])
    assert move.compare([*rows, bare]).differences == 0


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"embedding": floats(3.001, 2, 3)}, "embedding"),
        ({"embedding": floats(3, 2)}, "embedding"),
        ({"document": "text"}, "document"),
        ({"document": None}, "document"),
        ({"uri": None}, "uri"),
        ({"sequence": 7}, "sequence"),
        ({"metadata": None}, "metadata"),
        ({"metadata": {"n": 3.0, "list": [1, 2]}}, "metadata"),
        ({"metadata": {"n": True, "list": [1, 2]}}, "metadata"),
        ({"metadata": {"n": 3, "list": [1.0, 2.0]}}, "metadata"),
        ({"metadata": {"n": 3, "list": [2, 1]}}, "metadata"),
        ({"metadata": {"n": 3, "list": [1, 2], "more": 1}}, "metadata"),
        ({"document": "x", "uri": "y"}, "document, uri"),
    ],
    ids=str,
)  # fmt: skip
def test_each_difference_is_found(move: Moving, changes: dict[str, Any], what: str) -> None:
    rows = [source_row(n) for n in range(6)]
    move.bring(*rows)
    rows[3] = source_row(3, **changes)
    answer = move.compare(rows)
    assert answer.differences == 1
    assert list(answer.differing) == [f"{rows[3].id!r}: {what}"]


def test_embeddings_may_differ_as_much_as_the_engine_makes_them(move: Moving) -> None:
    rows = [source_row(n) for n in range(6)]
    move.bring(*rows)
    rows[3] = source_row(3, embedding=floats(3.00001, 2, 3))
    assert move.compare(rows).differences == 0


def test_records_of_one_side_only_are_found(docs: CollectionCalls, move: Moving) -> None:
    rows = [source_row(n) for n in range(40)]
    docs.write(ADD, Row(FOREIGN, floats(1, 1, 1)))  # of another slot: no matter
    move.bring(*rows[:30])
    answer = move.compare([*rows[:29], rows[30]])
    assert answer.differences == 2
    assert set(answer.differing) == {
        f"{rows[29].id!r}: only at the target",
        f"{rows[30].id!r}: not at the target",
    }
    answer = move.compare(rows[30:])
    assert (answer.differences, len(answer.differing)) == (40, 10)


def test_a_comparison_keeps_to_its_range(move: Moving) -> None:
    rows = sorted((source_row(n) for n in range(40)), key=lambda r: (slot_of(r.id), r.id))
    move.bring(*rows)
    places = [(slot_of(r.id), r.id) for r in rows]
    assert move.compare(rows[10:20], after=places[9], upto=places[19]).differences == 0
    assert move.compare(rows[:20], upto=places[19]).differences == 0
    assert move.compare(rows[20:], after=places[19]).differences == 0
    assert move.compare(rows[10:19], after=places[9], upto=places[19]).differences == 1
    assert move.compare([], after=places[39]).differences == 0


# ------------------------------------------------------------------------------------ drops


def test_a_target_is_purged(docs: CollectionCalls, move: Moving) -> None:
    mine = names(2, ODD)
    request_id = uuid7()
    docs.write(ADD, *map(row, mine))
    docs.write(DELETE, mine[0], request_id=request_id)
    deleted = outcome(request_id, sorted(EVEN), index=1, deleted_slots=[0, 2])
    move.bring(*map(row, names(450)), outcomes=[deleted])
    answer = move.drop(limit=220)
    assert (answer.dropped, answer.left, answer.done) == (220, 230, False)
    # From the first on, nothing of it counts as arrived.
    assert move.begin() is False
    assert move.cursor == shard_pb2.MoveCursor()
    refused(NotAllowed, Reason.MOVE_OUT_OF_STEP, lambda: move.bring(row(ONE)))
    answer = move.drop(limit=230)
    assert (answer.dropped, answer.left, answer.done) == (230, 0, True)
    answer = move.drop()
    assert (answer.dropped, answer.done) == (0, True)
    assert move.begin() is True
    assert docs.ids() == mine[1:]
    page = docs.page(deleted_by=request_id)
    assert page.deleted_before == 0
    move.bring(row(ONE, document="new"))
    docs.own(ALL_SLOTS, epoch=2)
    assert [(r.id, r.document) for r in docs.records(filter={"ids": [ONE]})] == [(ONE, "new")]


@pytest.mark.parametrize("limit", [0, 5001])
def test_a_drop_is_bounded(move: Moving, limit: int) -> None:
    with pytest.raises(InvalidRequest, match="limit"):
        move.drop(limit)


def test_a_source_is_trimmed_of_records_and_of_what_it_remembers(node: Node) -> None:
    docs = node.collection()
    mine, theirs = names(30, ODD), names(250)
    docs.write(ADD, *map(row, [*mine, *theirs]))
    request_id = uuid7()
    some = docs.operation(DELETE, [*mine[:5], *theirs[:7]], request_id, where='{"a": {"$ne": 1}}')
    assert docs.apply(some)[0].deleted == 12
    move = Moving(docs)
    refused(NotAllowed, Reason.MOVE_OUT_OF_STEP, move.drop)
    docs.own(ODD, epoch=2)
    assert move.drop_all() == 243
    assert docs.ids() == mine[5:]
    assert docs.page(deleted_by=request_id).deleted_before == 5
    # It can take them back, as a target like any other.
    back = Moving(docs)
    assert back.begin() is True
    back.bring(*map(row, theirs[7:]), comparison=comparison(map(row, theirs[7:])))
    docs.own(ALL_SLOTS, epoch=3)
    assert docs.count() == 25 + 243


# ------------------------------------------------------------------------------------ previews


def test_a_preview_finds_the_moving_records_alone(docs: CollectionCalls, move: Moving) -> None:
    docs.write(ADD, *(row(i, n) for n, i in enumerate(names(30, ODD))))
    theirs = names(30)
    move.bring(*(row(i, n) for n, i in enumerate(theirs)))
    assert move.preview(floats(0, 1), floats(29, 1), n=3) == [
        [(theirs[0], 0.0), (theirs[1], 1.0), (theirs[2], 4.0)],
        [(theirs[29], 0.0), (theirs[28], 1.0), (theirs[27], 4.0)],
    ]
    other = Moving(docs)
    refused(NotAllowed, Reason.MOVE_OUT_OF_STEP, lambda: other.preview(floats(0, 1)))
    query = shard_pb2.ShardQueryRequest(collection_id=OTHER)
    with pytest.raises(InvalidRequest, match="the move's collection"):
        move.call("PreviewMove", shard_pb2.PreviewMoveRequest(move=move.ref, query=query))
