"""LlamaIndex: its ChromaVectorStore takes a chromadb collection, so one from our client."""

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.vector_stores.chroma import ChromaVectorStore

import chroma_router
from shared import HOST, PASSAGES, PORT, QUESTION, check, embed


class WordCounts(BaseEmbedding):
    """The offline embedding, as LlamaIndex wants it; a real program has OpenAIEmbedding() here."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return embed(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return embed(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return embed(query)


def main() -> None:
    """Indexes passages, retrieves with a filter, prints what was found."""
    client = chroma_router.Client(host=HOST, port=PORT)
    collection = client.get_or_create_collection("example_llama_index", embedding_function=None)
    index = VectorStoreIndex(
        nodes=[TextNode(id_=name, text=text, metadata=meta) for name, text, meta in PASSAGES],
        storage_context=StorageContext.from_defaults(
            vector_store=ChromaVectorStore(chroma_collection=collection)
        ),
        embed_model=WordCounts(),
    )
    recent = MetadataFilter(key="year", value=2020, operator=FilterOperator.GTE)
    retriever = index.as_retriever(similarity_top_k=1, filters=MetadataFilters(filters=[recent]))
    found = retriever.retrieve(QUESTION)
    for hit in found:
        print(f"{hit.score:.3f}  {hit.node.node_id}: {hit.node.get_content()}")
    ids = [hit.node.node_id for hit in found]
    check(ids == ["dawn"], f"expected 'dawn', got {ids}")
    check(collection.count() == len(PASSAGES), f"{collection.count()} passages are stored")
    client.delete_collection("example_llama_index")


if __name__ == "__main__":
    main()
