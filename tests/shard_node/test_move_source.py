"""The stream of a move from a real node: at its end a naive target has what the source has."""

import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import (
    ClusterError,
    InvalidRequest,
    NotAllowed,
    NotFound,
    Reason,
    Stale,
)
from chroma_router.wire.slots import slot_of
from tests.shard_node.leaving import Leaving, Place, Replica, records_of
from tests.shard_node.moving import EVEN, ODD, names
from tests.shard_node.running import (
    ADD,
    DELETE,
    UPDATE,
    UPSERT,
    CollectionCalls,
    Node,
    Row,
    floats,
    running,
    uuid7,
)

pytestmark = pytest.mark.integration


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Node]:
    """A node that the test may kill."""
    with running(tmp_path / "data") as node:
        yield node


class Writer:
    """Random writes to a collection, of any slot."""

    def __init__(self, docs: CollectionCalls, seed: int) -> None:
        print(f"seed {seed}")
        self.docs, self.rng = docs, random.Random(seed)
        self.sequence = 0

    def row(self, record_id: str) -> Row:
        self.sequence += 1
        value = self.rng.randint(0, 99)
        return Row(
            record_id,
            floats(value, self.sequence),
            self.rng.choice([None, f"document {value}"]),
            self.rng.choice([None, "file:///x"]),
            self.rng.choice([None, {"n": value, "text": str(value)}, {"list": [value, 7]}]),
            self.sequence,
        )

    def write(self) -> None:
        """One write of some of 400 records, more than half of them there at most times."""
        kind = self.rng.choice([ADD, ADD, UPSERT, UPSERT, UPDATE, DELETE])
        ids = self.rng.sample([f"r{n}" for n in range(400)], self.rng.randint(1, 9))
        rows = ids if kind == DELETE else [self.row(record_id) for record_id in ids]
        self.docs.write(kind, *rows)

    def fill(self) -> None:
        rows = [self.row(f"r{n}") for n in range(300)]
        self.docs.write(ADD, *rows)


def row(record_id: str, *values: float, **more: Any) -> Row:
    return Row(record_id, floats(*(values or (1.0,))), **more)


# ------------------------------------------------------------------------------------ the stream


@pytest.mark.parametrize("seed", range(4))
def test_the_stream_is_what_the_source_has(docs: CollectionCalls, seed: int) -> None:
    writer, move = Writer(docs, seed), Leaving(docs)
    replica = Replica(move)
    writer.fill()
    assert move.begin().records == len(move.stored())
    for _ in range(40):  # the copy takes about ten of them
        writer.write()
        replica.step(max_records=writer.rng.choice([1, 7, 16]))
    replica.catch_up(max_records=9)
    assert replica.records == move.stored()
    assert replica.removals
    for _ in range(5):
        writer.write()
    fenced = move.fence(max_records=20)
    replica.take(fenced.tail)
    replica.catch_up()
    assert replica.records == move.stored()
    assert fenced.records == len(replica.records)


def test_what_comes_and_goes_while_the_copy_passes(docs: CollectionCalls) -> None:
    ids = sorted(names(40), key=lambda i: (slot_of(i), i))
    move = Leaving(docs)
    replica = Replica(move)
    before, created_behind = ids[:10], ids[3]
    ahead, created_ahead = ids[20:], ids[30]
    present = [i for i in ids if i not in {created_behind, created_ahead}]
    docs.write(ADD, *(row(i, sequence=n) for n, i in enumerate(present, 1)))
    move.begin()
    replica.step(max_records=10)
    docs.write(DELETE, before[0], ahead[0])
    docs.write(ADD, row(created_behind, 2, sequence=100), row(created_ahead, 2, sequence=101))
    docs.write(DELETE, before[1])
    docs.write(ADD, row(before[1], 3, sequence=102))  # another record of that id
    replica.catch_up(max_records=7)
    assert replica.records == move.stored()
    assert [replica.records[i][0] for i in (created_behind, created_ahead, before[1])] == [
        100, 101, 102,
    ]  # fmt: skip


