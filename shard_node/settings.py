"""The node's settings: typed, validated once at start, read from CHROMA_ROUTER_NODE_... ."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MESSAGE_BYTES = 64 << 20  # the largest gRPC message either way; the contract's bounds stay below it


class NodeSettings(BaseSettings):
    """What an operator may choose; the defaults are measured (docs/adr)."""

    model_config = SettingsConfigDict(env_prefix="CHROMA_ROUTER_NODE_", frozen=True, extra="forbid")

    retry_window_seconds: int = Field(900, ge=1)
    queue_operations: int = Field(8192, ge=1)
    queue_bytes: int = Field(128 << 20, ge=1 << 20)
    # 100 rows of 384 dimensions: about 40 ms of an idle machine; queries wait for one at most.
    group_floats: int = Field(100 * 384, ge=1)
    group_rows: int = Field(1000, ge=1, le=5000)
    write_seconds: float = Field(60, gt=0)
    read_seconds: float = Field(120, gt=0)
    open_seconds: float = Field(120, gt=0)
    load_seconds: float = Field(900, gt=0)  # to rebuild an index: 2,000 records/s and more
    reader_threads: int = Field(2, ge=1, le=64)
    reads_waiting: int = Field(1024, ge=1)
    drain_seconds: float = Field(20, ge=0)
    memory_bytes: int = Field(0, ge=0)  # of node and engine; 0: what the system lets them have
    open_files: int = Field(65536, ge=256)
    log_level: str = "INFO"
