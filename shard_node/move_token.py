"""The highest token of a mover that this shard has seen: what an older mover still says is refused.

The one owner of that number, in memory and in the state. It knows nothing of moves.
"""

from concurrent.futures import Executor

from chroma_router.wire.errors import InvalidRequest, Reason, Stale
from shard_node.state import MAX_INTEGER, State
from shard_node.state_thread import in_writer

_KEY = "move_token"


class MoveToken:
    """The token of one shard; `highest` is durable."""

    def __init__(self, state: State, writer: Executor, highest: int) -> None:
        self._state, self._writer = state, writer
        self._highest = highest

    @classmethod
    async def load(cls, state: State, writer: Executor) -> "MoveToken":
        """As the state has it; 0 if no mover has spoken to this shard yet."""
        stored = await in_writer(writer, state.meta, _KEY)
        return cls(state, writer, int(stored or 0))

    @property
    def highest(self) -> int:
        """The highest token that was admitted; 0: none yet."""
        return self._highest

    async def admit(self, token: int) -> None:
        """In a turn of the single writer, before anything that the token's mover asks for.

        A token that is higher than all before is durable when this returns, so that the lower ones
        are refused for good. Raises Stale (STALE_TOKEN) for a lower one, with "highest" in the
        metadata, and InvalidRequest for one that no catalog gives.
        """
        check_token(token)
        self.refuse_lower(token)
        if token > self._highest:
            await in_writer(self._writer, self._state.put_meta, _KEY, str(token))
            self._highest = token

    def refuse_lower(self, token: int) -> None:
        """Raises Stale (STALE_TOKEN) for a token below the highest."""
        if token < self._highest:
            raise Stale(
                f"token {token} is of a mover that another one has replaced, with token"
                f" {self._highest}",
                Reason.STALE_TOKEN,
                metadata={"highest": str(self._highest)},
            )


def check_token(token: int) -> None:
    """Raises InvalidRequest for a number that is no token."""
    if not 1 <= token <= MAX_INTEGER:
        raise InvalidRequest(f"a token is 1 to {MAX_INTEGER}, got {token}")
