"""The calls of a move reach the node as they are meant, and its refusals the mover."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import Reason, Stale
from router.shard_moves import ShardMoves
from tests.router.scripted import rig

pytestmark = pytest.mark.timeout(15)

MOVE = shard_pb2.MoveRef(move_id="m", collection_id="c", token=7, slots=b"\x01" * 128)
READ = shard_pb2.ReadMoveRequest(move=MOVE, max_records=5)
FENCE = shard_pb2.FenceSlotsRequest(move=MOVE, next_epoch=2)
QUERY = shard_pb2.ShardQueryRequest(collection_id="c", n_results=3)

CALLS: list[tuple[str, Callable[[ShardMoves], Awaitable[Any]], Any]] = [
    ("BeginCapture", lambda m: m.begin_capture(MOVE), shard_pb2.BeginCaptureRequest(move=MOVE)),
    ("ReadMove", lambda m: m.read_move(READ), READ),
    ("FenceSlots", lambda m: m.fence_slots(FENCE), FENCE),
    ("FenceReads", lambda m: m.fence_reads(MOVE), shard_pb2.FenceReadsRequest(move=MOVE)),
    ("EndCapture", lambda m: m.end_capture(MOVE), shard_pb2.EndCaptureRequest(move=MOVE)),
    (
        "BeginArrival",
        lambda m: m.begin_arrival(MOVE, afresh=True),
        shard_pb2.BeginArrivalRequest(move=MOVE, afresh=True),
    ),
    (
        "ApplyMove",
        lambda m: m.apply_move(MOVE, b"chunk"),
        shard_pb2.ApplyMoveRequest(move=MOVE, chunk=b"chunk"),
    ),
    ("EndArrival", lambda m: m.end_arrival(MOVE), shard_pb2.EndArrivalRequest(move=MOVE)),
    (
        "DropSlots",
        lambda m: m.drop_slots(MOVE, 500),
        shard_pb2.DropSlotsRequest(move=MOVE, limit=500),
    ),
    (
        "PreviewMove",
        lambda m: m.preview_move(MOVE, QUERY),
        shard_pb2.PreviewMoveRequest(move=MOVE, query=QUERY),
    ),
]


@pytest.mark.parametrize(("method", "call", "request_"), CALLS, ids=[c[0] for c in CALLS])
async def test_each_call_is_sent_and_refused_by_its_reason(
    tmp_path: Path, method: str, call: Callable[[ShardMoves], Awaitable[Any]], request_: Any
) -> None:
    async with rig(tmp_path, 1) as router:
        shard = router.shards["shard-1"]
        moves = router.cluster.shard("shard-1").client.moves
        await call(moves)
        assert shard.requests(method) == [request_]
        shard.then(method, Stale("scripted: higher", Reason.STALE_TOKEN))
        with pytest.raises(Stale, match="higher") as refused:
            await call(moves)
        assert refused.value.reason is Reason.STALE_TOKEN
        assert refused.value.metadata["shard"] == "shard-1"
