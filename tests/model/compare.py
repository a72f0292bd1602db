"""Whether two worlds gave the same answer; and if both searched, whether either searched well.

Compared exactly: ids and their order, documents, metadata with the types of its values and the
sign of its zeros, uris, embeddings, counts, what a collection is, and the class of an exception.
Its text is not compared: the cluster's names the record and the mend, where Chroma's often does
not.

A search is held against a search by hand over the records that match: both must give the nearest
ones, distances to 1e-5, ties as sets. So an index that misses a record is seen on either side, and
neither can hide behind the other.

Known differences, each of them looked for by name below:

  * KNOWN_ERRORS: the class of an exception where Chroma's is an accident of its bindings.
  * `query(include=["uris"])`: Chroma gives the metadata too, though it was not asked for.
  * A configuration that is none, for a name that is taken: the cluster says first that it is taken,
    and `get_or_create` gives the collection; Chroma says first that the configuration is none.
  * A collection in which nothing was ever stored, after a refused first write: Chroma has fixed its
    dimension, the cluster has not; Chroma may be unable to read it ("Nothing found on disk"), the
    cluster says that it is empty.
  * `modify` of a collection that is gone: Chroma takes metadata and says nothing; the cluster says
    that it is gone.
  * A window (limit, offset) of a list of collections: both are in the order of their ids, which are
    random, so only its length is compared.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tests.model.operations import Operation
from tests.model.world import Outcome, World, error_class

TOLERANCE = 1e-5

_CONDITIONS = ("where", "where_document")
_CONTENTS = ("documents", "metadatas", "uris", "embeddings")

_UNREADABLE = "Nothing found on disk"
_BAD_CONFIGURATION = " at line 1 column "

KNOWN_ERRORS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("InternalError", "UniqueConstraintError"): ("already exists", "UNIQUE constraint failed"),
    ("InvalidArgumentError", "UniqueConstraintError"): (_BAD_CONFIGURATION,),
    # Of a database that was deleted under a client that was made before.
    ("InvalidArgumentError", "NotFoundError"): ("Database [",),
    # Of a request that is wrong in itself besides: the cluster judges it first.
    ("NotFoundError", "InvalidArgumentError"): ("does not exist",),
    # Of a change to the configuration of a collection that is gone.
    ("RuntimeError", "NotFoundError"): ("panic: ",),
    ("OverflowError", "InvalidArgumentError"): ("out of range integral type",),
    ("TypeError", "InvalidArgumentError"): ("Cannot convert Python object to MetadataValue",),
    ("UnicodeEncodeError", "InvalidArgumentError"): ("surrogates not allowed",),
}
"""Class in Chroma, class in the cluster: what Chroma's text says then, one of these."""


class Mismatch(AssertionError):
    """The two worlds differ, or one of them is wrong."""


def compare(operation: Operation, one: Outcome, cluster: Outcome, reference: World) -> None:
    """Raises Mismatch unless both outcomes of an operation are right. `reference`: the one Chroma,
    in which the operation has been done."""
    try:
        _compare(operation, one, cluster, reference)
    except Mismatch as mismatch:
        raise Mismatch(
            f"{mismatch}\n  operation: {operation}\n  Chroma:    {one}\n  cluster:   {cluster}"
        ) from None


def _compare(operation: Operation, one: Outcome, cluster: Outcome, reference: World) -> None:
    if operation.kind == "query" and cluster.error is None:
        searched = _Searched(operation, reference)
        if one.error is None:
            searched.check("Chroma", one.value)
            _same("included", one.value["included"], cluster.value["included"])
            _same("columns", _columns(one.value), _columns(cluster.value))
        elif not _is_unreadable(one):
            raise Mismatch("only Chroma refuses")
        searched.check("the cluster", cluster.value)
    elif one.error is not None and cluster.error is not None:
        _same_error(one.error, cluster.error)
    elif operation.kind == "get_or_create_collection" and _BAD_CONFIGURATION in str(one.error):
        pass
    elif _is_unreadable(one) and cluster.error is None:
        _same("an empty collection", [], cluster.value["ids"])
    elif one.error is None and _not_found(cluster) and _is_gone(operation, reference):
        pass
    elif one.error is not None or cluster.error is not None:
        raise Mismatch(f"only {'the cluster' if one.error is None else 'Chroma'} refuses")
    elif operation.kind.startswith("list_"):
        _same_list(operation, one.value, cluster.value)
    else:
        _same(operation.kind, _without_dimension(one.value, cluster.value), cluster.value)


def _without_dimension(one: Any, cluster: Any) -> Any:
    """A collection as Chroma describes it, without a dimension where the cluster has fixed none."""
    unfixed = isinstance(cluster, dict) and cluster.get("dimension", 0) is None
    return {**one, "dimension": None} if unfixed else one


def _is_unreadable(outcome: Outcome) -> bool:
    return _UNREADABLE in str(outcome.error)


def _not_found(outcome: Outcome) -> bool:
    return outcome.error is not None and error_class(outcome.error) == "NotFoundError"


def _is_gone(operation: Operation, reference: World) -> bool:
    """Whether it is a change to a Collection object whose collection has been deleted."""
    if operation.kind != "modify" or not operation.kept:
        return False
    return _not_found(reference.perform(replace(operation, kind="count", arguments={})))


def _columns(answer: Mapping[str, Any]) -> list[str]:
    """The columns that an answer has, of those that were asked for."""
    unasked = set() if "metadatas" in answer["included"] else {"metadatas"}
    return [
        column for column, value in answer.items() if value is not None and column not in unasked
    ]


