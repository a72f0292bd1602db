"""The load: which operations, on what, and when. Each client has a schedule of its own, which it
keeps whatever its calls take: a pause of the cluster is met by as many calls as come in that time.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tests.elastic.clients import Client, NotAnswered
from tests.elastic.corpus import RANKS, Scalar
from tests.elastic.measure import Record
from tests.elastic.model import Cell, Given, Model, Verb
from tests.elastic.shared import Shared

MOST_IN_CELL = 90
"""Below 100, with what a write may add: queries of a cell are exhaustive."""

MOST_AT_ONCE = 24
"""Calls of one client under way; with more it waits, which is noted as lateness."""

MOST_SHARED_AT_ONCE = 1
"""The same of calls on shared records: the check of a history takes time that is exponential in how
many writes of one record run at once, and while a shard is away all that are begun do."""

QUERIES = ("query", "query where")
READS = (*QUERIES, "get", "get where")
WRITES = ("add", "upsert", "update", "delete", "delete where")

_DRAIN_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Load:
    """How much of what. `rate` is in operations a second over all clients, those on shared records
    apart, which are `shared_rate`."""

    rate: float
    shared_rate: float


class Workload:
    """Runs until it is stopped. Each cell is written by one client, and read by all."""

    def __init__(
        self, clients: Sequence[Client], model: Model, shared: Shared, record: Record, load: Load,
        seed: int,
    ) -> None:  # fmt: skip
        self._clients = clients
        self._model = model
        self._shared = shared
        self._record = record
        self._load = load
        self._dice = [random.Random(f"{seed}/{client.name}") for client in clients]
        self._cells = list(model.cells.values())
        self._stopping = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begins the load."""
        count = len(self._clients)
        for n in range(count):
            actor = Actor(
                self._clients[n], self._model, self._cells, self._cells[n::count], self._dice[n]
            )
            self._keep(n, self._load.rate / count, actor.act, MOST_AT_ONCE)
            self._keep(n, self._load.shared_rate / count, self._shared_act(n), MOST_SHARED_AT_ONCE)

    def _shared_act(self, n: int) -> Callable[[], Awaitable[None]]:
        return lambda: self._shared.act(self._clients[n], self._dice[n])

    def _keep(self, n: int, rate: float, act: Callable[[], Awaitable[None]], most: int) -> None:
        if rate > 0:
            name = f"{self._clients[n].name}-{len(self._loops)}"
            schedule = self._schedule(rate, act, most, self._dice[n])
            self._loops.append(asyncio.create_task(schedule, name=name))

    async def _schedule(
        self, rate: float, act: Callable[[], Awaitable[None]], most: int, dice: random.Random
    ) -> None:
        """Begins calls at random intervals, whose mean is that of the rate."""
        due = time.monotonic() + dice.random() / rate
        mine: set[asyncio.Task[None]] = set()
        while not self._stopping.is_set():
            if (wait := due - time.monotonic()) > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), wait)
                continue
            if len(mine) >= most:
                await asyncio.wait(mine, return_when=asyncio.FIRST_COMPLETED)
                continue
            if most > 1:  # others have one call after the other, and are as late as those take
                self._record.late = max(self._record.late, time.monotonic() - due)
            task = asyncio.create_task(self._guarded(act))
            for kept in (mine, self._calls):
                kept.add(task)
                task.add_done_callback(kept.discard)
            due = (due if most > 1 else time.monotonic()) + dice.expovariate(rate)

    @staticmethod
    async def _guarded(act: Callable[[], Awaitable[None]]) -> None:
        with suppress(NotAnswered):
            await act()

    def check_alive(self) -> None:
        """Raises what a schedule has failed with, which is a defect of the test."""
        for loop in self._loops:
            if loop.done() and not loop.cancelled():
                loop.result()

    async def stop(self) -> None:
        """Ends the load, and waits for the calls under way."""
        self._stopping.set()
        self.check_alive()
        await asyncio.gather(*self._loops)
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=_DRAIN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            assert not late, f"{len(late)} calls did not end in {_DRAIN_SECONDS} s"


