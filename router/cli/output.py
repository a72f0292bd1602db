"""How results are printed: JSON for programs, tables for people, in units one can read."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_STEP = 1024
_WIDE = 200
_MINUTE, _HOUR = 60, 3600


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    json.dump(value, sys.stdout, ensure_ascii=False, indent=2)
    sys.stdout.write("\n")


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numeric: Sequence[str] = (),
    long: Sequence[str] = (),
) -> None:
    """A table on stdout; `numeric` columns are set flush right, only `long` ones may be wrapped."""
    from rich.console import Console

    made = table(title, columns, rows, numeric=numeric, long=long)
    # Into a file or a pipe: wide enough for every column, so that grep and awk find whole words.
    width = None if sys.stdout.isatty() else _WIDE
    Console(file=sys.stdout, highlight=False, width=width).print(made)


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numeric: Sequence[str] = (),
    long: Sequence[str] = (),
) -> "Table":
    """The table that print_table prints."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title or None, title_justify="left", title_style="bold")
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in numeric else "left",
            no_wrap=column not in long,
            overflow="fold",
        )
    for row in rows:
        # Text, not str: a document with "[bold]" in it is shown as it is.
        made.add_row(*(Text(cell) for cell in row))
    return made


def counted(number: int, word: str) -> str:
    """A number of things: 1 shard, 2 shards."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def bytes_text(size: int) -> str:
    """A number of bytes as people read it: 12.3 MiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < _STEP:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= _STEP
    return f"{value:.1f} TiB"


def duration_text(seconds: float) -> str:
    """A time as people read it: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


def snippet(text: str, width: int = 80) -> str:
    """The beginning of a text, on one line and without control characters."""
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * width])
    line = " ".join(line.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"
