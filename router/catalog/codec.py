"""Collections between their rows and their entries, without loss.

What cannot be decoded raises CorruptRow: it was not written by this module.
"""

import dataclasses
import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from router.catalog.schema import CorruptRow
from router.core.model import CollectionEntry, CollectionState, DimensionState
from router.core.slot_map import SlotMap

Metadata: TypeAlias = Mapping[str, str | int | float | bool]
Value: TypeAlias = str | int | bytes | None

_COLUMNS = tuple(f.name for f in dataclasses.fields(CollectionEntry))
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM collections"
_INSERT = (
    f"INSERT INTO collections ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
)
_UPDATE = f"UPDATE collections SET {', '.join(f'{c} = ?' for c in _COLUMNS)} WHERE id = ?"


@dataclass(frozen=True, slots=True)
class NewCollection:
    """A collection that is about to be made; the fields as in CollectionEntry."""

    id: str
    name: str
    tenant: str
    database: str
    metadata: Metadata | None
    configuration_json: str
    schema_json: str
    placement_shards: int
    created_at: int
    slot_map: SlotMap

    def entry(self, database_id: str) -> CollectionEntry:
        """The entry with which the collection begins, at version 1."""
        return CollectionEntry(
            id=self.id,
            name=self.name,
            tenant=self.tenant,
            database=self.database,
            database_id=database_id,
            metadata=as_metadata(self.metadata),
            configuration_json=self.configuration_json,
            schema_json=self.schema_json,
            dimension=None,
            dimension_state=DimensionState.NONE,
            dimension_joiners=0,
            placement_shards=self.placement_shards,
            created_at=self.created_at,
            slot_map=self.slot_map,
            state=CollectionState.ACTIVE,
            version=1,
        )


def as_metadata(metadata: Metadata | None) -> Metadata | None:
    """Metadata as an entry keeps it; the wire does not tell empty metadata from none, nor do we."""
    return dict(metadata) if metadata else None


def select_collection(db: sqlite3.Connection, collection_id: str) -> CollectionEntry | None:
    """The collection of that UUID, whatever its state."""
    found = select_collections(db, "WHERE id = ?", (collection_id,))
    return found[0] if found else None


def select_collections(
    db: sqlite3.Connection, clauses: str, values: Iterable[Value] = ()
) -> list[CollectionEntry]:
    """The collections that the rest of a SELECT statement chooses."""
    return [_decode(row) for row in db.execute(f"{_SELECT} {clauses}", tuple(values))]


def insert_collection(db: sqlite3.Connection, entry: CollectionEntry) -> None:
    """Writes a new row."""
    db.execute(_INSERT, _encode(entry))


def update_collection(db: sqlite3.Connection, changed: CollectionEntry) -> CollectionEntry:
    """Writes a changed entry over its row, at the next version, and returns it with that."""
    entry = dataclasses.replace(changed, version=changed.version + 1)
    db.execute(_UPDATE, (*_encode(entry), entry.id))
    return entry


def _encode(entry: CollectionEntry) -> tuple[Value, ...]:
    encoded: dict[str, Value] = {
        "metadata": _encode_metadata(entry.metadata),
        "dimension_state": entry.dimension_state.value,
        "slot_map": entry.slot_map.encode(),
        "state": entry.state.value,
    }
    return tuple(encoded[c] if c in encoded else getattr(entry, c) for c in _COLUMNS)


def _encode_metadata(metadata: Metadata | None) -> str | None:
    # JSON as Python writes it keeps integers of any size, and floats to the last bit.
    return None if metadata is None else json.dumps(dict(metadata), allow_nan=False)


def _decode(row: tuple[Any, ...]) -> CollectionEntry:
    values = dict(zip(_COLUMNS, row, strict=True))
    try:
        if values["metadata"] is not None:
            values["metadata"] = json.loads(values["metadata"])
        values["dimension_state"] = DimensionState(values["dimension_state"])
        values["slot_map"] = SlotMap.decode(values["slot_map"])
        values["state"] = CollectionState(values["state"])
        return CollectionEntry(**values)
    except ValueError as error:
        raise CorruptRow(f"collection {values['id']}: {error}") from error
