"""Wrong usage ends with 2, failure with 1 and one line; --help is light and has an example."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from router.cli.main import app

COMMANDS = [
    ["up"],
    ["serve"],
    ["demo"],
    ["status"],
    ["ingest"],
    ["import"],
    ["export"],
    ["query"],
    ["version"],
    ["healthcheck"],
    ["shards", "list"],
    ["shards", "add"],
    ["shards", "drain"],
    ["shards", "remove"],
    ["rebalance", "plan"],
    ["rebalance", "start"],
    ["rebalance", "status"],
    ["rebalance", "pause"],
    ["rebalance", "resume"],
    ["rebalance", "cancel"],
    ["collections", "list"],
    ["collections", "place"],
    ["catalog", "check"],
    ["catalog", "backup"],
    ["catalog", "rebuild"],
]


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def nobody() -> str:
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return f"127.0.0.1:{port}"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_help_has_an_example(words: list[str]) -> None:
    code, out, _ = run(*words, "--help")
    assert code == 0
    assert "Example" in out
    assert f"chroma-router {' '.join(words)}" in out


@pytest.mark.parametrize("group", ["shards", "rebalance", "collections", "catalog"])
def test_no_command_is_described_by_half_a_sentence(group: str) -> None:
    _, out, _ = run(group, "--help")
    assert "..." not in out.partition("Commands:")[2]


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from router.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'chromadb', 'grpc', 'uvloop', 'structlog'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["up"], "--data"),
        (["up", "--data", "x", "--shards", "0"], "--shards"),
        (["serve", "--shard", "shard-1"], "NAME=ADDRESS"),
        (["nonsense"], "nonsense"),
        (["ingest"], "FILE"),
        (["ingest", "x"], "--collection"),
        (["ingest", "x", "--collection", "c", "--rate", "0"], "above 0"),
        (["ingest", "x", "--collection", "c", "--batch", "6000"], "--batch"),
        (["import"], "--from"),
        (["import", "--from", "x", "--into", "y"], "--into"),
        (["import", "--from", "x", "--header", "a: b"], "directory"),
        (["import", "--from", "http://x", "--header", "none"], "NAME: VALUE"),
        (["import", "--from", "http://x", "--header", "a b: c"], "NAME: VALUE"),
        (["import", "--from", "http://x", "--header", "a: b\nc: d"], "value of a"),
        (["export", "--collection", "c"], "--to"),
        (["export", "--to", "x.jsonl"], "one --collection"),
        (["export", "--to", "x.jsonl", "--collection", "c", "--format", "parquet"], "--format"),
        (["export", "--to", "-"], "stdout"),
        (["query", "--collection", "c"], "give one of"),
        (["query", "--collection", "c", "--text", "a", "--like", "b"], "give one of"),
        (["query", "--collection", "c", "--embedding", "1, 2"], "not JSON"),
        (["query", "--collection", "c", "--embedding", '["a"]'], "list of numbers"),
        (["query", "--collection", "c", "--like", "a", "--where", "{"], "--where: not JSON"),
        (["query", "--collection", "c", "--text", "a", "--embedder", "no"], "--embedder"),
        (["status", "--router", "no port:x"], "--router"),
        (["status", "--router", "https://h:1"], "TLS is not supported"),
        (["shards", "drain"], "NAME"),
        (["shards", "drain", "shard-1", "--throttle", "-1"], "--throttle"),
        (["shards", "remove", "shard-1", "--yes"], "goes with --force-lost"),
        (["rebalance", "start", "--query-diff", "1.5"], "--query-diff"),
        (["rebalance", "resume", "--throttle", "fast"], "--throttle"),
        (["collections", "place", "papers"], "--shards"),
        (["collections", "place", "papers", "--shards", "0"], "a number from 1"),
        (["collections", "place", "papers", "--shards", "some"], "nor all"),
        (["catalog", "rebuild", "x"], "either --data"),
        (["catalog", "rebuild", "--node", "a=b"], "name the new file"),
        (["catalog", "rebuild", "x", "--node", "a"], "NAME=ADDRESS"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], says: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert says in err


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.jsonl.zst", "x.csv.gz"])
def test_an_export_to_a_file_of_another_kind_makes_nothing(
    tmp_path: Path, nobody: str, name: str
) -> None:
    code, _, err = run("export", "--to", str(tmp_path / name), "--router", nobody)
    told = " ".join(err.replace("│", " ").split())  # usage is told in a box
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "name a directory, or a file that ends with .jsonl, .jsonl.gz or .parquet" in told


@pytest.mark.parametrize("name", ["backup.d", "plain"])
def test_an_export_may_go_to_a_directory_that_is_there_or_has_no_suffix(
    tmp_path: Path, nobody: str, name: str
) -> None:
    (tmp_path / "backup.d").mkdir()
    code, _, err = run("export", "--to", str(tmp_path / name), "--router", nobody)
    assert (code, nobody in err) == (1, True)


def test_an_export_into_a_directory_that_is_missing_is_1_and_names_it(
    tmp_path: Path, nobody: str
) -> None:
    file = tmp_path / "a" / "b" / "c.jsonl"
    asked = ["export", "--to", str(file), "--collection", "c", "--router", nobody]
    said = f"chroma-router: the directory {file.parent} does not exist; make it first\n"
    assert run(*asked) == (1, "", said)


@pytest.mark.parametrize("place", ["localhost:8000", "127.0.0.1:8000", "my-host.net:1", "[::1]:80"])
def test_an_import_from_a_bare_address_says_how_a_server_is_written(place: str) -> None:
    code, _, err = run("import", "--from", place)
    assert (code, err.count("\n"), f"for a server write http://{place}\n" in err) == (1, 1, True)


@pytest.mark.parametrize("place", ["./chroma", "chroma:", "a/b:8000"])
def test_an_import_from_a_missing_directory_speaks_of_no_server(place: str) -> None:
    code, _, err = run("import", "--from", place)
    assert (code, "persistent Chroma" in err, "http://" in err) == (1, True, False)


def test_a_directory_may_be_called_like_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "localhost:8000").mkdir()
    code, _, err = run("import", "--from", "localhost:8000")
    assert (code, "persistent Chroma" in err, "http://" in err) == (1, True, False)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--space", "far", "none of cosine"),
        ("--create-config", "{", "not JSON"),
        ("--create-config", "[]", "not a JSON object"),
    ],
)
def test_wrong_options_of_ingest_are_2(tmp_path: Path, option: str, value: str, says: str) -> None:
    (tmp_path / "f").touch()
    code, _, err = run("ingest", str(tmp_path / "f"), "--collection", "c", option, value)
    assert (code, says in err) == (2, True)


def test_embeddings_and_an_embedder_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    given = ["--embeddings", "x.npy", "--embedder", "lexical"]
    code, _, err = run("ingest", str(tmp_path / "f"), "--collection", "c", *given)
    assert (code, "--embeddings" in err, "--embedder" in err) == (2, True, True)


def test_a_router_without_shards_is_refused_and_no_catalog_is_made(tmp_path: Path) -> None:
    catalog = tmp_path / "c.sqlite3"
    code, _, err = run("serve", "--catalog", str(catalog), "--listen", "127.0.0.1:0")
    assert (code, "--shard NAME=ADDRESS" in err, catalog.exists()) == (1, True, False)


def test_rejects_may_not_overwrite_the_input(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("x")
    code, _, err = run("ingest", str(path), "--collection", "c", "--rejects", str(path))
    assert (code, "name another" in err, path.read_text()) == (2, True, "x")


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["shards", "list"],
        ["shards", "add"],
        ["shards", "drain", "shard-1", "--wait"],
        ["shards", "remove", "shard-1", "--force-lost"],
        ["rebalance", "plan"],
        ["rebalance", "start", "--wait"],
        ["rebalance", "status", "--watch"],
        ["rebalance", "resume", "--throttle", "5"],
        ["collections", "list"],
        ["collections", "place", "papers", "--shards", "all"],
        ["query", "--collection", "ccc", "--like", "a"],
    ],
    ids=" ".join,
)
def test_no_router_is_1_and_one_line_that_names_it(arguments: list[str], nobody: str) -> None:
    code, out, err = run(*arguments, "--router", nobody)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert nobody in err
    assert "chroma-router up" in err


def test_a_healthcheck_of_nobody_does_not_say_that_it_is_a_router(nobody: str) -> None:
    code, out, err = run("healthcheck", "--router", nobody)
    assert (code, out, err.count("\n"), nobody in err) == (1, "", 1, True)
    told = err.removeprefix("chroma-router: ").replace("--router", "")
    assert "router" not in told


def test_the_router_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, nobody: str
) -> None:
    monkeypatch.setenv("CHROMA_ROUTER_ADDR", nobody)
    code, _, err = run("status")
    assert (code, nobody in err) == (1, True)


def test_settings_with_an_unknown_key_are_1_and_named(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('lissten = "x"\n')
    for words in (["serve"], ["up", "--data", str(tmp_path / "d")]):
        code, _, err = run(*words, "--config", str(tmp_path / "s.toml"))
        assert (code, "lissten" in err, "known keys" in err) == (1, True, True)


def test_a_missing_file_is_1(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    for words in (
        ["ingest", missing, "--collection", "c"],
        ["catalog", "check", "--catalog", missing],
        ["catalog", "backup", str(tmp_path / "to"), "--catalog", missing],
        ["catalog", "rebuild", "--data", missing],
    ):
        code, _, err = run(*words)
        assert (code, missing in err, err.count("\n")) == (1, True, 1)


def test_a_catalog_that_is_none_is_not_sound(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("nothing of the kind")
    code, out, err = run("catalog", "check", "--json", "--catalog", str(tmp_path / "c"))
    assert code == 1
    assert "tells more" not in out + err
    assert json.loads(out)["sound"] is False


def test_rebuild_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite3").write_text("precious")
    code, _, err = run("catalog", "rebuild", "--data", str(tmp_path))
    assert (code, "not overwritten" in err) == (1, True)


@pytest.mark.parametrize("word", ["version", "--version"])
def test_version(word: str) -> None:
    code, out, _ = run(word)
    assert code == 0
    assert out.startswith("chroma-router ")


def test_h_is_help() -> None:
    for words in ([], ["ingest"], ["shards", "list"]):
        assert run(*words, "-h") == run(*words, "--help")


def test_rejects_of_an_earlier_run_are_kept(tmp_path: Path) -> None:
    path, rejects = tmp_path / "f", tmp_path / "rejects"
    path.touch()
    rejects.write_text("precious")
    code, _, err = run("ingest", str(path), "--collection", "c", "--rejects", str(rejects))
    assert (code, "earlier run" in err, rejects.read_text()) == (1, True, "precious")
