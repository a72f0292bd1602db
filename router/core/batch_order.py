"""Which batches of one stream may be worked on at the same time.

Two batches that share an id must take effect in their order, so the later one waits until the
earlier is done; batches with different ids need not know of one another.
"""

from collections.abc import Iterable


class BatchOrder:
    """The batches of one stream that are not done yet, by number."""

    def __init__(self) -> None:
        self._ids: dict[int, frozenset[str]] = {}
        # The newest batch of each id. To wait for it is enough: it waits for those before it.
        self._newest: dict[str, int] = {}
        self._waits_for: dict[int, set[int]] = {}
        self._awaited_by: dict[int, list[int]] = {}

    def arrive(self, batch: int, ids: Iterable[str]) -> bool:
        """Enters a batch; whether it may start now. If not, a `done` will name it.

        Numbers rise in the order of the stream; one that does not is a ValueError.
        """
        if self._ids and batch <= next(reversed(self._ids)):
            raise ValueError(f"batch {batch} arrives after batch {next(reversed(self._ids))}")
        own = self._ids[batch] = frozenset(ids)
        before = {self._newest[record_id] for record_id in own if record_id in self._newest}
        self._newest.update(dict.fromkeys(own, batch))
        for other in before:
            self._awaited_by.setdefault(other, []).append(batch)
        if before:
            self._waits_for[batch] = before
        return not before

    def done(self, batch: int) -> list[int]:
        """Takes a batch out that had started; the batches that may start now, in their order."""
        if batch in self._waits_for:
            raise ValueError(f"batch {batch} is done before it may start")
        for record_id in self._ids.pop(batch):
            if self._newest[record_id] == batch:
                del self._newest[record_id]
        free = []
        for other in self._awaited_by.pop(batch, ()):
            self._waits_for[other].discard(batch)
            if not self._waits_for[other]:
                del self._waits_for[other]
                free.append(other)
        return free
