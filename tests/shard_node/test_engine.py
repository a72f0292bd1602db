"""The handle on the engine process: what waits for what."""

import asyncio
from pathlib import Path

from shard_node.engine import Engine
from shard_node.settings import NodeSettings


async def test_what_the_writer_reads_waits_for_no_client(tmp_path: Path) -> None:
    settings = NodeSettings(reader_threads=1)
    engine = await Engine.start(tmp_path, settings)
    running = asyncio.create_task(engine.run())
    try:
        await engine.ping()
        physical = (await engine.create_collection("docs", None, None, None)).id
        await engine.write("add", physical, ["a"], [b"\0" * 4], [None], [None], [None])
        await engine._readers.acquire()  # a client's read, for as long as the test likes
        waiting = asyncio.create_task(engine.get(physical, ["a"]))
        found = await engine.get_in_turn(physical, ["a"], include=["embeddings"])
        assert (found.ids, found.embeddings) == (["a"], [b"\0" * 4])
        assert not waiting.done()
        engine._readers.release()
        assert (await waiting).ids == ["a"]
        await engine.close()
        await running
    finally:
        await engine.end()
