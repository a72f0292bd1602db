"""What a read is told of a collection that went away under it."""

import pytest

from chroma_router.wire.errors import NotFound, Stale
from chroma_router.wire.slots import SLOT_BITMAP_BYTES, SLOT_COUNT
from shard_node.engine import EngineRefused
from shard_node.holdings import Grant, Holding, Holdings
from shard_node.state import CollectionRow

MISSING = EngineRefused("InternalError", "Missing field: [Missing metadata segment]")


@pytest.fixture
def holdings() -> Holdings:
    """One collection, granted at epoch 1."""
    bitmap = bytes(SLOT_BITMAP_BYTES)
    row = CollectionRow(1, "docs", "physical", 1, bitmap, b"", 1, dropped=False)
    made = Holdings("boot", 0)
    made.live["docs"] = Holding(row, "physical", [0] * SLOT_COUNT, Grant.of(1, bitmap))
    return made


def test_a_read_of_a_collection_dropped_under_it_finds_nothing(holdings: Holdings) -> None:
    holdings.dropped["docs"] = holdings.live.pop("docs").row
    with pytest.raises(NotFound), holdings.read("docs", 1):
        raise MISSING


def test_a_read_under_which_the_epoch_changed_is_stale(holdings: Holdings) -> None:
    holdings.live["docs"].grant = Grant.of(2, bytes(SLOT_BITMAP_BYTES))
    with pytest.raises(Stale), holdings.read("docs", 1):
        raise MISSING


def test_what_the_engine_refuses_of_a_live_collection_stays_its_refusal(holdings: Holdings) -> None:
    with pytest.raises(EngineRefused), holdings.read("docs", 1):
        raise MISSING
