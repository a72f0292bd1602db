"""The model test: the same operations on a cluster and on one Chroma have equal results."""
