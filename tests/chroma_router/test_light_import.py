"""`import chroma_router` must stay light: router and nodes import it for the contract."""

import subprocess
import sys

import pytest


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["", ".v1", ".wire.errors", ".wire.records", ".address"])
def test_no_chromadb_and_no_numpy(module: str) -> None:
    heavy = "{'chromadb', 'numpy'} & set(sys.modules)"
    code = f"import sys, chroma_router{module}; print(*sorted({heavy}))"
    assert run(code) == ""


def test_the_package_alone_imports_not_even_grpc() -> None:
    assert run("import sys, chroma_router; print('grpc' in sys.modules)") == "False"


def test_every_public_name_loads() -> None:
    import chroma_router

    for name in chroma_router.__all__:
        assert getattr(chroma_router, name) is not None
    assert set(chroma_router.__all__) <= set(dir(chroma_router))
    with pytest.raises(AttributeError, match="no attribute 'Cleint'"):
        _ = chroma_router.Cleint
