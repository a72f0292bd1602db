"""Calls of a router that are repeated while a shard, or the router itself, is away for a while.

What can succeed later is repeated until a time is up; what cannot is raised at once.
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from chroma_router.v1 import records_pb2, types_pb2, views_pb2
from chroma_router.wire.errors import (
    ClusterError,
    DeadlineExpired,
    OutcomeUnknown,
    Overloaded,
    Reason,
    Stale,
    Unavailable,
)
from chroma_router.wire.request_id import RANDOM_BYTES, new_request_id
from router.cli.command import Failed
from router.cli.link import RouterLink
from router.core.retry import backoff

ATTEMPT_SECONDS = 60.0
"""Deadline of one try."""

ALL_PARTS = (
    types_pb2.INCLUDE_DOCUMENTS,
    types_pb2.INCLUDE_METADATAS,
    types_pb2.INCLUDE_EMBEDDINGS,
    types_pb2.INCLUDE_URIS,
)
"""Every part of a record."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

_Response = TypeVar("_Response", bound=Message)


class GaveUp(Failed):
    """The cluster did not do it within the time that was given."""


def may_pass(error: ClusterError) -> bool:
    """Whether the same call can succeed later."""
    passing = isinstance(error, Unavailable | Overloaded | DeadlineExpired | Stale)
    return passing and error.reason is not Reason.ANSWER_TOO_LARGE


def fresh_request_id() -> str:
    """A request id that no other request has."""
    return new_request_id(time.time_ns() // 1_000_000, os.urandom(RANDOM_BYTES))


class Patience:
    """How long one piece of work is tried, and the pauses between its tries."""

    def __init__(self, what: str, seconds: float) -> None:
        self._what = what
        self._seconds = seconds
        self._give_up = time.monotonic() + seconds
        self._attempt = 0

    @property
    def attempt_seconds(self) -> float:
        """The deadline of the next try."""
        return min(ATTEMPT_SECONDS, max(self._give_up - time.monotonic(), 0.1))

    async def pause(self, failure: ClusterError) -> None:
        """Waits before the next try. Raises GaveUp when there is no time for one."""
        pause = failure.retry_after
        if pause is None:
            pause = backoff(self._attempt, _FIRST_PAUSE, _LONGEST_PAUSE, random.random())
        if time.monotonic() + pause >= self._give_up:
            raise GaveUp(
                f"{self._what} was not done within {self._seconds:.0f} s: {failure.message}; run "
                "it again when that is mended"
            )
        self._attempt += 1
        await asyncio.sleep(pause)


@dataclass(slots=True)
class PatientLink:
    """A RouterLink whose calls are repeated. Raises ClusterError for what is final, else GaveUp."""

    link: RouterLink
    timeout: float
    """Seconds for which one call is tried again."""
    retries: int = 0
    """How many calls have been repeated."""

    async def call(
        self,
        what: str,
        method: Callable[..., grpc.aio.UnaryUnaryCall[Any, _Response]],
        request: Message,
    ) -> _Response:
        """A call that may be repeated as it is."""
        patience = Patience(what, self.timeout)
        while True:
            try:
                return await self.link.call(method, request, patience.attempt_seconds)
            except ClusterError as error:
                if not may_pass(error):
                    raise
                self.retries += 1
                await patience.pause(error)

    async def upsert(
        self, what: str, collection: types_pb2.CollectionRef, records: Sequence[bytes]
    ) -> None:
        """Upserts records."""
        view = views_pb2.WriteRequestView(collection=collection, records=records)
        await self._write(what, self.link.upsert_view, view)

    async def add_in_order(
        self, collection: types_pb2.CollectionRef, ids: Sequence[str], records: Sequence[bytes]
    ) -> None:
        """Adds records that are known not to exist, so that they stand in the order given."""
        what = f"a write of {len(ids)} records"
        await self._in_order(what, self.link.add_view, collection, ids, records)

    async def upsert_in_order(
        self,
        what: str,
        collection: types_pb2.CollectionRef,
        ids: Sequence[str],
        records: Sequence[bytes],
    ) -> None:
        """Upserts records so that those that are new stand in the order given.

        None may be there but for what this run has written: a try that breaks deletes it.
        """
        await self._in_order(what, self.link.upsert_view, collection, ids, records)

    async def _in_order(
        self,
        what: str,
        method: Callable[..., grpc.aio.UnaryUnaryCall[Any, Any]],
        collection: types_pb2.CollectionRef,
        ids: Sequence[str],
        records: Sequence[bytes],
    ) -> None:
        """A write that only some shards took would leave the others' records behind them for good.
        So what was not acknowledged whole is first taken back, then written under a new identity.
        """
        patience = Patience(what, self.timeout)
        while True:
            view = views_pb2.WriteRequestView(
                collection=collection, records=records, request_id=fresh_request_id()
            )
            try:
                await self.link.call(method, view, patience.attempt_seconds)
                return
            except ClusterError as error:
                if not may_pass(error) and not isinstance(error, OutcomeUnknown):
                    raise
                self.retries += 1
                await patience.pause(error)
            await self.delete(collection, ids)

    async def delete(self, collection: types_pb2.CollectionRef, ids: Sequence[str]) -> None:
        """Deletes records by id; those that do not exist are passed over.

        It is applied behind every earlier write that is still on its way to the same shards.
        """
        request = records_pb2.DeleteRequest(
            collection=collection, filter=types_pb2.Filter(ids=ids, by_ids=True)
        )
        await self._write(f"a delete of {len(ids)} records", self.link.records.Delete, request)

    async def _write(
        self,
        what: str,
        method: Callable[..., grpc.aio.UnaryUnaryCall[Any, Any]],
        request: views_pb2.WriteRequestView | records_pb2.DeleteRequest,
    ) -> None:
        """A write that does no harm when it is done twice, repeated under its identity; past the
        retry window that is void, and it gets a new one."""
        request.request_id = fresh_request_id()
        patience = Patience(what, self.timeout)
        while True:
            try:
                await self.link.call(method, request, patience.attempt_seconds)
                return
            except ClusterError as error:
                if isinstance(error, OutcomeUnknown):
                    request.request_id = fresh_request_id()
                elif not may_pass(error):
                    raise
                self.retries += 1
                await patience.pause(error)

    async def pages(
        self,
        collection: types_pb2.CollectionRef,
        include: Sequence[types_pb2.Include] = ALL_PARTS,
        limit: int | None = None,
    ) -> AsyncGenerator[Sequence[types_pb2.Record], None]:
        """The collection's records in insertion order, page by page; the next is fetched ahead."""
        request = records_pb2.GetRequest(collection=collection, include=include, limit=limit)
        what = f"reading {collection.name or collection.id}"
        coming = asyncio.ensure_future(self.call(what, self.link.records.Get, request))
        try:
            while True:
                page = await coming
                if page.next_page_token:
                    request = records_pb2.GetRequest(
                        collection=collection,
                        include=include,
                        limit=limit,
                        page_token=page.next_page_token,
                    )
                    coming = asyncio.ensure_future(self.call(what, self.link.records.Get, request))
                if page.records:
                    yield page.records
                if not page.next_page_token:
                    return
        finally:
            coming.cancel()
