"""Which slots of one collection go where, so that its home shards have even shares.

Pure, and without memory: what is done follows from where the slots are, so doing it again on its
own result does nothing. The steps, in their order:

1. What is on shards that are no homes leaves; it fills the homes that are furthest below even.
2. Is a home's number of records beyond the *tolerance*, it gives to those below even, or takes
   from those above, as many records as bring it to even. Which slots: as many as bring its number
   of slots to even too, of the middling sort, so that the shares of later records are even as well.
3. Slots too coarse for that go one by one, as long as each makes two shards more alike.
4. Empty slots, which cost nothing to copy, even out the numbers of slots.

How much moves: a home never gives more than its excess over the even share in step 2, so as long as
slots are small against the tolerance, what moves is at most what must leave and the excess over
even, which is the least that makes shares even. With coarser slots step 3 adds what indivisible
slots need: at most about one slot for each home.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import sqrt

from chroma_router.wire.slots import SLOT_BITS, SLOT_COUNT

RELATIVE_TOLERANCE = 0.025
"""How far a home may be off the even share: half of what "balanced" promises (5 %), so that what is
written during the moves has the other half."""

NOISE_TOLERANCE = 3.0
"""The same in standard deviations of what hashing alone does to evenly dealt slots (the square root
of the share). Else every one of 10,000 collections with ten records would have a move planned."""

SLOT_TOLERANCE = 1
"""By how many slots a home may be off the number that empty slots could give it."""

# A slot that has records, as one integer: records, then slot. In this order they are sorted, and
# compared by bisection.
_Key = int
_SLOT_MASK = SLOT_COUNT - 1


def tolerance(records: int, homes: int) -> float:
    """By how many records a home may be off the even share without anything being moved: 2.5 %, one
    average slot or three standard deviations of hashing, whichever is most. `homes` is 1 or more.
    """
    even = records / homes
    return max(RELATIVE_TOLERANCE * even, records / SLOT_COUNT, NOISE_TOLERANCE * sqrt(even))


class Layout:
    """Where the slots of one collection are, while it is being decided where they shall be."""

    def __init__(self, owners: Sequence[str], records: Sequence[int], homes: Sequence[str]) -> None:
        """`owners` and `records` are by slot; `homes` are one or more names, sorted."""
        self.homes = tuple(homes)
        self.moved: dict[int, str] = {}
        """The new owner of each slot that has another one than at the beginning."""
        self._owners = owners
        self._full: dict[str, list[_Key]] = {name: [] for name in (*homes, *sorted(set(owners)))}
        self._empty: dict[str, list[int]] = {name: [] for name in self._full}
        for slot, owner in enumerate(owners):
            if count := records[slot]:
                self._full[owner].append(count << SLOT_BITS | slot)
            else:
                self._empty[owner].append(slot)
        for keys in self._full.values():
            keys.sort()
        self.records = {name: _records(keys) for name, keys in self._full.items()}
        """How many records each shard has, by its name."""
        self._total = sum(self.records.values())
        self._even = self._total / len(self.homes)
        self._tolerance = tolerance(self._total, len(self.homes))
        self._slots_each = SLOT_COUNT // len(self.homes)

    def slots(self, shard: str) -> int:
        """How many slots a shard has."""
        return len(self._full[shard]) + len(self._empty[shard])

    def even_out(self) -> None:
        """Moves what shall be moved."""
        self._leave()
        uneven_slots = self._uneven_slots()
        if uneven_slots or self._next_step() is not None:
            self._level(everything=uneven_slots)
            while (step := self._next_step()) is not None:
                key, source, target = step
                self._move([key], source, target)
        if self._uneven_slots():
            aims = self._slot_aims()
            over = [(home, self.slots(home) - aims[home]) for home in self.homes]
            self._deal_empty(_most_first(over), aims)

    # ------------------------------------------------------------------------------ what must leave

    def _leave(self) -> None:
        """Step 1: everything that is not at home goes home."""
        leaving = [name for name in self._full if name not in self.homes]
        if not leaving:
            return
        self._stream(
            _most_first([(name, self.records[name]) for name in leaving]),
            self._room(),
            lambda source, target: True,
        )
        # What fits nowhere below even: the heaviest first, each to whoever has least.
        for name in leaving:
            for key in reversed(self._full[name]):
                target = min(self.homes, key=lambda home: (self.records[home], self.slots(home)))
                self._move([key], name, target)
        self._deal_empty([(name, len(self._empty[name])) for name in leaving], self._slot_aims())
        assert not any(self._full[name] or self._empty[name] for name in leaving)

    # -------------------------------------------------------------------------------------- records

    def _level(self, *, everything: bool) -> None:
        """Step 2: homes that are off give to or take from the others; with `everything` all do."""
        quotas = self._quotas()
        off = {home for home in self.homes if everything or self._off(home)}
        self._stream(
            _most_first([(home, self.records[home] - quotas[home]) for home in self.homes]),
            self._room(),
            lambda source, target: source in off or target in off,
        )

    def _stream(
        self,
        giving: list[tuple[str, int]],
        taking: list[tuple[str, int]],
        wanted: Callable[[str, str], bool],
    ) -> None:
        """Lets shards give records to others, the first to the first until one of the two is done:
        that makes the fewest pairs. Nobody gives or takes more than is said.
        """
        givers, takers = iter(giving), iter(taking)
        source, surplus = next(givers, ("", 0))
        target, room = next(takers, ("", 0))
        while source and target and wanted(source, target):
            source_ends = surplus <= room
            slots = (
                self.slots(source) - (self._slots_each if source in self.homes else 0)
                if source_ends
                else self._slots_each - self.slots(target)
            )
            keys = _pick(self._full[source], slots, min(surplus, room))
            self._move(keys, source, target)
            if source_ends:
                room -= _records(keys)
                source, surplus = next(givers, ("", 0))
            else:
                surplus -= _records(keys)
                target, room = next(takers, ("", 0))

    def _next_step(self) -> tuple[_Key, str, str] | None:
        """Step 3: a slot that makes two shards more alike, one of which is beyond the tolerance.

        None: no single slot does. Each step makes the sum of squares of the shares smaller, so
        there is an end to them.
        """
        if not any(self._off(home) for home in self.homes):
            return None
        ascending = sorted(self.homes, key=lambda home: (self.records[home], home))
        for source in reversed(ascending):
            for target in ascending:
                gap = self.records[source] - self.records[target]
                if not self.records[source] > self._even > self.records[target]:
                    break
                if not (self._off(source) or self._off(target)):
                    break
                if (key := self._nearest(source, target, gap)) is not None:
                    return key, source, target
        return None

    def _nearest(self, source: str, target: str, gap: int) -> _Key | None:
        """The source's heaviest slot that leaves it at or above even and the target at or below;
        else its lightest, if the two are more alike after it; else None."""
        keys = self._full[source]
        wanted = min(self.records[source] - self._even, self._even - self.records[target])
        place = bisect_left(keys, (int(wanted) + 1) << SLOT_BITS)
        if place:
            return keys[place - 1]
        return keys[0] if keys and keys[0] >> SLOT_BITS < gap else None

    def _off(self, home: str) -> bool:
        return abs(self.records[home] - self._even) > self._tolerance

    def _room(self) -> list[tuple[str, int]]:
        quotas = self._quotas()
        return _most_first([(home, quotas[home] - self.records[home]) for home in self.homes])

    def _quotas(self) -> dict[str, int]:
        """The even share of each home; what does not divide stays with those that have most."""
        each, rest = divmod(self._total, len(self.homes))
        ranked = sorted(self.homes, key=lambda home: (-self.records[home], home))
        return {home: each + (place < rest) for place, home in enumerate(ranked)}

    # ---------------------------------------------------------------------------------- empty slots

    def _uneven_slots(self) -> bool:
        aims = self._slot_aims()
        return any(abs(self.slots(home) - aims[home]) > SLOT_TOLERANCE for home in self.homes)

    def _slot_aims(self) -> dict[str, int]:
        """How many slots each home shall have: as even as empty slots can make it, by filling up
        those that have fewest. What does not divide stays with those that have most now."""
        aims = {home: len(self._full[home]) for home in self.homes}
        left = SLOT_COUNT - sum(len(keys) for keys in self._full.values())
        ranked = sorted(self.homes, key=lambda home: aims[home])
        fills = [aims[home] for home in ranked]
        below = len(fills)
        while below * fills[below - 1] - sum(fills[:below]) > left:
            below -= 1  # the fullest of them is above the level
        level, rest = divmod(sum(fills[:below]) + left, below)
        raised = sorted(ranked[:below], key=lambda home: (-self.slots(home), home))
        aims.update({home: level + (place < rest) for place, home in enumerate(raised)})
        return aims

    def _deal_empty(self, giving: list[tuple[str, int]], aims: dict[str, int]) -> None:
        """Step 4: shards give so many empty slots to the homes that are below their aims."""
        taking = _most_first([(home, aims[home] - self.slots(home)) for home in self.homes])
        takers = iter(taking)
        target, room = next(takers, ("", 0))
        for source, surplus in giving:
            left = surplus
            while left and target:
                count = min(left, room)
                self._move_empty(source, target, count)
                left, room = left - count, room - count
                if not room:
                    target, room = next(takers, ("", 0))

    # --------------------------------------------------------------------------------- moving slots

    def _move(self, keys: list[_Key], source: str, target: str) -> None:
        if not keys:
            return
        chosen = set(keys)
        self._full[source] = [key for key in self._full[source] if key not in chosen]
        self._full[target] = sorted(self._full[target] + keys)
        records = _records(keys)
        self.records[source] -= records
        self.records[target] += records
        self._note([key & _SLOT_MASK for key in keys], target)

    def _move_empty(self, source: str, target: str, count: int) -> None:
        # From the end: what has come goes on first, instead of one more that was there.
        slots = self._empty[source][-count:]
        del self._empty[source][-count:]
        self._empty[target] += slots
        self._note(slots, target)

    def _note(self, slots: list[int], target: str) -> None:
        for slot in slots:
            if self._owners[slot] == target:
                del self.moved[slot]
            else:
                self.moved[slot] = target


def _pick(keys: list[_Key], slots: int, budget: int) -> list[_Key]:
    """Some of the ascending `keys` that have together at most `budget` (1 or more) records and come
    near it, about `slots` of them if so many or so few can.

    Neighbours in the order of their records, so that neither the heaviest nor the lightest pile up
    on one side. No key is left out that would still fit.
    """
    fitting = keys[: bisect_left(keys, (budget + 1) << SLOT_BITS)]
    up_to = [0, *accumulate(key >> SLOT_BITS for key in fitting)]
    if up_to[-1] <= budget:
        return fitting
    fewest = len(fitting) + 1 - bisect_right(up_to, up_to[-1] - budget)  # if they are the heaviest
    most = bisect_right(up_to, budget) - 1  # if they are the lightest
    count = min(max(slots, fewest), most)
    begin = (
        bisect_right(
            range(len(fitting) - count + 1), budget, key=lambda at: up_to[at + count] - up_to[at]
        )
        - 1
    )
    end = begin + count
    chosen, rest = fitting[begin:end], fitting[:begin] + fitting[end:]
    left = budget - _records(chosen)
    if end < len(fitting):  # the next heavier one instead of one of them, if that comes nearer
        heavier = fitting[end] >> SLOT_BITS
        place = bisect_left(chosen, max(heavier - left, 0) << SLOT_BITS)
        if place < count:
            left -= heavier - (chosen[place] >> SLOT_BITS)
            rest[begin], chosen[place] = chosen[place], fitting[end]
            rest.sort()
    while place := bisect_left(rest, (left + 1) << SLOT_BITS):
        key = rest.pop(place - 1)
        chosen.append(key)
        left -= key >> SLOT_BITS
    return chosen


def _records(keys: Sequence[_Key]) -> int:
    return sum(key >> SLOT_BITS for key in keys)


def _most_first(amounts: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Those above 0, the greatest first; equal ones by name."""
    return sorted(
        [(name, amount) for name, amount in amounts if amount > 0],
        key=lambda entry: (-entry[1], entry[0]),
    )
