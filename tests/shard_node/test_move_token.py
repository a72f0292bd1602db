"""The highest token of a mover: lower ones are refused, for good."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chroma_router.wire.errors import InvalidRequest, Reason, Stale, Unavailable
from shard_node.move_token import MoveToken
from shard_node.state import State, connect
from tests.shard_node.test_state import make


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make(tmp_path / "chroma.sqlite3")
    return tmp_path / "chroma.sqlite3"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


@pytest.fixture
def state(path: Path) -> Iterator[State]:
    made = State(path)
    yield made
    made.close()


async def test_the_highest_is_kept_and_lower_ones_are_refused(
    path: Path, state: State, pool: ThreadPoolExecutor
) -> None:
    token = await MoveToken.load(state, pool)
    assert token.highest == 0
    for admitted in (3, 3, 7):
        await token.admit(admitted)
        assert token.highest == admitted
    other = State(path)  # as after a crash: without a close
    again = await MoveToken.load(other, pool)
    for each in (token, again):
        with pytest.raises(Stale) as refused:
            await each.admit(6)
        assert refused.value.reason is Reason.STALE_TOKEN
        assert refused.value.metadata == {"highest": "7"}
        await each.admit(7)
    other.close()


async def test_what_cannot_be_stored_is_not_the_highest(
    path: Path, state: State, pool: ThreadPoolExecutor
) -> None:
    token = MoveToken(state, pool, 2)
    locker = connect(path)
    locker.execute("BEGIN IMMEDIATE")
    state.rows("PRAGMA busy_timeout=1")
    with pytest.raises(Unavailable):
        await token.admit(5)
    assert token.highest == 2
    locker.execute("ROLLBACK")
    locker.close()
    await token.admit(4)
    assert (token.highest, state.meta("move_token")) == (4, "4")


@pytest.mark.parametrize("number", [0, 2**63, 2**64 - 1])
async def test_numbers_that_are_no_tokens(
    state: State, pool: ThreadPoolExecutor, number: int
) -> None:
    token = MoveToken(state, pool, 0)
    with pytest.raises(InvalidRequest):
        await token.admit(number)
    assert token.highest == 0
