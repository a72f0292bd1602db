"""How far a long command is, on stderr: a bar on a terminal, else a line now and then."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol

_PLAIN_EVERY = 5.0


class Progress(Protocol):
    """What a command can say of itself while it works."""

    @property
    def position(self) -> int:
        """How much is done, in the unit of the total."""
        ...

    @property
    def stored(self) -> int:
        """How many records have been moved by this run."""
        ...


@contextlib.contextmanager
def shown(total: int, progress: Progress) -> Iterator[Callable[[], None]]:
    """Yields what is to be called whenever something was done."""
    if sys.stderr.isatty():
        with _bar(total, progress) as show:
            yield show
        return
    began = last = time.monotonic()

    def show_line() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _PLAIN_EVERY:
            return
        last = now
        part = progress.position / total if total else 1.0
        rate = progress.stored / (now - began)
        left = (now - began) * (1 - part) / part if part else 0.0
        print(
            f"{part:.0%}: {progress.stored:,} records, {rate:,.0f}/s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    yield show_line


@contextlib.contextmanager
def _bar(total: int, progress: Progress) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[records]:,} records"),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    began = time.monotonic()
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, records=0, rate=0.0)

        def show() -> None:
            seconds = time.monotonic() - began
            bar.update(
                task,
                completed=progress.position,
                records=progress.stored,
                rate=progress.stored / seconds if seconds else 0.0,
            )

        yield show
