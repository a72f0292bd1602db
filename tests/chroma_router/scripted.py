"""A real gRPC server whose answers a test scripts: the generated servicers, on a socket."""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from chroma_router.v1 import (
    catalog_pb2,
    catalog_pb2_grpc,
    cluster_pb2,
    cluster_pb2_grpc,
    records_pb2,
    records_pb2_grpc,
)
from chroma_router.wire.errors import ClusterError
from chroma_router.wire.status import grpc_status, status_metadata

Step = ClusterError | grpc.StatusCode | Callable[[Any, grpc.ServicerContext], Any]

_DEFAULTS: dict[str, Callable[[Any], Any]] = {
    "GetVersion": lambda _: cluster_pb2.GetVersionResponse(
        chroma_version="1.5.9", max_batch_size=5_461, now_nanoseconds=123
    ),
    "GetTenant": lambda r: catalog_pb2.GetTenantResponse(tenant={"name": r.name}),
    "GetDatabase": lambda r: catalog_pb2.GetDatabaseResponse(
        database={"id": "00000000-0000-0000-0000-000000000000", "name": r.name, "tenant": r.tenant}
    ),
    "Count": lambda _: records_pb2.CountResponse(count=7),
    "Add": lambda r: records_pb2.AddResponse(request_id=r.request_id),
}


@dataclass
class Script:
    """What to do at each call of a method, in turn; past its end, the default answer."""

    port: int = 0
    steps: dict[str, deque[Step]] = field(default_factory=lambda: defaultdict(deque))
    seen: list[tuple[str, Any, dict[str, str]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    defaults: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    """Answers that differ from the usual ones."""

    def then(self, method: str, *steps: Step) -> None:
        """Appends steps to a method's script."""
        self.steps[method].extend(steps)

    def requests(self, method: str) -> list[Any]:
        """The requests that a method was sent."""
        return [request for name, request, _ in self.seen if name == method]

    def play(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        """Answers one call."""
        trailers: Any = context.invocation_metadata()
        with self.lock:
            self.seen.append((method, request, dict(trailers)))
            steps = self.steps[method]
            step = steps.popleft() if steps else None
        if step is None:
            return {**_DEFAULTS, **self.defaults}[method](request)
        if isinstance(step, ClusterError):
            context.set_trailing_metadata(status_metadata(step))
            context.abort(grpc_status(step), step.message)
        if isinstance(step, grpc.StatusCode):
            context.abort(step, f"scripted {step.name}")
        return step(request, context)


def _servicer(base: type, script: Script) -> Any:
    def method(name: str) -> Callable[..., Any]:
        return lambda _self, request, context: script.play(name, request, context)

    names = [name for name in vars(base) if not name.startswith("_")]
    return type(f"Scripted{base.__name__}", (base,), {name: method(name) for name in names})()


@contextmanager
def serving(
    script: Script, port: int = 0, credentials: grpc.ServerCredentials | None = None
) -> Iterator[Script]:
    """A server on a free port of this machine (or on `port`) that follows a script."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    for module, name in (
        (records_pb2_grpc, "RecordService"),
        (catalog_pb2_grpc, "CatalogService"),
        (cluster_pb2_grpc, "ClusterService"),
    ):
        servicer = _servicer(getattr(module, f"{name}Servicer"), script)
        getattr(module, f"add_{name}Servicer_to_server")(servicer, server)
    address = f"127.0.0.1:{port}"
    if credentials is None:
        script.port = server.add_insecure_port(address)
    else:
        script.port = server.add_secure_port(address, credentials)
    server.start()
    try:
        yield script
    finally:
        server.stop(None).wait()
