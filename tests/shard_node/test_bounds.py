"""Answers and queues of reads have bounds; a refusal at one is told from gRPC's own."""

import signal
from pathlib import Path

import pytest

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import ClusterError, DeadlineExpired, Overloaded, Reason
from tests.shard_node.running import (
    ADD,
    DOCUMENTS,
    METADATAS,
    UPDATE,
    CollectionCalls,
    Row,
    floats,
    running,
)
from tests.shard_node.test_restarts import eventually

pytestmark = pytest.mark.integration


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_an_answer_that_does_not_fit_in_a_message(docs: CollectionCalls) -> None:
    docs.write(ADD, *(Row(f"r{n}", floats(n), "x" * (1 << 20), sequence=n) for n in range(20)))
    queries = [floats(1)] * 4
    with pytest.raises(Overloaded) as refused:
        docs.query(*queries, n=20, include=[DOCUMENTS])
    _is_too_large(refused.value)


def _is_too_large(error: ClusterError) -> None:
    """Not gRPC's own refusal of the message, and nothing that a repeat would mend."""
    assert error.reason is Reason.ANSWER_TOO_LARGE
    assert (error.retry_after, error.metadata) == (None, {"shard": "shard-1"})


def test_an_answer_is_measured_in_bytes_not_characters(docs: CollectionCalls) -> None:
    ids = ["\U0001f600" * 150_000 + str(n) for n in range(60)]  # 600 kB each, 36 MB together
    for at in range(0, 60, 20):
        docs.write(
            ADD, *(Row(i, floats(n), sequence=n) for n, i in enumerate(ids[at : at + 20], at))
        )
    found = docs.page(keys_only=True)
    assert (list(found.ids), found.more) == (ids, False)
    found = docs.page()  # each record has its id once more
    assert (list(found.ids), found.more) == (ids[: len(found.ids)], True)
    with pytest.raises(Overloaded) as refused:
        docs.query(floats(1), n=60)
    _is_too_large(refused.value)


def test_a_record_that_is_larger_than_an_answer(docs: CollectionCalls) -> None:
    half = "x" * (34 << 20)
    docs.write(ADD, Row("a", floats(1), half))
    docs.write(UPDATE, Row("a", metadata={"half": half}))
    with pytest.raises(Overloaded) as refused:
        docs.page(include=[DOCUMENTS, METADATAS])
    _is_too_large(refused.value)
    assert docs.ids() == ["a"]


def test_too_many_waiting_reads_are_refused(data: Path) -> None:
    """The refusal of a read names the shard and says when to come again."""
    with running(data, environment={"CHROMA_ROUTER_NODE_READS_WAITING": "1"}) as node:
        docs = node.collection()
        docs.write(ADD, Row("a", floats(1)))
        node.engine().send_signal(signal.SIGSTOP)
        search = shard_pb2.ShardQueryRequest(
            collection_id=docs.id, epoch=1, embeddings=[floats(1)], n_results=1
        )
        waiting = [node.stub.ShardQuery.future(search, timeout=60) for _ in range(3)]
        refused: list[ClusterError] = []

        def is_refused() -> bool:
            try:
                docs.query(floats(1), seconds=0.3)
            except Overloaded as error:
                refused.append(error)
            except DeadlineExpired:
                pass
            return bool(refused)

        eventually(is_refused)
        assert (refused[0].reason, refused[0].metadata) == (
            Reason.QUEUE_FULL, {"shard": "shard-1"},
        )  # fmt: skip
        assert refused[0].retry_after
        node.engine().send_signal(signal.SIGCONT)
        assert [list(w.result().results[0].ids) for w in waiting] == [["a"]] * 3
