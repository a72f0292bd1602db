"""Judges answers by the model: what was lost, doubled, resurrected, stale, or simply wrong."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from tests.elastic.corpus import Matrix, Vectors
from tests.elastic.model import Content, Watch

RELATIVE = 1e-5
"""Embeddings of cosine collections do not come back bit-exactly."""

DISTANCE = 2e-5
"""Distances are sums in float32; closer ones are taken for equal."""


class Fault(StrEnum):
    """What can be wrong."""

    ERROR = "error"
    """A client was told of a failure that it must not see."""
    LOST = "lost"
    """A record that exists did not come."""
    DOUBLED = "doubled"
    """A record came twice in one answer."""
    RESURRECTED = "resurrected"
    """A record came that does not exist."""
    STALE = "stale"
    """A record came with what it held before an acknowledged write."""
    WRONG = "wrong"
    """A record came with what it never held."""
    MISMATCH = "mismatch"
    """A query answered other than brute force does."""
    COUNT = "count"
    """A count or the number of deleted records was wrong."""
    ORDER = "order"
    """What several clients saw of a record is not linearizable."""


@dataclass(frozen=True, slots=True)
class Row:
    """A record as an answer has it. `embedding` and `distance` where they were asked for."""

    id: str
    document: str | None
    metadata: Mapping[str, Any]
    embedding: Matrix | None = None
    distance: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    fault: Fault
    text: str


def same(content: Content, row: Row, vectors: Vectors) -> bool:
    """Whether the row is of a record that holds this."""
    if row.document != content.document or row.metadata != content.metadata:
        return False
    if row.embedding is None:
        return True
    return bool(np.allclose(row.embedding, vectors.of(content.vector), RELATIVE, 1e-6))


def judge(
    watch: Watch, rows: Sequence[Row], vectors: Vectors, asked: Iterable[str] | None = None
) -> list[Finding]:
    """What is wrong with the answer to a read of the whole cell or, `asked`, of these ids. What is
    right settles unknown outcomes: see `settled`."""
    findings = [*_doubled(rows)]
    for row in rows:
        findings += judge_row(row, watch.of(row.id), vectors)
    came = {row.id for row in rows}
    for record_id in watch.possible if asked is None else asked:
        contents = watch.of(record_id)
        if record_id not in came and None not in contents:
            findings.append(Finding(Fault.LOST, f"{record_id} did not come; {_told(contents)}"))
    return findings


def judge_row(row: Row, possible: Sequence[Content | None], vectors: Vectors) -> list[Finding]:
    """What is wrong with one record of an answer."""
    contents = [content for content in possible if content is not None]
    if any(same(content, row, vectors) for content in contents):
        return []
    text = f"{row.id} came as {row.document!r}, {dict(row.metadata)}; {_told(possible)}"
    if not contents:
        return [Finding(Fault.RESURRECTED, text)]
    token = row.metadata.get("token")
    older = isinstance(token, int) and token < min(content.token for content in contents)
    return [Finding(Fault.STALE if older else Fault.WRONG, text)]


def _doubled(rows: Sequence[Row]) -> list[Finding]:
    return [
        Finding(Fault.DOUBLED, f"{record_id} came {times} times")
        for record_id, times in Counter(row.id for row in rows).items()
        if times > 1
    ]


def _told(contents: Sequence[Content | None]) -> str:
    words = [
        "it does not exist" if c is None else f"it holds {c.document!r}, {dict(c.metadata)}"
        for c in contents
    ]
    return " or ".join(words)


def judge_query(
    watch: Watch, rows: Sequence[Row], query: Matrix, n_results: int, vectors: Vectors
) -> list[Finding]:
    """What is wrong with the answer to a query of the whole cell."""
    findings = [*_doubled(rows)]
    for row in rows:
        findings += judge_row(row, watch.of(row.id), vectors)
    if findings:
        return findings
    if not watch.certain:
        if len(rows) < min(n_results, sum(None not in c for c in watch.possible.values())):
            findings.append(Finding(Fault.MISMATCH, f"only {len(rows)} hits of {n_results}"))
        return findings
    return _judge_distances(watch, rows, query, n_results, vectors)


def _judge_distances(
    watch: Watch, rows: Sequence[Row], query: Matrix, n_results: int, vectors: Vectors
) -> list[Finding]:
    """Against brute force: the distances of the best, and that each is its record's own."""
    held = {
        record_id: contents[0]
        for record_id, contents in watch.possible.items()
        if contents[0] is not None
    }
    if not held:
        return []
    matrix = vectors.all_of([content.vector for content in held.values()])
    exact = dict(zip(held, 1.0 - matrix @ query, strict=True))
    best = np.sort(np.fromiter(exact.values(), np.float32))[:n_results]
    told = np.array([row.distance for row in rows], np.float32)
    if len(told) != len(best):
        missing = sorted(set(exact) - {row.id for row in rows}, key=exact.__getitem__)
        text = f"{len(told)} hits, by brute force {len(best)}; the nearest without: {missing[:3]}"
        return [Finding(Fault.MISMATCH, text)]
    if not np.allclose(told, best, 0, DISTANCE):
        return [Finding(Fault.MISMATCH, f"distances {told.tolist()}, exact {best.tolist()}")]
    own = np.array([exact[row.id] for row in rows], np.float32)
    if not np.allclose(told, own, 0, DISTANCE):
        return [Finding(Fault.MISMATCH, f"distances {told.tolist()}, their own {own.tolist()}")]
    return []
