"""A Ray cluster of several nodes in a process of its own; test_cluster.py hands over PIPE and NODES as globals.

Nodes are added at the word of the other end of PIPE; the cluster lives until that is closed.
"""

import contextlib
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from ray.cluster_utils import Cluster

# A node that is gone is noticed within seconds, not half a minute.
ENVIRONMENT = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
}


def run(pipe: Connection, nodes: Sequence[dict[str, Any]]) -> None:
    """Tell the cluster's address and the process of each node; then add what is asked for."""
    os.environ.update(ENVIRONMENT)
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    pipe.send((cluster.address, [add(cluster, node) for node in nodes]))
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(add(cluster, pipe.recv()))
    cluster.shutdown()


def add(cluster: Cluster, node: dict[str, Any]) -> int:
    """Process of the raylet of a new node."""
    added = cluster.add_node(object_store_memory=80 * 2**20, **node)
    raylet: int = added.all_processes["raylet"][0].process.pid
    return raylet


if __name__ == "__main__":
    run(PIPE, NODES)  # noqa: F821
