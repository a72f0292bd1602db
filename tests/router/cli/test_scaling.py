"""`shards`, `rebalance` and `collections`: what is asked, what is shown, how it ends."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from chroma_router.v1 import catalog_pb2, cluster_pb2, types_pb2
from chroma_router.wire.errors import NotAllowed, Reason, Unavailable
from chroma_router.wire.placement import ALL_SHARDS
from router.cli import rebalance_run
from router.cli.main import app
from router.cli.rebalance_view import as_dict, drawn, headline
from tests.router.cli.scripted_router import ScriptedRouter, scripted_router

RUNNING = cluster_pb2.REBALANCE_STATE_RUNNING
DONE = cluster_pb2.REBALANCE_STATE_DONE
CANCELLED = cluster_pb2.REBALANCE_STATE_CANCELLED
FAILED = cluster_pb2.REBALANCE_STATE_FAILED


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedRouter]:
    monkeypatch.setattr(rebalance_run, "POLL_SECONDS", 0.001)
    with scripted_router() as started:
        monkeypatch.setenv("CHROMA_ROUTER_ADDR", started.address)
        yield started


def run(*arguments: str, answers: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), input=answers)
    return result.exit_code, result.stdout, result.stderr


def rebalance(
    state: "cluster_pb2.RebalanceState" = RUNNING, copied: int = 0, **fields: Any
) -> cluster_pb2.Rebalance:
    """A rebalance of two moves."""
    done = state == DONE
    stages = (
        cluster_pb2.MOVE_STAGE_TRIMMED if done else cluster_pb2.MOVE_STAGE_COPYING,
        cluster_pb2.MOVE_STAGE_TRIMMED if done else cluster_pb2.MOVE_STAGE_PLANNED,
    )
    moves = [
        cluster_pb2.Move(
            id=f"move-{n}",
            collection_id=f"c-{n}",
            collection=f"papers-{n}",
            source="shard-1",
            target="shard-3",
            slots=10 * (n + 1),
            records=99,
            bytes=4096,
            stage=stage,
            copied_records=99 if done else copied * (n == 0),
            write_pause_microseconds=12_345 * done,
        )
        for n, stage in enumerate(stages)
    ]
    given: dict[str, Any] = {"id": "r-1", "kind": cluster_pb2.REBALANCE_KIND_BALANCE}
    given |= {"moves": moves, "seconds_left": -1.0, "mover": "router-a", **fields}
    return cluster_pb2.Rebalance(state=state, **given)


def now(*states: cluster_pb2.Rebalance) -> list[cluster_pb2.GetRebalanceResponse]:
    """Answers to GetRebalance."""
    return [cluster_pb2.GetRebalanceResponse(rebalance=state) for state in states]


# ------------------------------------------------------------------------------------ rebalances


def test_start_tells_what_has_begun_and_how_to_watch_it(router: ScriptedRouter) -> None:
    router.will("StartRebalance", cluster_pb2.StartRebalanceResponse(rebalance=rebalance()))
    code, out, err = run("rebalance", "start", "--throttle", "500", "--query-diff", "0.9")
    assert (code, err) == (0, "")
    assert out.startswith("balance r-1: running, 0 of 2 moves ended, 0% copied; 198 records in all")
    assert "rebalance status --watch" in out
    assert router.asked == [
        cluster_pb2.StartRebalanceRequest(
            options=cluster_pb2.RebalanceOptions(records_per_second=500, query_agreement=0.9)
        )
    ]


def test_nothing_to_move_is_done(router: ScriptedRouter) -> None:
    done = cluster_pb2.Rebalance(id="r-1", state=DONE)
    router.will("StartRebalance", cluster_pb2.StartRebalanceResponse(rebalance=done))
    assert run("rebalance", "start", "--wait") == (0, "nothing is to be moved\n", "")


def test_wait_returns_when_it_is_done(router: ScriptedRouter) -> None:
    router.will("StartRebalance", cluster_pb2.StartRebalanceResponse(rebalance=rebalance()))
    router.will("GetRebalance", *now(rebalance(), rebalance(copied=50), rebalance(DONE)))
    code, out, err = run("rebalance", "start", "--wait")
    assert code == 0
    assert out.startswith("balance r-1: done, 2 of 2 moves ended, 100% copied\n")
    assert "12.3 ms" in out
    assert "0% copied" in err, "a line now and then where there is no terminal"


@pytest.mark.parametrize(
    ("state", "problem", "says"),
    [
        (FAILED, "source and target differ: 1 record", "failed: source and target differ"),
        (CANCELLED, "", "cancelled: someone cancelled it"),
    ],
)
def test_wait_is_1_unless_it_is_done(
    router: ScriptedRouter, state: "cluster_pb2.RebalanceState", problem: str, says: str
) -> None:
    router.will("StartRebalance", cluster_pb2.StartRebalanceResponse(rebalance=rebalance()))
    router.will("GetRebalance", *now(rebalance(state, problem=problem)))
    code, out, err = run("rebalance", "start", "--wait", "--json")
    assert (code, json.loads(out)["rebalance"]["problem"]) == (1, problem)
    assert says in err


def test_wait_survives_a_router_that_is_away_for_a_while(router: ScriptedRouter) -> None:
    away = Unavailable("away", retry_after=0.001)
    router.will("StartRebalance", cluster_pb2.StartRebalanceResponse(rebalance=rebalance()))
    router.will("GetRebalance", away, away, *now(rebalance()), away, *now(rebalance(DONE)))
    assert run("rebalance", "start", "--wait")[0] == 0


def test_wait_gives_up_on_a_router_that_stays_away(
    router: ScriptedRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebalance_run, "AWAY_SECONDS", 0.05)
    router.will("StartRebalance", cluster_pb2.StartRebalanceResponse(rebalance=rebalance()))
    router.will("GetRebalance", Unavailable("away", retry_after=0.001))
    code, _, err = run("rebalance", "start", "--wait")
    assert (code, "was not done within" in err) == (1, True)


def test_wait_does_not_take_another_rebalance_for_its_own(router: ScriptedRouter) -> None:
    router.will("StartRebalance", cluster_pb2.StartRebalanceResponse(rebalance=rebalance()))
    router.will("GetRebalance", *now(rebalance(DONE, id="r-2")))
    code, _, err = run("rebalance", "start", "--wait")
    assert (code, "r-1 has ended" in err) == (1, True)


def test_ctrl_c_says_that_it_goes_on(router: ScriptedRouter) -> None:
    router.will("StartRebalance", cluster_pb2.StartRebalanceResponse(rebalance=rebalance()))
    router.will("GetRebalance", *now(rebalance()))
    process = subprocess.Popen(
        [sys.executable, "-m", "router.cli.main", "rebalance", "start", "--wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CHROMA_ROUTER_ADDR": router.address},
    )
    assert process.stderr is not None
    assert "copied" in process.stderr.readline(), "it waits"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "r-1 goes on" in err
    assert "rebalance cancel" in err
    assert "Traceback" not in err


def test_status_and_its_json(router: ScriptedRouter) -> None:
    state = rebalance(copied=49, records_per_second=123.4, seconds_left=75.0)
    router.will("GetRebalance", *now(state))
    code, out, _ = run("rebalance", "status")
    assert code == 0
    assert "0 of 2 moves ended, 24% copied, 123 records/s, about 1 min 15 s left" in out
    assert "papers-1" in out
    shown = json.loads(run("rebalance", "status", "--json")[1])["rebalance"]
    assert (shown["state"], shown["seconds_left"], shown["moves"][0]["stage"]) == (
        "running",
        75.0,
        "copying",
    )
    assert as_dict(rebalance())["seconds_left"] is None
    assert "no router carries it out" in headline(as_dict(rebalance(mover="")))


def test_watch_goes_on_until_it_ends(router: ScriptedRouter) -> None:
    router.will("GetRebalance", *now(rebalance(), rebalance(copied=9), rebalance(CANCELLED)))
    code, out, _ = run("rebalance", "status", "--watch")
    assert (code, "cancelled" in out, len(router.asked)) == (0, True, 3)


def test_the_picture_for_a_terminal_has_a_bar_and_the_moves() -> None:
    from rich.console import Console

    console = Console(width=120, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(drawn(as_dict(rebalance(copied=50))))
    assert "━" in capture.get()
    assert "papers-0" in capture.get()


def test_pause_and_resume(router: ScriptedRouter) -> None:
    paused = rebalance(cluster_pb2.REBALANCE_STATE_PAUSED)
    router.will("PauseRebalance", cluster_pb2.PauseRebalanceResponse(rebalance=paused))
    router.will("ResumeRebalance", cluster_pb2.ResumeRebalanceResponse(rebalance=rebalance()))
    kept = cluster_pb2.RebalanceOptions(records_per_second=5, query_agreement=0.5)
    router.will("GetRebalance", *now(rebalance(options=kept)))
    out = run("rebalance", "pause")[1]
    assert ("paused" in out, "chroma-router rebalance resume" in out) == (True, True)
    assert run("rebalance", "resume")[0] == 0
    assert not router.asked[-1].HasField("options"), "as before"
    assert run("rebalance", "resume", "--throttle", "0")[0] == 0
    changed = cluster_pb2.RebalanceOptions(records_per_second=0, query_agreement=0.5)
    assert router.asked[-1] == cluster_pb2.ResumeRebalanceRequest(options=changed)


def test_cancel_waits_for_cancelled(router: ScriptedRouter) -> None:
    cancelling = rebalance(cluster_pb2.REBALANCE_STATE_CANCELLING)
    router.will("CancelRebalance", cluster_pb2.CancelRebalanceResponse(rebalance=cancelling))
    router.will("GetRebalance", *now(cancelling, rebalance(CANCELLED)))
    assert run("rebalance", "cancel", "--wait")[0] == 0
    router.will("CancelRebalance", NotAllowed("too late", Reason.MOVE_SWITCHED))
    assert run("rebalance", "cancel") == (1, "", "chroma-router: too late\n")


def test_plan_shows_moves_shares_and_skew(router: ScriptedRouter) -> None:
    shares = [
        cluster_pb2.PlannedShare(
            shard=f"shard-{n}",
            records_before=before,
            records_after=100,
            slots_before=512,
            slots_after=341,
        )
        for n, before in ((1, 150), (2, 150), (3, 0))
    ]
    plan = cluster_pb2.PlanRebalanceResponse(rebalance=rebalance(), shares=shares, seconds=90.0)
    router.will("PlanRebalance", plan)
    code, out, _ = run("rebalance", "plan")
    assert code == 0
    assert "198 records to move, in about 1 min 30 s" in out
    assert "the fullest shard is 50.0% above the average now, 0.0% then" in out
    assert "4.0 KiB" in out
    shown = json.loads(run("rebalance", "plan", "--drain", "shard-2", "--json")[1])
    assert router.asked[-1].drain == "shard-2"
    assert (shown["seconds"], shown["shares"][2]["records_after"]) == (90.0, 100)
    assert shown["skew_before"] == 1.0, "of shard-1 and shard-3 alone"


# ---------------------------------------------------------------------------------------- shards


def test_the_list_tells_role_and_slots(router: ScriptedRouter) -> None:
    shard = cluster_pb2.Shard(
        name="shard-1",
        state=cluster_pb2.SHARD_STATE_SERVING,
        role=cluster_pb2.SHARD_ROLE_DRAINING,
        records=5,
        slots=1024,
        unowned_records=7,
    )
    router.will("ListShards", cluster_pb2.ListShardsResponse(shards=[shard]))
    code, out, _ = run("shards", "list")
    assert (code, "draining" in out, "1,024" in out) == (0, True, True)
    (shown,) = json.loads(run("shards", "list", "--json")[1])["shards"]
    assert (shown["role"], shown["slots"], shown["unowned_records"]) == ("draining", 1024, 7)


def test_add_says_what_to_do_next(router: ScriptedRouter) -> None:
    shard = cluster_pb2.Shard(name="shard-4", address="h:1")
    router.will("AddShard", cluster_pb2.AddShardResponse(shard=shard))
    code, out, _ = run("shards", "add", "shard-4", "h:1")
    assert (code, "shard-4 at h:1" in out, "rebalance start" in out) == (0, True, True)
    assert run("shards", "add")[0] == 0
    assert router.asked == [
        cluster_pb2.AddShardRequest(name="shard-4", address="h:1"),
        cluster_pb2.AddShardRequest(),
    ]


def test_what_a_router_says_is_not_taken_for_no_router(router: ScriptedRouter) -> None:
    router.will("AddShard", Unavailable("shard-4 ended before it served"))
    said = "chroma-router: shard-4 ended before it served\n"
    assert run("shards", "add") == (1, "", said)


def test_drain_waits_and_says_what_to_do_next(router: ScriptedRouter) -> None:
    router.will("DrainShard", cluster_pb2.DrainShardResponse(rebalance=rebalance()))
    router.will("GetRebalance", *now(rebalance(DONE)))
    code, out, _ = run("shards", "drain", "shard-1", "--throttle", "9", "--wait")
    assert (code, "chroma-router shards remove shard-1" in out) == (0, True)
    assert router.asked[0].options.records_per_second == 9
    code, out, _ = run("shards", "drain", "shard-1")
    assert (code, "shards remove" in out) == (0, False)


LOST = cluster_pb2.RemoveShardResponse(
    lost=[
        cluster_pb2.LostPart(collection_id="c-1", name="papers", slots=341, records=12_345),
        cluster_pb2.LostPart(collection_id="c-2", name="notes", slots=342),
    ]
)


def test_a_removal_of_an_empty_shard_asks_nothing(router: ScriptedRouter) -> None:
    router.will("RemoveShard", cluster_pb2.RemoveShardResponse())
    code, out, _ = run("shards", "remove", "shard-1")
    assert (code, out) == (0, "shard-1 is no shard of the cluster any more\n")
    assert router.asked == [cluster_pb2.RemoveShardRequest(name="shard-1")]


@pytest.mark.parametrize("answers", ["n\n", None], ids=["declined", "nobody is there"])
def test_giving_up_records_must_be_agreed_to(router: ScriptedRouter, answers: str | None) -> None:
    router.will("RemoveShard", LOST)
    code, _, err = run("shards", "remove", "shard-1", "--force-lost", answers=answers)
    assert code == 1
    assert "papers (c-1): about 12,345 records in 341 of 1,024 slots would be lost" in err
    assert "notes (c-2): an unknown number of records in 342" in err
    assert "nothing was changed" in err
    assert [request.dry_run for request in router.asked] == [True]


@pytest.mark.parametrize(("more", "answers"), [([], "y\n"), (["--yes"], None)])
def test_what_was_given_up_is_told(
    router: ScriptedRouter, more: list[str], answers: str | None
) -> None:
    router.will("RemoveShard", LOST)
    asked = ["shards", "remove", "shard-1", "--force-lost"]
    code, out, _ = run(*asked, *more, answers=answers)
    assert (code, "341 of 1,024 slots lost" in out) == (0, True)
    assert not router.asked[-1].dry_run
    lost = json.loads(run(*asked, "--yes", "--json")[1])["lost"]
    assert [part["records"] for part in lost] == [12_345, None]


# ----------------------------------------------------------------------------------- collections


@pytest.mark.parametrize(("text", "number"), [("all", ALL_SHARDS), ("2", 2)])
def test_place(router: ScriptedRouter, text: str, number: int) -> None:
    router.will("PlaceCollection", cluster_pb2.PlaceCollectionResponse(rebalance=rebalance(DONE)))
    code, _, _ = run("collections", "place", "papers", "--shards", text, "--tenant", "t", "--wait")
    assert code == 0
    (asked,) = router.asked
    assert asked.placement_shards == number
    assert (asked.collection.name, asked.collection.tenant) == ("papers", "t")


def test_the_collections_and_their_placement(router: ScriptedRouter) -> None:
    found = [
        types_pb2.Collection(id="c-2", name="papers", dimension=8, epoch=3),
        types_pb2.Collection(id="c-1", name="notes", placement_shards=1, epoch=1),
    ]
    router.will("ListCollections", catalog_pb2.ListCollectionsResponse(collections=found))
    code, out, _ = run("collections", "list")
    assert (code, out.index("notes") < out.index("papers")) == (0, True)
    shown = json.loads(run("collections", "list", "--json")[1])["collections"]
    assert [c["placement_shards"] for c in shown] == ["all", 1]
