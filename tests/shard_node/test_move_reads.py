"""Reads of a node while a move brings it records that it does not own yet (invariant 2)."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from chroma_router.wire.slots import slot_of
from tests.shard_node.moving import EVEN, ODD, Moving, names
from tests.shard_node.running import ADD, Node, Row, floats

pytestmark = pytest.mark.integration

OWNED, BROUGHT, ROUNDS, READERS = 150, 150, 12, 4


def test_what_a_move_brings_during_a_read_is_in_no_answer(node: Node) -> None:
    docs = node.collection(slots=ODD)
    docs.write(ADD, *(Row(i, floats(n, 9), sequence=n) for n, i in enumerate(names(OWNED, ODD))))
    # Nearer than all that is owned, and before it in the order of records.
    puts = [Row(i, floats(n / BROUGHT, 0), sequence=n) for n, i in enumerate(names(BROUGHT, EVEN))]
    stop = threading.Event()

    def read(look: Callable[[], list[str]]) -> tuple[set[str], int]:
        """The foreign ids that were ever seen, and the fewest rows of an answer."""
        foreign, fewest = set(), OWNED
        while not stop.is_set():
            ids = look()
            foreign |= {i for i in ids if slot_of(i) in EVEN}
            fewest = min(fewest, len(ids))
        return foreign, fewest

    def nearest() -> list[str]:
        return [i for i, _ in docs.query(floats(0, 0), n=OWNED)[0]]

    def listed() -> list[str]:
        return docs.ids(limit=OWNED)

    with ThreadPoolExecutor(READERS) as pool:
        reading = [pool.submit(read, nearest if n % 2 else listed) for n in range(READERS)]
        try:
            for _ in range(ROUNDS):
                move = Moving(docs)
                move.arrive()
                move.bring(*puts)
                move.drop_all()
                move.end()
        finally:
            stop.set()
        assert [future.result(30) for future in reading] == [(set(), OWNED)] * READERS
