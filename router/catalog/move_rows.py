"""Rebalances, moves and the lease between their rows and their values, without loss.

What cannot be decoded raises CorruptRow: it was not written by this module. What may be written
when is decided in move_changes.py and move_store.py.
"""

import dataclasses
import sqlite3
from collections.abc import Sequence
from typing import Any, TypeAlias

from chroma_router.wire.slots import slots_from_bitmap, slots_to_bitmap
from router.catalog.codec import Value
from router.catalog.schema import CorruptRow
from router.core.lease import Lease
from router.core.move import ENDED, Move, Stage
from router.core.rebalance import MoveProgress, Rebalance, RebalanceKind, RebalanceState

MoveRow: TypeAlias = tuple[Move, MoveProgress]

KEPT = 20
"""How many rebalances stay in the catalog, the newest included, for who looks into the file."""

_REBALANCE = tuple(f.name for f in dataclasses.fields(Rebalance))
_MOVE = tuple(f.name for f in dataclasses.fields(Move))
_PROGRESS = tuple(f.name for f in dataclasses.fields(MoveProgress))

_SELECT_REBALANCE = f"SELECT {', '.join(_REBALANCE)} FROM rebalances"
_INSERT_REBALANCE = (
    f"INSERT INTO rebalances ({', '.join(_REBALANCE)}) VALUES ({', '.join('?' * len(_REBALANCE))})"
)
_UPDATE_REBALANCE = (
    f"UPDATE rebalances SET {', '.join(f'{c} = ?' for c in _REBALANCE)} WHERE id = ?"
)
_SELECT_MOVE = f"SELECT {', '.join(_MOVE + _PROGRESS)} FROM moves"
_INSERT_MOVE = f"INSERT INTO moves ({', '.join(_MOVE)}) VALUES ({', '.join('?' * len(_MOVE))})"
_UPDATE_MOVE = f"UPDATE moves SET {', '.join(f'{c} = ?' for c in _MOVE)} WHERE id = ?"
_UPDATE_PROGRESS = f"UPDATE moves SET {', '.join(f'{c} = ?' for c in _PROGRESS)} WHERE id = ?"
_ENDED = ", ".join(f"'{stage.value}'" for stage in sorted(ENDED))
_UNENDED = f"stage NOT IN ({_ENDED})"


def newest_rebalance(db: sqlite3.Connection) -> Rebalance | None:
    """The rebalance that was begun last."""
    row = db.execute(f"{_SELECT_REBALANCE} ORDER BY number DESC LIMIT 1").fetchone()
    return None if row is None else _decode_rebalance(row)


def unended_rebalance(db: sqlite3.Connection) -> Rebalance | None:
    """The rebalance that has not ended; there is at most one."""
    row = db.execute(f"{_SELECT_REBALANCE} WHERE unended = 1").fetchone()
    return None if row is None else _decode_rebalance(row)


def all_rebalances(db: sqlite3.Connection) -> list[Rebalance]:
    """Those that are kept, the oldest first."""
    return [_decode_rebalance(row) for row in db.execute(f"{_SELECT_REBALANCE} ORDER BY number")]


def insert_rebalance(db: sqlite3.Connection, rebalance: Rebalance) -> None:
    """Writes a new row, and forgets the oldest ones with their moves."""
    db.execute(_INSERT_REBALANCE, _values(rebalance, _REBALANCE))
    db.execute(
        "DELETE FROM rebalances WHERE unended IS NULL AND"
        " number <= (SELECT max(number) FROM rebalances) - ?",
        (KEPT,),
    )


def update_rebalance(db: sqlite3.Connection, changed: Rebalance) -> Rebalance:
    """Writes a changed rebalance over its row, at the next version, and returns it with that."""
    rebalance = dataclasses.replace(changed, version=changed.version + 1)
    db.execute(_UPDATE_REBALANCE, (*_values(rebalance, _REBALANCE), rebalance.id))
    return rebalance


def failure_of(db: sqlite3.Connection, rebalance_id: str) -> str:
    """Why a rebalance gave up; empty if it did not."""
    failure: str = db.execute(
        "SELECT failure FROM rebalances WHERE id = ?", (rebalance_id,)
    ).fetchone()[0]
    return failure


