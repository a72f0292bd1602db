"""The node's durable state: its own tables in the engine's SQLite file, and their one writer.

What must agree with the engine commits with the engine. Before an engine call the group is
*staged*: which records it names, under which batch number, and the outcomes it will have. Triggers
on the engine's queue table then put and delete `router_record` rows and mark the batch applied
inside the engine's own transaction, whose fsync covers the staging too: it stands earlier in the
same WAL. So `staged = applied` says truly whether the last group landed, at whatever instant a
process was killed (docs/adr/0002). What must hold by itself (ownership, definitions, drops) commits
with its own fsync.

Every method is synchronous and is called from one thread only, and never while an engine write is
under way: two writers at once could meet SQLite's WAL-reset race.
"""

import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from chroma_router.wire.slots import SLOT_COUNT

_T = TypeVar("_T")

BUSY_SECONDS = 10.0
MAX_INTEGER = 2**63 - 1  # that SQLite keeps
EVERY_SLOT = b"\1" * SLOT_COUNT
DELETE_OPERATION = 3  # the engine's code in embeddings_queue; add and upsert are 0 and 2

SCHEMA: dict[str, str] = {
    "router_meta": """CREATE TABLE router_meta(
  key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID""",
    "router_collection": """CREATE TABLE router_collection(
  number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, physical TEXT, epoch INTEGER NOT NULL,
  owned BLOB NOT NULL, definition BLOB NOT NULL, definition_version INTEGER NOT NULL,
  dropped INTEGER NOT NULL)""",
    "router_record": """CREATE TABLE router_record(
  collection INTEGER NOT NULL, id TEXT NOT NULL, slot INTEGER NOT NULL, sequence INTEGER NOT NULL,
  PRIMARY KEY (collection, id)) WITHOUT ROWID""",
    "router_record_sequence": """CREATE INDEX router_record_sequence
  ON router_record(collection, sequence, id)""",
    "router_record_slot": """CREATE INDEX router_record_slot
  ON router_record(collection, slot, id)""",
    "router_staged": """CREATE TABLE router_staged(
  id TEXT PRIMARY KEY, slot INTEGER NOT NULL, sequence INTEGER NOT NULL) WITHOUT ROWID""",
    "router_batch": """CREATE TABLE router_batch(
  one INTEGER PRIMARY KEY CHECK (one = 1), staged INTEGER NOT NULL, applied INTEGER NOT NULL,
  collection INTEGER NOT NULL, topic TEXT NOT NULL)""",
    "router_outcome": """CREATE TABLE router_outcome(
  request_id TEXT NOT NULL, op_index INTEGER NOT NULL, collection INTEGER NOT NULL,
  batch INTEGER NOT NULL, kind INTEGER NOT NULL, slots BLOB NOT NULL, deleted_slots BLOB NOT NULL,
  at INTEGER NOT NULL, digest INTEGER NOT NULL,
  PRIMARY KEY (request_id, op_index, collection, batch)) WITHOUT ROWID""",
    "router_outcome_batch": """CREATE INDEX router_outcome_batch ON router_outcome(batch, at)""",
    "router_queue_topic": """CREATE INDEX router_queue_topic ON embeddings_queue(topic, seq_id)""",
    "router_queue_guard": """CREATE TRIGGER router_queue_guard BEFORE INSERT ON embeddings_queue
  WHEN NEW.topic IS NOT (SELECT topic FROM router_batch WHERE one = 1)
    OR NOT EXISTS (SELECT 1 FROM router_staged WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'router: a write that the node did not stage'); END""",
    "router_queue_put": """CREATE TRIGGER router_queue_put AFTER INSERT ON embeddings_queue
  WHEN NEW.operation IN (0, 2)
BEGIN
  INSERT OR IGNORE INTO router_record(collection, id, slot, sequence)
    SELECT b.collection, s.id, s.slot, s.sequence FROM router_batch b, router_staged s
    WHERE b.one = 1 AND s.id = NEW.id;
END""",
    "router_queue_delete": """CREATE TRIGGER router_queue_delete AFTER INSERT ON embeddings_queue
  WHEN NEW.operation = 3
BEGIN
  DELETE FROM router_record
    WHERE collection = (SELECT collection FROM router_batch WHERE one = 1) AND id = NEW.id;
END""",
    "router_queue_applied": """CREATE TRIGGER router_queue_applied AFTER INSERT ON embeddings_queue
  WHEN (SELECT applied <> staged FROM router_batch WHERE one = 1)
BEGIN UPDATE router_batch SET applied = staged WHERE one = 1; END""",
    # The engine leaves the arrays of a deleted collection's records behind, under row ids that it
    # gives out again: other records, of any collection, would have them as their own metadata.
    "router_array_delete": """CREATE TRIGGER router_array_delete AFTER DELETE ON embeddings
BEGIN DELETE FROM embedding_metadata_array WHERE id = OLD.id; END""",
    # Moves. Source (shard_node/capture_state.py): which slots are captured, and which of their
    # records have changed since, in which batch; a fence outlives its capture. Target
    # (arrival_state.py): how far a move has come; `staged_cursor` counts once the batch
    # `staged_batch` is applied.
    "router_capture": """CREATE TABLE router_capture(
  move TEXT PRIMARY KEY, collection INTEGER NOT NULL, capture TEXT NOT NULL, slots BLOB NOT NULL
  ) WITHOUT ROWID""",
    "router_capture_slot": """CREATE TABLE router_capture_slot(
  collection INTEGER NOT NULL, slot INTEGER NOT NULL, move TEXT NOT NULL,
  PRIMARY KEY (collection, slot, move)) WITHOUT ROWID""",
    "router_dirty": """CREATE TABLE router_dirty(
  move TEXT NOT NULL, id TEXT NOT NULL, batch INTEGER NOT NULL, PRIMARY KEY (move, id)
  ) WITHOUT ROWID""",
    "router_dirty_batch": """CREATE INDEX router_dirty_batch ON router_dirty(move, batch, id)""",
    "router_queue_capture": """CREATE TRIGGER router_queue_capture AFTER INSERT ON embeddings_queue
  WHEN EXISTS (SELECT 1 FROM router_capture_slot)
BEGIN
  INSERT OR REPLACE INTO router_dirty(move, id, batch)
    SELECT c.move, s.id, b.staged
    FROM router_batch b, router_staged s, router_capture_slot c
    WHERE b.one = 1 AND s.id = NEW.id AND c.collection = b.collection AND c.slot = s.slot;
END""",
    "router_fence": """CREATE TABLE router_fence(
  move TEXT PRIMARY KEY, collection INTEGER NOT NULL, slots BLOB NOT NULL,
  next_epoch INTEGER NOT NULL, token INTEGER NOT NULL) WITHOUT ROWID""",
    "router_arrival": """CREATE TABLE router_arrival(
  move TEXT PRIMARY KEY, collection INTEGER NOT NULL, slots BLOB NOT NULL, ready INTEGER NOT NULL,
  cursor BLOB NOT NULL, staged_cursor BLOB, staged_batch INTEGER NOT NULL) WITHOUT ROWID""",
}

