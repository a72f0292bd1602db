"""Repeated calls: a broken write is taken back before it is done again; what is final is raised."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from chroma_router.v1 import records_pb2, types_pb2, views_pb2
from chroma_router.wire.errors import InvalidRequest, OutcomeUnknown, Unavailable
from router.cli.link import RouterLink
from router.cli.patient import GaveUp, PatientLink


class ScriptedRouter:
    """Stands for a RouterLink; each call takes the next answer, an error or None."""

    add_view = "add"
    upsert_view = "upsert"

    class Records:
        Delete = "delete"

    records = Records

    def __init__(self, *answers: Exception | None) -> None:
        self._answers = list(answers)
        self.calls: list[tuple[str, str]] = []

    async def call(self, method: str, request: Any, _timeout: float) -> None:
        assert isinstance(request, views_pb2.WriteRequestView | records_pb2.DeleteRequest)
        self.calls.append((method, request.request_id))
        answer = self._answers.pop(0) if self._answers else None
        if answer is not None:
            raise answer


def away() -> Unavailable:
    return Unavailable("away", retry_after=0.001)


async def add(router: ScriptedRouter, timeout: float = 30.0) -> PatientLink:
    link = PatientLink(cast(RouterLink, router), timeout)
    await link.add_in_order(types_pb2.CollectionRef(name="c"), ["a"], [b"record"])
    return link


async def test_a_broken_write_is_taken_back_and_done_under_a_new_identity() -> None:
    router = ScriptedRouter(away(), away(), None, OutcomeUnknown("late", retry_after=0.001))
    link = await add(router)
    assert [method for method, _ in router.calls] == [
        "add",
        "delete",
        "delete",
        "add",
        "delete",
        "add",
    ]
    adds = [request_id for method, request_id in router.calls if method == "add"]
    deletes = [request_id for method, request_id in router.calls if method == "delete"]
    assert len(set(adds)) == 3
    assert deletes[0] == deletes[1] != deletes[2]
    assert link.retries == 3


async def test_what_is_final_is_raised_at_once() -> None:
    router = ScriptedRouter(InvalidRequest("no good"))
    with pytest.raises(InvalidRequest):
        await add(router)
    assert len(router.calls) == 1


@pytest.mark.parametrize("error", [away, lambda: Unavailable("long", retry_after=60.0)])
async def test_it_gives_up(error: Callable[[], Unavailable]) -> None:
    router = ScriptedRouter(*(error() for _ in range(1000)))
    with pytest.raises(GaveUp, match="within 0 s"):
        await add(router, timeout=0.05)


async def test_an_upsert_in_order_is_taken_back_too_and_a_plain_one_keeps_its_identity() -> None:
    collection = types_pb2.CollectionRef(name="c")
    router = ScriptedRouter(away(), None, None)
    link = PatientLink(cast(RouterLink, router), 30.0)
    await link.upsert_in_order("storing", collection, ["a"], [b"record"])
    assert [method for method, _ in router.calls] == ["upsert", "delete", "upsert"]
    assert len({request_id for _, request_id in router.calls}) == 3
    router = ScriptedRouter(away(), None)
    link = PatientLink(cast(RouterLink, router), 30.0)
    await link.upsert("storing", collection, [b"record"])
    assert [method for method, _ in router.calls] == ["upsert", "upsert"]
    assert len({request_id for _, request_id in router.calls}) == 1
