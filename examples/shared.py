"""What the Python examples share: where the router is, a few passages, an offline embedding.

The embedding stands in for a model: it counts words, so that texts with common words are near. In
your own program take it from where you take embeddings now; the cluster only sees the vectors.
"""

import math
import os
import re
import sys
import zlib

HOST, _, _port = os.environ.get("CHROMA_ROUTER_ADDR", "127.0.0.1:50051").rpartition(":")
PORT = int(_port)

DIMENSION = 256

PASSAGES = [
    ("tide", "Boats leave the harbour when the tide is high.", {"year": 2019, "topic": "sea"}),
    ("dawn", "Fishing boats leave the harbour at dawn.", {"year": 2025, "topic": "sea"}),
    ("bread", "Rye bread needs a sour dough and a slow oven.", {"year": 2024, "topic": "kitchen"}),
    ("soup", "A good soup begins with onions and patience.", {"year": 2018, "topic": "kitchen"}),
]
"""Id, text and metadata of each."""

QUESTION = "When do boats leave the harbour?"
"""Nearest to it is "tide", and "dawn" of what was written since 2020."""


def embed(text: str) -> list[float]:
    """A unit vector that counts the words of a text, each in a place that its checksum chooses."""
    counts = [0.0] * DIMENSION
    for word in re.findall(r"\w+", text.lower()):
        counts[zlib.crc32(word.encode()) % DIMENSION] += 1.0
    length = math.sqrt(sum(count * count for count in counts)) or 1.0
    return [count / length for count in counts]


def check(right: bool, what: str) -> None:
    """Ends the example with a message and exit code 1 unless the answer was right."""
    if not right:
        sys.exit(f"wrong answer: {what}")
