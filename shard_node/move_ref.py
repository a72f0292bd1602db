"""Which move a call is about: a MoveRef of the contract, checked. Pure."""

from dataclasses import dataclass
from uuid import UUID

from chroma_router.v1 import shard_pb2
from chroma_router.wire.errors import InvalidRequest
from chroma_router.wire.slots import SLOT_COUNT, slots_from_bitmap
from shard_node.holdings import Grant, Holding
from shard_node.move_token import check_token


@dataclass(frozen=True, slots=True)
class MoveRef:
    """A move, its collection, the token of its mover and the moving slots."""

    id: str
    collection_id: str
    token: int
    slots: frozenset[int]

    @classmethod
    def of(cls, wire: shard_pb2.MoveRef) -> "MoveRef":
        """Raises InvalidRequest for one that no mover gives."""
        _check_uuid("move_id", wire.move_id)
        _check_uuid("collection_id", wire.collection_id)
        check_token(wire.token)
        try:
            slots = slots_from_bitmap(wire.slots)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
        if not slots:
            raise InvalidRequest("a move has one slot or more")
        return cls(wire.move_id, wire.collection_id, wire.token, slots)

    def records(self, holding: Holding) -> int:
        """How many records the shard has of the moving slots."""
        return sum(holding.counts[slot] for slot in self.slots)

    def as_grant(self) -> Grant:
        """The moving slots as if they were owned, at no epoch."""
        return Grant(0, bytes(slot in self.slots for slot in range(SLOT_COUNT)))


def _check_uuid(field: str, text: str) -> None:
    try:
        canonical = str(UUID(text))
    except ValueError:
        canonical = ""
    if canonical != text:
        raise InvalidRequest(f"{field} {text!r} is not a UUID in its usual text form")
