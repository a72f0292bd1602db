"""One request id stands for one request, within what a stream can remember."""

from chroma_router.wire.errors import InvalidRequest

REMEMBERED = 1_024
"""Request ids that a stream remembers: of at most 128 bytes each, some 200 KiB."""


class RequestIds:
    """The newest request ids of one stream, and what each was given to.

    A shard knows it too, but only of the parts that came to it: batches for different shards are
    told apart by nobody else.
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._digests: dict[str, int] = {}

    def enter(self, request_id: str, digest: int) -> None:
        """Enters a request with the hash of its contents. Raises InvalidRequest when its id was
        another's."""
        if self._digests.setdefault(request_id, digest) != digest:
            raise InvalidRequest(
                f"request_id: {request_id} was used for another batch of this stream; give each "
                "batch its own, or none"
            )
        if len(self._digests) > self._remembered:
            del self._digests[next(iter(self._digests))]
