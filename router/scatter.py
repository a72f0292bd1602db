"""Reads over the shards of a collection: the calls go out together, an answer comes from one epoch.

`consistently` repeats a whole read when a node refuses it as stale (invariant 3), after the
directory has brought node or router up to date; `scatter` makes the calls of one round. `read` does
both for a call that may allow shards to be missing.

A read that a fence refuses is held until the slots have their new owner. That is nobody's failure:
it counts against no bound but the deadline.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

from chroma_router.v1 import types_pb2
from chroma_router.wire.errors import ClusterError, DeadlineExpired, Reason, Stale, Unavailable
from router.cluster import Cluster, Shard
from router.core.coverage import ToldCounts, coverage, straggler_patience
from router.core.model import CollectionEntry
from router.core.retry import backoff, retryable
from router.directory import MAX_ENTRIES, Directory

ROUNDS = 20
"""How often one read is repeated for a newer epoch or a shard that comes back, at most."""

RETRY_BASE, RETRY_CAP = 0.05, 1.0
"""Seconds of back-off before a read is repeated for a shard that did not answer."""

UNAVAILABLE_WINDOW = 5.0
"""Seconds during which a read waits for a shard that does not answer: a node restarts within it."""

OWN_EXPIRY_SECONDS = 0.05
"""How long past the deadline a read is cut off: a shard's own expiry comes first, and names it."""

_Answer = TypeVar("_Answer")
_Request = TypeVar("_Request")


class ReadCall:
    """What one call of a client asks of all its reads, and what they have met.

    A shard that was missing in one of them is not asked by those that follow: all parts of the
    answer are of the same shards, and no shard that hangs is waited for twice.
    """

    def __init__(self, deadline: float, *, allow_partial: bool = False) -> None:
        """`deadline` is on the clock of time.monotonic()."""
        self.deadline = deadline
        self.allow_partial = allow_partial
        self.missing: dict[str, ClusterError] = {}
        """Why each shard is missing. Empty unless `allow_partial`."""
        self._asked: dict[str, int] = {}
        self._told: dict[str, int] = {}

    @property
    def left(self) -> float:
        """Seconds until the deadline, and at least a moment."""
        return max(0.001, self.deadline - time.monotonic())

    def note(self, asked_slots: Mapping[str, int], told: Mapping[str, int]) -> None:
        """One read is done: which shards it was about, and what is known of their records."""
        self._asked.update(asked_slots)
        self._told.update(told)

    def coverage(self) -> types_pb2.Coverage | None:
        """What the answer saw; None for a call that was answered by all or not at all."""
        if not self.allow_partial:
            return None
        return coverage(dict(sorted(self._asked.items())), self.missing, self._told)


