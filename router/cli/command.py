"""What every command shares: failures in one line, options that mean the same everywhere.

Imported by `--help`, so it imports nothing heavy.
"""

import asyncio
import functools
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_ROUTER = "127.0.0.1:50051"

RouterOption = Annotated[
    str,
    typer.Option(
        "--router", metavar="HOST:PORT", envvar="CHROMA_ROUTER_ADDR", help="Where a router serves."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
CollectionOption = Annotated[str, typer.Option("--collection", help="The collection's name.")]
TenantOption = Annotated[str, typer.Option("--tenant", help="The tenant of the collection.")]
DatabaseOption = Annotated[str, typer.Option("--database", help="The database of the collection.")]
DataOption = Annotated[Path, typer.Option("--data", metavar="DIR", help="The cluster's directory.")]


class Failed(Exception):
    """The command could not do what it was asked: exit code 1. The user sees the message alone."""


def usage(message: str) -> NoReturn:
    """Ends the command as wrongly used: exit code 2."""
    raise typer.BadParameter(message)


def stopped(message: str) -> NoReturn:
    """Ends the command as interrupted (Ctrl-C): exit code 130. The message says what was done and
    how to go on."""
    print(f"chroma-router: interrupted: {message}", file=sys.stderr)
    raise typer.Exit(130)


def command(function: Callable[P, T]) -> Callable[P, T]:
    """A command whose failures are one line on stderr and exit code 1, never a stack trace."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Failed as failure:
            print(f"chroma-router: {failure}", file=sys.stderr)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            where = f"{error.filename}: " if error.filename else ""
            print(f"chroma-router: {where}{error.strerror or error}", file=sys.stderr)
        raise typer.Exit(1)

    return guarded


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's work on an event loop; what a cluster reports becomes Failed."""
    import uvloop

    from chroma_router.wire.errors import ClusterError

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    except ClusterError as error:
        raise Failed(error.message) from None
    except BaseExceptionGroup as group:
        raise _first_failure(group) from None


def _first_failure(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a user is told of failures that came together: the first that has words for him."""
    from chroma_router.wire.errors import ClusterError

    known, unknown = group.split((ClusterError, Failed, OSError))
    if known is None:
        return unknown or group
    first: BaseException = known
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return Failed(first.message) if isinstance(first, ClusterError) else first
