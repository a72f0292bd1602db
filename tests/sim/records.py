"""Records, requests and what a request does to a record; ids in a handful of real slots.

A record is (sequence, a, b, tag): its sequence and three metadata values, each None if absent. That
is enough to tell a merge from a replacement and one incarnation from the next.
"""

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from chroma_router.wire.slots import slot_of

Record: TypeAlias = tuple[int, int | None, int | None, int | None]
Patch: TypeAlias = tuple[int | None, int | None, int | None]
State: TypeAlias = Record | None
"""None: there is no such record."""

SLOTS_USED = 4
IDS_IN_A_SLOT = 2


class Kind(Enum):
    """What a request does. DELETE_WHERE looks at the records of its ids, SWEEP at all records."""

    ADD = "add"
    UPDATE = "update"
    UPSERT = "upsert"
    DELETE = "delete"
    DELETE_WHERE = "delete-where"
    SWEEP = "sweep"


CONDITIONAL = frozenset({Kind.DELETE_WHERE, Kind.SWEEP})


@dataclass(frozen=True, slots=True)
class Request:
    """One write of a client; `number` is its identity, and the sequence of records it makes."""

    number: int
    kind: Kind
    ids: tuple[str, ...]
    patch: Patch = (None, None, None)
    tag: int = 0
    """Conditional deletes: only records with this tag."""


def matches(request: Request, record: State) -> bool:
    """Whether a conditional delete means the record."""
    return record is not None and record[3] == request.tag


def merged(record: Record, patch: Patch) -> Record:
    """The record with the values that a patch names."""
    return (
        record[0],
        record[1] if patch[0] is None else patch[0],
        record[2] if patch[1] is None else patch[1],
        record[3] if patch[2] is None else patch[2],
    )


def after(request: Request, record: State) -> State:
    """What a request makes of one of its records."""
    kind = request.kind
    if kind is Kind.UPSERT:
        new = (request.number, *request.patch)
        return new if record is None else merged(record, request.patch)
    if kind is Kind.ADD:
        return (request.number, *request.patch) if record is None else record
    if kind is Kind.UPDATE:
        return None if record is None else merged(record, request.patch)
    if kind is Kind.DELETE:
        return None
    return None if matches(request, record) else record


def _chosen() -> dict[str, int]:
    """Ids by twos in the first slots that fill up, with their slots, in the order of (slot, id)."""
    by_slot: dict[int, list[str]] = {}
    full: list[int] = []
    number = 0
    while len(full) < SLOTS_USED:
        record_id = f"r{number}"
        number += 1
        ids = by_slot.setdefault(slot_of(record_id), [])
        ids.append(record_id)
        if len(ids) == IDS_IN_A_SLOT:
            full.append(slot_of(record_id))
    return {i: slot for slot in sorted(full) for i in sorted(by_slot[slot][:IDS_IN_A_SLOT])}


SLOT: dict[str, int] = _chosen()
"""The slot of each id that is used."""

IDS: tuple[str, ...] = tuple(SLOT)
"""All ids, in the order of (slot, id)."""

SLOTS: tuple[int, ...] = tuple(dict.fromkeys(SLOT.values()))
"""All slots that have ids, ascending."""

RANK: dict[str, int] = {record_id: rank for rank, record_id in enumerate(IDS)}
"""The place of each id in the order of (slot, id)."""
