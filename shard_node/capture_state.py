"""The tables of a move's source: what is captured, what has changed since, and what is fenced.

The trigger `router_queue_capture` marks a captured record as changed (`router_dirty`) in the very
transaction in which the engine changes it, so that no change is ever missed; what is marked is an
id, never a record, so that a capture takes a row for each record at most. Functions over the State,
in its one thread, within a turn of the single writer.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

from chroma_router.wire.slots import slots_from_bitmap, slots_to_bitmap
from shard_node.state import CollectionRow, Outcome, State, unpacked


@dataclass(frozen=True, slots=True)
class Capture:
    """The changes of a move's slots are marked since this began. `collection` is its number."""

    move: str
    collection: int
    id: str
    slots: frozenset[int]


@dataclass(frozen=True, slots=True)
class StoredFence:
    """The slots of a move are fenced until the next epoch, under a token."""

    move: str
    collection: int
    slots: frozenset[int]
    next_epoch: int
    token: int


class Change(NamedTuple):
    """A record that a batch has changed, for the last time until now."""

    batch: int
    id: str


class DatedOutcome(NamedTuple):
    """An outcome, and when it was applied, in microseconds since the epoch."""

    outcome: Outcome
    at: int


class OutcomePage(NamedTuple):
    """Outcomes of whole batches, up to and with this one; `last`: no batch has landed since."""

    found: list[DatedOutcome]
    upto: int
    last: bool


# ------------------------------------------------------------------------------------ captures


def find(state: State, move: str) -> Capture | None:
    """The capture of a move, if one has begun and not ended."""
    sql = "SELECT collection, capture, slots FROM router_capture WHERE move = ?"
    found = [Capture(move, c, i, slots_from_bitmap(s)) for c, i, s in state.rows(sql, move)]
    return found[0] if found else None


def begin(state: State, capture: Capture) -> None:
    """Begins a capture, in the place of those of the collection whose slots it overlaps."""
    with state.transaction(durable=True) as link:
        _end_captures(link, capture.collection, lambda slots: slots & capture.slots)
        _end(link, [capture.move])
        link.execute("DELETE FROM router_dirty WHERE move = ?", (capture.move,))
        link.execute(
            "INSERT INTO router_capture VALUES (?, ?, ?, ?)",
            (capture.move, capture.collection, capture.id, slots_to_bitmap(capture.slots)),
        )
        link.executemany(
            "INSERT INTO router_capture_slot VALUES (?, ?, ?)",
            ((capture.collection, slot, capture.move) for slot in capture.slots),
        )


def end(state: State, move: str) -> None:
    """Durably ends the capture of a move and lifts its fence. What it has marked is left to
    `sweep`."""
    with state.transaction(durable=True) as link:
        _end(link, [move])
        link.execute("DELETE FROM router_fence WHERE move = ?", (move,))


def sweep(state: State, limit: int) -> int:
    """Deletes at most `limit` marks that ended captures have left; returns how many."""
    ended = state.rows(
        "WITH RECURSIVE marked(move) AS ("  # from move to move, not from mark to mark
        " SELECT min(move) FROM router_dirty UNION ALL"
        " SELECT (SELECT min(move) FROM router_dirty d WHERE d.move > m.move) FROM marked m"
        "  WHERE m.move IS NOT NULL)"
        " SELECT move FROM marked WHERE move IS NOT NULL"
        "  AND move NOT IN (SELECT move FROM router_capture) LIMIT 1"
    )
    if not ended:
        return 0
    with state.transaction() as link:
        gone = link.execute(
            "DELETE FROM router_dirty WHERE move = ?1 AND id IN"
            " (SELECT id FROM router_dirty WHERE move = ?1 LIMIT ?2)",
            (ended[0][0], limit),
        )
        return gone.rowcount


# ------------------------------------------------------------------------------------ the stream


def changes(state: State, move: str, after: Change, limit: int) -> list[Change]:
    """At most `limit` records that were changed after a place, in the order of (batch, id)."""
    rows = state.rows(
        "SELECT batch, id FROM router_dirty WHERE move = ? AND (batch, id) > (?, ?)"
        " ORDER BY batch, id LIMIT ?",
        move, *after, limit,
    )  # fmt: skip
    return [Change(*row) for row in rows]


def sequences(state: State, collection: int, ids: Iterable[str]) -> dict[str, int]:
    """The sequence of each of the records that exist."""
    sql = "SELECT sequence FROM router_record WHERE collection = ? AND id = ?"
    found = ((record_id, state.rows(sql, collection, record_id)) for record_id in ids)
    return {record_id: rows[0][0] for record_id, rows in found if rows}


