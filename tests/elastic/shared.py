"""Records with several writers: what each of them saw goes into histories, checked at the end."""

import random
import time
from collections.abc import Awaitable, Iterable
from typing import Any

from tests.elastic.answers import Fault, Finding, Row, same
from tests.elastic.clients import Client, NotAnswered, rows_of_get
from tests.elastic.corpus import Scalar
from tests.elastic.linearizability import History, Kind, Undecided, Value, check
from tests.elastic.measure import Record
from tests.elastic.model import Content, Model

CELL = "shared"

_MIX: tuple[tuple[Kind, int], ...] = (
    (Kind.READ, 45),
    (Kind.UPSERT, 22),
    (Kind.UPDATE, 12),
    (Kind.ADD, 6),
    (Kind.DELETE, 6),
    (Kind.DELETE_IF, 9),
)


class Shared:
    """A few records that all clients write. Each write gives all parts of a record, made of its
    token, so that a record tells which write it is of, and whether it is whole."""

    def __init__(self, model: Model, record: Record, count: int) -> None:
        self._model = model
        self._record = record
        self.histories = {f"shared-{n}": History() for n in range(count)}
        self._newest = dict.fromkeys(self.histories, -1)

    async def act(self, client: Client, dice: random.Random) -> None:
        """One operation of one client on one of the records."""
        record_id = dice.choice(list(self.histories))
        kinds, weights = zip(*_MIX, strict=True)
        (kind,) = dice.choices(kinds, weights)
        history = self.histories[record_id]
        # The newest write that was begun: the record may or may not hold it.
        token = self._newest[record_id] if kind is Kind.DELETE_IF else self._model.token()
        writes = kind not in {Kind.READ, Kind.DELETE}
        if writes:
            self._newest[record_id] = token
        handle = history.invoke(client.name, kind, time.monotonic(), token if writes else None)
        try:
            answer = await client.call(f"shared {kind}", self._send(client, kind, record_id, token))
        except BaseException:
            history.unknown(handle)
            raise
        now = time.monotonic()
        if kind is Kind.READ:
            history.read(handle, now, self.value_of(record_id, rows_of_get(answer)))
        elif kind is Kind.DELETE_IF:
            history.told(handle, now, answer["deleted"] == 1)
        else:
            history.ok(handle, now)

    def _send(self, client: Client, kind: Kind, record_id: str, token: int) -> Awaitable[Any]:
        collection = client.collection
        sent: Awaitable[Any]
        if kind is Kind.READ:
            include = ["documents", "metadatas", "embeddings"]
            sent = collection.get(ids=[record_id], include=include)
        elif kind is Kind.DELETE:
            sent = collection.delete(ids=[record_id])
        elif kind is Kind.DELETE_IF:
            # By condition alone, so that the shards must find the record.
            where = {"$and": [{"shared": record_id}, {"token": token}]}
            sent = collection.delete(where=where)
        else:
            content = _content(record_id, token)
            sent = getattr(collection, kind.value)(
                ids=[record_id],
                embeddings=[self._model.vectors.of(content.vector)],
                documents=[content.document],
                metadatas=[dict(content.metadata)],
            )
        return sent

    def value_of(self, record_id: str, rows: Iterable[Row]) -> Value:
        """The token of a record as it came; a record that is not whole is noted as wrong."""
        values: list[Value] = []
        for row in rows:
            token = row.metadata.get("token")
            if not isinstance(token, int) or not same(
                _content(record_id, token), row, self._model.vectors
            ):
                text = f"{record_id} is not whole: {row.document!r}, {dict(row.metadata)}"
                self._record.found([Finding(Fault.WRONG, text)], "shared")
            else:
                values.append(token)
        if len(values) > 1:
            self._record.found([Finding(Fault.DOUBLED, f"{record_id} came twice")], "shared")
        return values[-1] if values else None

    async def read_all(self, client: Client) -> None:
        """A last read of each record by itself; what is seen then is part of its history."""
        for record_id, history in self.histories.items():
            handle = history.invoke(client.name, Kind.READ, time.monotonic())
            try:
                answer = await client.call(
                    "shared read", self._send(client, Kind.READ, record_id, 0)
                )
            except NotAnswered:
                history.failed(handle)
                continue
            value = self.value_of(record_id, rows_of_get(answer))
            history.read(handle, time.monotonic(), value)

    def check(self) -> int:
        """Checks each history; how many operations they have."""
        for record_id, history in self.histories.items():
            try:
                violation = check(history.operations())
            except Undecided as undecided:
                text = f"{record_id}: not decided: {undecided}"
                self._record.found([Finding(Fault.ORDER, text)], "shared")
                continue
            if violation is not None:
                self._record.found([Finding(Fault.ORDER, f"{record_id}: {violation}")], "shared")
        return sum(len(history) for history in self.histories.values())


def _content(record_id: str, token: int) -> Content:
    metadata: dict[str, Scalar] = {
        "cell": CELL,
        "shared": record_id,
        "token": token,
        "rank": token % 10,
    }
    return Content(token, f"shared text {token}", metadata)