def test_a_chunk_has_a_record_once_and_other_slots_never(docs: CollectionCalls) -> None:
    here, there = names(5), names(5, ODD)
    docs.write(ADD, *map(row, [*here, *there]))
    move = Leaving(docs)
    move.begin()
    docs.write(UPDATE, *(row(i, 5) for i in [*here, *there]))
    replica = Replica(move)
    assert replica.step()  # the copy, and the changes of what it has copied
    assert replica.records == move.stored()
    assert sorted(replica.records) == sorted(here)
    answer = move.read()
    assert (answer.items, answer.caught_up) == (0, True)


def test_chunks_keep_to_their_bounds(docs: CollectionCalls) -> None:
    ids = names(30)
    docs.write(ADD, *(row(i, document="x" * 1000) for i in ids))
    move = Leaving(docs)
    move.begin()
    replica, sizes = Replica(move), []
    while not move.cursor.copy_done:
        answer = move.read(max_bytes=5000)
        replica.take(answer)
        sizes.append((len(answer.chunk), answer.items))
    assert all(size <= 5000 for size, _ in sizes)
    assert max(items for _, items in sizes) == 4
    move.cursor = shard_pb2.MoveCursor()
    answer = move.read(max_bytes=10)
    assert answer.items == 1  # never before its first record
    docs.write(DELETE, *ids)
    move.cursor = shard_pb2.MoveCursor()
    assert move.read(max_records=30).items == 30
    assert not move.read(max_records=30).caught_up  # it has not looked further


@pytest.mark.parametrize("killed", ["node", "engine"])
def test_it_goes_on_from_a_cursor_after_a_kill(mine: Node, killed: str) -> None:
    docs = mine.collection()
    writer, move = Writer(docs, 7), Leaving(docs)
    replica = Replica(move)
    writer.fill()
    capture = move.begin().capture_id
    for round_ in range(6):
        for _ in range(3):
            writer.write()
            replica.step(max_records=20)
        if round_ % 2 == 0:
            continue
        boot_id = mine.hello().boot_id
        if killed == "node":
            mine.kill()
            mine.start()
        else:
            mine.kill_engine()
        while mine.until_serving() == boot_id:
            pass
        with pytest.raises(Stale) as stale:  # of a collection that is not loaded nothing is read
            move.read()
        assert stale.value.metadata["epoch"] == "0"
        docs.own()
        assert move.begin().capture_id == capture
    replica.catch_up(max_records=20)
    assert replica.records == move.stored()
    again = Replica(move)
    move.cursor = shard_pb2.MoveCursor()
    again.catch_up()
    assert again.records == replica.records


# ------------------------------------------------------------------------------------ outcomes


def test_outcomes_go_alongside_from_the_first_chunk_on(docs: CollectionCalls) -> None:
    here, there = names(6), names(6, ODD)
    docs.write(ADD, *(row(i, metadata={"n": 1}) for i in [*here, *there]))
    mixed, elsewhere, conditional = uuid7(), uuid7(), uuid7()
    docs.write(DELETE, here[0], there[0], request_id=mixed, digest=2**64 - 5)
    docs.write(DELETE, there[1], request_id=elsewhere)
    docs.write(DELETE, here[1], here[2], there[2], where='{"n":1}', request_id=conditional, index=3)
    move = Leaving(docs)
    move.begin()
    replica = Replica(move)
    replica.step(max_records=1)
    known = {outcome.request_id: outcome for outcome in replica.outcomes}
    assert elsewhere not in known
    assert list(known[mixed].slots) == [slot_of(here[0])]
    assert (known[mixed].digest, known[mixed].kind, known[mixed].index) == (2**64 - 5, DELETE, 0)
    assert list(known[conditional].slots) == sorted(EVEN)
    assert sorted(known[conditional].deleted_slots) == sorted(map(slot_of, here[1:3]))
    assert known[conditional].index == 3
    assert known[conditional].at > known[mixed].at > 1e15
    count = len(replica.outcomes)
    replica.catch_up()
    assert len(replica.outcomes) == count
    later = uuid7()
    docs.write(DELETE, here[3], request_id=later)
    replica.catch_up()
    assert [outcome.request_id for outcome in replica.outcomes[count:]] == [later]


