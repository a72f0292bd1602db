"""A self-checking client: each method is one call through one router, judged when it is answered.

Latencies and faults go into the Record, what is known of the collection into the Model. A write
whose outcome the client is not told becomes one of unknown outcome there.
"""

import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from chroma_router.errors import (
    DeadlineExceededError,
    OutcomeUnknownError,
    RouterError,
    UnavailableError,
)
from tests.elastic.answers import Fault, Finding, Row, judge, judge_query, judge_row, same
from tests.elastic.corpus import Matrix
from tests.elastic.measure import Record
from tests.elastic.model import Cell, Content, Given, Model, Verb, Watch, after

R = TypeVar("R")

Collection = Any  # chromadb's AsyncCollection, whose types refuse much that it takes

TOLERATED = (UnavailableError, DeadlineExceededError, OutcomeUnknownError)
"""What a client may be told while parts of the cluster are killed."""

FULL = ["documents", "metadatas", "embeddings"]
TEXTS = ["documents", "metadatas"]


class NotAnswered(Exception):
    """The call failed; it has been recorded."""


class Client:
    """One application with one connection."""

    def __init__(self, name: str, collection: Collection, model: Model, record: Record) -> None:
        self.name = name
        self.collection = collection
        self._model = model
        self._record = record

    async def call(self, kind: str, awaitable: Awaitable[R]) -> R:
        """Times a call. Raises NotAnswered when it failed, which is recorded."""
        phase, begun = self._record.phase, time.monotonic()
        try:
            answer = await awaitable
        except TOLERATED as error:
            if not self._record.tolerant:
                self._error(kind, begun, error)
            else:
                self._record.refused[type(error).__name__] += 1
            raise NotAnswered from error
        except Exception as error:
            self._error(kind, begun, error)
            raise NotAnswered from error
        self._record.took(phase, kind, time.monotonic() - begun)
        return answer

    def _error(self, kind: str, begun: float, error: Exception) -> None:
        reason = error.reason if isinstance(error, RouterError) else ""
        text = f"{type(error).__name__} {reason} after {time.monotonic() - begun:.3f} s: {error}"
        self._record.found([Finding(Fault.ERROR, text)], f"{self.name} {kind}")

    # ------------------------------------------------------------------------------------- reads

    async def get_cell(self, cell: Cell, *, embeddings: bool) -> None:
        """All records of a cell."""
        include = FULL if embeddings else TEXTS
        await self._read_cell("get where", cell, None, {"where": {"cell": cell.name}}, include)

    async def get_ids(self, cell: Cell, ids: Sequence[str]) -> None:
        """Some ids of a cell, of records that exist and of others."""
        await self._read_cell("get", cell, ids, {"ids": list(ids)}, FULL)

    async def _read_cell(
        self,
        kind: str,
        cell: Cell,
        asked: Sequence[str] | None,
        chosen: Mapping[str, Any],
        include: list[str],
    ) -> None:
        watch = cell.watch()
        try:
            answer = await self.call(kind, self.collection.get(**chosen, include=include))
        finally:
            watch.close()
        rows = rows_of_get(answer)
        findings = judge(watch, rows, self._model.vectors, asked)
        self._judged(watch, findings, f"{self.name} {kind} {asked or cell.name}")
        if not findings:
            self._settle(cell, rows, cell.entries if asked is None else asked)

    async def query_cell(self, cell: Cell, query: Matrix, n_results: int) -> None:
        """The nearest records of a cell, compared with brute force."""
        watch = cell.watch()
        try:
            answer = await self.call(
                "query where",
                self.collection.query(
                    query_embeddings=[query],
                    n_results=n_results,
                    where={"cell": cell.name},
                    include=["documents", "metadatas", "distances"],
                ),
            )
        finally:
            watch.close()
        findings = judge_query(watch, rows_of_query(answer), query, n_results, self._model.vectors)
        self._judged(watch, findings, f"{self.name} query of {cell.name} for {n_results}")

    async def query(self, query: Matrix, n_results: int) -> None:
        """The nearest records of all, by the index; each hit is judged whose cell was not written
        meanwhile."""
        changes = {cell.name: cell.changes for cell in self._model.cells.values()}
        answer = await self.call(
            "query",
            self.collection.query(
                query_embeddings=[query],
                n_results=n_results,
                include=["documents", "metadatas", "distances"],
            ),
        )
        rows = rows_of_query(answer)
        findings = []
        if len({row.id for row in rows}) < len(rows):
            findings.append(Finding(Fault.DOUBLED, f"hits {[row.id for row in rows]}"))
        for row in rows:
            cell = self._model.cell_of(row.id)
            if cell is None or cell.writing or cell.changes != changes[cell.name]:
                continue
            entry = cell.entries.get(row.id)
            possible = [None] if entry is None else [entry.now, *entry.maybe]
            findings += judge_row(row, possible, self._model.vectors)
        self._record.found(findings, f"{self.name} query")

    def _judged(self, watch: Watch, findings: Sequence[Finding], context: str) -> None:
        if watch.certain:
            self._record.exact += 1
        else:
            self._record.ambiguous += 1
        self._record.found(findings, context)

    def _settle(self, cell: Cell, rows: Sequence[Row], ids: Any) -> None:
        """A right answer tells what became of writes of unknown outcome."""
        came = {row.id: row for row in rows}
        for record_id in list(ids):
            entry = cell.entries.get(record_id)
            if entry is None or not entry.maybe:
                continue
            row = came.get(record_id)
            for content in [entry.now, *entry.maybe]:
                if _fits(content, row, self._model):
                    cell.saw(record_id, content)
                    break

    # ------------------------------------------------------------------------------------ writes

    async def write(self, verb: Verb, cell: Cell, given: Mapping[str, Given | None]) -> None:
        """One batch of writes by id."""
        new = {i: after(verb, _now(cell, i), parts) for i, parts in given.items()}
        cell.begin(new)
        await self._finish(verb, cell, self._write(verb, given), None)

    def _write(self, verb: Verb, given: Mapping[str, Given | None]) -> Awaitable[object]:
        ids = list(given)
        if verb is Verb.DELETE:
            deleting: Awaitable[object] = self.collection.delete(ids=ids)
            return deleting
        parts = [part for part in given.values() if part is not None]
        vectors = [part.vector for part in parts]
        documents = [part.document for part in parts]
        columns: dict[str, Any] = {"metadatas": [dict(part.metadata) for part in parts]}
        if all(vector is not None for vector in vectors):
            columns["embeddings"] = self._model.vectors.all_of(
                [v for v in vectors if v is not None]
            )
        if all(document is not None for document in documents):
            columns["documents"] = documents
        writing: Awaitable[object] = getattr(self.collection, verb.value)(ids=ids, **columns)
        return writing

    async def delete_where(self, cell: Cell, below: int, limit: int | None) -> None:
        """Deletes the records of a cell whose rank is below that, or the oldest of them."""
        chosen = [i for i, c in cell.holding().items() if int(c.metadata["rank"]) < below]
        chosen = chosen[:limit]
        cell.begin(dict.fromkeys(chosen))
        where = {"$and": [{"cell": cell.name}, {"rank": {"$lt": below}}]}
        deleting = self.collection.delete(
            where=where, **({} if limit is None else {"limit": limit})
        )
        await self._finish("delete where", cell, deleting, len(chosen))

    async def _finish(
        self, kind: str, cell: Cell, writing: Awaitable[Any], deleted: int | None
    ) -> None:
        try:
            answer = await self.call(kind, writing)
        except BaseException:  # cancelled too: nothing is known of it
            cell.unknown(by_condition=deleted is not None)
            raise
        cell.acknowledged()
        if deleted is not None and answer["deleted"] != deleted:
            text = f"{answer['deleted']} deleted of {cell.name}, not {deleted}"
            self._record.found([Finding(Fault.COUNT, text)], f"{self.name} {kind}")


def _now(cell: Cell, record_id: str) -> Content | None:
    entry = cell.entries.get(record_id)
    return None if entry is None else entry.now


def _fits(content: Content | None, row: Row | None, model: Model) -> bool:
    if content is None or row is None:
        return content is None and row is None
    return same(content, row, model.vectors)


def rows_of_get(answer: Mapping[str, Any]) -> list[Row]:
    """The records of a get."""
    embeddings = answer.get("embeddings")
    return [
        Row(
            record_id,
            answer["documents"][n],
            answer["metadatas"][n] or {},
            None if embeddings is None else np.asarray(embeddings[n], np.float32),
        )
        for n, record_id in enumerate(answer["ids"])
    ]


def rows_of_query(answer: Mapping[str, Any]) -> list[Row]:
    """The hits of a query of one embedding."""
    return [
        Row(
            record_id,
            answer["documents"][0][n],
            answer["metadatas"][0][n] or {},
            distance=answer["distances"][0][n],
        )
        for n, record_id in enumerate(answer["ids"][0])
    ]
