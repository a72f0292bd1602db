"""The catalog's values."""

from dataclasses import replace

import pytest

from router.core.model import CollectionEntry, CollectionState, DimensionState
from router.core.slot_map import SlotMap

ENTRY = CollectionEntry(
    id="00000000-0000-0000-0000-000000000001",
    name="docs",
    tenant="default_tenant",
    database="default_database",
    database_id="00000000-0000-0000-0000-000000000002",
    metadata=None,
    configuration_json="{}",
    schema_json="",
    dimension=None,
    dimension_state=DimensionState.NONE,
    dimension_joiners=0,
    placement_shards=0,
    created_at=1,
    slot_map=SlotMap.deal(1, ["shard-1"]),
    state=CollectionState.ACTIVE,
    version=1,
)


@pytest.mark.parametrize(
    ("dimension", "state"),
    [(3, DimensionState.PROPOSED), (3, DimensionState.FIXED), (None, DimensionState.NONE)],
)
def test_dimension_and_its_state_agree(dimension: int | None, state: DimensionState) -> None:
    entry = replace(ENTRY, dimension=dimension, dimension_state=state)
    assert (entry.dimension, entry.dimension_state) == (dimension, state)


@pytest.mark.parametrize(
    ("dimension", "state"),
    [(None, DimensionState.PROPOSED), (None, DimensionState.FIXED), (3, DimensionState.NONE)],
)
def test_a_contradiction_is_refused(dimension: int | None, state: DimensionState) -> None:
    with pytest.raises(ValueError, match="contradicts its state"):
        replace(ENTRY, dimension=dimension, dimension_state=state)
