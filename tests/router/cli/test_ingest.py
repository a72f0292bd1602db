"""The command `ingest` as a whole, against a router that takes everything: what it says."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from typer.testing import CliRunner

from chroma_router.v1 import catalog_pb2
from router.cli.main import app

NOTE = "every line has an embedding of its own; --embedder was not used"

OWN = {"id": "a", "embedding": [1, 2]}
BARE = {"id": "b", "document": "words"}
BAD: dict[str, Any] = {"id": "c"}


class TakingLink:
    """Stands for a RouterLink to a router that makes the collection and takes every write."""

    upsert_view = "upsert"
    catalog = SimpleNamespace(CreateCollection="create")

    def __init__(self, _address: str) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def call(self, method: str, _request: Any, *_: float) -> Any:
        return catalog_pb2.CreateCollectionResponse(created=True) if method == "create" else None


@pytest.mark.parametrize(
    ("lines", "embedder", "noted"),
    [
        ([OWN], True, True),
        ([OWN], False, False),
        ([OWN, BARE], True, False),
        ([OWN, BAD], True, False),
        ([], True, False),
    ],
    ids=["own", "not asked for", "one is made", "one is bad", "empty"],
)
def test_an_embedder_that_was_not_used_is_noted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: list[dict[str, Any]],
    embedder: bool,
    noted: bool,
) -> None:
    monkeypatch.setattr("router.cli.link.RouterLink", TakingLink)
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ["ingest", str(path), "--collection", "ccc", "--rejects", str(tmp_path / "bad")]
    # One record a batch: the first batch alone does not tell.
    asked += ["--batch", "1", *(["--embedder", "lexical"] if embedder else [])]
    done = CliRunner().invoke(app, asked)
    assert (done.exit_code, NOTE in done.stderr, NOTE in done.stdout) == (0, noted, False)