class Actor:
    """What one client does next: a mix of all reads and writes, most of them in its own cells."""

    def __init__(
        self, client: Client, model: Model, cells: Sequence[Cell], own: Sequence[Cell],
        dice: random.Random,
    ) -> None:  # fmt: skip
        self._client = client
        self._model = model
        self._all = cells
        self._own = own
        self._dice = dice
        self._mix: tuple[tuple[Callable[[], Awaitable[None]], int], ...] = (
            (self._query, 30),
            (self._query_cell, 12),
            (self._get_ids, 14),
            (self._get_cell, 6),
            (self._insert, 11),
            (self._upsert, 6),
            (self._update, 9),
            (self._delete, 4),
            (self._add, 5),
            (self._delete_where, 3),
        )

    async def act(self) -> None:
        """One operation. Raises NotAnswered."""
        acts, weights = zip(*self._mix, strict=True)
        (act,) = self._dice.choices(acts, weights)
        await act()

    # ------------------------------------------------------------------------------------- reads

    async def _query(self) -> None:
        await self._client.query(self._model.vectors.of(self._dice.randrange(1 << 40)), 10)

    async def _query_cell(self) -> None:
        query = self._model.vectors.of(self._dice.randrange(1 << 40))
        await self._client.query_cell(self._to_read(), query, self._dice.choice([10, 100]))

    async def _get_ids(self) -> None:
        cell = self._to_read()
        some = self._some(list(cell.entries) or ["none"], 6)
        await self._client.get_ids(cell, some)

    async def _get_cell(self) -> None:
        await self._client.get_cell(self._to_read(), embeddings=self._dice.random() < 0.3)

    def _to_read(self) -> Cell:
        """Often one that is being written, or that was: by whom does not matter."""
        if self._dice.random() < 0.3:
            written = [cell for cell in self._dice.choices(self._all, k=200) if cell.changes]
            if written:
                return self._dice.choice(written)
        return self._dice.choice(self._all)

    # ------------------------------------------------------------------------------------ writes

    async def _insert(self) -> None:
        """Upserts records that never were."""
        cell = self._to_write(room=8)
        if cell is None:
            return await self._delete_where()
        ids = [self._model.new_id(cell) for _ in range(self._dice.randint(1, 6))]
        return await self._client.write(Verb.UPSERT, cell, self._whole(cell, ids))

    async def _upsert(self) -> None:
        """Upserts records that exist, or existed."""
        if (chosen := self._known()) is not None:
            await self._client.write(Verb.UPSERT, chosen[0], self._whole(*chosen))

    async def _add(self) -> None:
        """Adds records that exist, which does nothing, and others."""
        if (chosen := self._known()) is not None:
            cell, ids = chosen
            ids = [*ids, self._model.new_id(cell)]
            await self._client.write(Verb.ADD, cell, self._whole(cell, ids))

    async def _update(self) -> None:
        """Updates records, missing ones among them: metadata always, other parts sometimes."""
        if (chosen := self._known()) is None:
            return
        vectors = self._dice.random() < 0.5
        # chromadb refuses a document without an embedding where it knows no embedding function.
        documents = vectors and self._dice.random() < 0.5
        given = {}
        for record_id in chosen[1]:
            token = self._model.token()
            given[record_id] = Given(
                token if vectors else None,
                f"changed {token}" if documents else None,
                {"token": token, "note": self._dice.choice([None, "seen", str(token)])},
            )
        await self._client.write(Verb.UPDATE, chosen[0], given)

    async def _delete(self) -> None:
        if (chosen := self._known()) is not None:
            await self._client.write(Verb.DELETE, chosen[0], dict.fromkeys(chosen[1][:3]))

    async def _delete_where(self) -> None:
        cell = self._to_write()
        if cell is not None and not cell.uncertain:
            below = self._dice.choice([1, 2, 3, RANKS // 2])
            await self._client.delete_where(cell, below, self._dice.choice([None, 2, 5]))

    def _to_write(self, room: int = 0) -> Cell | None:
        """One of the client's own cells that no write is under way in."""
        for cell in self._dice.choices(self._own, k=8):
            if not cell.busy and len(cell.order) + room <= MOST_IN_CELL:
                return cell
        return None

    def _known(self) -> tuple[Cell, list[str]] | None:
        """Some ids of an own cell that ever were."""
        cell = self._to_write(room=8)
        if cell is None:
            return None
        ids = [i for i in self._some(list(cell.entries), 6) if cell.writable(i)]
        return (cell, ids) if ids else None

    def _some(self, ids: list[str], most: int) -> list[str]:
        return self._dice.sample(ids, min(len(ids), self._dice.randint(1, most)))

    def _whole(self, cell: Cell, ids: Sequence[str]) -> Mapping[str, Given]:
        """Parts with an embedding; all with a document or none."""
        documents = self._dice.random() < 0.7
        return dict(self._wholes(cell, ids, documents=documents))

    def _wholes(
        self, cell: Cell, ids: Sequence[str], *, documents: bool
    ) -> Iterator[tuple[str, Given]]:
        for record_id in ids:
            token = self._model.token()
            more: dict[str, Scalar] = {"note": "extra"} if self._dice.random() < 0.3 else {}
            metadata: dict[str, Scalar] = {
                "cell": cell.name,
                "token": token,
                "rank": self._dice.randrange(RANKS),
            }
            text = f"text {token}" if documents else None
            yield record_id, Given(token, text, {**metadata, **more})
