"""The docstrings of Python's own standard library: real documents that every machine has.

Sources are parsed, never imported. The order depends on nothing but the library itself.
"""

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

_PASSED_OVER = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}


@dataclass(frozen=True, slots=True)
class Docstring:
    """One docstring; `id` is the qualified name of what it describes."""

    id: str
    text: str
    module: str
    kind: str
    line: int


def docstrings(limit: int) -> list[Docstring]:
    """The first so many docstrings, by file and line."""
    return list(islice(_docstrings(Path(sysconfig.get_path("stdlib"))), limit))


def _docstrings(root: Path) -> Iterator[Docstring]:
    seen: dict[str, int] = {}
    for path in _sources(root):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for found in _of_module(path, module):
            # A name that is defined twice (under an `if`, as a property's setter) is counted.
            times = seen[found.id] = seen.get(found.id, 0) + 1
            if times == 1:
                yield found
            else:
                yield Docstring(
                    f"{found.id}#{times}", found.text, found.module, found.kind, found.line
                )


def _sources(directory: Path) -> Iterator[Path]:
    for entry in sorted(directory.iterdir()):
        if entry.is_dir():
            if entry.name not in _PASSED_OVER and not entry.is_symlink():
                yield from _sources(entry)
        elif entry.suffix == ".py":
            yield entry


def _of_module(path: Path, module: str) -> Iterator[Docstring]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old sources, such as invalid escapes
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    yield from _walk(tree, module, module)


def _walk(node: ast.AST, name: str, module: str) -> Iterator[Docstring]:
    kinds = {ast.Module: "module", ast.ClassDef: "class"}
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text and text.strip():
            line = getattr(node, "lineno", 1)
            yield Docstring(name, text, module, kinds.get(type(node), "function"), line)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child, f"{name}.{child.name}", module)
        else:
            yield from _walk(child, name, module)
