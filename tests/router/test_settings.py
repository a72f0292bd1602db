"""Settings: who wins, what is refused and how it is named."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from chroma_router.wire.errors import InvalidRequest
from router.settings import RouterSettings, load_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "router.toml"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RouterSettings.model_fields:
        monkeypatch.delenv(f"CHROMA_ROUTER_{name.upper()}", raising=False)


def test_without_anything_the_defaults_hold() -> None:
    assert load_settings(None, {}) == RouterSettings()
    assert load_settings(None, {"listen": None}).listen == "127.0.0.1:50051"


@pytest.mark.parametrize(
    ("in_file", "in_environment", "flag", "expected"),
    [
        ("1:1", None, None, "1:1"),
        ("1:1", "2:2", None, "2:2"),
        ("1:1", "2:2", "3:3", "3:3"),
        ("1:1", None, "3:3", "3:3"),
        (None, "2:2", None, "2:2"),
        (None, "2:2", "3:3", "3:3"),
        # Stronger also where it says what the default says.
        ("1:1", "127.0.0.1:50051", None, "127.0.0.1:50051"),
        ("1:1", "2:2", "127.0.0.1:50051", "127.0.0.1:50051"),
    ],
)
def test_flags_before_environment_before_file(
    file: Path,
    in_file: str | None,
    in_environment: str | None,
    flag: str | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file.write_text("queue_operations = 7\n" + (f'listen = "{in_file}"\n' if in_file else ""))
    if in_environment:
        monkeypatch.setenv("CHROMA_ROUTER_LISTEN", in_environment)
    settings = load_settings(file, {"listen": flag})
    assert settings.listen == expected
    assert settings.queue_operations == 7, "each key by itself"


def test_values_are_typed_and_frozen(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMA_ROUTER_ALLOW_RESET", "true")
    monkeypatch.setenv("CHROMA_ROUTER_QUEUE_BYTES", str(1 << 20))
    file.write_text('catalog = "there/catalog.db"')
    settings = load_settings(file, {})
    assert settings.allow_reset is True
    assert settings.queue_bytes == 1 << 20
    assert settings.catalog == Path("there/catalog.db")
    with pytest.raises(ValidationError, match="frozen"):
        settings.listen = "1:1"  # type: ignore[misc]


def test_an_unknown_key_is_named_with_its_file_and_the_known_ones(file: Path) -> None:
    file.write_text("queue_operatons = 5")
    with pytest.raises(InvalidRequest) as refused:
        load_settings(file, {})
    text = refused.value.message
    assert "queue_operatons" in text
    assert str(file) in text
    assert "known keys: " in text
    assert all(name in text for name in RouterSettings.model_fields)


def test_several_problems_are_named_at_once(file: Path) -> None:
    file.write_text('colour = "red"\nqueue_bytes = 5\n[nested]\nkey = 1')
    with pytest.raises(InvalidRequest) as refused:
        load_settings(file, {"queue_operations": 0, "listen": "1:1"})
    for key in ("colour", "queue_bytes", "nested", "queue_operations"):
        assert f"{key}: " in refused.value.message
    assert "listen: " not in refused.value.message


def test_a_wrong_value_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMA_ROUTER_QUEUE_OPERATIONS", "many")
    with pytest.raises(InvalidRequest, match=r"queue_operations: .*'many'"):
        load_settings(None, {})


def test_problems_of_all_sources_are_named_at_once(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHROMA_ROUTER_QUEUE_OPERATIONS", "many")
    file.write_text("queue_bytes = 5")
    with pytest.raises(InvalidRequest) as refused:
        load_settings(file, {"target_apply_seconds": -1})
    for key in ("queue_operations", "queue_bytes", "target_apply_seconds"):
        assert f"{key}: " in refused.value.message


def test_a_flag_wins_over_a_wrong_value_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHROMA_ROUTER_QUEUE_OPERATIONS", "many")
    assert load_settings(None, {"queue_operations": 5}).queue_operations == 5


@pytest.mark.parametrize("content", [b"listen = ", b"\xff\xfe", b"= 1"])
def test_a_file_that_is_not_toml(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(InvalidRequest, match="is not TOML") as refused:
        load_settings(file, {})
    assert str(file) in refused.value.message


def test_a_file_that_cannot_be_read(file: Path) -> None:
    with pytest.raises(InvalidRequest, match="No such file") as refused:
        load_settings(file, {})
    assert str(file) in refused.value.message


@pytest.mark.parametrize(
    "flags", [{"auto_spread_at": -1}, {"supervisor": "127.0.0.1:1"}, {"supervisor": "unix:"}]
)
def test_what_scaling_out_is_given_is_checked(flags: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(flags))):
        load_settings(None, flags)
