"""chromadb's own AsyncClient over gRPC: a service that answers many questions at the same time."""

import asyncio

import chroma_router
from shared import HOST, PASSAGES, PORT, QUESTION, check, embed


async def main() -> None:
    """Upserts passages, asks several questions at once, prints the answers."""
    client = await chroma_router.AsyncClient(
        host=HOST, port=PORT
    )  # not chromadb.AsyncHttpClient(…)
    passages = await client.get_or_create_collection("example_async", embedding_function=None)
    await passages.upsert(
        ids=[name for name, _, _ in PASSAGES],
        embeddings=[embed(text) for _, text, _ in PASSAGES],
        documents=[text for _, text, _ in PASSAGES],
        metadatas=[metadata for _, _, metadata in PASSAGES],
    )
    questions = [QUESTION, "What does rye bread need?"]
    answers = await asyncio.gather(
        *(
            passages.query(
                query_embeddings=[embed(question)], n_results=1, where={"year": {"$gte": 2020}}
            )
            for question in questions
        )
    )
    for question, answer in zip(questions, answers, strict=True):
        print(f"{question}  {answer['documents'][0][0]}")
    found = [answer["ids"][0] for answer in answers]
    check(found == [["dawn"], ["bread"]], f"expected 'dawn' and 'bread', got {found}")
    await client.delete_collection("example_async")


if __name__ == "__main__":
    asyncio.run(main())
