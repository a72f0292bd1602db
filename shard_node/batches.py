"""One engine call and what the state says of it: staged before, landed or not, counted once.

Whatever changes records goes this way: groups of operations (shard_node/committer.py) and the
chunks of moves (shard_node/move_target.py). Called by the single writer only, one batch at a time.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

import structlog

from chroma_router.wire.records import RecordColumns
from shard_node.engine import Engine, EngineRefused
from shard_node.holdings import Holding, Holdings
from shard_node.operations import Kind
from shard_node.state import ArrivalCursor, Outcome, StagedRow, State
from shard_node.state_thread import in_writer

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Batch:
    """What one engine call does: `rows` names its records, `records` has what it writes.

    Outcomes and cursor become durable with the records, or, where no record changes, alone.
    """

    holding: Holding
    kind: Kind
    rows: Sequence[StagedRow]
    records: Sequence[RecordColumns] = ()
    outcomes: Sequence[Outcome] = ()
    arrival: ArrivalCursor | None = None


@dataclass(frozen=True, slots=True)
class _Staged:
    """A batch that is staged, and of which it is not known yet whether it landed."""

    batch: Batch
    changed: Sequence[StagedRow]


class Batches:
    """Commits batches. `engine_seconds` sums what the engine took."""

    def __init__(self, engine: Engine, state: State, writer: Executor, holdings: Holdings) -> None:
        self._engine, self._state, self._writer = engine, state, writer
        self._holdings = holdings
        self._staged: _Staged | None = None
        self.engine_seconds = 0.0

    async def commit(self, batch: Batch) -> None:
        """Stages a batch and has the engine apply it. Raises EngineRefused: nothing landed."""
        await self.settle()
        holding, kind = batch.holding, batch.kind
        existing = await self._in_writer(
            self._state.stage, holding.row.number, holding.physical, batch.rows, batch.outcomes,
            time.time_ns() // 1000, batch.arrival,
        )  # fmt: skip
        changed = [row for row in batch.rows if (row.id in existing) is (kind is Kind.DELETE)]
        self._staged = _Staged(batch, changed)
        if kind is Kind.DELETE and not changed:
            await self._in_writer(self._state.land)
        else:
            await self._call_engine(batch, changed)
        self._landed()

    async def settle(self) -> None:
        """Before anything that goes by the state: the batch before may not have been settled, when
        the state was not to be had as it ended."""
        if self._staged is not None:
            await self._settle()

    async def _settle(self) -> bool:
        """Whether the staged batch landed, as the state has it; if not, nothing is left of it."""
        landed = await self._in_writer(self._state.settle)
        if landed:
            self._landed()
        self._staged = None
        return landed

    def _landed(self) -> None:
        """Counts what the staged batch changed, once."""
        staged, self._staged = self._staged, None
        if staged is None:
            return
        holding, kind = staged.batch.holding, staged.batch.kind
        holding.changed += len(staged.batch.rows)
        if kind is Kind.DELETE:
            holding.add((row.slot for row in staged.changed), -1)
        elif kind is not Kind.UPDATE:
            holding.add((row.slot for row in staged.changed), 1)
            highest = max((row.sequence for row in staged.changed), default=0)
            self._holdings.high_sequence = max(self._holdings.high_sequence, highest)

    async def _call_engine(self, batch: Batch, changed: Sequence[StagedRow]) -> None:
        physical, began = batch.holding.physical, time.perf_counter()
        try:
            if batch.kind is Kind.DELETE:
                await self._engine.write("delete", physical, [row.id for row in changed])
            else:
                ids, columns = _columns(batch.records)
                await self._engine.write(batch.kind.name.lower(), physical, ids, *columns)
        except EngineRefused as refused:
            if not await self._settle():
                raise
            # An error after the engine's queue commit: the records are in the queue, the engine
            # takes them from there, and the state has them. For plain Chroma this is ambiguous.
            _log.warning("engine refused what it had committed", error=str(refused))
        finally:
            self.engine_seconds += time.perf_counter() - began

    async def _in_writer(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await in_writer(self._writer, work, *arguments)


def _columns(records: Sequence[RecordColumns]) -> tuple[list[str], tuple[list[object], ...]]:
    """The ids, and the engine's columns: embeddings, metadatas, documents, uris."""
    return [record.id for record in records], (
        [record.embedding for record in records],
        [record.metadata for record in records],
        [record.document for record in records],
        [record.uri for record in records],
    )
