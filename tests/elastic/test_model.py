"""The model and the judge of answers: what is right passes, each fault is called by its name."""

from dataclasses import replace

import numpy as np
import pytest

from tests.elastic.answers import Fault, Row, judge, judge_query
from tests.elastic.corpus import CELL_RECORDS, generated
from tests.elastic.model import Cell, Content, Given, Model, Verb, after

OLD = Content(1, "old", {"cell": "c", "token": 1, "kept": 2})


@pytest.fixture
def model() -> Model:
    """Some cells."""
    return Model(generated(4 * CELL_RECORDS, seed=1))


@pytest.fixture
def cell(model: Model) -> Cell:
    """One of them."""
    return model.cells["cell-1"]


def row_of(model: Model, record_id: str, content: Content) -> Row:
    """How a record comes that holds this."""
    embedding = model.vectors.of(content.vector)
    return Row(record_id, content.document, dict(content.metadata), embedding)


def rows_of(model: Model, cell: Cell) -> list[Row]:
    """A right answer."""
    return [row_of(model, *item) for item in cell.holding().items()]


def test_writes_follow_chroma_s_rules() -> None:
    given = Given(None, None, {"token": 5, "kept": None, "more": "x"})
    merged = Content(1, "old", {"cell": "c", "token": 5, "more": "x"})
    assert after(Verb.UPDATE, OLD, given) == merged
    assert after(Verb.UPSERT, OLD, replace(given, vector=5)) == replace(merged, vector=5)
    assert after(Verb.UPDATE, None, given) is None
    assert after(Verb.ADD, OLD, replace(given, vector=5)) == OLD
    assert after(Verb.ADD, None, replace(given, vector=5)) == Content(
        5, None, {"token": 5, "more": "x"}
    )
    assert after(Verb.DELETE, OLD, None) is None


def test_a_right_answer_is_right(model: Model, cell: Cell) -> None:
    rows = rows_of(model, cell)
    assert len(rows) == CELL_RECORDS
    watch = cell.watch()
    assert watch.certain
    assert judge(watch, rows, model.vectors) == []
    assert judge(watch, rows[:3], model.vectors, asked=[row.id for row in rows[:3]]) == []


def test_each_fault_has_its_name(model: Model, cell: Cell) -> None:
    rows = rows_of(model, cell)
    record_id, before = next(iter(cell.holding().items()))
    new = replace(before, document="new", metadata={**before.metadata, "token": model.token()})
    cell.begin({record_id: new, rows[1].id: None})
    cell.acknowledged()
    stale, gone, *rest = rows
    fresh = row_of(model, record_id, new)
    watch = cell.watch()

    def faults(answer: list[Row]) -> list[Fault]:
        return [finding.fault for finding in judge(watch, answer, model.vectors)]

    assert faults([fresh, *rest]) == []
    assert faults([stale, *rest]) == [Fault.STALE]
    assert faults([fresh, gone, *rest]) == [Fault.RESURRECTED]
    assert faults([fresh, *rest, rest[0]]) == [Fault.DOUBLED]
    assert faults([fresh, *rest[1:]]) == [Fault.LOST]
    assert faults([replace(fresh, document="never"), *rest]) == [Fault.WRONG]
    assert faults([replace(fresh, embedding=model.vectors.of(9)), *rest]) == [Fault.WRONG]


def test_a_read_beside_a_write_may_see_either(model: Model, cell: Cell) -> None:
    rows = rows_of(model, cell)
    before = cell.watch()
    record_id = rows[0].id
    cell.begin({record_id: None, "new": OLD})
    during = cell.watch()
    cell.acknowledged()
    later = cell.watch()
    new = row_of(model, "new", OLD)
    for watch in (before, during):
        assert not watch.certain
        assert judge(watch, rows, model.vectors) == []
        assert judge(watch, [*rows[1:], new], model.vectors) == []
        watch.close()
    assert later.certain
    assert [f.fault for f in judge(later, rows, model.vectors)] == [Fault.RESURRECTED, Fault.LOST]
    assert cell.watches == {later}


def test_an_unknown_outcome_is_settled_by_who_sees_it(model: Model, cell: Cell) -> None:
    rows = rows_of(model, cell)
    record_id, seen = rows[0].id, replace(OLD, vector=3)
    least, most = model.counts()
    assert least == most
    cell.begin({record_id: None, "new": seen})
    cell.unknown(by_condition=False)
    assert model.counts() == (least - 1, most + 1)
    assert not cell.writable(record_id)
    watch = cell.watch()
    assert judge(watch, rows, model.vectors) == []
    cell.saw(record_id, cell.entries[record_id].now)
    assert not cell.writable(record_id)  # the delete may come yet
    cell.saw(record_id, None)
    cell.saw("new", seen)
    assert not cell.uncertain
    assert not cell.uncertain
    assert record_id not in cell.holding()
    assert [f.fault for f in judge(cell.watch(), rows, model.vectors)] == [
        Fault.RESURRECTED,
        Fault.LOST,
    ]


def test_an_unknown_write_by_condition_stops_all_writes_of_the_cell(cell: Cell) -> None:
    cell.begin({next(iter(cell.order)): None})
    cell.unknown(by_condition=True)
    assert cell.busy
    assert not cell.writing


def test_queries_are_compared_with_brute_force(model: Model, cell: Cell) -> None:
    query = model.vectors.of(10_000)
    held = cell.holding()
    distances = {i: float(1 - model.vectors.of(c.vector) @ query) for i, c in held.items()}
    order = sorted(held, key=distances.__getitem__)
    rows = [
        replace(row_of(model, i, held[i]), embedding=None, distance=distances[i]) for i in order
    ]

    def faults(answer: list[Row], n_results: int) -> list[Fault]:
        found = judge_query(cell.watch(), answer, query, n_results, model.vectors)
        return [finding.fault for finding in found]

    assert faults(rows, 100) == []
    assert faults(rows[:10], 10) == []
    assert faults(rows[:9], 10) == [Fault.MISMATCH]
    assert faults(rows[1:11], 10) == [Fault.MISMATCH]
    shifted = [replace(row, distance=(row.distance or 0) + 0.001) for row in rows[:10]]
    assert faults(shifted, 10) == [Fault.MISMATCH]
    assert faults([rows[0], *rows[:9]], 10) == [Fault.DOUBLED]
    swapped = [
        replace(rows[1], distance=rows[0].distance),
        replace(rows[0], distance=rows[1].distance),
    ]
    assert faults([*swapped, *rows[2:10]], 10) == [Fault.MISMATCH]


def test_blended_embeddings_are_distinct_and_repeatable(model: Model) -> None:
    tokens = [0, 5, 500, 501, 502]
    matrix = model.vectors.all_of(tokens)
    assert np.allclose(np.linalg.norm(matrix, axis=1), 1, 1e-5)
    assert (matrix @ matrix.T - np.eye(len(tokens)) < 0.999).all()
    assert (model.vectors.of(501) == matrix[3]).all()
