"""The router's settings: typed, frozen, checked once at start.

They come, strongest first, from flags, from the environment (CHROMA_ROUTER_ and the name in
capitals) and from one TOML file. A key that does not exist is refused, with its name.
"""

import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from chroma_router.wire.errors import InvalidRequest

_PREFIX = "CHROMA_ROUTER_"
_NODE_PREFIX = "CHROMA_ROUTER_NODE_"
_OTHERS = {"CHROMA_ROUTER_ADDR", "CHROMA_ROUTER_CONFIG"}
"""Variables of the command line that are no settings of the router."""


class RouterSettings(BaseSettings):
    """What an operator may set of a router."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid")

    listen: str = Field("127.0.0.1:50051", description="Where gRPC is served, HOST:PORT.")
    catalog: Path = Field(Path("catalog.sqlite3"), description="The catalog's SQLite file.")
    allow_reset: bool = Field(False, description="Whether clients may delete everything.")
    default_placement_shards: int = Field(
        0,
        ge=0,
        le=100_000,
        description="On how many shards a collection is placed whose maker does not say; 0: all.",
    )
    auto_spread_at: int = Field(
        0,
        ge=0,
        description="At how many records a collection that is placed on one shard is spread over "
        "all, without anyone asking; 0: never.",
    )
    queue_operations: int = Field(
        4096, ge=1, le=1_000_000, description="Most operations that wait for one shard."
    )
    queue_bytes: int = Field(
        64 << 20, ge=1 << 20, le=16 << 30, description="Most bytes that wait for one shard."
    )
    request_bytes: int = Field(
        256 << 20,
        ge=64 << 20,
        le=16 << 30,
        description="Most bytes of requests that are worked on at once.",
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
    supervisor: str = Field(
        "",
        pattern="^(unix:.+)?$",
        description="Where the `chroma-router up` listens whose router this is, unix:PATH, given "
        "by it; empty: there is none.",
    )


def load_settings(file: Path | None, flags: dict[str, Any]) -> RouterSettings:
    """Settings from flags (None: not given), environment and file.

    Raises InvalidRequest that names every wrong key and the mend.
    """
    _check_environment()
    given = {name: value for name, value in flags.items() if value is not None}
    if file is not None:
        _check_readable(file)

    class Sources(RouterSettings):
        """Settings of this call's file as well."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            weakest = (TomlConfigSettingsSource(settings_cls, file),) if file else ()
            return (init_settings, env_settings, *weakest)

    try:
        return RouterSettings.model_construct(**Sources(**given).model_dump())
    except ValidationError as error:
        raise InvalidRequest(_problems(error, file, given)) from None


def _problems(error: ValidationError, file: Path | None, given: dict[str, Any]) -> str:
    """Every wrong setting with where it came from."""
    problems = []
    for problem in error.errors():
        name = ".".join(map(str, problem["loc"])) or "settings"
        if name in given:
            source = f"--{name.replace('_', '-')}"
        elif f"{_PREFIX}{name.upper()}" in os.environ:
            source = f"{_PREFIX}{name.upper()}"
        else:
            source = str(file)
        problems.append(f"{name}: {problem['msg']} (got {problem['input']!r} from {source})")
    known = ", ".join(sorted(RouterSettings.model_fields))
    return f"wrong settings: {'; '.join(problems)}; known keys: {known}"


def _check_environment() -> None:
    """Refuses variables that look like settings and are none: a typing error would go unseen."""
    known = {f"{_PREFIX}{name.upper()}" for name in RouterSettings.model_fields}
    wrong = sorted(
        name
        for name in os.environ
        if name.startswith(_PREFIX)
        and name not in known | _OTHERS
        and not name.startswith(_NODE_PREFIX)
    )
    if wrong:
        raise InvalidRequest(
            f"unknown settings in the environment: {', '.join(wrong)}; known are "
            f"{', '.join(sorted(known))}"
        )


def _check_readable(file: Path) -> None:
    """Raises InvalidRequest for a file that cannot be read or is not TOML."""
    try:
        tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InvalidRequest(f"settings file {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"settings file {file} is not TOML: {error}") from None
