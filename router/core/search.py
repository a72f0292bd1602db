"""Searches as values: their messages are parsed, checked and bounded before any shard is asked.

A refusal names the place in the request, such as `searches[0].rank.sum.parts[1].knn.limit`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import NoReturn

from chroma_router.v1 import records_pb2, types_pb2
from chroma_router.wire.errors import InvalidRequest, Unsupported
from router.core.group_by import SCORE_KEY, GroupBy
from router.core.id_conditions import with_ids_lifted
from router.core.limits import Limits
from router.core.rank import (
    Applied,
    Constant,
    Expression,
    Fold,
    Folding,
    Function,
    Knn,
    Pair,
    Pairing,
    knn_parts,
)
from router.core.validate import check_embeddings, check_filter

DEFAULT_KNN_LIMIT = 16
"""Candidates of a nearest-neighbour part that does not say how many; as in Chroma."""

_PARTS = {
    "#document": types_pb2.INCLUDE_DOCUMENTS,
    "#embedding": types_pb2.INCLUDE_EMBEDDINGS,
    "#metadata": types_pb2.INCLUDE_METADATAS,
}
_RESERVED = "#"
_FOLDINGS = frozenset(map(str, Folding))
_PAIRINGS = frozenset(map(str, Pairing))


@dataclass(frozen=True, slots=True)
class Selection:
    """What of each hit is sent besides its id."""

    include: frozenset[types_pb2.Include]
    """The parts that the shards must send."""
    keys: frozenset[str] | None
    """The metadata keys to send; None: all that is included."""
    score: bool


@dataclass(frozen=True, slots=True)
class Search:
    """One search that was found good."""

    filter: types_pb2.Filter
    """Without conditions on "#id"."""
    rank: Expression | None
    """None: insertion order."""
    limit: int | None
    offset: int
    selection: Selection
    group_by: GroupBy | None

    @property
    def knns(self) -> list[Knn]:
        """The nearest-neighbour parts of its rank."""
        return [] if self.rank is None else knn_parts(self.rank)


def check_searches(messages: Sequence[records_pb2.Search], limits: Limits) -> tuple[Search, ...]:
    """The searches of a request as values; all their embeddings have one dimension.

    Raises InvalidRequest, and Unsupported for a condition on ids that the shards cannot be told.
    """
    if not 1 <= len(messages) <= limits.max_searches:
        _refuse("searches", f"{len(messages)} given; send 1 to {limits.max_searches}")
    parser = _Parser(limits)
    searches = tuple(
        parser.search(message, f"searches[{index}]") for index, message in enumerate(messages)
    )
    depth = sum(knn.limit for search in searches for knn in search.knns)
    if depth > limits.max_search_candidates:
        _refuse(
            "searches",
            f"the limits of their knn parts add up to {depth}, at most "
            f"{limits.max_search_candidates} are allowed; lower them or send several requests",
        )
    if parser.embeddings:
        check_embeddings(parser.embeddings, limits, parser.embedding_places)
    return searches


class _Parser:
    """Parses the searches of one request, and collects their embeddings on the way."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._nodes = 0
        self.embeddings: list[bytes] = []
        self.embedding_places: list[str] = []

    def search(self, message: records_pb2.Search, place: str) -> Search:
        """One search."""
        with _within(f"{place}.filter"):
            check_filter(message.filter, self._limits)
            chosen = with_ids_lifted(message.filter)
        rank = None
        if message.HasField("rank"):
            self._nodes = 0
            rank = self._rank(message.rank, f"{place}.rank", 1)
        limit = message.limit if message.HasField("limit") else None
        if limit is not None and limit > self._limits.max_results:
            _refuse(f"{place}.limit", f"{limit}, at most {self._limits.max_results} are allowed")
        group_by = None
        if message.HasField("group_by"):
            if rank is None:
                _refuse(f"{place}.group_by", "it needs a rank; give one, or leave it out")
            group_by = self._group_by(message.group_by, f"{place}.group_by")
        selection = self._selection(message.select, f"{place}.select")
        return Search(chosen, rank, limit, message.offset, selection, group_by)

    def _rank(self, message: records_pb2.Rank, place: str, depth: int) -> Expression:
        """Recursive: the nesting is bounded here, and before by protobuf."""
        self._nodes += 1
        if depth > self._limits.max_rank_nesting:
            _refuse(
                _shortened(place),
                f"more than {self._limits.max_rank_nesting} expressions inside one another; "
                "give sum, product, maximum and minimum many parts instead of nesting them",
            )
        if self._nodes > self._limits.max_rank_nodes:
            _refuse(
                _shortened(place),
                f"more than {self._limits.max_rank_nodes} expressions in one search; use fewer",
            )
        kind = message.WhichOneof("expression")
        if kind is None:
            _refuse(place, "no expression is set; set one of Rank's fields")
        place = f"{place}.{kind}"
        if kind == "knn":
            return self._knn(message.knn, place)
        if kind == "value":
            return Constant(_finite(message.value, place))
        if kind in _FOLDINGS:
            parts: Sequence[records_pb2.Rank] = getattr(message, kind).parts
            if not parts:
                _refuse(f"{place}.parts", "none given; send at least one")
            folded = (
                self._rank(part, f"{place}.parts[{index}]", depth + 1)
                for index, part in enumerate(parts)
            )
            return Fold(Folding(kind), tuple(folded))
        if kind in _PAIRINGS:
            pair: records_pb2.RankPair = getattr(message, kind)
            left = self._rank(pair.left, f"{place}.left", depth + 1)
            return Pair(Pairing(kind), left, self._rank(pair.right, f"{place}.right", depth + 1))
        return Applied(Function(kind), self._rank(getattr(message, kind), place, depth + 1))

    def _knn(self, message: records_pb2.KnnRank, place: str) -> Knn:
        limit = message.limit if message.HasField("limit") else DEFAULT_KNN_LIMIT
        if not 1 <= limit <= self._limits.max_results:
            _refuse(f"{place}.limit", f"{limit}; ask for 1 to {self._limits.max_results}")
        default = None
        if message.HasField("default_value"):
            default = _finite(message.default_value, f"{place}.default_value")
        self.embeddings.append(message.embedding)
        self.embedding_places.append(f"{place}.embedding")
        return Knn(message.embedding, limit, default, message.return_rank)

    def _group_by(self, message: records_pb2.GroupBy, place: str) -> GroupBy:
        for name, keys in (("keys", message.keys), ("order_by", message.order_by)):
            self._check_keys(keys, f"{place}.{name}")
            if not keys:
                _refuse(f"{place}.{name}", "none given; send at least one")
            for key in keys:
                if key.startswith(_RESERVED) and not (name == "order_by" and key == SCORE_KEY):
                    others = f' or "{SCORE_KEY}"' if name == "order_by" else ""
                    _refuse(f"{place}.{name}", f"{key!r} is not a metadata key{others}")
        if message.keep < 1:
            _refuse(f"{place}.keep", "0; keep at least 1 of each group")
        return GroupBy(tuple(message.keys), tuple(message.order_by), message.keep, message.largest)

    def _selection(self, select: Sequence[str], place: str) -> Selection:
        self._check_keys(select, place)
        include = {_PARTS[key] for key in select if key in _PARTS}
        keys = frozenset(key for key in select if not key.startswith(_RESERVED))
        for key in select:
            # "#id" is good and changes nothing: ids are always sent.
            if key.startswith(_RESERVED) and key not in (*_PARTS, SCORE_KEY, "#id"):
                _refuse(
                    place,
                    f"{key!r} is unknown; use {', '.join(_PARTS)}, {SCORE_KEY}, or a metadata key",
                )
        whole = types_pb2.INCLUDE_METADATAS in include or not keys
        if keys:
            include.add(types_pb2.INCLUDE_METADATAS)
        return Selection(frozenset(include), None if whole else keys, SCORE_KEY in select)

    def _check_keys(self, keys: Sequence[str], place: str) -> None:
        if len(keys) > self._limits.max_search_keys:
            _refuse(place, f"{len(keys)} keys, at most {self._limits.max_search_keys} are allowed")
        if not all(keys):
            _refuse(place, "a key is empty; name it")


@contextmanager
def _within(place: str) -> Iterator[None]:
    """Puts the place before the message of a refusal."""
    try:
        yield
    except (InvalidRequest, Unsupported) as error:
        raise type(error)(f"{place}: {error.message}", error.reason) from None


def _finite(value: float, place: str) -> float:
    if not isfinite(value):
        _refuse(place, f"{value} is not a finite float32; send a finite number")
    return value


def _shortened(place: str) -> str:
    """The beginning of a place that may be very long: an error travels in headers."""
    return place if len(place) <= 200 else f"{place[:200]}..."


def _refuse(place: str, what: str) -> NoReturn:
    raise InvalidRequest(f"{place}: {what}")
