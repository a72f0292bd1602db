"""A stream's memory of its request ids."""

import pytest

from chroma_router.wire.errors import InvalidRequest
from router.core.request_ids import RequestIds


def test_an_id_stands_for_one_request_as_long_as_it_is_remembered() -> None:
    known = RequestIds(remembered=2)
    known.enter("a", 1)
    known.enter("a", 1)
    known.enter("b", 1)
    with pytest.raises(InvalidRequest, match="request_id: a was used for another batch"):
        known.enter("a", 2)
    known.enter("c", 3)
    known.enter("a", 2)
    with pytest.raises(InvalidRequest):
        known.enter("c", 4)
