"""Gives up a shard that is dead for good: its slots, empty now, go to the shards that are left.

The running rebalance is taken back, since it was planned for shares that are no more. Its moves
from and to the shard end at once, there being nobody to undo them with; the epoch of their
collections rises too, even where the shard owned nothing, so that a fence that such a move left at
its source is lifted.

What such a move left on its other side must not come to be owned there: it may be old, or deleted
since. So the slots of that move go to any other shard while there is one. Pure but for the rows
that it reads and writes.
"""

import dataclasses
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence

from chroma_router.wire.errors import NotAllowed, Reason
from router.catalog import codec, move_changes, move_rows, shard_rows
from router.core.model import CollectionEntry, CollectionState, ShardRole
from router.core.move import Move
from router.core.placement import home_shards
from router.core.slot_map import SlotMap


def remove(db: sqlite3.Connection, name: str) -> list[tuple[CollectionEntry, int]]:
    """Does so; returns the ACTIVE collections that lost slots, and how many each.

    Raises NotFound (SHARD_NOT_FOUND), NotAllowed (LAST_SHARD).
    """
    shard_rows.known_shard(db, name)
    moves = [move for move in move_rows.unended_moves(db) if name in (move.source, move.target)]
    running = move_rows.unended_rebalance(db)
    if running is not None:
        # First: a shard that was being drained takes new data again.
        move_changes.undo(db, running, f"shard {name} was removed as lost; plan again")
    names = _left(db, name)
    of_moves = {move.id for move in moves}
    move_changes.end_moves(
        db,
        [move for move in move_rows.unended_moves(db) if move.id in of_moves],
        f"shard {name} was removed as lost",
        lost=name,
    )
    shard_rows.delete_shard(db, name)
    maybe_fenced = {move.collection_id for move in moves}
    losses = []
    for entry in codec.select_collections(db, "ORDER BY id"):
        lost = len(entry.slot_map.slots_of(name))
        if not lost and entry.id not in maybe_fenced:
            continue
        homes = home_shards(entry.id, names, entry.placement_shards)
        stale = _stale([move for move in moves if move.collection_id == entry.id], name)
        slot_map = _dealt(entry.slot_map, name, homes, names, stale)
        changed = codec.update_collection(db, dataclasses.replace(entry, slot_map=slot_map))
        if lost and entry.state is CollectionState.ACTIVE:
            losses.append((changed, lost))
    return losses


def _left(db: sqlite3.Connection, lost: str) -> list[str]:
    """The shards that may be given slots: those that take new data, or if there is none, all."""
    others = [shard for shard in shard_rows.select_shards(db) if shard.name != lost]
    if not others:
        raise NotAllowed(
            f"Shard [{lost}] cannot be removed: it is the only one; add another first with"
            " `chroma-router shards add`",
            Reason.LAST_SHARD,
            metadata={"shard": lost},
        )
    active = [shard.name for shard in others if shard.role is ShardRole.ACTIVE]
    return active or [shard.name for shard in others]


def _stale(moves: Sequence[Move], lost: str) -> dict[int, set[str]]:
    """By slot: on which other shards something of it may be."""
    stale: dict[int, set[str]] = {}
    for move in moves:
        survivor = move.target if move.source == lost else move.source
        for slot in move.slots:
            stale.setdefault(slot, set()).add(survivor)
    return stale


def _dealt(
    slot_map: SlotMap,
    lost: str,
    homes: Sequence[str],
    names: Sequence[str],
    stale: Mapping[int, set[str]],
) -> SlotMap:
    """The next epoch's map, in which the slots of `lost` are as even as can be on the homes."""
    owners = list(slot_map.owners)
    count = Counter(owners)
    for slot in sorted(slot_map.slots_of(lost)):
        avoided = stale.get(slot, set())
        free = [name for name in homes if name not in avoided]
        free = free or [name for name in names if name not in avoided] or list(homes)
        owners[slot] = min(free, key=lambda name: (count[name], name))
        count[owners[slot]] += 1
    return SlotMap(slot_map.epoch + 1, tuple(owners))
