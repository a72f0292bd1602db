"""A router for the tests of commands: it answers by a script and keeps what it was asked."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from chroma_router.v1 import catalog_pb2, catalog_pb2_grpc, cluster_pb2, cluster_pb2_grpc
from chroma_router.wire.errors import ClusterError
from chroma_router.wire.status import grpc_status, status_metadata

Answer = Any
"""A message, or the ClusterError that the call ends with."""


class ScriptedRouter(cluster_pb2_grpc.ClusterServiceServicer):
    """Each method gives the answers of its script in turn, the last one for ever."""

    def __init__(self) -> None:
        self.address = ""
        self.asked: list[Any] = []
        self._answers: dict[str, deque[Answer]] = {}

    def will(self, method: str, *answers: Answer) -> None:
        """Sets what a method answers."""
        self._answers[method] = deque(answers)

    def play(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        """The next answer of a method."""
        self.asked.append(request)
        answers = self._answers[method]
        answer = answers.popleft() if len(answers) > 1 else answers[0]
        if isinstance(answer, ClusterError):
            # Synchronous servers take details from here, and only then abort.
            context.set_trailing_metadata(status_metadata(answer))
            context.abort(grpc_status(answer), answer.message)
        return answer


def _method(name: str) -> Callable[..., Any]:
    return lambda self, request, context: self.play(name, request, context)


for _name in cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"].methods_by_name:
    setattr(ScriptedRouter, _name, _method(_name))


class _Catalog(catalog_pb2_grpc.CatalogServiceServicer):
    def __init__(self, router: ScriptedRouter) -> None:
        self._router = router

    def ListCollections(self, request: Any, context: Any) -> catalog_pb2.ListCollectionsResponse:
        answer: catalog_pb2.ListCollectionsResponse = self._router.play(
            "ListCollections", request, context
        )
        return answer


@contextmanager
def scripted_router() -> Iterator[ScriptedRouter]:
    """A router in a thread of this process, on a free port."""
    router = ScriptedRouter()
    server = grpc.server(ThreadPoolExecutor(2), options=(("grpc.so_reuseport", 0),))
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(router, server)
    catalog_pb2_grpc.add_CatalogServiceServicer_to_server(_Catalog(router), server)
    router.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield router
    finally:
        server.stop(None).wait()
