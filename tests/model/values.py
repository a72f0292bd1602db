"""Values for operations: few enough to collide, nasty enough to find what is lost on the way.

Left out on purpose, since the cluster refuses what Chroma takes to its own harm (the list and its
reasons: router/core/validate.py): NaN and infinities in metadata and in queries, integers beyond
64 bits, the metadata key "chroma:uri", arrays in a collection's metadata.
"""

from typing import Any

from tests.model.picker import Picker, chance, some

DIMENSION = 3
"""Of every collection; a wrong one is given now and then."""

IDS = (
    *(f"r{n}" for n in range(24)),
    " ", "0", "-1", "R1", "$and", "#document", "é", "e\u0301", "\U0001f980", "\0", "a\0b", "'; --",
    "naïve \u202etext", "x" * 60, "\U0010ffff", "line\nbreak",
)  # fmt: skip

BAD_IDS: tuple[Any, ...] = ("", "\ud800", 7, None)

DOCUMENTS = (
    "hello world", "Hello World", "", " ", "a.b*c", "naïve café",
    "the \U0001f980 and the \U0001f99e",
    "NUL\0inside", "tab\tand\nline", "100% _sure_", "quote ' and \"", "hello " * 12, "12345",
)  # fmt: skip

URIS = ("file:///a", "", "https://example.org/é?q=1#f", "nul\0", "\U0001f980")

TEXTS = (
    "hello",
    "wor",
    "HELLO",
    "a.b",
    "\U0001f980",
    "é",
    "%",
    "_",
    "NUL\0in",
    "ab",
    "z",
    "'",
    " ",
)

PATTERNS = ("hel+o", "^naïve", "(?i)hello WORLD", r"\d+", ".*", "b\\*c", "wor(ld|d)", "\U0001f99e$")

BAD_PATTERNS: tuple[Any, ...] = ("(", "[", "", 3, None, "(?=look)")

KEYS = ("a", "n", "é \U0001f511", "with space", "k\0z", "chroma:other", "UPPER", "x" * 40)

BAD_KEYS: tuple[Any, ...] = ("", "#hash", "$dollar", "chroma:document", 5)

INTEGERS = (0, 1, -1, 2, 7, 2**31, 2**53 + 1, 2**63 - 1, -(2**63))

FLOATS = (0.0, -0.0, 1.0, 0.5, -2.25, 5e-324, 1.7976931348623157e308, 0.1, 1e16)

STRINGS = ("", "x", "y", "hello world", "naïve", "\U0001f980", "nul\0", "1", "true")

SCALARS = (*INTEGERS, *FLOATS, *STRINGS, True, False)

ARRAYS: tuple[list[Any], ...] = (
    [1, 2], [1], [2**63 - 1, -(2**63)], [0.5, -0.0], [1.0],
    ["x", "y"], ["", "\U0001f980"], [True, False],
)  # fmt: skip

BAD_METADATA_VALUES: tuple[Any, ...] = (
    [],
    [1, "a"],
    {"nested": 1},
    [None],
    [[1]],
    b"bytes",
    object,
)

NUMBERS = (0.0, 1.0, -1.0, 0.5, 2.0, -0.25, 0.125, 3.0, -0.0, 1e-40, 100.0)
"""Components of embeddings: exact in float32, but for the denormal, so that ties are frequent."""

INCLUDES: tuple[list[str] | None, ...] = (
    None,
    [],
    ["embeddings"],
    ["documents", "metadatas", "embeddings", "uris"],
    ["metadatas"],
    ["uris", "documents"],
)

BAD_INCLUDES: tuple[Any, ...] = (["nonsense"], ["data"], ["distances"], "documents", [3])


def record_ids(pick: Picker, low: int, high: int) -> list[Any]:
    """Ids of one request: now and then with one that is bad or stands twice."""
    ids: list[Any] = some(pick, IDS, low, high)
    if ids and chance(pick, 3):
        ids.append(pick.one_of([ids[0], *BAD_IDS]))
    return ids


def embedding(pick: Picker) -> list[float]:
    """One embedding, now and then of a wrong dimension, or with a number that is none."""
    dimension = DIMENSION if not chance(pick, 1) else pick.one_of([1, 2, 4])
    row = [pick.one_of(NUMBERS) for _ in range(dimension)]
    if chance(pick, 1):
        row[0] = pick.one_of([float("nan"), float("inf"), 1e39])
    return row


def query_embedding(pick: Picker) -> list[float]:
    """One embedding to search with; finite, as is said above."""
    dimension = DIMENSION if not chance(pick, 3) else pick.one_of([1, 2, 4])
    return [pick.one_of(NUMBERS) for _ in range(dimension)]