def set_failure(db: sqlite3.Connection, rebalance_id: str, failure: str) -> None:
    """Notes why a rebalance gives up."""
    db.execute("UPDATE rebalances SET failure = ? WHERE id = ?", (failure, rebalance_id))


def moves_of(db: sqlite3.Connection, rebalance_id: str) -> list[MoveRow]:
    """The moves of a rebalance in their order, with how far they have come."""
    rows = db.execute(f"{_SELECT_MOVE} WHERE rebalance_id = ? ORDER BY number", (rebalance_id,))
    return [_decode_move(row) for row in rows]


def next_move(db: sqlite3.Connection, rebalance_id: str) -> MoveRow | None:
    """The first move of a rebalance that has not ended, with how far it has come."""
    row = db.execute(
        f"{_SELECT_MOVE} WHERE rebalance_id = ? AND {_UNENDED} ORDER BY number LIMIT 1",
        (rebalance_id,),
    ).fetchone()
    return None if row is None else _decode_move(row)


def unended_moves(db: sqlite3.Connection) -> list[Move]:
    """The moves that have not ended, in their order."""
    rows = db.execute(f"{_SELECT_MOVE} WHERE {_UNENDED} ORDER BY rebalance_id, number")
    return [_decode_move(row)[0] for row in rows]


def select_move(db: sqlite3.Connection, move_id: str) -> Move | None:
    """The move of that UUID."""
    row = db.execute(f"{_SELECT_MOVE} WHERE id = ?", (move_id,)).fetchone()
    return None if row is None else _decode_move(row)[0]


def insert_moves(db: sqlite3.Connection, rebalance_id: str, moves: Sequence[Move]) -> None:
    """Writes new rows. They are numbered here, after those that the rebalance has."""
    (first,) = db.execute(
        "SELECT coalesce(max(number) + 1, 0) FROM moves WHERE rebalance_id = ?", (rebalance_id,)
    ).fetchone()
    for number, move in enumerate(moves, start=first):
        db.execute(_INSERT_MOVE, _encode_move(dataclasses.replace(move, number=number)))


def update_move(db: sqlite3.Connection, changed: Move) -> Move:
    """Writes a move, whose version has been raised, over its row."""
    db.execute(_UPDATE_MOVE, (*_encode_move(changed), changed.id))
    return changed


def update_progress(db: sqlite3.Connection, move_id: str, progress: MoveProgress) -> bool:
    """Writes how far a move has come; False if there is no such move."""
    values = dataclasses.astuple(progress)
    return db.execute(_UPDATE_PROGRESS, (*values, move_id)).rowcount == 1


def select_lease(db: sqlite3.Connection) -> Lease:
    """The lease as it was acquired last; its holder is empty once it was released."""
    row = db.execute("SELECT holder, token, expires_at FROM lease").fetchone()
    if row is None:
        raise CorruptRow("lease: its row is missing")
    return Lease(*row)


def update_lease(db: sqlite3.Connection, lease: Lease) -> Lease:
    """Writes the lease."""
    db.execute(
        "UPDATE lease SET holder = ?, token = ?, expires_at = ?",
        (lease.holder, lease.token, lease.expires_at),
    )
    return lease


def _values(entry: Rebalance | Move, columns: tuple[str, ...]) -> tuple[Value, ...]:
    # The enumerations are text already.
    return tuple(getattr(entry, column) for column in columns)


def _encode_move(move: Move) -> tuple[Value, ...]:
    encoded: dict[str, Value] = {"slots": slots_to_bitmap(move.slots)}
    return tuple(encoded[c] if c in encoded else getattr(move, c) for c in _MOVE)


def _decode_rebalance(row: tuple[Any, ...]) -> Rebalance:
    values = dict(zip(_REBALANCE, row, strict=True))
    try:
        values["kind"] = RebalanceKind(values["kind"])
        values["state"] = RebalanceState(values["state"])
        return Rebalance(**values)
    except ValueError as error:
        raise CorruptRow(f"rebalance {values['id']}: {error}") from error


def _decode_move(row: tuple[Any, ...]) -> MoveRow:
    values = dict(zip(_MOVE, row[: len(_MOVE)], strict=True))
    try:
        values["slots"] = slots_from_bitmap(values["slots"])
        values["stage"] = Stage(values["stage"])
        return Move(**values), MoveProgress(*row[len(_MOVE) :])
    except ValueError as error:
        raise CorruptRow(f"move {values['id']}: {error}") from error
