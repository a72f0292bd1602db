"""Chroma's own tests, as its wheel ships them, against a cluster: `python -m tests.conformance`."""
