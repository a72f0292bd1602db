"""One dimension for each collection, whoever writes first."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_router.wire.errors import InternalFailure, InvalidRequest, Reason
from router.catalog import Catalog, dimension
from router.core.model import CollectionEntry, DimensionState
from tests.router.catalog.helpers import new, opened


def _fresh() -> CollectionEntry:
    return new().entry("database-id")


@given(st.data())
def test_no_interleaving_applies_two_dimensions(data: st.DataObject) -> None:
    """Writers of two dimensions claim, apply, fix, give up or die in any order."""
    entry = _fresh()
    stage = dict.fromkeys(range(data.draw(st.integers(1, 6))), "new")
    wants = {writer: data.draw(st.sampled_from([384, 768])) for writer in stage}
    applied: set[int] = set()
    while busy := [w for w in stage if stage[w] in ("new", "claimed", "applied")]:
        writer = data.draw(st.sampled_from(busy))
        if stage[writer] == "new":
            try:
                entry = dimension.claimed(entry, wants[writer])
                stage[writer] = "claimed"
            except InvalidRequest:
                assert entry.dimension != wants[writer]
                stage[writer] = "refused"
        elif stage[writer] == "claimed":
            match data.draw(st.sampled_from(["apply", "refuse", "unknown, applied", "unknown"])):
                case "apply":
                    applied.add(wants[writer])
                    stage[writer] = "applied"
                case "refuse":
                    entry = dimension.retracted(entry)
                    stage[writer] = "refused"
                case "unknown, applied":
                    applied.add(wants[writer])
                    stage[writer] = "unknown"
                case _:
                    stage[writer] = "unknown"
        else:
            entry = dimension.fixed(entry, wants[writer])
            stage[writer] = "done"
        assert len(applied) <= 1
        assert applied <= {entry.dimension}
    if all(end == "refused" for end in stage.values()):
        assert entry.dimension_state is DimensionState.NONE, "refused writes fix nothing"
    if "done" in stage.values():
        assert entry.dimension_state is DimensionState.FIXED


def test_fixing_is_idempotent_and_final() -> None:
    entry = dimension.fixed(dimension.claimed(_fresh(), 384), 384)
    assert dimension.fixed(entry, 384) == entry
    assert dimension.claimed(entry, 384) is entry
    assert dimension.retracted(entry) is entry
    with pytest.raises(InternalFailure):
        dimension.fixed(entry, 768)


async def test_a_hundred_racing_claims_of_two_dimensions_leave_one(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    first = await opened(path)
    catalogs = [first, *[await Catalog.open(path) for _ in range(3)]]
    entry, _ = await first.create_collection(new(), False)

    refusals: list[InvalidRequest] = []

    async def write(number: int) -> int | None:
        catalog, wanted = catalogs[number % len(catalogs)], (384, 768)[number // len(catalogs) % 2]
        try:
            await catalog.claim_dimension(entry.id, wanted)
        except InvalidRequest as error:
            refusals.append(error)
            return None
        await catalog.fix_dimension(entry.id, wanted)
        return wanted

    won = set(await asyncio.gather(*(write(number) for number in range(100)))) - {None}
    final = await first.collection(entry.id)
    assert won == {final.dimension}
    assert final.dimension_state is DimensionState.FIXED
    text = f"dimension of {final.dimension}, got {384 + 768 - (final.dimension or 0)}"
    assert refusals
    for refused in refusals:
        assert refused.message == f"Collection expecting embedding with {text}"
        assert refused.reason is Reason.DIMENSION_MISMATCH
    await asyncio.gather(*(catalog.close() for catalog in catalogs))


async def test_claims_through_two_routers(tmp_path: Path) -> None:
    one = await opened(tmp_path / "catalog.db")
    two = await Catalog.open(tmp_path / "catalog.db")
    entry, _ = await one.create_collection(new(), False)
    a = await one.claim_dimension(entry.id, 384)
    b = await two.claim_dimension(entry.id, 384)
    assert (a.dimension_joiners, b.dimension_joiners) == (1, 2)
    # What else changes meanwhile is in nobody's way.
    await two.update_collection(b, name="renamed")
    await one.retract_dimension(a)
    assert (await one.collection(entry.id)).dimension_state is DimensionState.PROPOSED
    with pytest.raises(InvalidRequest):
        await one.claim_dimension(entry.id, 768)
    await two.retract_dimension(b)
    assert (await one.collection(entry.id)).dimension is None
    c = await one.claim_dimension(entry.id, 768)
    fixed = await one.fix_dimension(entry.id, 768)
    assert await one.fix_dimension(entry.id, 768) == fixed
    await one.retract_dimension(c)
    assert await two.claim_dimension(entry.id, 768) == fixed
    await one.begin_delete(entry.id)
    await two.retract_dimension(c)
    await one.finish_delete(entry.id)
    await two.retract_dimension(c)
    await one.close()
    await two.close()
