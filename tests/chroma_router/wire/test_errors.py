"""The one error table, in both directions, over a real google.rpc.Status."""

from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from chroma_router.v1 import types_pb2
from chroma_router.wire.errors import (
    CLASS_BY_CODE,
    CLASS_BY_REASON,
    ClusterError,
    InternalFailure,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    Reason,
    Unavailable,
    detail_of,
    error_for,
)
from chroma_router.wire.status import (
    from_rpc_error,
    from_status,
    grpc_status,
    status_metadata,
    to_status,
)

_STATUS = {status.value[0]: status for status in grpc.StatusCode}


class _CallError(grpc.RpcError):
    """A failed call as a client sees it."""

    def __init__(
        self, code: grpc.StatusCode, text: str, trailing: tuple[tuple[str, bytes], ...] = ()
    ) -> None:
        super().__init__()
        self._answer = (code, text, trailing)

    def code(self) -> grpc.StatusCode:
        return self._answer[0]

    def details(self) -> str:
        return self._answer[1]

    def trailing_metadata(self) -> Any:
        return self._answer[2]


def test_the_tables_are_total() -> None:
    assert set(CLASS_BY_REASON) == set(Reason)
    assert set(CLASS_BY_CODE.values()) == set(ClusterError.__subclasses__())
    assert set(CLASS_BY_REASON.values()) == set(ClusterError.__subclasses__())


@pytest.mark.parametrize("kind", ClusterError.__subclasses__())
def test_a_class_and_its_default_reason_agree(kind: type[ClusterError]) -> None:
    assert CLASS_BY_REASON[kind.default_reason] is kind
    assert CLASS_BY_CODE[kind.code] is kind


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_round_trips(reason: Reason) -> None:
    outcome = types_pb2.WriteOutcome(request_id="r", unknown_shards=["shard-2"])
    sent = CLASS_BY_REASON[reason](
        "what happened", reason, metadata={"epoch": "7"}, retry_after=0.25, details=[outcome]
    )
    status = status_pb2.Status.FromString(to_status(sent).SerializeToString())
    got = from_status(status)
    assert type(got) is type(sent)
    assert status.code == sent.code
    assert (got.reason, got.message) == (reason, "what happened")
    assert (got.metadata, got.retry_after) == ({"epoch": "7"}, 0.25)
    assert detail_of(got, types_pb2.WriteOutcome) == outcome


def test_an_error_without_extras_round_trips() -> None:
    got = from_status(to_status(NotFound("no such collection")))
    assert type(got) is NotFound
    assert (got.metadata, got.retry_after, got.details) == ({}, None, ())
    assert detail_of(got, types_pb2.WriteOutcome) is None


def test_details_survive_being_passed_on() -> None:
    outcome = types_pb2.WriteOutcome(request_id="r")
    once = from_status(to_status(OutcomeUnknown("?", details=[outcome])))
    twice = from_status(to_status(once))
    assert to_status(twice) == to_status(once)
    assert detail_of(twice, types_pb2.WriteOutcome) == outcome


def test_details_made_here_are_found() -> None:
    outcome = types_pb2.WriteOutcome(request_id="r")
    error = OutcomeUnknown("?", details=[duration_pb2.Duration(seconds=1), outcome])
    assert detail_of(error, types_pb2.WriteOutcome) is outcome


def test_an_unknown_reason_is_an_internal_failure_that_names_it() -> None:
    error = error_for("FROM_THE_FUTURE", "text", {"k": "v"})
    assert type(error) is InternalFailure
    assert "FROM_THE_FUTURE" in error.message
    assert error.metadata == {"k": "v"}


def test_an_error_info_of_another_domain_is_not_ours() -> None:
    status = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="elsewhere")
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason="TENANT_NOT_FOUND", domain="example.com")
    )
    error = from_status(status)
    assert error.reason is Reason.COLLECTION_NOT_FOUND  # the class's default
    assert detail_of(error, error_details_pb2.ErrorInfo) is not None


@pytest.mark.parametrize("kind", ClusterError.__subclasses__())
def test_a_bare_status_gives_its_class(kind: type[ClusterError]) -> None:
    assert type(from_rpc_error(_CallError(_STATUS[kind.code], "text"))) is kind


@pytest.mark.parametrize("code", [s for s in grpc.StatusCode if s.value[0] not in CLASS_BY_CODE])
def test_a_status_that_nobody_here_sends_is_an_internal_failure(code: grpc.StatusCode) -> None:
    error = from_rpc_error(_CallError(code, ""))
    assert type(error) is InternalFailure
    assert code.name in error.message


def test_a_failed_call_gives_the_error_that_the_server_raised() -> None:
    raised = Overloaded("full", retry_after=1.5)
    error = from_rpc_error(_CallError(grpc_status(raised), "full", status_metadata(raised)))
    assert type(error) is Overloaded
    assert (error.reason, error.retry_after) == (Reason.QUEUE_FULL, 1.5)


def test_broken_details_fall_back_to_the_status() -> None:
    trailing = (("grpc-status-details-bin", b"\xff\xff"),)
    error = from_rpc_error(_CallError(grpc.StatusCode.UNAVAILABLE, "gone", trailing))
    assert type(error) is Unavailable
    assert error.message == "gone"


def test_a_detail_with_broken_contents_is_passed_over() -> None:
    broken = any_pb2.Any(
        type_url="type.googleapis.com/chroma_router.v1.WriteOutcome", value=b"\xff\xff"
    )
    assert detail_of(InvalidRequest("x", details=[broken]), types_pb2.WriteOutcome) is None
