"""Haystack: a ChromaDocumentStore that talks to the cluster.

chroma-haystack has no parameter for a client: it makes one of chromadb's when it is first used, in
`_ensure_initialized`. That is the one method to override; all others go through the collection that
it leaves behind. It is not a promised extension point: chroma-haystack 5.0.0 is what this was tried
with. (Pipelines that run asynchronously need `_ensure_initialized_async` in the same manner.)
"""

from typing import Any

from haystack import Document, Pipeline
from haystack.document_stores.types import DuplicatePolicy
from haystack_integrations.components.retrievers.chroma import ChromaEmbeddingRetriever
from haystack_integrations.document_stores.chroma import ChromaDocumentStore

import chroma_router
from shared import HOST, PASSAGES, PORT, QUESTION, check, embed


class RouterDocumentStore(ChromaDocumentStore):
    """A ChromaDocumentStore whose `host` and `port` are a router's."""

    def _ensure_initialized(self) -> None:
        if self._collection is None:
            self._client = chroma_router.Client(host=self._host, port=self._port)
            space: dict[str, Any] = {"hnsw:space": self._distance_function}
            self._collection = self._client.get_or_create_collection(
                self._collection_name,
                metadata=space | (self._metadata or {}),
                embedding_function=self._embedding_func,
            )


def main() -> None:
    """Writes passages, retrieves with a filter in a pipeline, prints what was found."""
    store = RouterDocumentStore(
        "example_haystack", host=HOST, port=PORT, distance_function="cosine"
    )
    passages = [
        Document(id=name, content=text, meta=meta, embedding=embed(text))
        for name, text, meta in PASSAGES
    ]
    store.write_documents(passages, policy=DuplicatePolicy.OVERWRITE)
    pipeline = Pipeline()
    pipeline.add_component("retriever", ChromaEmbeddingRetriever(store, top_k=1))
    recent = {"field": "meta.year", "operator": ">=", "value": 2020}
    asked = {"query_embedding": embed(QUESTION), "filters": recent}
    found = pipeline.run({"retriever": asked})["retriever"]["documents"]
    for document in found:
        print(f"{document.score:.3f}  {document.id}: {document.content}")
    ids = [document.id for document in found]
    check(ids == ["dawn"], f"expected 'dawn', got {ids}")
    check(store.count_documents() == len(PASSAGES), f"{store.count_documents()} are stored")
    store.delete_all_documents()


if __name__ == "__main__":
    main()
