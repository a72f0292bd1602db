"""How a rebalance is shown: as JSON, in a line, as a table of its moves, and while it is going on.

Imported by `--help`, so it imports nothing heavy.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from router.cli.output import bytes_text, counted, duration_text, print_table, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from chroma_router.v1 import cluster_pb2

Show = Callable[["cluster_pb2.Rebalance"], None]

ENDED = ("done", "cancelled", "failed")
"""The states in which nothing more happens."""

_PLAIN_EVERY = 5.0
_COLUMNS = (
    "#", "collection", "from", "to", "slots", "records", "stage", "copied", "writes held", "problem"
)  # fmt: skip
_NUMERIC = ("#", "slots", "records", "copied", "writes held")
_PLANNED = ("#", "collection", "from", "to", "slots", "records", "size")
_BEYOND_COPY = ("switched", "trimmed")
_GIVEN_UP = ("cancelling", "cancelled")


def state_of(rebalance: "cluster_pb2.Rebalance") -> str:
    """Its state in lower case, such as "running"."""
    from chroma_router.v1.cluster_pb2 import RebalanceState

    return _word(RebalanceState.Name(rebalance.state), "REBALANCE_STATE_")


def as_dict(rebalance: "cluster_pb2.Rebalance") -> dict[str, Any]:
    """A rebalance as JSON. Times as in the contract; `seconds_left` is null if not known."""
    from chroma_router.v1.cluster_pb2 import RebalanceKind

    moves = [_move(move) for move in rebalance.moves]
    return {
        "id": rebalance.id,
        "kind": _word(RebalanceKind.Name(rebalance.kind), "REBALANCE_KIND_"),
        "subject": rebalance.subject,
        "state": state_of(rebalance),
        "problem": rebalance.problem,
        "throttle_records_per_second": rebalance.options.records_per_second,
        "query_agreement": rebalance.options.query_agreement,
        "progress": progress(moves),
        "records_per_second": rebalance.records_per_second,
        "seconds_left": rebalance.seconds_left if rebalance.seconds_left >= 0 else None,
        "mover": rebalance.mover,
        "started_at": rebalance.started_at,
        "ended_at": rebalance.ended_at,
        "moves": moves,
    }


def _move(move: "cluster_pb2.Move") -> dict[str, Any]:
    from chroma_router.v1.cluster_pb2 import MoveStage

    return {
        "id": move.id,
        "collection_id": move.collection_id,
        "collection": move.collection,
        "from": move.source,
        "to": move.target,
        "slots": move.slots,
        "records": move.records,
        "bytes": move.bytes,
        "stage": _word(MoveStage.Name(move.stage), "MOVE_STAGE_"),
        "copied_records": move.copied_records,
        "compared_records": move.compared_records,
        "trimmed_records": move.trimmed_records,
        "copy_microseconds": move.copy_microseconds,
        "write_pause_microseconds": move.write_pause_microseconds,
        "read_pause_microseconds": move.read_pause_microseconds,
        "problem": move.problem,
    }


def progress(moves: list[dict[str, Any]]) -> float:
    """Which part of the records has been copied, from 0 to 1; moves that were given up left out."""
    counted_moves = [move for move in moves if move["stage"] not in _GIVEN_UP]
    # One more for each move: a slot without records has its switch still.
    total = sum(move["records"] + 1 for move in counted_moves)
    done = sum(
        move["records"] + 1
        if move["stage"] in _BEYOND_COPY
        else min(move["copied_records"], move["records"])
        for move in counted_moves
    )
    return done / total if total else 1.0


def headline(shown: dict[str, Any]) -> str:
    """What there is to know of a rebalance (as_dict) in one line."""
    moves = shown["moves"]
    ended = sum(move["stage"] in {"trimmed", "cancelled"} for move in moves)
    parts = [
        f"{shown['kind']} {shown['id']}: {shown['state']}",
        f"{ended} of {counted(len(moves), 'move')} ended, {shown['progress']:.0%} copied",
    ]
    if shown["state"] == "running":
        if shown["records_per_second"] > 0:
            parts.append(f"{shown['records_per_second']:,.0f} records/s")
        if shown["seconds_left"] is not None:
            parts.append(f"about {duration_text(shown['seconds_left'])} left")
        if not shown["mover"]:
            parts.append("no router carries it out at this moment")
    if shown["throttle_records_per_second"] and shown["state"] not in ENDED:
        parts.append(f"at most {shown['throttle_records_per_second']:,} records/s")
    line = ", ".join(parts)
    return f"{line}; {shown['problem']}" if shown["problem"] else line


def print_rebalance(shown: dict[str, Any]) -> None:
    """The line and the moves, on stdout."""
    print(headline(shown))
    if shown["moves"]:
        print_table("", _COLUMNS, _rows(shown["moves"]), numeric=_NUMERIC, long=("problem",))


def print_planned(shown: dict[str, Any]) -> None:
    """The moves of a plan, on stdout."""
    rows = [
        (*row[:6], bytes_text(move["bytes"]))
        for row, move in zip(_rows(shown["moves"]), shown["moves"], strict=True)
    ]
    print_table("moves", _PLANNED, rows, numeric=("#", "slots", "records", "size"))


def _rows(moves: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            str(number),
            move["collection"] or move["collection_id"],
            move["from"],
            move["to"],
            f"{move['slots']:,}",
            f"{move['records']:,}",
            move["stage"],
            f"{move['copied_records']:,}",
            _milliseconds(move["write_pause_microseconds"]),
            move["problem"],
        )
        for number, move in enumerate(moves, 1)
    ]


def _milliseconds(microseconds: int) -> str:
    return f"{microseconds / 1000:,.1f} ms" if microseconds else ""


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()


@contextlib.contextmanager
def watched() -> Iterator[Show]:
    """Yields what is to be called with each state of a rebalance.

    On a terminal it is one picture that changes, with a bar; else a line on stderr now and then.
    """
    if sys.stderr.isatty():
        with _picture() as show:
            yield show
        return
    last = float("-inf")

    def show_line(rebalance: "cluster_pb2.Rebalance") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_EVERY:
            last = now
            print(headline(as_dict(rebalance)), file=sys.stderr, flush=True)

    yield show_line


@contextlib.contextmanager
def _picture() -> Iterator[Show]:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as live:

        def show(rebalance: "cluster_pb2.Rebalance") -> None:
            live.update(drawn(as_dict(rebalance)), refresh=True)

        yield show


def drawn(shown: dict[str, Any]) -> "RenderableType":
    """The line, a bar and the moves, for a terminal."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    return Group(
        Text(headline(shown)),
        ProgressBar(total=1.0, completed=shown["progress"]),
        table("", _COLUMNS, _rows(shown["moves"]), numeric=_NUMERIC, long=("problem",)),
    )
