"""The shard nodes of one machine's cluster, and which of them run.

Owns the children that are nodes. A shard is started and stopped here; whether it belongs to the
cluster is the catalog's to say, and the router's to ask for.
"""

import asyncio
from collections.abc import Iterable
from pathlib import Path

from chroma_router.wire.errors import ClusterError, Unavailable
from router.concurrency import settled
from router.supervisor.backoff import RestartPolicy
from router.supervisor.child import Child
from router.supervisor.layout import Layout

NODE_GRACE_SECONDS = 30.0
"""Past a node's own grace."""


def node_of(layout: Layout, name: str) -> Child:
    """The child that serves a shard of a directory, not yet started."""
    arguments = ["serve", "--name", name, "--data", str(layout.data_of(name))]
    arguments += ["--listen", layout.address_of(name)]
    return Child(name, "shard_node.main", arguments, RestartPolicy())


class Nodes:
    """The nodes by name. The directory's lock must be held."""

    def __init__(self, layout: Layout, tasks: asyncio.TaskGroup) -> None:
        self._layout = layout
        self._tasks = tasks
        self._children: dict[str, Child] = {}
        self._changing = asyncio.Lock()

    def begin(self, name: str) -> Child:
        """Starts the node of a shard that the directory has, unless it runs; returns at once."""
        child = self._children.get(name)
        if child is None:
            child = self._children[name] = node_of(self._layout, name)
            self._tasks.create_task(child.run(), name=f"keep-{name}")
        return child

    async def start(self, name: str, known: Iterable[str]) -> tuple[str, str]:
        """Starts the node of one more shard (Layout.add says which); its name and address.

        Raises Unavailable when it ends before it serves, and what Layout.add raises. A caller that
        goes away does not stop it.
        """
        async with self._changing:
            name = self._layout.add(name, known)
            child = self.begin(name)
        try:
            await child.first_ready()
        except Unavailable as ended:
            self._forget(name, child)
            raise Unavailable(
                f"{ended.message}, in the log of `up`; mend it and repeat", retry_after=1.0
            ) from None
        return name, self._layout.address_of(name)

    async def stop(self, name: str) -> Path:
        """Stops the node of a shard and puts its directory aside; where that is now. Idempotent.

        Raises NotFound for a shard that there never was. A caller that goes away does not stop it.
        """
        # `settled` returns the error: raised in its task, it would end the whole group.
        stopping = self._tasks.create_task(settled([self._stop(name)]))
        (outcome,) = await asyncio.shield(stopping)
        if isinstance(outcome, ClusterError):
            raise outcome
        return outcome

    async def stop_all(self) -> None:
        """Stops every node."""
        async with self._changing:
            children = list(self._children.values())
            await asyncio.gather(*(child.stop(NODE_GRACE_SECONDS) for child in children))

    async def _stop(self, name: str) -> Path:
        async with self._changing:
            child = self._children.get(name)
            if child is not None:
                await child.stop(NODE_GRACE_SECONDS)
                self._forget(name, child)
            return self._layout.put_aside(name)

    def _forget(self, name: str, child: Child) -> None:
        if self._children.get(name) is child:
            del self._children[name]