LATER: frozenset[str] = frozenset(
    {
        "router_record_slot", "router_array_delete", "router_capture", "router_capture_slot",
        "router_dirty", "router_dirty_batch", "router_queue_capture", "router_fence",
        "router_arrival",
    }
)  # fmt: skip
"""What directories of the first versions lack: made at open, and minded by any version since."""


class StagedRow(NamedTuple):
    """A record that a group names: what its `router_record` row becomes if it is a new one."""

    id: str
    slot: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is remembered of an operation under its identity: the slots of this shard it covered."""

    request_id: str
    index: int
    kind: int
    slots: frozenset[int]
    deleted_slots: tuple[int, ...] = ()  # delete with a condition: one entry per deleted record
    digest: int = 0  # of the whole request
    at_microseconds: int = 0  # when it was applied, at another shard; 0: now, here


class ArrivalCursor(NamedTuple):
    """How far a move has come once the batch that it is staged with has landed."""

    move: str
    cursor: bytes


@dataclass(frozen=True, slots=True)
class Remembered:
    """All that is known of an identity: nothing, or the covered slots and the records deleted."""

    slots: frozenset[int]
    deleted: int
    digest: int | None  # with which the identity was used, for whichever collection; None: never


@dataclass(frozen=True, slots=True)
class CollectionRow:
    """One collection as stored. `physical` is None once a dropped one is purged."""

    number: int
    id: str
    physical: str | None
    epoch: int
    owned: bytes
    definition: bytes
    definition_version: int
    dropped: bool


class StateBroken(Exception):
    """The tables contradict what the engine said: the node must stop rather than guess."""


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection as the node uses them: autocommit, never a checkpoint of its own."""
    link = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    link.execute("PRAGMA wal_autocheckpoint=0")  # the engine's commits checkpoint; two only race
    link.execute(f"PRAGMA query_only={int(read_only)}")
    link.execute("PRAGMA synchronous=NORMAL")
    return link


def topic_of(physical: str) -> str:
    """The name under which the engine queues a physical collection's writes."""
    return f"persistent://default/default/{physical}"


