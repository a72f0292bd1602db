"""The scheduler: simulated time, processes, messages and peers that die.

A process is a generator that yields what it waits for: ticks (a number), one Call, or a list of
Calls that go out together. It is sent the answer (of a list: for each call the answer or the error)
or has the error thrown into it. It dies, without a word, with the peer on which it runs.
"""

import heapq
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

from tests.sim.options import Options

PATIENCE = 15.0
"""Ticks that a caller waits for an answer."""

CUT = 80.0
"""Ticks for which one peer cannot reach another at most."""


class CallError(Exception):
    """A call that was not answered as it was meant."""


class Unheard(CallError):
    """No answer came: it may have been done or not, or may yet be."""


class Refused(CallError):
    """The callee refused; nothing was done."""

    def __init__(self, reason: str, **metadata: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.metadata = metadata


@dataclass(slots=True)
class Call:
    """A message to a peer that asks for an answer."""

    peer: "Peer"
    method: str
    arguments: tuple[Any, ...] = ()
    patience: float = PATIENCE


Process: TypeAlias = Generator[Any, Any, Any]
Reply: TypeAlias = Callable[[Any, CallError | None], None]


class Schedule:
    """Time, and what happens next. `faults` False: no message is lost or late any more."""

    def __init__(self, rng: random.Random, options: Options, *, tracing: bool) -> None:
        self.rng = rng
        self.now = 0.0
        self.events = 0
        self.faults = True
        self.trace: list[str] = []
        self.tracing = tracing
        self._lost, self._late, self._late_in = options.lost, options.late, options.late_in
        self._latest, self._cut = options.latest, options.cut
        self._cut_until: dict[tuple[str, str], float] = {}
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._pushed = 0

    def say(self, text: str) -> None:
        """A line of the trace; callers ask `tracing` first."""
        self.trace.append(f"{self.now:8.1f}  {text}")

    def chance(self, share: float) -> bool:
        """Whether a fault of this chance happens now."""
        return self.faults and share > 0.0 and self.rng.random() < share

    def at(self, delay: float, do: Callable[..., None], *arguments: Any) -> None:
        """Does something `delay` ticks from now."""
        self._pushed += 1
        heapq.heappush(self._heap, (self.now + delay, self._pushed, do, arguments))

    def run(self, until: float, finished: Callable[[], bool]) -> None:
        """Goes on until nothing is left to happen, it is `finished`, or the time is over."""
        heap = self._heap
        while heap and not finished() and heap[0][0] <= until:
            self.now, _, do, arguments = heapq.heappop(heap)
            self.events += 1
            do(*arguments)

    # ------------------------------------------------------------------------------ processes

    def start(self, host: "Peer", process: Process, done: Reply | None = None) -> None:
        """Begins a process on a peer."""
        self._resume(host, host.life, process, done, None, None)

    def _resume(
        self, host: "Peer", life: int, process: Process, done: Reply | None, value: Any,
        error: CallError | None,
    ) -> None:  # fmt: skip
        if host.life != life:
            return
        try:
            wanted = process.send(value) if error is None else process.throw(error)
        except StopIteration as end:
            if done is not None:
                done(end.value, None)
            return
        except CallError as failure:
            if done is not None:
                done(None, failure)
            return
        if type(wanted) is float:
            self.at(wanted, self._resume, host, life, process, done, None, None)
        elif type(wanted) is Call:
            self._send(host, wanted, lambda v, e: self._resume(host, life, process, done, v, e))
        else:
            self._gather(host, wanted, lambda v, e: self._resume(host, life, process, done, v, e))

    def _gather(self, host: "Peer", calls: list[Call], reply: Reply) -> None:
        answers: list[Any] = [None] * len(calls)
        left = len(calls)

        def one(place: int) -> Reply:
            def answered(value: Any, error: CallError | None) -> None:
                nonlocal left
                answers[place] = value if error is None else error
                left -= 1
                if not left:
                    reply(answers, None)

            return answered

        if not calls:
            self.at(0.0, reply, answers, None)
        for place, call in enumerate(calls):
            self._send(host, call, one(place))

    # ------------------------------------------------------------------------------ messages

    def delay(self, method: str = "") -> float:
        """How long a message takes. Each takes its own time: any two may overtake each other."""
        draw = self.rng.random
        late = self._late_in.get(method, self._late) if self._late_in else self._late
        if late and self.faults and draw() < late:
            return 5.0 + draw() * (self._latest - 5.0)
        return 0.5 + draw() * 1.5

    def _send(self, host: "Peer", call: Call, reply: Reply) -> None:
        """Sends a message; `reply` hears the answer, or after the caller's patience Unheard."""
        exchange = Exchange(self, reply, self.now + call.patience)
        if self.chance(self._lost) or (self._cut and self._is_cut(host.name, call.peer.name)):
            exchange.give_up()
            return
        delay = self.delay(call.method)
        if delay >= call.patience:
            exchange.give_up()
        self.at(delay, call.peer.receive, call.method, call.arguments, exchange)

    def _is_cut(self, caller: str, callee: str) -> bool:
        """Whether the one cannot reach the other; others may."""
        if self.chance(self._cut):
            self._cut_until[caller, callee] = self.now + self.rng.random() * CUT
        return self.faults and self._cut_until.get((caller, callee), 0.0) > self.now

    def lost(self) -> bool:
        """Whether a message gets lost now."""
        return self.chance(self._lost)


class Exchange:
    """One call under way, as its callee sees it: to be answered once, or never."""

    __slots__ = ("_deadline", "_giving_up", "_open", "_reply", "_schedule")

    def __init__(self, schedule: Schedule, reply: Reply, deadline: float) -> None:
        self._schedule, self._reply, self._deadline = schedule, reply, deadline
        self._open = True
        self._giving_up = False

    def give_up(self) -> None:
        """No answer will come in time."""
        if not self._giving_up:
            self._giving_up = True
            left = max(0.0, self._deadline - self._schedule.now)
            self._schedule.at(left, self._end, None, Unheard("no answer"))

    def answer(self, value: Any, error: CallError | None) -> None:
        """Sends the answer back; it may get lost or come too late."""
        delay = self._schedule.delay()
        if self._schedule.lost() or self._schedule.now + delay >= self._deadline:
            self.give_up()
        else:
            self._schedule.at(delay, self._end, value, error)

    def broken(self) -> None:
        """The callee is down: its caller notices, at once or never."""
        if self._schedule.rng.random() < 0.3:
            self.give_up()
        else:
            self._schedule.at(1.0, self._end, None, Unheard("connection lost"))

    def _end(self, value: Any, error: CallError | None) -> None:
        if self._open:
            self._open = False
            self._reply(value, error)


class Peer:
    """Something that is called, and that dies. `life` counts how often it has begun."""

    def __init__(self, schedule: Schedule, name: str) -> None:
        self.schedule = schedule
        self.name = name
        self.life = 0
        self.down = False
        self._open: dict[Exchange, None] = {}

    def receive(self, method: str, arguments: tuple[Any, ...], exchange: Exchange) -> None:
        """A message arrives."""
        if self.down:
            exchange.broken()
            return
        self._open[exchange] = None
        self.handle(method, arguments, exchange)

    def handle(self, method: str, arguments: tuple[Any, ...], exchange: Exchange) -> None:
        """A method answers at once, or is a process of its own."""
        reply = self.answering(exchange)
        try:
            answer = getattr(self, method)(*arguments)
        except Refused as refusal:
            reply(None, refusal)
            return
        if isinstance(answer, Generator):
            self.schedule.start(self, answer, reply)
        else:
            reply(answer, None)

    def answering(self, exchange: Exchange) -> Reply:
        """Answers an exchange that was received."""

        def answer(value: Any, error: CallError | None) -> None:
            self._open.pop(exchange, None)
            exchange.answer(value, error)

        return answer

    def die(self, ticks: float) -> None:
        """Everything under way here ends, without a word; after so many ticks it begins anew."""
        if self.down:
            return
        if self.schedule.tracing:
            self.schedule.say(f"{self.name} dies")
        self.life += 1
        self.down = True
        for exchange in self._open:
            exchange.broken()
        self._open.clear()
        self.schedule.at(ticks, self._restart)

    def _restart(self) -> None:
        self.down = False
        if self.schedule.tracing:
            self.schedule.say(f"{self.name} begins anew")
        self.begin()

    def begin(self) -> None:
        """What a peer does when it has begun anew."""
