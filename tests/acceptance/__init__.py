"""Acceptance on a real corpus; run by hand with the corpus's path, not by `make test`."""
