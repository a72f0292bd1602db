"""What the collection must hold: the last acknowledged content of every record.

A cell's records have one owner, who has at most one write under way in a cell. So at each moment it
is known what each of them holds, but for the ids of the write under way and for those of a write
whose outcome is unknown; nobody writes the latter again until a read has told. Readers are many:
each opens a Watch, which collects all that a record may have held while the read was running.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tests.elastic.corpus import Corpus, Scalar, Vectors


@dataclass(frozen=True, slots=True)
class Content:
    """What a record holds. `vector` is the token of its embedding."""

    vector: int
    document: str | None
    metadata: Mapping[str, Scalar]

    @property
    def token(self) -> int:
        """The token of the last write that set one."""
        return int(self.metadata["token"])


@dataclass(frozen=True, slots=True)
class Given:
    """What a write gives for a record; None is a part that it leaves out, or a key it deletes."""

    vector: int | None
    document: str | None
    metadata: Mapping[str, Scalar | None]


class Verb(StrEnum):
    """The writes by id."""

    ADD = "add"
    UPSERT = "upsert"
    UPDATE = "update"
    DELETE = "delete"


def after(verb: Verb, now: Content | None, given: Given | None) -> Content | None:
    """What a record holds after a write, by Chroma's rules."""
    if verb is Verb.DELETE:
        return None
    assert given is not None
    if (now is None and verb is Verb.UPDATE) or (now is not None and verb is Verb.ADD):
        return now
    before: Mapping[str, Scalar] = {} if now is None else now.metadata
    merged = {**before, **given.metadata}
    document = given.document
    vector = given.vector
    if now is not None:
        document = now.document if document is None else document
        vector = now.vector if vector is None else vector
    assert vector is not None, "a new record has an embedding"
    return Content(vector, document, {key: v for key, v in merged.items() if v is not None})


@dataclass(slots=True)
class Entry:
    """One id: what it holds (None: nothing), and what an unknown outcome may have made of it."""

    now: Content | None = None
    maybe: list[Content | None] = field(default_factory=list)


class Watch:
    """What each id of a cell may have held while a read was running; ids not named held nothing."""

    def __init__(self, cell: "Cell") -> None:
        self._cell = cell
        self.possible: dict[str, list[Content | None]] = {
            record_id: [entry.now, *entry.maybe] for record_id, entry in cell.entries.items()
        }
        for record_id, new in cell.writing.items():
            self.may(record_id, new)

    def may(self, record_id: str, content: Content | None) -> None:
        """A write that would make the record hold this began."""
        known = self.possible.setdefault(record_id, [None])
        if content not in known:
            known.append(content)

    def of(self, record_id: str) -> list[Content | None]:
        """What the record may have held."""
        return self.possible.get(record_id, [None])

    @property
    def certain(self) -> bool:
        """Whether only one answer is right."""
        return all(len(contents) == 1 for contents in self.possible.values())

    def close(self) -> None:
        """The read has ended."""
        self._cell.watches.discard(self)


class Cell:
    """The records that one filter chooses."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries: dict[str, Entry] = {}
        self.order: dict[str, None] = {}
        """The ids of the records that exist, in insertion order."""
        self.writing: dict[str, Content | None] = {}
        self.stuck = False
        """A write by condition has an unknown outcome: it may hit what would be written yet."""
        self.watches: set[Watch] = set()
        self.changes = 0
        """Counts the beginnings and ends of writes."""

    @property
    def busy(self) -> bool:
        """Whether no write may begin now."""
        return self.stuck or bool(self.writing)

    @property
    def uncertain(self) -> bool:
        """Whether outcomes are unknown."""
        return self.stuck or any(entry.maybe for entry in self.entries.values())

    def holding(self) -> dict[str, Content]:
        """The records that exist, in insertion order; those of unknown outcome as they were."""
        found = {}
        for record_id in self.order:
            now = self.entries[record_id].now
            assert now is not None
            found[record_id] = now
        return found

    def writable(self, record_id: str) -> bool:
        """Whether nothing about the id is unknown."""
        entry = self.entries.get(record_id)
        return entry is None or not entry.maybe

    def watch(self) -> Watch:
        """A read begins."""
        watch = Watch(self)
        self.watches.add(watch)
        return watch

    def begin(self, new: Mapping[str, Content | None]) -> None:
        """A write begins that makes the ids hold this."""
        assert not self.busy
        assert all(self.writable(record_id) for record_id in new)
        self.changes += 1
        self.writing = dict(new)
        for watch in self.watches:
            for record_id, content in new.items():
                watch.may(record_id, content)

    def acknowledged(self) -> None:
        """The write under way is done."""
        for record_id, content in self.writing.items():
            self._set(record_id, content)
        self._end()

    def unknown(self, *, by_condition: bool) -> None:
        """The write under way may have been done, or may be done yet, in whole or in part."""
        for record_id, content in self.writing.items():
            entry = self.entries.setdefault(record_id, Entry())
            if content != entry.now:
                entry.maybe.append(content)
        self.stuck = self.stuck or by_condition
        self._end()

    def saw(self, record_id: str, content: Content | None) -> None:
        """A read has seen the effect of a write of unknown outcome: now it is known."""
        entry = self.entries.get(record_id)
        if entry is not None and content in entry.maybe and content != entry.now:
            entry.maybe.clear()
            self._set(record_id, content)

    def _set(self, record_id: str, content: Content | None) -> None:
        entry = self.entries.setdefault(record_id, Entry())
        if content is None:
            self.order.pop(record_id, None)
        else:
            self.order.setdefault(record_id)
        entry.now = content

    def _end(self) -> None:
        self.writing = {}
        self.changes += 1


class Model:
    """All cells, and the tokens that make each write distinct."""

    def __init__(self, corpus: Corpus) -> None:
        self.vectors: Vectors = corpus.vectors
        self.cells: dict[str, Cell] = {}
        self._cell_of: dict[str, Cell] = {}
        self._tokens = itertools.count(len(corpus.seeds))
        self._ids = itertools.count()
        for token in corpus.load_order():
            seed = corpus.seeds[token]
            cell = self.cells.setdefault(seed.cell, Cell(seed.cell))
            cell.entries[seed.id] = Entry(Content(token, seed.document, seed.metadata))
            cell.order[seed.id] = None
            self._cell_of[seed.id] = cell

    def token(self) -> int:
        """A new token."""
        return next(self._tokens)

    def new_id(self, cell: Cell) -> str:
        """An id that never was, of the cell."""
        record_id = f"new-{next(self._ids)}"
        self._cell_of[record_id] = cell
        return record_id

    def cell_of(self, record_id: str) -> Cell | None:
        """The cell of an id; None for an id that the model does not know."""
        return self._cell_of.get(record_id)

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Every id that ever was."""
        for cell in self.cells.values():
            yield from cell.entries.items()

    def counts(self) -> tuple[int, int]:
        """The least and the most records that there can be now."""
        least = most = 0
        for contents in self._contents():
            least += None not in contents
            most += any(content is not None for content in contents)
        return least, most

    def _contents(self) -> Iterable[list[Content | None]]:
        for cell in self.cells.values():
            for record_id, entry in cell.entries.items():
                yield [entry.now, *entry.maybe, *_beginning(cell.writing, record_id)]
            yield from ([None, c] for i, c in cell.writing.items() if i not in cell.entries)


def _beginning(writing: Mapping[str, Content | None], record_id: str) -> list[Content | None]:
    return [writing[record_id]] if record_id in writing else []
