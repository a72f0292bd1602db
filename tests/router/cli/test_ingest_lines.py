"""Lines of JSONL to records: what is good, what is bad and why, how they are batched."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chroma_router.wire.records import record_from_bytes
from router.cli.command import Failed
from router.cli.ingest_input import MAX_LINE_BYTES, LineFile
from router.cli.ingest_lines import (
    Batch,
    BatchRules,
    batches,
    load_embeddings,
)
from router.embedding import lexical


def read(path: Path, text: str | bytes, rules: BatchRules | None = None) -> list[Batch]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    file = LineFile(path)
    try:
        return list(batches(file, rules or BatchRules(100)))
    finally:
        file.close()


def line(**values: Any) -> str:
    return json.dumps({"id": "a", "embedding": [1, 2.5], **values}) + "\n"


def reason(path: Path, text: str | bytes, rules: BatchRules | None = None) -> str:
    (batch,) = read(path, text, rules)
    assert batch.lines == []
    (bad,) = batch.bad
    assert bad.number == 1
    return bad.reason


def test_a_line_becomes_a_record(tmp_path: Path) -> None:
    metadata = {"n": 2**63 - 1, "x": 0.5, "b": True, "s": "é", "l": ["p", "q"]}
    text = line(document="words", metadata=metadata, uri="file:///x")
    (batch,) = read(tmp_path / "f", text)
    record = record_from_bytes(batch.lines[0].record)
    assert record.id == batch.lines[0].id == "a"
    assert record.embedding == np.array([1, 2.5], dtype="<f4").tobytes()
    assert (record.document, record.uri, record.metadata) == ("words", "file:///x", metadata)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("end", ["\n", ""])
def test_lines_are_batched_in_order_and_counted(tmp_path: Path, compressed: bool, end: str) -> None:
    text = ("".join(line(id=f"i{n}") for n in range(25)).rstrip("\n") + end).encode()
    path = tmp_path / "f"
    found = read(path, gzip.compress(text) if compressed else text, BatchRules(10))
    assert [len(batch.lines) for batch in found] == [10, 10, 5]
    assert [row.number for batch in found for row in batch.lines] == list(range(1, 26))
    assert found[-1].position == path.stat().st_size
    file = LineFile(path)
    assert file.count() == 25
    assert len(list(file)) == 25
    file.close()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ("\n", "empty"),
        ("[1]", "not a JSON object"),
        ('{"document": "x"}', "no id"),
        (line(id=""), "not empty"),
        (line(id=7), "must be a text"),
        (line(document=7), "document must be a text"),
        (line(metadata=[]), "metadata must be an object"),
        (line(metadata={"k": {}}), "'k' has type dict"),
        (line(metadata={"k": 2**63}), "out of range"),
        (line(metadata={"#k": 1}), "cannot start with"),
        (line(metadata={"k": [1, "x"]}), "mixes"),
        ('{"id": "a", "embedding": [NaN]}', "no JSON number"),
        (line(embedding=[]), "list of numbers"),
        (line(embedding=["1"]), "list of numbers"),
        (line(embedding=[[1.0]]), "list of numbers"),
        (line(embedding=[1e300]), "NaN or Infinity"),
        (line(embedding=[10**400]), "no 32-bit float"),
        (line(embedding=None), "--embedder lexical"),
        (line(text="x"), "unknown key 'text'"),
        (line(id="x" * 70_000), "at most 65536"),
    ],
)
def test_a_bad_line_says_why(tmp_path: Path, text: str | bytes, why: str) -> None:
    assert why in reason(tmp_path / "f", text)


def test_a_line_without_end_is_bad_and_the_next_one_good(tmp_path: Path) -> None:
    text = b'"' + b"x" * (2 * MAX_LINE_BYTES) + b'"\n' + line().encode()
    bad, good = read(tmp_path / "f", text, BatchRules(1))
    assert "longer than" in bad.bad[0].reason
    assert len(bad.bad[0].text) <= MAX_LINE_BYTES + 1
    assert [row.number for row in good.lines] == [2]


def test_an_id_twice_in_a_batch_names_both_lines(tmp_path: Path) -> None:
    (batch,) = read(tmp_path / "f", line() + line(id="b") + line())
    assert [row.number for row in batch.lines] == [1, 2]
    assert (batch.bad[0].number, "in line 1" in batch.bad[0].reason) == (3, True)
    assert len(read(tmp_path / "f", line() + line(), BatchRules(1))) == 2


def test_bad_lines_keep_the_order_of_the_file(tmp_path: Path) -> None:
    (batch,) = read(tmp_path / "f", line(metadata={"": 1}) + "{\n" + line(id="c"))
    assert [bad.number for bad in batch.bad] == [1, 2]
    assert [row.number for row in batch.lines] == [3]


def test_an_embedder_fills_in_what_lines_lack(tmp_path: Path) -> None:
    text = line(embedding=None, document="some words") + line(id="b", embedding=[1.0])
    (batch,) = read(tmp_path / "f", text, BatchRules(10, embedder=lexical))
    made, given = (record_from_bytes(row.record).embedding for row in batch.lines)
    assert made == lexical(["some words"])[0].tobytes()
    assert given == np.array([1], dtype="<f4").tobytes()
    why = reason(tmp_path / "f", line(embedding=None), BatchRules(10, embedder=lexical))
    assert "no document" in why


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ">f4"])
def test_row_i_belongs_to_line_i_also_past_a_bad_one(tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "e.npy", np.arange(6, dtype=kind).reshape(3, 2))
    rules = BatchRules(10, embeddings=load_embeddings(tmp_path / "e.npy", 3))
    (batch,) = read(tmp_path / "f", line() + "bad\n" + line(id="c"), rules)
    found = [record_from_bytes(row.record).embedding or b"" for row in batch.lines]
    assert [np.frombuffer(row, "<f4").tolist() for row in found] == [[0, 1], [4, 5]]


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros((2, 4), "f4"), "2 rows but the file has 3 lines"),
        (np.zeros(3, "f4"), "must be a matrix"),
        (np.zeros((3, 4), "i4"), "must be a matrix of floats"),
        (np.zeros((3, 0), "f4"), "dimension 0"),
    ],
)
def test_embeddings_of_another_shape_are_refused(
    tmp_path: Path, array: np.ndarray[Any, Any], why: str
) -> None:
    np.save(tmp_path / "e.npy", array)
    with pytest.raises(Failed, match=why):
        load_embeddings(tmp_path / "e.npy", 3)


def test_what_is_no_npy_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.npy").write_text("nothing of the kind")
    with pytest.raises(Failed, match=r"not a \.npy file"):
        load_embeddings(tmp_path / "e.npy", 3)


def test_a_truncated_gzip_file_is_named(tmp_path: Path) -> None:
    whole = gzip.compress("".join(line(id=str(n)) for n in range(1000)).encode())
    with pytest.raises(Failed, match="cannot be read to its end"):
        read(tmp_path / "f", whole[: len(whole) // 2])
