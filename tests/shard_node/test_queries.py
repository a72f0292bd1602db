"""Queries beside what a move brings and takes, where the order of events is the test's."""

from collections.abc import Sequence
from typing import Any, cast

from chroma_router.v1 import shard_pb2
from chroma_router.wire.slots import SLOT_COUNT, slot_of
from shard_node.engine import Engine, Nearest
from shard_node.holdings import Grant, Holding, Holdings
from shard_node.queries import Queries
from shard_node.reads import Reads
from shard_node.record_index import RecordIndex
from shard_node.state import CollectionRow
from tests.shard_node.moving import EVEN, ODD, names
from tests.shard_node.running import floats

OWNED, BROUGHT = slot_of(names(1, ODD)[0]), names(1, EVEN)[0]


class BusyEngine:
    """While it searches, a move brings a record, and a client deletes the only owned one."""

    def __init__(self, holding: Holding) -> None:
        self.holding = holding

    async def query(self, *_: Any) -> Nearest:
        self.holding.add([slot_of(BROUGHT)], 1)
        self.holding.add([OWNED], -1)
        return Nearest([[BROUGHT]], None, None, None, None, [[0.0]])


class Threads:
    """A RecordIndex of no records."""

    async def run(self, work: Any, *arguments: object) -> Any:
        return work(*arguments)

    async def page(self, *_: object) -> Sequence[Any]:
        return []


async def test_the_last_owned_record_may_go_while_a_move_brings_others() -> None:
    row = CollectionRow(1, "c", "p", 1, b"", b"", 1, False)
    holding = Holding(row, "p", [int(slot == OWNED) for slot in range(SLOT_COUNT)])
    grant = Grant(1, bytes(slot in ODD for slot in range(SLOT_COUNT)))
    engine, index = cast("Engine", BusyEngine(holding)), cast("RecordIndex", Threads())
    holdings = Holdings("boot", 0)
    queries = Queries("shard-1", engine, index, holdings, Reads(engine, index, holdings))
    request = shard_pb2.ShardQueryRequest(embeddings=[floats(1)], n_results=1)
    answer = await queries.nearest(holding, grant, request)
    assert [list(result.ids) for result in answer.results] == [[]]
