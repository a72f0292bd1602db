"""Slot maps: invariant 1, dealing, reassigning, encoding."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chroma_router.wire.slots import SLOT_COUNT, slots_from_bitmap
from router.core.slot_map import MAX_EPOCH, SlotMap

NAMES = st.text(min_size=1, max_size=12)
SHARDS = st.lists(NAMES, min_size=1, max_size=9, unique=True)
SLOTS = st.sets(st.integers(0, SLOT_COUNT - 1))
EPOCHS = st.integers(1, MAX_EPOCH - 1)


@st.composite
def slot_maps(draw: st.DrawFn) -> SlotMap:
    shards = draw(SHARDS)
    seeds = draw(st.binary(min_size=16, max_size=16))
    owners = tuple(
        shards[(slot * seeds[slot % 16] + slot // 16) % len(shards)] for slot in range(SLOT_COUNT)
    )
    return SlotMap(draw(EPOCHS), owners)


@given(EPOCHS, SHARDS)
def test_deal_is_even_whatever_the_order(epoch: int, shards: list[str]) -> None:
    dealt = SlotMap.deal(epoch, shards)
    counts = Counter(dealt.owners)
    assert set(counts) == set(shards)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert dealt == SlotMap.deal(epoch, list(reversed(shards)))
    assert all(dealt.owner(s) == sorted(shards)[s % len(shards)] for s in range(SLOT_COUNT))


@pytest.mark.parametrize("shards", [[], ["a", "a"], ["a", ""]])
def test_deal_refuses(shards: list[str]) -> None:
    with pytest.raises(ValueError, match=r"no shards|twice|invariant 1"):
        SlotMap.deal(1, shards)


@given(slot_maps())
def test_every_slot_is_owned_once(slot_map: SlotMap) -> None:
    parts = [slot_map.slots_of(shard) for shard in slot_map.shards]
    assert all(parts)
    assert sum(map(len, parts)) == SLOT_COUNT
    assert frozenset().union(*parts) == frozenset(range(SLOT_COUNT))
    assert list(slot_map.shards) == sorted(set(slot_map.owners))
    for shard, slots in zip(slot_map.shards, parts, strict=True):
        assert all(slot_map.owner(slot) == shard for slot in slots)
        assert slots_from_bitmap(slot_map.bitmap_of(shard)) == slots


def test_a_stranger_owns_nothing() -> None:
    assert SlotMap.deal(1, ["a"]).slots_of("b") == frozenset()


@given(slot_maps(), SLOTS, NAMES)
def test_reassigned_changes_just_these_slots(slot_map: SlotMap, slots: set[int], to: str) -> None:
    before = slot_map.encode()
    after = slot_map.reassigned(iter(slots), to)
    assert slot_map.encode() == before
    assert after.epoch == slot_map.epoch + 1
    expected = [to if slot in slots else slot_map.owner(slot) for slot in range(SLOT_COUNT)]
    assert list(after.owners) == expected
    assert list(after.shards) == sorted(set(expected))


@pytest.mark.parametrize(("slots", "to"), [([-1], "b"), ([SLOT_COUNT], "b"), ([3], "")])
def test_reassigned_refuses(slots: list[int], to: str) -> None:
    slot_map = SlotMap.deal(1, ["a"])
    with pytest.raises(ValueError, match=r"a slot is from|invariant 1"):
        slot_map.reassigned(slots, to)
    assert slot_map == SlotMap.deal(1, ["a"])


def test_the_last_epoch_has_no_successor() -> None:
    with pytest.raises(ValueError, match="epoch"):
        SlotMap.deal(MAX_EPOCH, ["a"]).reassigned([0], "b")


@pytest.mark.parametrize("epoch", [0, -1, MAX_EPOCH + 1])
def test_bad_epochs(epoch: int) -> None:
    with pytest.raises(ValueError, match="epoch"):
        SlotMap.deal(epoch, ["a"])


@pytest.mark.parametrize(
    "owners",
    [(), ("a",) * (SLOT_COUNT - 1), ("a",) * (SLOT_COUNT + 1), ("a",) * 1000 + ("",) * 24],
)
def test_invariant_1(owners: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="invariant 1"):
        SlotMap(1, owners)


@given(slot_maps())
def test_encoding_round_trips(slot_map: SlotMap) -> None:
    decoded = SlotMap.decode(slot_map.encode())
    assert decoded == slot_map
    assert decoded.shards == slot_map.shards
    assert decoded.encode() == slot_map.encode()


def test_encoding_is_compact_and_pinned() -> None:
    # Catalogs hold this: a change of it needs another format number.
    encoded = SlotMap.deal(7, ["shard-2", "shard-1"]).encode()
    assert encoded.startswith(
        b'{"format":1,"epoch":7,"shards":["shard-1","shard-2"],"owners":"AAABAAAAAQAA'
    )
    assert len(encoded) < 2_900


def _damaged(**changes: object) -> bytes:
    document = json.loads(SlotMap.deal(1, ["a", "b"]).encode())
    document.update(changes)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe\xfa",
        b"[]",
        b"7",
        b"{}",
        b"[" * 5_000,
        _damaged(format=2),
        _damaged(epoch=0),
        _damaged(epoch=True),
        _damaged(epoch="1"),
        _damaged(epoch=1.0),
        _damaged(shards=["a"]),
        _damaged(shards=["b", "a"]),
        _damaged(shards=["a", "b", "c"]),
        _damaged(shards=["a", "a"]),
        _damaged(shards=["", "b"]),
        _damaged(shards=[["a"], "b"]),
        _damaged(shards="ab"),
        _damaged(owners=""),
        _damaged(owners="AAAA"),
        _damaged(owners="not base64!"),
        _damaged(owners="é"),
        _damaged(owners=5),
    ],
)
def test_decode_refuses_garbage(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        SlotMap.decode(data)


@given(st.binary(max_size=200))
def test_decode_of_noise_raises_only_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        SlotMap.decode(data)


@given(slot_maps(), st.data())
def test_decode_of_a_truncated_map_is_refused(slot_map: SlotMap, data: st.DataObject) -> None:
    encoded = slot_map.encode()
    with pytest.raises(ValueError):  # noqa: PT011
        SlotMap.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


def test_a_newer_format_is_named() -> None:
    with pytest.raises(ValueError, match=r"format 2.*newer"):
        SlotMap.decode(_damaged(format=2))
