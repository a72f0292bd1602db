"""The tables of a target: how far each move has come, and what is remembered of its slots.

Functions over a connection, which is the state's own within a transaction (State.transaction) or a
reader's. An arrival's cursor is written with the data that it stands for (State.stage): it counts
once that batch has landed, and never before the data is durable.
"""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from chroma_router.wire.slots import slots_from_bitmap, slots_to_bitmap
from shard_node.state import State, packed, unpacked

OutcomeKey: TypeAlias = tuple[str, int, int, int]  # (request id, index, collection, batch)

_FIRST_KEY: OutcomeKey = ("", -1, -1, -1)
_ABOVE_ANY_ID = b""  # in SQLite's order every blob is above every text


@dataclass(frozen=True, slots=True)
class Arrival:
    """How far a move has come. Not `ready`: the node may hold what the move has not brought."""

    move: str
    collection: int
    slots: frozenset[int]
    ready: bool
    cursor: bytes


class OwnKey(NamedTuple):
    """A record that the node has, in the order of its slots."""

    slot: int
    id: str
    sequence: int


class Stripped(NamedTuple):
    """One slice of the outcomes: those of which some slots are to go, and where the slice ended."""

    found: list[OutcomeKey]
    last: OutcomeKey | None  # None: it was the last slice


# ------------------------------------------------------------------------------------ arrivals


def find(link: sqlite3.Connection, move: str) -> Arrival | None:
    """The arrival of a move, at the cursor that counts."""
    row = link.execute(
        "SELECT move, collection, slots, ready, CASE WHEN staged_cursor IS NOT NULL"
        "  AND staged_batch <= (SELECT applied FROM router_batch) THEN staged_cursor ELSE cursor"
        " END FROM router_arrival WHERE move = ?",
        (move,),
    ).fetchone()
    if row is None:
        return None
    name, collection, slots, ready, cursor = row
    return Arrival(name, collection, slots_from_bitmap(slots), bool(ready), cursor)


def begin(state: State, move: str, collection: int, slots: frozenset[int]) -> None:
    """Begins an arrival, not ready, in the place of those of the collection that it overlaps."""
    with state.transaction() as link:
        for other in _overlapping(link, collection, slots):
            link.execute("DELETE FROM router_arrival WHERE move = ?", (other,))
        link.execute(
            "INSERT OR REPLACE INTO router_arrival VALUES (?, ?, ?, 0, x'', NULL, 0)",
            (move, collection, slots_to_bitmap(slots)),
        )


def restart(state: State, collection: int, slots: frozenset[int]) -> None:
    """Before records of the slots are deleted: no arrival has come any way any more."""
    with state.transaction() as link:
        for move in _overlapping(link, collection, slots):
            link.execute(
                "UPDATE router_arrival SET ready = 0, cursor = x'', staged_cursor = NULL,"
                " staged_batch = 0 WHERE move = ?",
                (move,),
            )


def make_ready(state: State, move: str, collection: int, slots: frozenset[int]) -> None:
    """Nothing of the slots is held: the move's arrival, if there is one of them, may begin."""
    with state.transaction() as link:
        link.execute(
            "UPDATE router_arrival SET ready = 1 WHERE move = ? AND collection = ? AND slots = ?",
            (move, collection, slots_to_bitmap(slots)),
        )


def end(state: State, move: str) -> None:
    """Durably forgets an arrival, if there is one."""
    with state.transaction(durable=True) as link:
        link.execute("DELETE FROM router_arrival WHERE move = ?", (move,))


def _overlapping(link: sqlite3.Connection, collection: int, slots: frozenset[int]) -> list[str]:
    rows = link.execute(
        "SELECT move, slots FROM router_arrival WHERE collection = ?", (collection,)
    )
    return [move for move, theirs in rows if not slots.isdisjoint(slots_from_bitmap(theirs))]


def takes_part(link: sqlite3.Connection, move: str, collection: int) -> bool:
    """Whether the node is source or target of a move that is under way."""
    row = link.execute(
        "SELECT 1 FROM router_arrival WHERE move = ?1 AND collection = ?2"
        " UNION ALL SELECT 1 FROM router_capture WHERE move = ?1 AND collection = ?2 LIMIT 1",
        (move, collection),
    ).fetchone()
    return row is not None


# ------------------------------------------------------------------------------------ records


def present(link: sqlite3.Connection, collection: int, ids: Iterable[str]) -> list[OwnKey]:
    """Those of the records that exist."""
    sql = "SELECT slot, id, sequence FROM router_record WHERE collection = ? AND id = ?"
    rows = (link.execute(sql, (collection, record_id)).fetchone() for record_id in ids)
    return [OwnKey._make(row) for row in rows if row is not None]


def own_keys(
    link: sqlite3.Connection,
    collection: int,
    slots: Iterable[int],
    after: tuple[int, str] | None,
    upto: tuple[int, str] | None,
    limit: int,
) -> list[OwnKey]:
    """At most `limit` records of the slots after one place and up to another, in their order."""
    found: list[OwnKey] = []
    for slot in sorted(slots):
        if (after is not None and slot < after[0]) or (upto is not None and slot > upto[0]):
            continue
        first = after[1] if after is not None and slot == after[0] else ""  # no id is empty
        last = upto[1] if upto is not None and slot == upto[0] else _ABOVE_ANY_ID
        rows = link.execute(
            "SELECT slot, id, sequence FROM router_record"
            " WHERE collection = ? AND slot = ? AND id > ? AND id <= ? ORDER BY id LIMIT ?",
            (collection, slot, first, last, limit - len(found)),
        )
        found += map(OwnKey._make, rows)
        if len(found) == limit:
            break
    return found


# ------------------------------------------------------------------------------------ outcomes


def outcomes_of(
    link: sqlite3.Connection,
    collection: int,
    slots: frozenset[int],
    after: OutcomeKey | None,
    limit: int,
) -> Stripped:
    """Looks at `limit` outcomes after a place: which of them say something of the slots."""
    found: list[OutcomeKey] = []
    last: OutcomeKey | None = None
    rows = link.execute(
        "SELECT request_id, op_index, collection, batch, slots, deleted_slots FROM router_outcome"
        " WHERE (request_id, op_index, collection, batch) > (?, ?, ?, ?)"
        " ORDER BY request_id, op_index, collection, batch LIMIT ?",
        (*(after or _FIRST_KEY), limit),
    ).fetchall()
    for *key, covered, deleted in rows:
        if key[2] == collection and not slots.isdisjoint([*unpacked(covered), *unpacked(deleted)]):
            found.append((key[0], key[1], key[2], key[3]))
    if len(rows) == limit:
        request_id, index, number, batch, *_ = rows[-1]
        last = (request_id, index, number, batch)
    return Stripped(found, last)


def strip_outcomes(state: State, keys: Iterable[OutcomeKey], slots: frozenset[int]) -> None:
    """Takes the slots out of those outcomes; one that is left with none is forgotten."""
    where = " WHERE (request_id, op_index, collection, batch) = (?, ?, ?, ?)"
    with state.transaction() as link:
        for key in keys:
            row = link.execute(
                f"SELECT slots, deleted_slots FROM router_outcome{where}", key
            ).fetchone()
            if row is None:  # pruned meanwhile
                continue
            left = [packed(slot for slot in unpacked(blob) if slot not in slots) for blob in row]
            if any(left):
                sql = f"UPDATE router_outcome SET slots = ?, deleted_slots = ?{where}"
                link.execute(sql, (*left, *key))
            else:
                link.execute(f"DELETE FROM router_outcome{where}", key)
