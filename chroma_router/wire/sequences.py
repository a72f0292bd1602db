"""The bound of a record's sequence, the same for routers and nodes."""

MAX_SEQUENCE = 1 << 62
"""The microseconds since 1970 reach it after 146,000 years; SQLite keeps twice as much."""