def metadata(pick: Picker, *, absent: bool) -> dict[Any, Any] | None:
    """A record's metadata. `absent`: a value may be None, which deletes its key."""
    if chance(pick, 15):
        return None
    made: dict[Any, Any] = {
        key: metadata_value(pick, absent=absent) for key in some(pick, KEYS, 1, 4)
    }
    if chance(pick, 1):
        made[pick.one_of(BAD_KEYS)] = 1
    return made if not chance(pick, 1) else {}


def metadata_value(pick: Picker, *, absent: bool) -> Any:
    """A value of a record's metadata."""
    kind = pick.integer(0, 99)
    if kind < 70:
        return pick.one_of(SCALARS)
    if kind < 90:
        return list(pick.one_of(ARRAYS))
    if kind < 99 and absent:
        return None
    return pick.one_of(BAD_METADATA_VALUES) if kind == 99 else pick.one_of(INTEGERS)


def collection_metadata(pick: Picker) -> dict[str, Any] | None:
    """A collection's metadata. Adding 0.0 leaves out -0.0: Chroma's SQLite file loses its sign."""
    if chance(pick, 30):
        return None
    scalars = [v + 0.0 if isinstance(v, float) else v for v in SCALARS]
    made: dict[str, Any] = {key: pick.one_of(scalars) for key in some(pick, KEYS, 1, 3)}
    bad: list[dict[str, Any]] = [{}, {"": 1}, {"a": {"b": 1}}]
    return made if not chance(pick, 4) else pick.one_of(bad)


def where(pick: Picker, depth: int = 2) -> dict[Any, Any]:
    """A condition on metadata, with every operator; now and then a bad one."""
    if depth and chance(pick, 30):
        joined = [where(pick, depth - 1) for _ in range(pick.integer(2, 3))]
        return {pick.one_of(["$and", "$or"]): joined if not chance(pick, 3) else joined[:1]}
    if chance(pick, 4):
        return pick.one_of(BAD_WHERES)
    key = pick.one_of(KEYS)
    if chance(pick, 10):
        return document_condition(pick, key="#document")
    operator = pick.one_of(
        [
            "",
            "$eq",
            "$ne",
            "$gt",
            "$gte",
            "$lt",
            "$lte",
            "$in",
            "$nin",
            "$contains",
            "$not_contains",
        ]
    )
    if not operator:
        return {key: pick.one_of(SCALARS)}
    if operator in {"$gt", "$gte", "$lt", "$lte"}:
        return {key: {operator: pick.one_of((*INTEGERS, *FLOATS))}}
    if operator in {"$in", "$nin"}:
        pool: tuple[Any, ...] = pick.one_of([INTEGERS, FLOATS, STRINGS, (True, False)])
        return {key: {operator: some(pick, pool, 1, min(3, len(pool)))}}
    return {key: {operator: pick.one_of(SCALARS)}}


BAD_WHERES: tuple[dict[Any, Any], ...] = (
    {},
    {"a": {"$like": "x"}},
    {"a": {"$gt": "text"}},
    {"a": {"$in": []}},
    {"a": {"$in": [1, "x"]}},
    {"a": {"$eq": None}},
    {"a": 1, "n": 2},
    {"$and": []},
    {"$not": [{"a": 1}]},
    {"a": {"$eq": 1, "$ne": 2}},
    {"a": {"$contains": [1]}},
    {"": 1},
    {5: 1},
)


def document_condition(pick: Picker, key: str | None = None) -> dict[Any, Any]:
    """One condition on the document, as `where_document` or under a key of `where`."""
    operator = pick.one_of(["$contains", "$not_contains", "$regex", "$not_regex"])
    texts = TEXTS if operator in {"$contains", "$not_contains"} else PATTERNS
    operand = pick.one_of(texts)
    if chance(pick, 4):
        operand = pick.one_of(BAD_PATTERNS)
    condition = {operator: operand}
    return condition if key is None else {key: condition}


def where_document(pick: Picker, depth: int = 1) -> dict[Any, Any]:
    """A condition on the document."""
    if depth and chance(pick, 30):
        joined = [where_document(pick, depth - 1) for _ in range(pick.integer(2, 3))]
        return {pick.one_of(["$and", "$or"]): joined}
    return document_condition(pick)


def include(pick: Picker, *, query: bool) -> Any:
    """What to include; None leaves the argument out."""
    if chance(pick, 3):
        bad = pick.one_of(BAD_INCLUDES)
        return ["distances"] if query and bad == ["distances"] else bad
    chosen = pick.one_of(INCLUDES)
    return [*chosen, "distances"] if query and chosen and chance(pick, 80) else chosen