def _same_error(one: Exception, cluster: Exception) -> None:
    classes = error_class(one), error_class(cluster)
    known = any(text in str(one) for text in KNOWN_ERRORS.get(classes, ()))
    if classes[0] != classes[1] and not known:
        raise Mismatch(f"refused by {classes[0]} and by {classes[1]}")


def _same_list(operation: Operation, one: list[Any], cluster: list[Any]) -> None:
    if operation.arguments:
        _same("length", len(one), len(cluster))
    else:
        one, cluster = (sorted(side, key=lambda item: str(item["name"])) for side in (one, cluster))
        _same("length", len(one), len(cluster))
        for item, counterpart in zip(one, cluster, strict=True):
            _same("list", _without_dimension(item, counterpart), counterpart)


def _same(what: str, one: Any, cluster: Any) -> None:
    if exact(one) != exact(cluster):
        if isinstance(one, dict) and isinstance(cluster, dict):
            keys = [k for k in {*one, *cluster} if exact(one.get(k)) != exact(cluster.get(k))]
            what = f"{what}: {keys}"
        raise Mismatch(f"{what} differs")


def exact(value: Any) -> Any:
    """The value in a form that is equal only for what is equal in type and in every bit."""
    match value:
        case dict():
            return {key: exact(item) for key, item in value.items()}
        case list() | tuple():
            return [exact(item) for item in value]
        case np.ndarray():
            return str(value.dtype), value.shape, [exact(item) for item in value.ravel().tolist()]
        case float():
            return "float", struct.pack("<d", value)
        case _:
            return type(value).__name__, value


class _Searched:
    """What a query had to find: the records that match, by the reference, and their distances."""

    def __init__(self, operation: Operation, reference: World) -> None:
        self._arguments = arguments = operation.arguments
        collection = reference.collection(operation)
        hnsw: Any = collection.configuration_json["hnsw"]
        self._space = hnsw["space"]
        self._records: dict[str, dict[str, Any]] = {}
        ids = arguments.get("ids")
        if ids == []:
            return
        read = Operation(
            "get",
            {
                "include": list(_CONTENTS),
                **{name: arguments[name] for name in _CONDITIONS if name in arguments},
            },
            operation.collection,
            operation.database,
            operation.kept,
        )
        if ids is not None:
            read.arguments["ids"] = list(dict.fromkeys(ids))
        found = reference.perform(read)
        if found.error is not None:
            if not _is_unreadable(found):
                raise Mismatch(f"what matches cannot be read in Chroma: {found}")
            return
        for row, record_id in enumerate(found.value["ids"]):
            self._records[record_id] = {c: found.value[c][row] for c in _CONTENTS}

    def check(self, whose: str, answer: Mapping[str, Any]) -> None:
        """Raises Mismatch unless the answer is that of an exhaustive search."""
        rows = self._arguments["query_embeddings"]
        if len(answer["ids"]) != len(rows):
            raise Mismatch(f"{whose} has {len(answer['ids'])} rows for {len(rows)} embeddings")
        for at, row in enumerate(rows):
            self._check_row(whose, row, {c: v[at] for c, v in answer.items() if _has_rows(c, v)})

    def _check_row(self, whose: str, row: Sequence[float], hits: Mapping[str, Any]) -> None:
        ids = hits["ids"]
        if len(set(ids)) != len(ids):
            raise Mismatch(f"{whose} found a record twice")
        if strange := set(ids) - set(self._records):
            raise Mismatch(f"{whose} found what does not match: {strange}")
        asked = np.array(row, np.float32)
        true = {i: self._distance(asked, r["embeddings"]) for i, r in self._records.items()}
        wanted = sorted(true.values())[: self._arguments.get("n_results", 10)]
        if len(ids) != len(wanted):
            raise Mismatch(f"{whose} found {len(ids)} of {len(wanted)}")
        slack = self._slack(asked)
        # Ties are sets: at each rank the right distance, whichever of the tied records has it.
        for found, best in zip((true[i] for i in ids), wanted, strict=True):
            if abs(found - best) > slack:
                raise Mismatch(f"{whose} gave a hit at {found} where the next nearest is at {best}")
        for record_id, told in zip(ids, hits.get("distances", ()), strict=False):
            if abs(told - true[record_id]) > slack:
                raise Mismatch(f"{whose} says {told}, {record_id!r} is at {true[record_id]}")
        for column in _CONTENTS:
            for record_id, content in zip(ids, hits.get(column, ()), strict=False):
                if exact(content) != exact(self._records[record_id][column]):
                    raise Mismatch(f"{whose} has wrong {column} of {record_id!r}: {content!r}")

    def _distance(self, a: np.ndarray[Any, Any], b: Any) -> float:
        """In 64 bits, but for the norm: of a vector so short that its square is nothing in 32 bits
        the engine takes the norm to be 0, and everything then lies at distance 1 of it."""
        if self._space == "l2":
            return float(((a.astype(float) - b) ** 2).sum())
        dot = float(a.astype(float) @ b)
        if self._space == "ip":
            return 1 - dot
        norms = [float(np.sqrt((np.asarray(v, np.float32) ** 2).sum())) for v in (a, b)]
        return 1.0 if 0.0 in norms else 1 - dot / (norms[0] * norms[1])

    def _slack(self, asked: np.ndarray[Any, Any]) -> float:
        """1e-5, and what 32 bits lose when large products cancel each other."""
        if self._space == "cosine" or not self._records:
            return TOLERANCE
        largest = max(float(np.square(r["embeddings"]).sum()) for r in self._records.values())
        return TOLERANCE + 2e-7 * (largest + float(np.square(asked.astype(float)).sum()))


def _has_rows(column: str, value: Any) -> bool:
    return column != "included" and value is not None
