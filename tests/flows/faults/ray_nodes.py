"""A Ray cluster of several nodes in a process of its own; conftest.py hands over PIPE and ENVIRONMENT as globals.

The other end of PIPE asks for a node ("add") or tells that one has died ("forget"), and gets its raylet's process id;
the cluster lives until that end is closed, also by the death of whoever holds it.
"""

import os
from collections.abc import Mapping
from multiprocessing.connection import Connection

from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 80 * 2**20
# A node that has died is noticed within seconds rather than half a minute.
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


def run(pipe: Connection, environment: Mapping[str, str]) -> None:
    """Tell the cluster's address, then do what is asked."""
    os.environ.update(environment)
    head = {"num_cpus": 0, "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": SOON})
    pipe.send(cluster.address)
    nodes = {}
    while True:
        try:
            verb, value = pipe.recv()
        except EOFError:
            break
        if verb == "add":
            node = cluster.add_node(num_cpus=value, num_gpus=0, object_store_memory=OBJECT_STORE_BYTES)
            raylet = node.all_processes["raylet"][0].process.pid
            nodes[raylet] = node
            pipe.send(raylet)
        elif verb == "forget":
            cluster.remove_node(nodes.pop(value), allow_graceful=False)
            pipe.send(value)
    cluster.shutdown()


if __name__ == "__main__":
    run(PIPE, ENVIRONMENT)  # noqa: F821