def outcomes(
    state: State, collection: int, slots: frozenset[int], after: int, limit: int
) -> OutcomePage:
    """What is remembered of the slots since a batch: of at most `limit` outcomes of the collection,
    or of one batch, whatever it has."""
    (applied,) = state.rows("SELECT applied FROM router_batch")[0]
    sql = (
        "SELECT batch, request_id, op_index, kind, slots, deleted_slots, digest, at"
        " FROM router_outcome WHERE collection = ? AND batch > ? AND batch <= ?"
        " ORDER BY batch LIMIT ?"
    )
    rows, upto = state.rows(sql, collection, after, applied, limit + 1), applied
    if len(rows) > limit:
        cut = rows[-1][0]
        whole = list(takewhile(lambda row: row[0] < cut, rows))
        upto = cut - 1 if whole else cut
        rows = whole or state.rows(sql, collection, cut - 1, cut, -1)
    found = (_outcome(slots, *row[1:]) for row in rows)
    return OutcomePage([dated for dated in found if dated is not None], upto, upto == applied)


def _outcome(
    slots: frozenset[int],
    request_id: str,
    index: int,
    kind: int,
    covered: bytes,
    deleted: bytes,
    digest: int,
    at: int,
) -> DatedOutcome | None:
    """The part of an outcome that is of these slots; None: nothing is."""
    mine = slots.intersection(unpacked(covered))
    mine_deleted = tuple(slot for slot in unpacked(deleted) if slot in slots)
    if not mine and not mine_deleted:
        return None
    return DatedOutcome(Outcome(request_id, index, kind, mine, mine_deleted, digest), at)


# ------------------------------------------------------------------------------------ fences


def put_fence(state: State, fence: StoredFence) -> None:
    """Durably fences; in the place of what the move has fenced before."""
    with state.transaction(durable=True) as link:
        link.execute(
            "INSERT OR REPLACE INTO router_fence VALUES (?, ?, ?, ?, ?)",
            (fence.move, fence.collection, slots_to_bitmap(fence.slots), fence.next_epoch,
             fence.token),
        )  # fmt: skip


def fences(state: State, collection: int) -> list[StoredFence]:
    """All fences of a collection."""
    rows = state.rows(
        "SELECT move, collection, slots, next_epoch, token FROM router_fence WHERE collection = ?",
        collection,
    )
    return [StoredFence(m, c, slots_from_bitmap(slots), e, t) for m, c, slots, e, t in rows]


# ------------------------------------------------------------------------------------ ownership


def put_owned(state: State, row: CollectionRow) -> CollectionRow:
    """Durably stores what the shard owns, and with it what that ends: the fences that were to hold
    until this epoch, captures of slots that it has lost, arrivals of slots that it has got."""
    owned = slots_from_bitmap(row.owned)
    with state.transaction(durable=True) as link:
        stored = state.put_row(link, row)
        link.execute(
            "DELETE FROM router_fence WHERE collection = ? AND next_epoch <= ?",
            (stored.number, row.epoch),
        )
        _end_captures(link, stored.number, lambda slots: slots - owned)
        arrivals = link.execute(
            "SELECT move, slots FROM router_arrival WHERE collection = ?", (stored.number,)
        )
        here = [(m,) for m, slots in arrivals.fetchall() if owned & slots_from_bitmap(slots)]
        link.executemany("DELETE FROM router_arrival WHERE move = ?", here)
    return stored


def put_dropped(state: State, row: CollectionRow) -> CollectionRow:
    """Durably stores that a collection is dropped, and forgets every move of it."""
    with state.transaction(durable=True) as link:
        stored = state.put_row(link, row)
        for table in ("router_capture", "router_capture_slot", "router_fence", "router_arrival"):
            link.execute(f"DELETE FROM {table} WHERE collection = ?", (stored.number,))
    return stored


def _end_captures(
    link: sqlite3.Connection,
    collection: int,
    ends: Callable[[frozenset[int]], Collection[int]],
) -> None:
    """Ends the captures of a collection for whose slots `ends` is not empty."""
    rows = link.execute(
        "SELECT move, slots FROM router_capture WHERE collection = ?", (collection,)
    )
    _end(link, [move for move, slots in rows.fetchall() if ends(slots_from_bitmap(slots))])


def _end(link: sqlite3.Connection, moves: Sequence[str]) -> None:
    for table in ("router_capture", "router_capture_slot"):
        link.executemany(f"DELETE FROM {table} WHERE move = ?", [(move,) for move in moves])
