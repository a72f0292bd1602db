"""Hostile values of every kind of field, and filters and ranks that are hard to swallow."""

import json
import math
import struct

from chroma_router.v1 import records_pb2, types_pb2


def floats(*values: float) -> bytes:
    """An embedding."""
    return struct.pack(f"<{len(values)}f", *values)


DIMENSION = 4
GOOD_EMBEDDING = floats(1, 2, 3, 4)

EMBEDDINGS = [
    GOOD_EMBEDDING,
    b"",
    b"\0",
    GOOD_EMBEDDING[:-1],
    GOOD_EMBEDDING[:-4],
    GOOD_EMBEDDING * 2,
    floats(math.nan, 0, 0, 0),
    floats(math.inf, 0, 0, 0),
    floats(3.4e38, -3.4e38, 3.4e38, 1e-45),
    floats(0, 0, 0, 0),
    b"\0" * 4 * 65_535,
    b"\0" * 4 * 65_536,
]

INTEGERS = [0, 1, 2, 5, 99, 1023, 1_000, 100_000, 10**9, 2**31 - 1, 2**31, 2**32 - 1, 2**53 + 1]
LARGE_INTEGERS = [2**62, 2**63 - 1, 2**63, 2**64 - 1]
NEGATIVE_INTEGERS = [-1, -(2**31), -(2**63)]
FLOATS = [0.0, -0.0, 1.5, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf]

STRINGS = [
    "",
    "a",
    "id-0",
    "id-1",
    "\0",
    "a\0b",
    "é" * 40,
    "👩‍👩‍👧‍👦",
    "\u202e\ufeff\uffff",
    "\r\nx-injected: 1",
    "'; DROP TABLE embeddings; --",
    "../../../etc/passwd",
    "%s%n{0}${x}",
    "null",
    "{}",
    "[" * 10_000,
    "x" * 129,
    "x" * 512,
    "x" * 65_537,
    "chroma:document",
    "#document",
    "$and",
    "hnsw:space",
    "hnsw:sync_threshold",
    "00000000-0000-0000-0000-000000000000",
    "01900000-0000-7000-8000-000000000000",
    "ffffffff-ffff-7fff-bfff-ffffffffffff",
    "0190000000007000800000000000000",
]

_DEEP = 10_000


def _nested(inner: object, depth: int) -> object:
    for _ in range(depth):
        inner = {"$and": [inner, inner if depth < 3 else {"n": 1}]}
    return inner


WHERES = [
    json.dumps({"n": 1}),
    json.dumps({"n": {"$gte": 3}}),
    json.dumps({"$or": [{"n": {"$in": [1, 2]}}, {"t": {"$nin": ["x"]}}]}),
    json.dumps(_nested({"n": 1}, 60)),
    json.dumps(_nested({"n": 1}, 63)),
    json.dumps(_nested({"n": 1}, 100)),
    '{"$and": [' * _DEEP + '{"n": 1}' + "]}" * _DEEP,
    "[" * _DEEP,
    '{"n":' * _DEEP,
    json.dumps({"$and": [{"n": i} for i in range(2_000)]}),
    json.dumps({"n": {"$in": list(range(40_000))}}),
    json.dumps({"t": {"$in": ["x" * 100] * 9_000}}),
    '{"n": 1e999}',
    '{"n": NaN}',
    '{"n": 9223372036854775808}',
    '{"n": ' + "9" * 5_000 + "}",
    '{"n": "\\ud800"}',
    '{"\\u0000": "\\u0000"}',
    '{"n": {"$gt": true}}',
    '{"n": {"$in": [1, "x"]}}',
    '{"n": {"$contains": 1}}',
    '{"": 1}',
    '{"n": null}',
    "{}",
    "null",
    "\0",
    '{"n": 1, "n": 2}',
    '{"#document": {"$contains": "a"}}',
    '{"#document": {"$regex": "("}}',
    '{"#document": {"$regex": "(a+)+$"}}',
    '{"#document": {"$regex": "a{1000}{1000}"}}',
    '{"#document": {"$regex": ""}}',
    '{"$contains": "a"}',
    '{"$not_contains": ""}',
    '{"$regex": "["}',
    '{"$regex": "(?i)DOC.*"}',
    '{"$regex": "(' + "a?" * 500 + '){50}"}',
    '{"$not_regex": "\\\\p{Greek}+"}',
    '{"$and": [{"$contains": "a"}, {"$contains": ""}]}',
    "x" * (1 << 20),
    '{"$contains": "' + "x" * (1 << 20) + '"}',
]

JSONS = [
    "",
    "{}",
    "[]",
    "null",
    "{",
    "[" * _DEEP,
    '{"a":' * _DEEP,
    '{"hnsw": {"space": "cosine"}}',
    '{"hnsw": {"space": "nonsense"}}',
    '{"hnsw": {"space": 1}}',
    '{"hnsw": 1}',
    '{"hnsw": []}',
    '{"hnsw": null}',
    '{"hnsw": {"ef_search": -1}}',
    '{"hnsw": {"ef_search": 99999999999999999999}}',
    '{"hnsw": {"ef_construction": 0, "max_neighbors": 0}}',
    '{"hnsw": {"max_neighbors": 1000000}}',
    '{"hnsw": {"num_threads": 0}}',
    '{"hnsw": {"batch_size": 1, "sync_threshold": 1}}',
    '{"hnsw": {"resize_factor": NaN}}',
    '{"hnsw": {"resize_factor": 1e308}}',
    '{"hnsw": {}, "spann": {}}',
    '{"spann": {"space": "l2"}}',
    '{"embedding_function": 1}',
    '{"embedding_function": {"type": "known", "name": "default", "config": {}}}',
    '{"embedding_function": {"type": "known", "name": "x"}}',
    '{"unknown": {"x": 1}}',
    '{"x": "\\ud800"}',
    '{"x": ' + "9" * 5_000 + "}",
    '{"defaults": {}, "keys": {}}',
    '{"defaults": 1}',
]


def _deep_rank(depth: int) -> bytes:
    """The absolute value of the absolute value … of a distance, as wire bytes."""
    knn = records_pb2.Rank(knn=records_pb2.KnnRank(embedding=GOOD_EMBEDDING))
    data = knn.SerializeToString()
    for _ in range(depth):
        data = b"\x4a" + varint(len(data)) + data
    return data


def _wide_rank(parts: int) -> bytes:
    value = records_pb2.Rank(value=1)
    return records_pb2.Rank(sum=records_pb2.RankList(parts=[value] * parts)).SerializeToString()


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


RANKS = [_deep_rank(0), _deep_rank(20), _deep_rank(45), _deep_rank(98), _deep_rank(10_000)]
RANKS += [_wide_rank(10), _wide_rank(10_000)]


def search_of(rank: bytes, collection: types_pb2.CollectionRef) -> bytes:
    """A SearchRequest with this rank; deeper than a parser of ours would write it."""
    search = b"\x12" + varint(len(rank)) + rank
    head = records_pb2.SearchRequest(collection=collection).SerializeToString()
    return head + b"\x12" + varint(len(search)) + search
