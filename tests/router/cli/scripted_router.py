"""A router for the tests of commands: it answers by a script and keeps what it was asked."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message

from chroma_router.v1 import catalog_pb2, cluster_pb2
from chroma_router.wire.errors import ClusterError
from chroma_router.wire.status import grpc_status, status_metadata

Answer = Any
"""A message, or the ClusterError that the call ends with."""


class ScriptedRouter:
    """Each method gives the answers of its script in turn, the last one for ever."""

    def __init__(self) -> None:
        self.address = ""
        self.asked: list[Any] = []
        self._answers: dict[str, deque[Answer]] = {}

    def will(self, method: str, *answers: Answer) -> None:
        """Sets what a method answers."""
        self._answers[method] = deque(answers)

    def play(self, method: str, request: Any, context: grpc.ServicerContext) -> Message:
        """The next answer of a method."""
        self.asked.append(request)
        answers = self._answers[method]
        answer = answers.popleft() if len(answers) > 1 else answers[0]
        if isinstance(answer, ClusterError):
            # Synchronous servers take details from here, and only then abort.
            context.set_trailing_metadata(status_metadata(answer))
            context.abort(grpc_status(answer), answer.message)
        assert isinstance(answer, Message)
        return answer


def _handlers(router: ScriptedRouter) -> Iterator[grpc.GenericRpcHandler]:
    """The methods of the services that these commands ask."""
    for file, name in ((cluster_pb2, "ClusterService"), (catalog_pb2, "CatalogService")):
        service = file.DESCRIPTOR.services_by_name[name]
        yield grpc.method_handlers_generic_handler(
            service.full_name,
            {
                method.name: grpc.unary_unary_rpc_method_handler(
                    partial(router.play, method.name),
                    request_deserializer=method.input_type._concrete_class.FromString,
                    response_serializer=method.output_type._concrete_class.SerializeToString,
                )
                for method in service.methods
            },
        )


@contextmanager
def scripted_router() -> Iterator[ScriptedRouter]:
    """A router in a thread of this process, on a free port."""
    router = ScriptedRouter()
    server = grpc.server(ThreadPoolExecutor(2), options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers(tuple(_handlers(router)))
    router.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield router
    finally:
        server.stop(None).wait()
