"""Tests of a whole cluster: real processes, real Chroma, real kills."""
