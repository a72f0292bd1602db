"""One side of the comparison: chromadb's own client of something, and what an operation gave."""

import contextlib
import copy
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
from chromadb.api import AdminAPI, ClientAPI
from chromadb.api.models.Collection import Collection
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings
from chromadb.config import Settings
from chromadb.utils.embedding_functions import register_embedding_function

import chroma_router
from chroma_router.wire.placement import PLACEMENT_KEY
from shard_node.state import SCHEMA
from tests.model.operations import DATABASES, NAMED_KINDS, RECORD_KINDS, Operation
from tests.model.values import DIMENSION

_COLUMNS = ("ids", "documents", "metadatas", "uris", "embeddings", "distances", "data", "included")


@register_embedding_function
class Letters(EmbeddingFunction[Documents]):
    """Embeds a text by its first letters, so that documents can be written without embeddings."""

    def __init__(self) -> None:
        pass

    def __call__(self, input: Documents) -> Embeddings:
        """See EmbeddingFunction."""
        padded = [text.ljust(DIMENSION)[:DIMENSION] for text in input]
        return [np.array([ord(c) % 8 - 2.5 for c in text], np.float32) for text in padded]

    @staticmethod
    def name() -> str:
        """See EmbeddingFunction."""
        return "letters"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "Letters":
        """See EmbeddingFunction."""
        return Letters()

    def get_config(self) -> dict[str, Any]:
        """See EmbeddingFunction."""
        return {}


_LETTERS: Any = Letters()  # Any: chromadb's signatures want one that embeds images too


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an operation gave: a value in plain Python, or an exception."""

    value: Any = None
    error: Exception | None = None

    def __str__(self) -> str:
        if self.error is None:
            return repr(self.value)
        return f"{error_class(self.error)}: {self.error}"


def error_class(error: Exception) -> str:
    """The name of the exception's class; of chroma_router's, that of chromadb's it stands for."""
    foreign = (k for k in type(error).__mro__ if not k.__module__.startswith("chroma_router"))
    return next(foreign).__name__


class World:
    """A store behind chromadb's client. Keeps the clients and the Collection objects it has got."""

    def __init__(
        self, connect: Callable[[str], ClientAPI], admin: AdminAPI, *, one_shard: bool = False
    ) -> None:
        self._connect, self._admin, self._one_shard = connect, admin, one_shard
        self._clients: dict[str, ClientAPI] = {}
        self._kept: dict[tuple[str, str], Collection] = {}

    def perform(self, operation: Operation) -> Outcome:
        """Does it, and says what came of it."""
        try:
            return Outcome(self._perform(operation))
        except Exception as error:
            return Outcome(error=error)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Chroma's Rust code
                raise
            return Outcome(error=RuntimeError(f"panic: {error}"))

    def reset(self) -> None:
        """Deletes everything, so that two worlds begin alike."""
        self._client(DATABASES[0]).reset()
        self._clients.clear()
        self._kept.clear()

    def collection(self, operation: Operation) -> Collection:
        """The collection that an operation is about: as it is now, or as it was got earlier."""
        key = operation.database, operation.collection
        if operation.kept and key in self._kept:
            return self._kept[key]
        got = self._client(operation.database).get_collection(
            operation.collection, embedding_function=_LETTERS
        )
        self._kept.setdefault(key, got)
        return got

    def _client(self, database: str) -> ClientAPI:
        if database not in self._clients:
            self._clients[database] = self._connect(database)
        return self._clients[database]

    def _perform(self, operation: Operation) -> Any:
        # A copy: chromadb enters the embedding function into the configuration that it is given.
        kind, arguments = operation.kind, copy.deepcopy(operation.arguments)
        if kind in RECORD_KINDS:
            collection = self.collection(operation)
            result = getattr(collection, kind)(**arguments)
            return _described(collection) if kind == "modify" else _plain(result)
        if kind in NAMED_KINDS:
            return self._named(operation, arguments)
        if kind.endswith("_collections"):
            return _plain(getattr(self._client(operation.database), kind)(**arguments))
        return _plain(getattr(self._admin, kind)(**arguments))

    def _named(self, operation: Operation, arguments: dict[str, Any]) -> Any:
        client = self._client(operation.database)
        if operation.kind == "delete_collection":
            return client.delete_collection(operation.collection)
        if self._one_shard and "create" in operation.kind and arguments.get("metadata") != {}:
            arguments["metadata"] = {**(arguments.get("metadata") or {}), PLACEMENT_KEY: 1}
        call: Callable[..., Collection] = getattr(client, operation.kind)
        got = call(operation.collection, embedding_function=_LETTERS, **arguments)
        self._kept[operation.database, operation.collection] = got
        return _described(got)


def _described(collection: Collection) -> dict[str, Any]:
    """All of a collection but its id, which is random, and what World adds to place it."""
    model = collection._model
    metadata: Any = collection.metadata
    if metadata and PLACEMENT_KEY in metadata:
        metadata = {k: v for k, v in metadata.items() if k != PLACEMENT_KEY} or None
    return {
        "name": collection.name,
        "metadata": metadata,
        "configuration": model.configuration_json,
        "dimension": model.dimension,
        "tenant": collection.tenant,
        "database": collection.database,
    }


def _plain(result: Any) -> Any:
    """A result without objects that only one of the two worlds has."""
    if isinstance(result, Collection):
        return _described(result)
    if isinstance(result, list | tuple):
        return [_plain(item) for item in result]
    if isinstance(result, dict) and "included" in result:
        return {column: result.get(column) for column in _COLUMNS}
    if isinstance(result, dict) and {"id", "name", "tenant"} <= set(result):
        return {key: value for key, value in result.items() if key != "id"}
    return result


@contextlib.contextmanager
def one_chroma(directory: Path) -> Iterator[World]:
    """Chroma itself, in this process, mended in one place: it leaves the metadata arrays of deleted
    collections behind and gives them to other records. The node's trigger is put into it too; else
    the reference would show, by chance of its row ids, what no record was ever given."""

    def connect(database: str) -> ClientAPI:
        # A reset makes the tables anew, and a connection follows each reset.
        client = chromadb.Client(settings, database=database)
        with contextlib.closing(sqlite3.connect(directory / "chroma.sqlite3", timeout=30)) as link:
            made = link.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (trigger,))
            if made.fetchone() is None:
                link.execute(SCHEMA[trigger])
        return client

    trigger = "router_array_delete"
    settings = Settings(
        is_persistent=True,
        persist_directory=str(directory),
        allow_reset=True,
        anonymized_telemetry=False,
    )
    with contextlib.ExitStack() as held:
        # One client holds the System for as long as the world lives.
        held.callback(_close, chromadb.Client(settings))
        yield World(connect, chromadb.AdminClient(settings))


@contextlib.contextmanager
def cluster_at(host: str, port: int, *, one_shard: bool = False) -> Iterator[World]:
    """A running cluster, through chroma_router's client. `one_shard`: each collection on one."""
    settings = Settings(allow_reset=True)

    def connect(database: str) -> ClientAPI:
        return chroma_router.Client(host, port, database=database, settings=settings)

    with contextlib.ExitStack() as held:
        held.callback(_close, connect(DATABASES[0]))
        admin = chroma_router.AdminClient(host, port, settings=settings)
        yield World(connect, admin, one_shard=one_shard)


def _close(client: Any) -> None:
    client.close()
