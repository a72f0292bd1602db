"""The router's settings: typed, frozen, checked once at start.

They come, strongest first, from flags, from the environment (CHROMA_ROUTER_ and the name in
capitals) and from one TOML file. A key that does not exist is refused, with its name.
"""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from chroma_router.wire.errors import InvalidRequest


class RouterSettings(BaseSettings):
    """What an operator may set of a router."""

    model_config = SettingsConfigDict(env_prefix="CHROMA_ROUTER_", frozen=True, extra="forbid")

    listen: str = Field("127.0.0.1:50051", description="Where gRPC is served, HOST:PORT.")
    catalog: Path = Field(Path("catalog.sqlite3"), description="The catalog's SQLite file.")
    allow_reset: bool = Field(False, description="Whether clients may delete everything.")
    queue_operations: int = Field(
        4096, ge=1, le=1_000_000, description="Most operations that wait for one shard."
    )
    queue_bytes: int = Field(
        64 << 20, ge=1 << 20, le=16 << 30, description="Most bytes that wait for one shard."
    )
    request_timeout_seconds: float = Field(
        60.0, gt=0, le=3600, description="Deadline of a call whose client sets none."
    )
    shutdown_grace_seconds: float = Field(
        20.0, ge=0, le=600, description="How long running calls may go on after SIGTERM."
    )
    target_apply_seconds: float = Field(
        0.05, gt=0.001, le=5, description="How long one group of writes should keep a shard busy."
    )


def load_settings(file: Path | None, flags: dict[str, Any]) -> RouterSettings:
    """Settings from flags (None: not given), environment and file.

    Raises InvalidRequest that names every wrong key and the mend.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        from_file = _read(file) if file else {}
        in_environment = RouterSettings().model_fields_set
        weaker = {k: v for k, v in from_file.items() if k not in in_environment}
        return RouterSettings(**{**weaker, **given})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']} (got {e['input']!r})"
            for e in error.errors()
        )
        known = ", ".join(sorted(RouterSettings.model_fields))
        source = f" in {file}" if file else ""
        raise InvalidRequest(f"wrong settings{source}: {problems}; known keys: {known}") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InvalidRequest(f"settings file {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"settings file {file} is not TOML: {error}") from None
