"""How fast a mover copies, so that the foreground does not suffer: how large chunks are, and how
long the pauses between them.

Two controllers, both additive in asking for more and multiplicative in giving way (AIMD, Chiu and
Jain, 1989):

- The size of a chunk keeps one apply at the target short. The target has a single writer, so an
  apply is the time that a foreground write may have to wait.
- The pause is for all that a chunk's length does not tell: processors, disks and locks are shared.
  It grows while the foreground's p95 is beyond 1.5 times what it was in the calm, and shrinks when
  it is well below.

What is measured is late: p95 is of the last seconds. So the pause changes at most once in
`REACTION_SECONDS`, else it would be doubled many times for one bad moment.
"""

MIN_CHUNK_RECORDS = 10
"""Below that, a chunk costs mostly its fixed part: 8 to 10 ms, and 0.3 for each record."""
MAX_CHUNK_RECORDS = 1_000
FIRST_CHUNK_RECORDS = 100

IDLE_APPLY_SECONDS = 0.25
"""How long one apply may take while there is no foreground traffic."""
BUSY_APPLY_SECONDS = 0.025
"""The same while there is some: half of what a group of foreground writes may take."""
SUFFERING_APPLY_SECONDS = 0.012
"""The same while the foreground suffers."""

SUFFERS_ABOVE = 1.5
"""The foreground suffers while its p95 is more than so many times its baseline."""
WELL_BELOW = 1.25
"""Only below that the pause shrinks: in between it stays, or it would swing."""

REACTION_SECONDS = 1.0
"""How long a change of the pause is left to show."""
FIRST_PAUSE_SECONDS = 0.05
"""What a pause begins with."""
MAX_PAUSE_SECONDS = 2.0
"""The longest pause that the foreground's sake makes (a rate's may be longer)."""
MIN_RECORDS_PER_SECOND = 50
"""However much the foreground suffers, pauses get no longer than lets so many records be copied a
second, if source and target are as fast as that: 100,000 records then take 33 minutes, not for
ever. A lower rate that was asked for counts all the same."""

# By how many records a chunk grows at most from one to the next.
_GROWTH_IDLE = 200
_GROWTH_BUSY = 25
# A pause is doubled, or goes down by three tenths and 5 ms, so that it comes to an end.
_PAUSE_GROWTH = 2.0
_PAUSE_DECAY = 0.7
_PAUSE_STEP = 0.005


class Pace:
    """The pace of one mover."""

    def __init__(self, records_per_second: int = 0) -> None:
        """`records_per_second`: the most that is copied; 0: as fast as the foreground allows."""
        self._chunk = float(FIRST_CHUNK_RECORDS)
        self._yielding = 0.0
        self._pause = 0.0
        self._settled = REACTION_SECONDS
        self.cap(records_per_second)

    def cap(self, records_per_second: int) -> None:
        """Another bound of the rate, from the next chunk on; 0: none."""
        if records_per_second < 0:
            raise ValueError(f"a rate is 0 (no bound) or more, got {records_per_second}")
        self._cap = records_per_second

    @property
    def chunk_records(self) -> int:
        """How many records the next chunk may have: 10 to 1,000, and no more than the bound of the
        rate lets pass in a second."""
        return min(round(self._chunk), self._cap or MAX_CHUNK_RECORDS)

    @property
    def pause_seconds(self) -> float:
        """How long to wait before the next chunk is read."""
        return self._pause

    def observe(
        self,
        *,
        items: int,
        read_seconds: float,
        apply_seconds: float,
        p95: float | None,
        baseline: float | None,
    ) -> None:
        """Learns from one chunk of `items` (0 or more) records and removals, compared ones as well.

        `read_seconds` it took at the source, `apply_seconds` at the target. `p95` is the
        foreground's now, None if it has no traffic; `baseline` what it was in the calm, None if
        that is not known. While there is traffic at least half of the time is left to it.
        """
        if items < 0 or not (read_seconds >= 0 and apply_seconds >= 0):
            raise ValueError(
                f"a chunk has items and takes time, got {items}, {read_seconds}, {apply_seconds}"
            )
        spent = read_seconds + apply_seconds
        suffers = p95 is not None and baseline is not None and p95 > SUFFERS_ABOVE * baseline
        self._settled += self._pause + spent
        self._adapt_pause(p95, baseline, suffers)
        if items:
            self._adapt_chunk(items, apply_seconds, idle=p95 is None, suffers=suffers)

        pause = self._yielding
        if p95 is not None:  # half of the time is the foreground's in any case
            pause = max(pause, spent)
        slowest = max(items / MIN_RECORDS_PER_SECOND - spent, 0.0)
        pause = min(pause, slowest, MAX_PAUSE_SECONDS)
        if self._cap:
            pause = max(pause, items / self._cap - spent)
        self._pause = pause

    def _adapt_pause(self, p95: float | None, baseline: float | None, suffers: bool) -> None:
        if p95 is None:
            self._yielding = 0.0
            self._settled = REACTION_SECONDS  # traffic that comes back is answered at once
            return
        if baseline is None or self._settled < REACTION_SECONDS:
            return
        if suffers:
            grown = max(self._yielding * _PAUSE_GROWTH, FIRST_PAUSE_SECONDS)
            self._yielding = min(grown, MAX_PAUSE_SECONDS)
        elif p95 < WELL_BELOW * baseline:
            self._yielding = max(self._yielding * _PAUSE_DECAY - _PAUSE_STEP, 0.0)
        self._settled = 0.0

    def _adapt_chunk(self, items: int, apply_seconds: float, *, idle: bool, suffers: bool) -> None:
        target = IDLE_APPLY_SECONDS if idle else BUSY_APPLY_SECONDS
        if suffers:
            target = SUFFERING_APPLY_SECONDS
        if apply_seconds > target:
            # As much smaller as it was too long, and at most by half: one stall says little.
            wanted = self.chunk_records * max(target / apply_seconds, 0.5)
        elif items >= self.chunk_records:  # a smaller one says nothing about larger ones
            grown = self._chunk + (_GROWTH_IDLE if idle else _GROWTH_BUSY)
            wanted = min(grown, items * target / apply_seconds) if apply_seconds else grown
            wanted = max(wanted, self._chunk)
        else:
            return
        self._chunk = min(max(wanted, float(MIN_CHUNK_RECORDS)), float(MAX_CHUNK_RECORDS))