class State:
    """The writer's connection; see the head of this file."""

    def __init__(self, path: Path) -> None:
        self._link = connect(path)

    def close(self) -> None:
        """Folds the WAL into the file, if no one reads, and closes."""
        with suppress(sqlite3.OperationalError):  # on a full disk the WAL stays as it is
            self._link.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._link.close()

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """Around writes that hold together; durable: they are fsynced when it ends."""
        self._link.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        self._link.execute("BEGIN IMMEDIATE")
        try:
            yield self._link
            self._link.execute("COMMIT")
        except BaseException:
            if self._link.in_transaction:  # SQLite itself ends it when the disk is full
                self._link.execute("ROLLBACK")
            raise

    def rows(self, sql: str, *values: object) -> list[Any]:
        """What a query finds, read to its end: a read that is left open holds back checkpoints."""
        return self._link.execute(sql, values).fetchall()

    def look(self, work: Callable[..., _T], *values: object) -> _T:
        """As RecordIndex.look, where the writer itself looks."""
        return work(self._link, *values)

    # ------------------------------------------------------------------------------ a group

    def stage(
        self,
        collection: int,
        physical: str,
        rows: Iterable[StagedRow],
        outcomes: Iterable[Outcome],
        at_microseconds: int,
        arrival: ArrivalCursor | None = None,
    ) -> frozenset[str]:
        """Prepares one engine call; returns which of its ids exist before it. No fsync.

        Outcomes and the arrival's cursor count once the call has landed: the next batch to land
        would make those of one that never did count too, so that settle() must discard them first.
        """
        with self.transaction() as link:
            staged, applied = link.execute("SELECT staged, applied FROM router_batch").fetchone()
            if staged != applied and self._depends_on_more_than(applied):
                raise StateBroken(f"batch {staged} was neither applied nor settled ({applied})")
            link.execute("DELETE FROM router_staged")
            link.executemany("INSERT INTO router_staged VALUES (?, ?, ?)", rows)
            link.execute(
                "UPDATE router_batch SET staged = ?, collection = ?, topic = ?",
                (staged + 1, collection, topic_of(physical)),
            )
            link.executemany(
                "INSERT INTO router_outcome VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (o.request_id, o.index, collection, staged + 1, o.kind,
                     packed(sorted(o.slots)), packed(o.deleted_slots),
                     o.at_microseconds or at_microseconds, o.digest)
                    for o in outcomes
                ),
            )  # fmt: skip
            if arrival is not None:
                _stage_cursor(link, arrival, staged + 1, applied)
            existing = link.execute(
                "SELECT s.id FROM router_staged s CROSS JOIN router_record r"
                " ON r.collection = ? AND r.id = s.id",
                (collection,),
            )
            return frozenset(record_id for (record_id,) in existing)

    def land(self) -> None:
        """Ends a staged group that needs no engine call: its outcomes become durable."""
        with self.transaction(durable=True) as link:
            link.execute("UPDATE router_batch SET applied = staged")

    def settle(self) -> bool:
        """After a refusal, a lost engine or at open: did the last group land? If not, forget it."""
        with self.transaction() as link:
            staged, applied = link.execute("SELECT staged, applied FROM router_batch").fetchone()
            link.execute("DELETE FROM router_outcome WHERE batch > ?", (applied,))
            link.execute(
                "UPDATE router_arrival SET staged_cursor = NULL, staged_batch = 0"
                " WHERE staged_batch > ?",
                (applied,),
            )
            return bool(staged == applied)

    def _depends_on_more_than(self, batch: int) -> bool:
        """Whether something is stored that counts only once a later batch has landed."""
        sql = (
            "SELECT 1 FROM router_outcome WHERE batch > ?1"
            " UNION ALL SELECT 1 FROM router_arrival WHERE staged_batch > ?1 LIMIT 1"
        )
        return self._link.execute(sql, (batch,)).fetchone() is not None

    # ------------------------------------------------------------------------------ outcomes

    def remembered(
        self, collection: int, identities: Sequence[tuple[str, int]], owned: bytes = EVERY_SLOT
    ) -> list[Remembered]:
        """What is known of each (request id, index); of deleted records, those of slots that are
        owned: the others' are told by the shard that owns them now."""
        return [self._remembered(collection, *identity, owned) for identity in identities]

    def _remembered(self, collection: int, request_id: str, index: int, owned: bytes) -> Remembered:
        rows = self._link.execute(
            "SELECT collection, slots, deleted_slots, digest FROM router_outcome"
            " WHERE request_id = ? AND op_index = ?",
            (request_id, index),
        ).fetchall()
        mine = [(slots, deleted) for number, slots, deleted, _ in rows if number == collection]
        return Remembered(
            frozenset(slot for slots, _ in mine for slot in unpacked(slots)),
            sum(count_owned(deleted, owned) for _, deleted in mine),
            rows[0][3] if rows else None,
        )

    def prune_outcomes(self, before_microseconds: int, limit: int) -> int:
        """Forgets at most `limit` outcomes older than that; returns how many."""
        with self.transaction() as link:
            gone = link.execute(
                "DELETE FROM router_outcome WHERE (request_id, op_index, collection, batch) IN ("
                " SELECT request_id, op_index, collection, batch FROM ("
                "  SELECT * FROM router_outcome ORDER BY batch LIMIT ?) WHERE at < ?)",
                (limit, before_microseconds),
            )
            return gone.rowcount

    # ------------------------------------------------------------------------------ collections

    def meta(self, key: str) -> str:
        """What is stored of the shard as a whole under a key; empty if nothing is."""
        rows = self.rows("SELECT value FROM router_meta WHERE key = ?", key)
        return str(rows[0][0]) if rows else ""

    def put_meta(self, key: str, value: str) -> None:
        """Stores that durably."""
        with self.transaction(durable=True) as link:
            link.execute("INSERT OR REPLACE INTO router_meta VALUES (?, ?)", (key, value))

    def cluster_id(self) -> str:
        """The cluster this directory belongs to; empty if none yet."""
        return self.meta("cluster")

    def adopt_cluster(self, cluster_id: str) -> None:
        """Durably, and once."""
        with self.transaction(durable=True) as link:
            link.execute("INSERT INTO router_meta VALUES ('cluster', ?)", (cluster_id,))

    def collections(self) -> list[CollectionRow]:
        """All that this shard holds or has dropped, in the order of their numbers."""
        rows = self._link.execute("SELECT * FROM router_collection ORDER BY number").fetchall()
        return [CollectionRow(*row) for row in rows]

    def put_collection(self, row: CollectionRow) -> CollectionRow:
        """Stores durably; number 0 takes the next one. Returns what was stored."""
        with self.transaction(durable=True) as link:
            return self.put_row(link, row)

    @staticmethod
    def put_row(link: sqlite3.Connection, row: CollectionRow) -> CollectionRow:
        """As put_collection, within a transaction that stores more."""
        (number,) = link.execute(
            "INSERT INTO router_collection VALUES (nullif(?, 0), ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT(id) DO UPDATE SET physical = excluded.physical,"
            " epoch = excluded.epoch, owned = excluded.owned, definition = excluded.definition,"
            " definition_version = excluded.definition_version, dropped = excluded.dropped"
            " RETURNING number",
            astuple(row),
        ).fetchone()
        return replace(row, number=number)

    def purge_records(self, collection: int, limit: int) -> int:
        """Deletes at most `limit` rows of a dropped collection; returns how many there were."""
        with self.transaction() as link:
            gone = link.execute(
                "DELETE FROM router_record WHERE collection = ?1 AND id IN"
                " (SELECT id FROM router_record WHERE collection = ?1 LIMIT ?2)",
                (collection, limit),
            )
            return gone.rowcount

    def slot_counts(self, collection: int) -> list[int]:
        """How many records of each slot the shard holds."""
        counts = [0] * SLOT_COUNT
        sql = "SELECT slot, count(*) FROM router_record WHERE collection = ? GROUP BY slot"
        for slot, count in self._link.execute(sql, (collection,)):
            counts[slot] = count
        return counts

    def high_sequence(self) -> int:
        """The highest sequence stored."""
        sql = (
            "SELECT coalesce(max((SELECT max(sequence) FROM router_record r"
            " WHERE r.collection = c.number)), 0) FROM router_collection c"
        )
        return int(self._link.execute(sql).fetchone()[0])


def unpacked(slots: bytes) -> Sequence[int]:
    """The slots of an outcome's blob."""
    return array("H", slots)


def count_owned(slots: bytes, owned: bytes) -> int:
    """How many slots of an outcome's blob are owned: `owned` has 1 or 0 for each slot."""
    return sum(map(owned.__getitem__, unpacked(slots)))


def packed(slots: Iterable[int]) -> bytes:
    """The inverse of unpacked."""
    return array("H", slots).tobytes()


def _stage_cursor(
    link: sqlite3.Connection, arrival: ArrivalCursor, batch: int, applied: int
) -> None:
    """The cursor that was staged before has landed, or was discarded: it makes room."""
    kept = link.execute(
        "UPDATE router_arrival SET"
        " cursor = CASE WHEN staged_cursor IS NOT NULL AND staged_batch <= :applied"
        "  THEN staged_cursor ELSE cursor END,"
        " staged_cursor = :cursor, staged_batch = :batch WHERE move = :move AND ready",
        {"applied": applied, "batch": batch, **arrival._asdict()},
    )
    if kept.rowcount != 1:
        raise StateBroken(f"no arrival of move {arrival.move} is there to go on")
