"""The readers' view of `router_record`: which records exist, in the order of (sequence, id) or
(slot, id).

It owns a few threads, each with its own read-only SQLite connection, and never writes.
"""

import asyncio
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from shard_node.operations import Kind
from shard_node.state import EVERY_SLOT, Remembered, connect, count_owned, unpacked

Key: TypeAlias = tuple[int, str]  # (sequence, id), or (slot, id)
Order: TypeAlias = Literal["sequence", "slot"]  # the column by which keys are read; both indexed
Keep: TypeAlias = Callable[[str], bool]

_T = TypeVar("_T")


class RecordIndex:
    """Asynchronous look-ups; each sees one committed state of the table."""

    def __init__(self, path: Path, threads: int) -> None:
        self._path = path
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")

    def close(self) -> None:
        """Waits for the look-ups under way. The connections close with their threads."""
        self._pool.shutdown()

    async def run(self, work: Callable[..., _T], *arguments: object) -> _T:
        """Runs other read work, such as packing an answer, on the same bounded threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    async def look(self, work: Callable[..., _T], *arguments: object) -> _T:
        """Runs `work(connection, *arguments)` on a read-only connection: one short look-up."""
        return await self.run(self._look, work, *arguments)

    async def page(
        self,
        collection: int,
        after: Key | None,
        limit: int,
        keep: Keep | None,
        order: Order = "sequence",
    ) -> list[Key]:
        """At most `limit` keys after a place, in order; None keeps every id."""
        return await self.run(self._page, collection, after, limit, keep, order)

    async def keys(
        self, collection: int, ids: Sequence[str], order: Order = "sequence"
    ) -> list[Key]:
        """The keys of those ids that exist, unordered."""
        return await self.run(self._keys, collection, ids, order)

    async def deleted_by(
        self, collection: int, request_id: str, owned: bytes = EVERY_SLOT
    ) -> Remembered:
        """What is remembered of the deletes of a request: all it deleted of the owned slots, and
        the slots that each of its operations covers. It sees everything acknowledged, and nothing
        that did not land."""
        return await self.run(self._deleted_by, collection, request_id, owned)

    async def dimensions(self) -> dict[str, int]:
        """The dimension of each physical collection that has had a record."""
        return await self.run(self._dimensions)

    def _look(self, work: Callable[..., _T], *arguments: object) -> _T:
        return work(self._link(), *arguments)

    def _page(
        self, collection: int, after: Key | None, limit: int, keep: Keep | None, order: Order
    ) -> list[Key]:
        place = after or (-1, "")
        cursor = self._link().execute(
            f"SELECT {order}, id FROM router_record"
            f" WHERE collection = ? AND ({order}, id) > (?, ?) ORDER BY {order}, id"
            + (" LIMIT ?" if keep is None else ""),
            (collection, *place, limit) if keep is None else (collection, *place),
        )
        if keep is None:
            return cursor.fetchall()
        found = list(islice((key for key in cursor if keep(key[1])), limit))
        cursor.close()  # ends the read transaction, which would hold back checkpoints
        return found

    def _keys(self, collection: int, ids: Sequence[str], order: Order) -> list[Key]:
        link = self._link()
        found: list[Key] = link.execute(
            f"SELECT r.{order}, r.id FROM json_each(?) AS j CROSS JOIN router_record AS r"
            " ON r.collection = ? AND r.id = j.value",
            (json.dumps([i for i in ids if "\0" not in i], ensure_ascii=False), collection),
        ).fetchall()
        one = f"SELECT {order}, id FROM router_record WHERE collection = ? AND id = ?"
        for record_id in ids:
            if "\0" in record_id:  # json_each cuts such an id short
                found += link.execute(one, (collection, record_id)).fetchall()
        return found

    def _deleted_by(self, collection: int, request_id: str, owned: bytes) -> Remembered:
        rows = (
            self._link()
            .execute(
                "SELECT op_index, slots, deleted_slots, digest FROM router_outcome"
                " WHERE request_id = ? AND collection = ? AND kind = ?"
                " AND batch <= (SELECT applied FROM router_batch)",  # the rest is staged only
                (request_id, collection, Kind.DELETE),
            )
            .fetchall()
        )
        covered: dict[int, frozenset[int]] = {}
        for index, slots, _, _ in rows:
            covered[index] = covered.get(index, frozenset()).union(unpacked(slots))
        return Remembered(
            frozenset.intersection(*covered.values()) if covered else frozenset(),
            sum(count_owned(deleted, owned) for _, _, deleted, _ in rows),
            rows[0][3] if rows else None,
        )

    def _dimensions(self) -> dict[str, int]:
        rows: Iterator[tuple[str, int]] = self._link().execute(
            "SELECT id, dimension FROM collections WHERE dimension IS NOT NULL"
        )
        return dict(rows)

    def _link(self) -> sqlite3.Connection:
        link: sqlite3.Connection | None = getattr(self._local, "link", None)
        if link is None:
            link = self._local.link = connect(self._path, read_only=True)
        return link
