"""What a stream makes of an engine that contradicts the node's tables."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import InternalFailure
from shard_node.capture_state import Capture
from shard_node.engine import Contents, Engine
from shard_node.holdings import Holding
from shard_node.move_stream import MoveStream
from tests.shard_node.moving import EVEN, names
from tests.shard_node.test_capture_state import Bench


class ForgetfulEngine:
    """Has lost the first record of those it is asked for."""

    async def get_in_turn(
        self, physical: str, ids: list[str], *, include: Sequence[str]
    ) -> Contents:
        left = ids[1:]
        return Contents(left, [b"1234"] * len(left), None, None, None)


async def test_a_record_that_the_engine_lacks_is_never_left_out(tmp_path: Path) -> None:
    bench, ids = Bench(tmp_path / "chroma.sqlite3"), names(3)
    bench.write("add", *ids)
    pool = ThreadPoolExecutor(1)
    stream = MoveStream(cast("Engine", ForgetfulEngine()), bench.state, pool)
    holding = Holding(bench.state.collections()[0], "p-a", bench.state.slot_counts(1))
    request = shard_pb2.ReadMoveRequest(max_records=5)
    try:
        with pytest.raises(InternalFailure, match="has no record"):
            await stream.read(holding, Capture("m", 1, "c", EVEN), request)
    finally:
        pool.shutdown()
        bench.state.close()
