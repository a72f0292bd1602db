"""What differs between a source's records and a target's, in a few words for the operator. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from chroma_router.wire.records import RecordColumns
from shard_node.arrival_state import OwnKey
from shard_node.engine import Contents
from shard_node.state import StagedRow

_SHOWN, _SHOWN_CHARACTERS = 10, 60
_TOLERANCE = 1e-5  # of an embedding's length: cosine vectors come back not quite as they were


@dataclass(slots=True)
class Differences:
    """How many records differ, and the first of them in words."""

    count: int = 0
    words: list[str] = field(default_factory=list)

    def add(self, record_id: str, what: str) -> None:
        """One more record."""
        self.count += 1
        if len(self.words) < _SHOWN:
            self.words.append(f"{record_id[:_SHOWN_CHARACTERS]!r}: {what}")


def compare_keys(
    theirs: Sequence[StagedRow], mine: Sequence[OwnKey], differences: Differences
) -> list[str]:
    """Counts ids that only one side has, and sequences that differ; returns the ids of the rest,
    whose contents are yet to be compared."""
    there = {row.id: row.sequence for row in theirs}
    here = {key.id: key.sequence for key in mine}
    for record_id in [i for i in here if i not in there]:
        differences.add(record_id, "only at the target")
    same: list[str] = []
    for record_id, sequence in there.items():
        if record_id not in here:
            differences.add(record_id, "not at the target")
        elif here[record_id] != sequence:
            differences.add(record_id, "sequence")
        else:
            same.append(record_id)
    return same


def compare_contents(
    theirs: Mapping[str, RecordColumns],
    found: Contents,
    ids: Iterable[str],
    differences: Differences,
) -> None:
    """Counts those of `ids` whose contents are not equal."""
    mine = {record.id: record for record in _columns(found)}
    for record_id in ids:
        record = mine.get(record_id)
        what = "has no contents at the target"
        if record is not None:
            what = ", ".join(_parts_that_differ(theirs[record_id], record))
        if what:
            differences.add(record_id, what)


def _columns(found: Contents) -> Iterable[RecordColumns]:
    nothing: list[None] = [None] * len(found.ids)
    columns = zip(
        found.ids, found.embeddings or nothing, found.documents or nothing, found.uris or nothing,
        found.metadatas or nothing, strict=True,
    )  # fmt: skip
    return map(RecordColumns._make, columns)


def _parts_that_differ(theirs: RecordColumns, mine: RecordColumns) -> list[str]:
    parts = []
    if not _near(theirs.embedding, mine.embedding):
        parts.append("embedding")
    if theirs.document != mine.document:
        parts.append("document")
    if theirs.uri != mine.uri:
        parts.append("uri")
    if not _equal(theirs.metadata or {}, mine.metadata or {}):
        parts.append("metadata")
    return parts


def _near(theirs: bytes | None, mine: bytes | None) -> bool:
    if theirs == mine:
        return True
    if theirs is None or mine is None or len(theirs) != len(mine):
        return False
    here = np.frombuffer(mine, dtype="<f4").astype(np.float64)
    there = np.frombuffer(theirs, dtype="<f4").astype(np.float64)
    with np.errstate(all="ignore"):  # infinities that are not the same ones are not near
        away = np.linalg.norm(here - there)
        return bool(away <= _TOLERANCE * np.linalg.norm(there))


def _equal(theirs: object, mine: object) -> bool:
    """Of one type as well: 1, 1.0 and True are three values."""
    if type(theirs) is not type(mine):
        return False
    if isinstance(theirs, dict) and isinstance(mine, dict):
        return theirs.keys() == mine.keys() and all(_equal(theirs[k], mine[k]) for k in theirs)
    if isinstance(theirs, list) and isinstance(mine, list):
        return len(theirs) == len(mine) and all(map(_equal, theirs, mine))
    return theirs == mine
