"""A Ray cluster in a process of its own, not in pytest's: nodes that come and go, and workers that are forked.

That process runs this file, with PIPE, ENVIRONMENT and HEAD as globals.
"""

from __future__ import annotations

import contextlib
import os
import runpy
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import TYPE_CHECKING, Any

import psutil
from ray.cluster_utils import Cluster

if TYPE_CHECKING:
    from tests.flows.forked_workers import WorkerServer

NODE = {"num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False, "include_log_monitor": False}
# A node that has died is noticed within seconds rather than half a minute.
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


@dataclass(frozen=True)
class RayNode:
    """A machine of the cluster: Ray's own process on it, and where its workers come from."""

    raylet: int
    server: WorkerServer

    def kill(self) -> None:
        """kill -9 of all that runs there."""
        for parent in (psutil.Process(self.raylet), psutil.Process(self.server.pid)):
            for process in [parent, *parent.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


class RayNodes:
    """The cluster, as a test sees it.

    Attributes:
        address: where it is joined.
        head: its first node.
    """

    def __init__(
        self,
        fork_server: ForkServerContext,
        workers: WorkerServer,
        *,
        environment: Mapping[str, str] | None = None,
        **head: Any,
    ) -> None:
        """Start it.

        Args:
            fork_server: where its process is forked from; it ends when this one does.
            workers: where its workers are forked from.
            environment: further variables of every node.
            head: what the first node has, such as `num_cpus`.
        """
        self._pipe, theirs = fork_server.Pipe()
        self._workers = workers
        server = workers.another()
        arguments = {**NODE, **server.node_arguments(), **head}
        said = {"PIPE": theirs, "ENVIRONMENT": dict(environment or {}), "HEAD": arguments}
        self._process = fork_server.Process(
            target=runpy.run_path, args=(__file__,), kwargs={"init_globals": said, "run_name": "__main__"}
        )
        self._process.start()
        theirs.close()
        self.address, raylet = self._pipe.recv()
        self.head = RayNode(raylet, server)

    def add(self, **node: Any) -> RayNode:
        """A further node, once it belongs to the cluster."""
        server = self._workers.another()
        self._pipe.send({**NODE, **server.node_arguments(), **node})
        return RayNode(self._pipe.recv(), server)

    def forget(self, node: RayNode) -> None:
        """Have the cluster know that a node was killed."""
        self._pipe.send(node.raylet)
        assert self._pipe.recv() == node.raylet

    def close(self) -> None:
        """End it."""
        self._pipe.close()
        self._process.join(60)
        assert self._process.exitcode == 0


def run(pipe: Connection, environment: Mapping[str, str], head: dict[str, Any]) -> None:
    """Tell the cluster's address; add and forget nodes until the other end of the pipe is closed, as by its death."""
    os.environ.update(environment)
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = {raylet_of(cluster.head_node): cluster.head_node}
    pipe.send((cluster.address, *nodes))
    with contextlib.suppress(EOFError):
        while True:
            asked = pipe.recv()
            if isinstance(asked, dict):
                node = cluster.add_node(**asked)
                nodes[raylet_of(node)] = node
                pipe.send(raylet_of(node))
            else:
                cluster.remove_node(nodes.pop(asked), allow_graceful=False)
                pipe.send(asked)
    cluster.shutdown()


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


if __name__ == "__main__":
    run(PIPE, ENVIRONMENT, HEAD)  # noqa: F821