class ReadPath:
    """Sends reads to shards and gathers their answers.

    Owns what the shards told of how many records they hold, for the share of a missing one.
    """

    def __init__(self, cluster: Cluster, directory: Directory) -> None:
        self._cluster = cluster
        self._directory = directory
        self._told = ToldCounts(MAX_ENTRIES)

    async def read(
        self,
        call: ReadCall,
        entry: CollectionEntry,
        requests: Callable[[CollectionEntry], Mapping[str, _Request]],
        ask: Callable[[Shard, _Request, float], Awaitable[_Answer]],
        owned_records: Callable[[_Answer], int],
    ) -> dict[str, _Answer]:
        """The shards' answers by shard, from one epoch, in the order of `requests(entry)`.

        `ask` is given the seconds that it has. If the call allows it, a shard that does not answer
        is left out: at once when it is unreachable, by straggler_patience when it says nothing.
        Raises its error when no shard answers at all, or any error that is of another kind.
        """
        away: dict[str, ClusterError] = {}

        async def once(entry: CollectionEntry) -> dict[str, _Answer]:
            parts = requests(entry)
            answers = await self._asked(call, away, parts, ask)
            told = {shard: owned_records(answer) for shard, answer in answers.items()}
            self._told.learn(entry.id, entry.slot_map.shards, told)
            if call.allow_partial:
                slots = Counter(entry.slot_map.owners)
                call.note({shard: slots[shard] for shard in parts}, self._told.of(entry.id))
            return answers

        fenced_until: dict[str, float] = {}
        answers = await self._repeated(
            entry,
            call.deadline,
            once,
            lambda e, r: self._reconciled(call, away, fenced_until, e, r),
        )
        call.missing |= away
        return answers

    async def _asked(
        self,
        call: ReadCall,
        away: dict[str, ClusterError],
        parts: Mapping[str, _Request],
        ask: Callable[[Shard, _Request, float], Awaitable[_Answer]],
    ) -> dict[str, _Answer]:
        """One round: the answers by shard. Those that `away` names are not asked."""

        async def send(shard: Shard, part: _Request) -> _Answer:
            return await ask(shard, part, call.left)

        if not call.allow_partial:
            return dict(zip(parts, await self.scatter(parts, send), strict=True))
        gone = {**call.missing, **away}
        wanted = {shard: part for shard, part in parts.items() if shard not in gone}
        outcomes = await self._gathered(call, wanted, send) if wanted else {}
        answers: dict[str, _Answer] = {}
        for shard, outcome in outcomes.items():
            if isinstance(outcome, ClusterError):
                away[shard] = gone[shard] = outcome
            else:
                answers[shard] = outcome
        if parts and not answers:
            away.clear()  # the next round asks again: without an answer there is none to complete
            # Rather one that can pass: the silent ones had all the time there was.
            raise min((gone[s] for s in parts), key=lambda e: not isinstance(e, Unavailable))
        return answers

    async def _gathered(
        self,
        call: ReadCall,
        parts: Mapping[str, _Request],
        send: Callable[[Shard, _Request], Awaitable[_Answer]],
    ) -> dict[str, _Answer | ClusterError]:
        """The answer of each shard, or why it has none. Other errors end the round.

        Once a shard has answered, the silent ones are given up after straggler_patience.
        """
        began = time.monotonic()
        until = call.deadline + OWN_EXPIRY_SECONDS
        async with asyncio.TaskGroup() as group:
            tasks = {
                name: group.create_task(_outcome(self._cluster, send, name, part))
                for name, part in parts.items()
            }
            silent = set(tasks.values())
            while silent and (left := until - time.monotonic()) > 0:
                done, silent = await asyncio.wait(
                    silent, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
                failures = _failures(done)
                if not all(map(_is_away, failures)):
                    break
                if len(failures) < len(done):
                    now = time.monotonic()
                    until = now + straggler_patience(now - began, call.deadline - now)
            for task in silent:
                task.cancel()
        if fatal := [error for error in _failures(tasks.values()) if not _is_away(error)]:
            raise _worst(fatal)
        seconds = time.monotonic() - began
        return {
            name: _silent(name, seconds) if task.cancelled() else task.result()
            for name, task in tasks.items()
        }

    async def _reconciled(
        self,
        call: ReadCall,
        away: dict[str, ClusterError],
        fenced_until: dict[str, float],
        entry: CollectionEntry,
        refused: Stale,
    ) -> CollectionEntry:
        """Brings node or router up to date. In a partial read a node that cannot be is left out:
        it has begun anew and loads, or went away meanwhile, or a fence there does not end."""
        if not call.allow_partial:
            return await self._directory.reconcile(entry, refused)
        shard, began = refused.metadata["shard"], time.monotonic()
        until = began + straggler_patience(0.0, call.left)
        why = "has begun anew and was not ready"
        if refused.reason is Reason.SLOTS_FENCED:
            # It refuses again and again, each time at once: its patience is one for all of them.
            until = fenced_until.setdefault(shard, until)
            why = "has slots that are moving away and did not let go of them"
        try:
            async with asyncio.timeout(until - began):
                newest = await self._directory.reconcile(entry, refused)
            if newest.slot_map.epoch > entry.slot_map.epoch:
                fenced_until.clear()  # that fence is gone; the next one is another move's
            return newest
        except TimeoutError:
            away[shard] = Unavailable(
                f"shard {shard} {why} within {time.monotonic() - began:.3f} s; repeat the request",
                metadata={"shard": shard},
                retry_after=1.0,
            )
        except (Unavailable, DeadlineExpired) as error:
            if error.metadata.get("shard") != shard:  # such as the catalog
                raise
            away[shard] = error
        return entry

    async def consistently(
        self,
        entry: CollectionEntry,
        deadline: float,
        read: Callable[[CollectionEntry], Awaitable[_Answer]],
    ) -> _Answer:
        """The answer of `read`, which is repeated whole until all of it is from one epoch.

        A shard that does not answer is waited for, at most UNAVAILABLE_WINDOW seconds. `deadline`
        is on the clock of time.monotonic().
        """
        return await self._repeated(entry, deadline, read, self._directory.reconcile)

    async def _repeated(
        self,
        entry: CollectionEntry,
        deadline: float,
        read: Callable[[CollectionEntry], Awaitable[_Answer]],
        reconcile: Callable[[CollectionEntry, Stale], Awaitable[CollectionEntry]],
    ) -> _Answer:
        patience = min(deadline, time.monotonic() + UNAVAILABLE_WINDOW)
        refused: Stale | None = None
        attempt = 0
        while attempt < ROUNDS:
            try:
                left = max(0.0, deadline - time.monotonic()) + OWN_EXPIRY_SECONDS
                async with asyncio.timeout(left):
                    if refused is not None:
                        held = refused.reason is Reason.SLOTS_FENCED
                        entry = await reconcile(entry, refused)
                        if held:  # the window begins anew, for all were there until now
                            patience = min(deadline, time.monotonic() + UNAVAILABLE_WINDOW)
                        refused = None
                    entry = await self._directory.usable(entry)
                    return await read(entry)
            except Stale as error:
                refused = error
                attempt += error.reason is not Reason.SLOTS_FENCED
            except TimeoutError:
                raise DeadlineExpired(
                    "the shards did not answer within the deadline; give the call more time"
                ) from None
            except ClusterError as error:
                if not retryable(error) or time.monotonic() >= patience:
                    raise
                delay = backoff(attempt, RETRY_BASE, RETRY_CAP, jitter=0.5)
                await asyncio.sleep(min(delay, max(0.0, patience - time.monotonic())))
                attempt += 1
        raise Unavailable(
            f"collection [{entry.name}] kept changing its epoch; repeat the request",
            retry_after=1.0,
        )

    async def scatter(
        self,
        requests: Mapping[str, _Request],
        call: Callable[[Shard, _Request], Awaitable[_Answer]],
    ) -> list[_Answer]:
        """Sends each shard its request at once; the answers in the order of `requests`.

        The first error ends the other calls and is raised.
        """
        if len(requests) == 1:
            ((name, request),) = requests.items()
            return [await call(self._cluster.shard(name), request)]
        for name in requests:
            self._cluster.shard(name)  # before any is asked
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_outcome(self._cluster, call, name, request))
                for name, request in requests.items()
            ]
            waiting = set(tasks)
            while waiting and not _failures(tasks):
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
        if failures := _failures(tasks):
            raise _worst(failures)
        return [_answer(task.result()) for task in tasks]


