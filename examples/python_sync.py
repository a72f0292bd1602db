"""chromadb's own Client over gRPC: an application changes the line that makes the client."""

import chroma_router
from shared import HOST, PASSAGES, PORT, QUESTION, check, embed


def main() -> None:
    """Upserts passages, asks a question with a filter, prints the answer."""
    client = chroma_router.Client(host=HOST, port=PORT)  # instead of chromadb.HttpClient(…)
    passages = client.get_or_create_collection(
        "example_sync", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
    )
    passages.upsert(
        ids=[name for name, _, _ in PASSAGES],
        embeddings=[embed(text) for _, text, _ in PASSAGES],
        documents=[text for _, text, _ in PASSAGES],
        metadatas=[metadata for _, _, metadata in PASSAGES],
    )
    answer = passages.query(
        query_embeddings=[embed(QUESTION)],
        n_results=2,
        where={"$and": [{"year": {"$gte": 2020}}, {"topic": "sea"}]},
    )
    for text, distance in zip(answer["documents"][0], answer["distances"][0], strict=True):
        print(f"{distance:.3f}  {text}")
    check(answer["ids"] == [["dawn"]], f"expected only 'dawn', got {answer['ids']}")
    check(passages.count() == len(PASSAGES), f"{passages.count()} passages are stored")
    client.delete_collection("example_sync")


if __name__ == "__main__":
    main()
