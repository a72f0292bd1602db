"""The ids of a call, from headers and fields that may be anything."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.identity import CallIdentity

FRESH = "01939c5e-7e2b-7c3d-9a4f-0123456789ab"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def trace_of(*values: str | bytes) -> str:
    return CallIdentity.of([("traceparent", value) for value in values], "", FRESH).trace_id


@pytest.mark.parametrize(
    "value",
    [
        f"00-{TRACE}-{PARENT}-00",
        f"00-{TRACE}-{PARENT}-ff",
        f"01-{TRACE}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like",
    ],
)
def test_a_valid_traceparent_gives_the_trace_id(value: str) -> None:
    assert trace_of(value) == TRACE


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("",),
        (f"00-{TRACE}-{PARENT}",),
        (f"00-{TRACE}-{PARENT}-00-more",),
        (f"cc-{TRACE}-{PARENT}-01.more",),
        (f"ff-{TRACE}-{PARENT}-00",),
        (f"00-{TRACE.upper()}-{PARENT}-00",),
        (f"00-{'0' * 32}-{PARENT}-00",),
        (f"00-{TRACE}-{'0' * 16}-00",),
        (f"00-{TRACE[:-1]}-{PARENT}-00",),
        (f"00-{TRACE}-{PARENT}-00\n",),
        (f" 00-{TRACE}-{PARENT}-00",),
        (f"cc-{TRACE}-{PARENT}-00-" + "x" * 1000,),
        (f"00-{TRACE}-{PARENT}-00", f"00-{TRACE}-{PARENT}-00"),
        (f"00-{TRACE}-{PARENT}-00".encode(),),
    ],
)
def test_anything_else_does_not(values: tuple[str | bytes, ...]) -> None:
    assert trace_of(*values) == FRESH.replace("-", "")


def request_of(field: str, *headers: str) -> str:
    pairs = [("x-request-id", value) for value in headers]
    return CallIdentity.of(pairs, field, FRESH).request_id


def test_the_requests_own_id_comes_before_the_headers() -> None:
    assert request_of("mine", "the-header's") == "mine"
    assert request_of("", "the-header's") == "the-header's"
    assert request_of("") == FRESH


@pytest.mark.parametrize(
    "value", ["", "a b", "a\nb", "é", "x" * 129, "\x7f", "a\0b"], ids=lambda v: repr(v)[:10]
)
def test_headers_that_are_not_sane_are_passed_over(value: str) -> None:
    assert request_of("", value) == FRESH


@pytest.mark.parametrize("value", ["x" * 129, "é" * 65, "a\nb", "a\0b"], ids=lambda v: repr(v)[:9])
def test_fields_that_are_not_sane_are_passed_over(value: str) -> None:
    assert request_of(value) == FRESH


def test_a_request_id_that_is_a_uuid_is_the_trace_id_too() -> None:
    given_id = "01939C5E-0000-7c3d-9a4f-0123456789ab"
    assert CallIdentity.of([], given_id, FRESH).trace_id == given_id.replace("-", "").lower()
    assert CallIdentity.of([], "mine", FRESH).trace_id == FRESH.replace("-", "")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["traceparent", "x-request-id", "other"]),
            st.text(max_size=140) | st.binary(max_size=60),
        ),
        max_size=4,
    ),
    st.text(max_size=140),
)
def test_whatever_comes_the_ids_are_bounded(
    headers: list[tuple[str, str | bytes]], field: str
) -> None:
    identity = CallIdentity.of(headers, field, FRESH)
    assert re.fullmatch(r"[0-9a-f]{32}", identity.trace_id)
    assert 1 <= len(identity.request_id.encode()) <= 128
    assert identity.request_id.isprintable()
