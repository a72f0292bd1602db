"""The bounds of what one request may ask for. The numbers are those of the contract's comments."""

from dataclasses import dataclass, fields

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds, each inclusive. Raises ValueError for one below 1."""

    max_batch_records: int = 5_461
    """Records in one write: what Chroma's engine takes, from SQLite's limit on variables."""
    max_id_bytes: int = 65_536
    max_dimension: int = 65_535
    max_request_id_bytes: int = 128
    max_filter_ids: int = 100_000
    max_delete_limit: int = 100_000
    """The `limit` of a delete: as many ids as a node takes in one operation."""
    max_where_bytes: int = 1 * MIB
    """Bytes of each of `where` and `where_document`."""
    max_where_nesting: int = 127
    """JSON objects and arrays inside one another; the engine's JSON parser refuses the 128th."""
    max_query_embeddings: int = 1_000
    max_results: int = 100_000
    """Hits for each query embedding."""
    max_query_hits: int = 200_000
    """Hits for all embeddings of one query."""
    max_searches: int = 100
    max_rank_nesting: int = 40
    """Expressions inside one another; each is two messages deep, of the 100 that protobuf reads."""
    max_rank_nodes: int = 1_000
    """Expressions in one search."""
    max_search_candidates: int = 200_000
    """The sum of the limits of all nearest-neighbour parts of one request."""
    max_search_keys: int = 100
    """Keys in each list of them: what is selected, by what is grouped and ordered."""
    max_page_records: int = 5_000
    max_page_bytes: int = 8 * MIB
    max_shard_get_records: int = 1_000_000
    """Rows that a router asks of a shard at once."""

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value < 1:
                raise ValueError(f"{limit.name} must be at least 1, got {value}")