def test_many_outcomes_take_several_chunks(docs: CollectionCalls) -> None:
    ids = names(2500)
    requests = [uuid7() for _ in ids]
    docs.apply(
        *(docs.operation(DELETE, [i], request) for i, request in zip(ids, requests, strict=True))
    )
    move = Leaving(docs)
    move.begin()
    replica, chunks = Replica(move), []
    while not replica.step():
        chunks.append(len(replica.outcomes))
    assert chunks
    assert all(0 < count <= 2000 for count in chunks)
    assert {outcome.request_id for outcome in replica.outcomes} == set(requests)
    assert len(replica.outcomes) == len(requests)


# ------------------------------------------------------------------------------------ comparison


def compared_by(move: Leaving, replica: Replica, **bounds: int) -> list[Any]:
    """The comparisons of as many chunks as it takes; they are in step with one another."""
    found: list[Any] = []
    place: Place | None = None
    while True:
        answer = move.read(compare=True, compared=place, **bounds)
        chunk = replica.take(answer)
        if chunk.HasField("comparison"):
            comparison = chunk.comparison
            after = (comparison.after.sequence, comparison.after.id)
            assert (after if comparison.HasField("after") else None) == place
            assert comparison.HasField("upto") is not answer.compare_done
            found.append(comparison)
        if answer.HasField("compared"):
            place = (answer.compared.sequence, answer.compared.id)
        if answer.compare_done:
            return found


@pytest.mark.parametrize("bounds", [{"max_records": 7}, {"max_bytes": 900}, {"max_records": 20}])
def test_everything_is_compared_once_in_order(
    docs: CollectionCalls, bounds: dict[str, int]
) -> None:
    docs.write(ADD, *(row(i, n, sequence=n) for n, i in enumerate(names(40), 1)))
    move = Leaving(docs)
    move.begin()
    replica = Replica(move)
    comparisons = compared_by(move, replica, **bounds)
    assert len(comparisons) > 2
    rows = [(i, s) for comparison in comparisons for i, s in records_of(comparison).items()]
    assert dict(rows) == replica.records == move.stored()
    assert [i for i, _ in rows] == sorted(replica.records, key=lambda i: (slot_of(i), i))


def test_nothing_is_compared_before_all_is_sent(docs: CollectionCalls) -> None:
    ids = names(20)
    docs.write(ADD, *map(row, ids))
    move = Leaving(docs)
    move.begin()
    replica = Replica(move)
    answer = move.read(max_records=20, compare=True)
    chunk = replica.take(answer)
    assert (answer.caught_up, answer.compare_done) == (False, False)
    assert not chunk.HasField("comparison")
    replica.catch_up()
    docs.write(UPDATE, row(ids[0], 7))
    answer = move.read(max_records=20, compare=True)
    chunk = replica.take(answer)  # the change, and all that is compared with it
    assert answer.items == 1
    assert records_of(chunk.comparison)[ids[0]] == replica.records[ids[0]]
    last = max((slot_of(i), i) for i in ids)
    answer = move.read(max_records=20, compare=True, compared=last)
    comparison = replica.take(answer).comparison
    assert answer.compare_done
    assert not answer.HasField("compared")
    assert not comparison.records
    assert comparison.HasField("after")
    assert not comparison.HasField("upto")


# ------------------------------------------------------------------------------------ captures


def test_a_capture_is_begun_once_and_replaced_by_another_move(docs: CollectionCalls) -> None:
    docs.write(ADD, *map(row, names(5)))
    first = Leaving(docs)
    capture = first.begin().capture_id
    assert first.begin().capture_id == capture
    replica = Replica(first)
    replica.catch_up()
    apart = Leaving(docs, slots=ODD)
    apart.begin()
    overlapping = Leaving(docs, slots=frozenset({0, 1}))
    overlapping.begin()
    for move in (first, apart):
        move.token = overlapping.token
        with pytest.raises(NotAllowed) as refused:
            move.read()
        assert refused.value.reason is Reason.MOVE_OUT_OF_STEP
    first.renew()
    assert first.begin().capture_id != capture
    with pytest.raises(NotAllowed) as refused:
        first.read()
    assert refused.value.reason is Reason.MOVE_OUT_OF_STEP
    again = Replica(first)
    first.cursor = shard_pb2.MoveCursor()
    again.catch_up()
    assert again.records == replica.records


