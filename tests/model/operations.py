"""The operations of the model test: what they are, and how one is made of choices."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.model import values
from tests.model.picker import Picker, chance

COLLECTIONS = ("docs-l2", "docs-cosine", "docs-ip")
"""Their names; each is made with the space that its name says."""

DATABASES = ("default_database", "second")


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of chromadb's interface. Its repr is the reproduction."""

    kind: str
    arguments: dict[str, Any]
    """By the name of the parameter; one that is not given is left out of the call."""
    collection: str = ""
    database: str = DATABASES[0]
    kept: bool = False
    """On the Collection object that was got earlier, even if the collection is gone since."""


Make = Callable[[Picker], dict[str, Any]]


def _given(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not None."""
    return {name: value for name, value in arguments.items() if value is not None}


def _configuration(pick: Picker, name: str) -> dict[str, Any]:
    """HNSW of the collection's space, wide enough that a search of so few is exhaustive."""
    if chance(pick, 4):
        return pick.one_of([{"hnsw": {"space": "nonsense"}}, {"hnsw": {"ef_search": -1}}])
    return _wide(name, pick.one_of([1000, 50]))


def _wide(name: str, sync_threshold: int) -> dict[str, Any]:
    space = name.partition("-")[2]
    hnsw = {"space": space, "ef_search": 2000, "ef_construction": 400, "max_neighbors": 64}
    return {"hnsw": {**hnsw, "sync_threshold": sync_threshold}}


def _create(pick: Picker, name: str) -> dict[str, Any]:
    return _given(
        configuration=_configuration(pick, name), metadata=values.collection_metadata(pick)
    )


def _modify(pick: Picker) -> dict[str, Any]:
    what = pick.integer(0, 9)
    if what < 5:
        return _given(metadata=values.collection_metadata(pick))
    if what < 8:
        update = pick.one_of([{"ef_search": 1500}, {"ef_search": 0}, {"num_threads": 2}])
        return {"configuration": {"hnsw": update}}
    return {"name": pick.one_of([*COLLECTIONS, "docs-renamed", "x", ""])}


def _batch(pick: Picker, *, need_embeddings: bool, absent: bool) -> dict[str, Any]:
    ids = values.record_ids(pick, 1, 12) if not chance(pick, 2) else []
    count = len(ids)

    def column(percent: int, make: Callable[[], Any]) -> list[Any] | None:
        if not chance(pick, percent):
            return None
        return [make() for _ in range(count if not chance(pick, 1) else count + 1)]

    documents = column(60, lambda: pick.one_of(values.DOCUMENTS))
    if documents and chance(pick, 25):
        documents[0] = None
    # Documents without embeddings are embedded in the client, by the function of world.py.
    embeddings = column(95 if need_embeddings else 40, lambda: values.embedding(pick))
    return _given(
        ids=ids,
        embeddings=embeddings,
        documents=documents,
        metadatas=column(60, lambda: values.metadata(pick, absent=absent)),
        uris=column(25, lambda: pick.one_of(values.URIS)),
    )


def _conditions(pick: Picker, percent: int) -> dict[str, Any]:
    return _given(
        where=values.where(pick) if chance(pick, percent) else None,
        where_document=values.where_document(pick) if chance(pick, percent // 2) else None,
    )


def _delete(pick: Picker) -> dict[str, Any]:
    if chance(pick, 45):
        conditions = _conditions(pick, 90)
        return conditions | _given(
            ids=values.record_ids(pick, 1, 10) if chance(pick, 20) else None,
            limit=pick.one_of([1, 2, 5, 100, 0, -1]) if chance(pick, 60) else None,
        )
    return {"ids": values.record_ids(pick, 0 if chance(pick, 5) else 1, 6)}


def _get(pick: Picker) -> dict[str, Any]:
    return _conditions(pick, 40) | _given(
        ids=values.record_ids(pick, 0 if chance(pick, 5) else 1, 20) if chance(pick, 30) else None,
        limit=pick.one_of([1, 3, 10, 100, 0, -1, 2**40]) if chance(pick, 40) else None,
        offset=pick.one_of([0, 1, 5, 20, 100, -1]) if chance(pick, 40) else None,
        include=values.include(pick, query=False),
    )


def _query(pick: Picker) -> dict[str, Any]:
    rows = [values.query_embedding(pick) for _ in range(pick.integer(1, 3))]
    return _conditions(pick, 30) | _given(
        query_embeddings=rows if not chance(pick, 1) else [],
        ids=values.record_ids(pick, 0 if chance(pick, 5) else 1, 20) if chance(pick, 25) else None,
        n_results=pick.one_of([1, 2, 5, 40, 1000, 0, -1]) if chance(pick, 80) else None,
        include=values.include(pick, query=True),
    )


def _window(pick: Picker) -> dict[str, Any]:
    return _given(
        limit=pick.one_of([1, 2, 100, 0]) if chance(pick, 50) else None,
        offset=pick.one_of([0, 1, 5]) if chance(pick, 50) else None,
    )


RECORD_KINDS: dict[str, Make] = {
    "add": lambda pick: _batch(pick, need_embeddings=True, absent=False),
    "upsert": lambda pick: _batch(pick, need_embeddings=True, absent=True),
    "update": lambda pick: _batch(pick, need_embeddings=False, absent=True),
    "delete": _delete,
    "get": _get,
    "query": _query,
    "count": lambda pick: {},
    "peek": lambda pick: _given(limit=pick.one_of([None, 1, 5, 0, 100])),
    "modify": _modify,
}

NAMED_KINDS: dict[str, Callable[[Picker, str], dict[str, Any]]] = {
    "create_collection": _create,
    "get_or_create_collection": _create,
    "get_collection": lambda pick, name: {},
    "delete_collection": lambda pick, name: {},
}

CATALOG_KINDS: dict[str, Make] = {
    "list_collections": _window,
    "count_collections": lambda pick: {},
    "list_databases": _window,
    "create_database": lambda pick: {"name": pick.one_of([DATABASES[1], "third", "x", ""])},
    "get_database": lambda pick: {"name": pick.one_of([DATABASES[0], DATABASES[1], "nowhere"])},
    "delete_database": lambda pick: {"name": pick.one_of([DATABASES[1], "third", "nowhere"])},
    "create_tenant": lambda pick: {"name": pick.one_of(["other-tenant", "x", "default_tenant"])},
    "get_tenant": lambda pick: {"name": pick.one_of(["other-tenant", "default_tenant", "nobody"])},
}

KINDS = (*RECORD_KINDS, *NAMED_KINDS, *CATALOG_KINDS)

_WEIGHTS: dict[str, int] = {
    "add": 140,
    "upsert": 140,
    "update": 110,
    "delete": 90,
    "get": 190,
    "query": 170,
    "count": 25,
    "peek": 15,
    "modify": 20,
    "create_collection": 15,
    "get_or_create_collection": 45,
    "get_collection": 10,
    "delete_collection": 5,
}

_WEIGHTED = [kind for kind in KINDS for _ in range(_WEIGHTS.get(kind, 4))]


OPENING = (
    Operation("create_database", {"name": DATABASES[1]}),
    *(
        Operation("create_collection", {"configuration": _wide(name, 1000)}, name)
        for name in COLLECTIONS
    ),
    *(
        Operation("add", {"ids": ["r0"], "embeddings": [[1.0] * values.DIMENSION]}, name)
        for name in COLLECTIONS
    ),
)
"""What stands before the first choice, since most operations need a collection, and one that has
its dimension (see compare.py)."""


def operation_of(pick: Picker, kind: str) -> Operation:
    """An operation of a kind."""
    database = DATABASES[1] if chance(pick, 3) else DATABASES[0]
    if kind in CATALOG_KINDS:
        return Operation(kind, CATALOG_KINDS[kind](pick), database=database)
    name = pick.one_of(COLLECTIONS)
    if kind in RECORD_KINDS:
        kept = chance(pick, 20)
        return Operation(kind, RECORD_KINDS[kind](pick), name, database, kept)
    if chance(pick, 3):
        name = pick.one_of(["docs-renamed", "x", "", "a..b", "bad name", "é" * 5, "never-made"])
    return Operation(kind, NAMED_KINDS[kind](pick, name), name, database)


def any_operation(pick: Picker) -> Operation:
    """An operation of any kind, of each as often as its weight says."""
    return operation_of(pick, pick.one_of(_WEIGHTED))
