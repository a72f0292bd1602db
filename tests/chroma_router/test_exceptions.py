"""The table from reasons to exceptions: total both ways, and each its chromadb class."""

import chromadb.errors as chroma
import grpc
import pytest

from chroma_router import errors
from chroma_router.retry import Failure
from chroma_router.v1.types_pb2 import WriteOutcome
from chroma_router.wire.errors import CLASS_BY_CODE, CLASS_BY_REASON, ClusterError, Reason
from chroma_router.wire.status import from_status, grpc_status, to_status

TRACE, REQUEST = "0" * 31 + "1", "id-1"


def raised(
    error: ClusterError,
    *,
    write: bool = False,
    told: bool = True,
    code: grpc.StatusCode | None = None,
) -> errors.RouterError:
    failure = Failure(code or grpc_status(error), error.reason, told, error.retry_after)
    return errors.exception_for(error, failure, request_id=REQUEST, trace_id=TRACE, write=write)


def test_every_reason_has_an_exception_and_every_exception_a_cause() -> None:
    assert set(errors.EXCEPTION_BY_REASON) == set(Reason)
    made = {*errors.EXCEPTION_BY_REASON.values(), *errors.EXCEPTION_BY_FOREIGN_STATUS.values()}
    known = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.RouterError)
    }
    assert made == known - {errors.RouterError}


def test_every_status_has_an_exception() -> None:
    covered = {
        *(s for s in grpc.StatusCode if s.value[0] in CLASS_BY_CODE),
        *errors.EXCEPTION_BY_FOREIGN_STATUS,
        grpc.StatusCode.OK,
    }
    assert covered == set(grpc.StatusCode)


@pytest.mark.parametrize("reason", list(Reason))
def test_what_a_server_says_arrives(reason: Reason) -> None:
    sent = CLASS_BY_REASON[reason]("it is so", reason, retry_after=1.5)
    exception = raised(from_status(to_status(sent)))
    assert type(exception) is errors.EXCEPTION_BY_REASON[reason]
    assert isinstance(exception, chroma.ChromaError)
    assert str(exception).startswith("it is so")
    assert (exception.reason, exception.retry_after) == (reason, 1.5)
    assert (exception.trace_id, exception.request_id) == (TRACE, REQUEST)
    assert exception.name()
    assert exception.code() >= 400


@pytest.mark.parametrize("kind", [k for k in vars(errors).values() if isinstance(k, type)])
def test_same_name_means_same_class(kind: type) -> None:
    namesake = getattr(chroma, kind.__name__, None)
    if namesake is not None and issubclass(kind, errors.RouterError):
        assert issubclass(kind, namesake)
        assert kind("x").name() == namesake.name()
        assert kind("x").code() == namesake("x").code()


def test_what_the_caller_can_mend_is_told_in_chromas_words() -> None:
    error = CLASS_BY_REASON[Reason.COLLECTION_NOT_FOUND]("Collection [x] does not exist")
    assert str(raised(error)) == "Collection [x] does not exist"


def test_the_fate_of_a_write_is_told() -> None:
    down = CLASS_BY_REASON[Reason.SHARD_UNAVAILABLE]("down")
    assert "not known" in str(raised(down, write=True, told=False))
    assert REQUEST in str(raised(down, write=True))
    assert "not known" not in str(raised(down, write=False, told=False))
    outcome = WriteOutcome(request_id=REQUEST, applied_shards=["shard-1"])
    partial = CLASS_BY_REASON[Reason.SHARD_UNAVAILABLE]("down", details=[outcome])
    exception = raised(from_status(to_status(partial)), write=True, told=False)
    assert exception.outcome == outcome
    assert "not known" not in str(exception)


def test_foreign_statuses() -> None:
    stranger = ClusterError("no")
    assert isinstance(
        raised(stranger, code=grpc.StatusCode.UNAUTHENTICATED), chroma.AuthorizationError
    )
    assert isinstance(
        raised(stranger, code=grpc.StatusCode.PERMISSION_DENIED), chroma.ChromaAuthError
    )


def test_unsupported_is_a_not_implemented_error() -> None:
    with pytest.raises(NotImplementedError, match="Search is not implemented"):
        raise errors.unsupported("Search")


def test_the_ids_that_the_router_told_come_before_the_clients_own() -> None:
    metadata = {"trace_id": "f" * 32, "request_id": "the-routers"}
    told = ClusterError("x", Reason.INTERNAL, metadata=metadata)
    exception = raised(from_status(to_status(told)))
    assert (exception.trace_id, exception.request_id) == ("f" * 32, "the-routers")
    assert "request id the-routers, trace id " + "f" * 32 in str(exception)