def test_an_ended_capture_leaves_nothing(mine: Node) -> None:
    docs = mine.collection()
    ids = names(50)
    docs.write(ADD, *map(row, ids))
    ended, dropped = Leaving(docs), Leaving(mine.collection(), slots=ODD)
    for move in (ended, dropped):
        move.begin()
        move.docs.write(UPSERT, *map(row, names(50, move.slots)))
    dropped.fence()
    ended.token = dropped.token
    ended.end()
    ended.end()
    with pytest.raises(NotAllowed):
        ended.read()
    gone = shard_pb2.DropCollectionRequest(collection_id=dropped.docs.id, epoch=2)
    mine.call("DropCollection", gone)
    dropped.end()  # the collection need not be there; what was left of it is swept
    mine.stop()
    link = sqlite3.connect(mine.data / "chroma" / "chroma.sqlite3")
    for table in ("capture", "capture_slot", "dirty", "fence", "arrival"):
        assert link.execute(f"SELECT count(*) FROM router_{table}").fetchone() == (0,), table
    link.close()
    mine.start()


def test_a_capture_ends_with_the_ownership_of_its_slots(docs: CollectionCalls) -> None:
    move, other = Leaving(docs, slots=frozenset({0, 2})), Leaving(docs, slots=frozenset({4}))
    move.begin()
    other.begin()
    move.token = other.token
    docs.own(EVEN - {0}, epoch=2)
    with pytest.raises(NotAllowed):
        move.read()
    other.read()
    with pytest.raises(Stale) as stale:  # whoever captures them is of another epoch
        move.begin()
    assert stale.value.reason is Reason.STALE_EPOCH
    assert stale.value.metadata["epoch"] == "2"


# ------------------------------------------------------------------------------------ refusals


def calls_of(move: Leaving) -> list[Callable[[], Any]]:
    return [move.begin, move.read, move.fence, move.fence_reads, move.end]


@pytest.mark.parametrize(
    "change",
    [{"id": "x"}, {"slots": frozenset()}, {"token": 0}, {"token": 2**63}],
)
def test_a_move_that_no_mover_names(docs: CollectionCalls, change: dict[str, Any]) -> None:
    for call in calls_of(Leaving(docs, **change)):
        with pytest.raises(InvalidRequest):
            call()


def test_chunks_that_no_mover_asks_for(docs: CollectionCalls) -> None:
    move = Leaving(docs)
    move.begin()
    for max_records in (0, 5001):
        for call in (move.read, move.fence):
            with pytest.raises(InvalidRequest, match="max_records"):
                call(max_records=max_records)


def test_collections_that_are_not_held(node: Node) -> None:
    unknown = Leaving(CollectionCalls(node, str(uuid4())))
    gone = Leaving(node.collection())
    node.call(
        "DropCollection", shard_pb2.DropCollectionRequest(collection_id=gone.docs.id, epoch=2)
    )
    for move, refusal in ((unknown, Stale), (gone, NotFound)):
        move.renew()
        for call in (move.begin, move.read, move.fence):
            with pytest.raises(refusal):
                call()
        with pytest.raises(NotAllowed):
            move.fence_reads()
        move.end()


def test_a_replaced_mover_is_refused_also_after_a_restart(mine: Node) -> None:
    docs = mine.collection()
    old, new = Leaving(docs), Leaving(docs)
    new.id = old.id
    old.begin()
    new.read()
    for restarted in (False, True):
        if restarted:
            mine.kill()
            mine.start()
            mine.hello()
            docs.own()
        for call in calls_of(old):
            with pytest.raises(ClusterError) as refused:
                call()
            assert refused.value.reason is Reason.STALE_TOKEN
            assert refused.value.metadata == {"highest": str(new.token)}
    new.read()
