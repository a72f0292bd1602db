"""The generated messages and stubs of the contract in proto/chroma_router/v1."""
