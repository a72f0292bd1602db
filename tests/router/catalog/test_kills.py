"""kill -9 while writing, beside another router: nothing acknowledged is lost (invariant 9)."""

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest

from router.catalog import DEFAULT_DATABASE, DEFAULT_TENANT, Catalog, check
from tests.router.catalog.helpers import new, opened

KILLS = 20

# Acknowledges on stdout, line by line, what its calls have returned.
WRITER = """
import asyncio, sys
from pathlib import Path
from router.catalog import Catalog
from tests.router.catalog.helpers import new

async def main(path: Path, life: str) -> None:
    catalog = await Catalog.open(path)
    number = 0
    while True:
        entry, _ = await catalog.create_collection(new(f"name-{life}-{number}"), False)
        print("made", entry.id, flush=True)
        entry = await catalog.replace_slot_map(entry, entry.slot_map.reassigned([1], "shard-1"))
        print("moved", entry.id, flush=True)
        await catalog.begin_delete(entry.id)
        print("doomed", entry.id, flush=True)
        number += 1

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""

EPOCHS = {"made": 1, "moved": 2, "doomed": 3}


@pytest.mark.integration
async def test_kill_9_loses_nothing_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    survivor = await opened(path)
    acknowledged: dict[str, int] = {}
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    for life in range(KILLS):
        lines = await asyncio.to_thread(_run_and_kill, path, life, chosen.randint(1, 12))
        # The line at which the kill came may be cut short; it is no acknowledgement then.
        for verb, entry_id in (line.split() for line in lines):
            acknowledged[entry_id] = EPOCHS[verb]
        # What the killed one held is free, and the log is whole.
        await survivor.create_collection(new(f"beside-{life}"), False)
    await _assert_kept(survivor, acknowledged)
    await survivor.close()
    assert check(path) == []
    reopened = await Catalog.open(path, create=False)
    await _assert_kept(reopened, acknowledged)
    await reopened.close()


def _run_and_kill(path: Path, life: int, after: int) -> list[str]:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(life)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(after)]
        writer.kill()
        lines += writer.stdout.readlines()
    return [line for line in lines if line.endswith("\n")]


async def _assert_kept(catalog: Catalog, acknowledged: dict[str, int]) -> None:
    held = {entry.id: entry.slot_map.epoch for entry in await catalog.all_collections()}
    assert len(acknowledged) >= KILLS
    for entry_id, epoch in acknowledged.items():
        # One more step may have happened whose acknowledgement the kill swallowed.
        assert epoch <= held[entry_id] <= epoch + 1
    listed = await catalog.list_collections(DEFAULT_TENANT, DEFAULT_DATABASE)
    assert {f"beside-{life}" for life in range(KILLS)} <= {entry.name for entry in listed}
