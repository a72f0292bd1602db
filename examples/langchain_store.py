"""LangChain: langchain-chroma's Chroma takes any chromadb client as `client=`, so also ours."""

from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

import chroma_router
from shared import HOST, PASSAGES, PORT, QUESTION, check, embed


class WordCounts(Embeddings):
    """The offline embedding, as LangChain wants it; a real program has OpenAIEmbeddings() here."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector for each text."""
        return [embed(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""
        return embed(text)


def main() -> None:
    """Adds passages, retrieves with a filter, prints what was found."""
    store = Chroma(
        client=chroma_router.Client(host=HOST, port=PORT),
        collection_name="example_langchain",
        collection_configuration={"hnsw": {"space": "cosine"}},
        embedding_function=WordCounts(),
    )
    # LangChain upserts: running the example twice does not double the passages.
    store.add_documents(
        [Document(id=name, page_content=text, metadata=meta) for name, text, meta in PASSAGES]
    )
    retriever = store.as_retriever(search_kwargs={"k": 1, "filter": {"year": {"$gte": 2020}}})
    found = retriever.invoke(QUESTION)
    for document in found:
        print(f"{document.id}: {document.page_content} {document.metadata}")
    ids = [document.id for document in found]
    check(ids == ["dawn"], f"expected 'dawn', got {ids}")
    store.delete_collection()


if __name__ == "__main__":
    main()