async def _outcome(
    cluster: Cluster,
    call: Callable[[Shard, _Request], Awaitable[_Answer]],
    name: str,
    request: _Request,
) -> _Answer | ClusterError:
    """The shard's answer or its error.

    The error is returned: a TaskGroup in which a task fails cancels its owner for a moment, and
    before Python 3.13 leaves it counted as cancelled. A timeout further out would then no longer
    know its own cancellation, and end the call as if the client had gone away.
    """
    try:
        return await call(cluster.shard(name), request)
    except ClusterError as error:
        return error


def _failures(tasks: Iterable["asyncio.Task[_Answer | ClusterError]"]) -> list[ClusterError]:
    """The errors of those tasks that have ended with one."""
    ended = [task.result() for task in tasks if task.done() and not task.cancelled()]
    return [outcome for outcome in ended if isinstance(outcome, ClusterError)]


def _is_away(error: ClusterError) -> bool:
    """Whether it says that a shard has no answer to give now."""
    return isinstance(error, Unavailable | DeadlineExpired)


def _answer(outcome: _Answer | ClusterError) -> _Answer:
    assert not isinstance(outcome, ClusterError)
    return outcome


def _silent(shard: str, seconds: float) -> DeadlineExpired:
    return DeadlineExpired(
        f"shard {shard} said nothing within {seconds:.3f} s", metadata={"shard": shard}
    )


def _worst(errors: list[ClusterError]) -> ClusterError:
    """Of several shards' errors the one to act on: what can never succeed, then what is stale, and
    of that rather what is known to have changed than a fence, behind which it will change."""

    def rank(error: ClusterError) -> int:
        match error:
            case Unavailable():
                return 3
            case Stale(reason=Reason.SLOTS_FENCED):
                return 2
            case Stale():
                return 1
            case _:
                return 0

    return min(errors, key=rank)
