"""The Ray that work runs on: started in this process, or joined; and what it has."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.autoscaler.v2.sdk import get_cluster_resource_state

from lsap_archive import Secrets
from tasks.settings import Settings
from tasks.workers.deaths import last_line
from tasks.workers.own_ray import ClusterUnavailableError, own_ray

# glibc gives every large tensor back to the system, which clears its pages again a moment later: half the time of what
# is not multiplied. Threads but the first get heaps of 64 MiB, and so the pages of the system again, without one arena.
KEEP_HEAP = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**40),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
PACKAGES = ("flows", "tasks", "domains", "lsap_core", "lsap_archive")
LOCAL = "local"
ANSWER_SECONDS = 10.0


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """What SIGTERM does to this process stays as it is: `ray.init` puts a handler of its own in its place."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@_own_signals()
def join_cluster(
    address: str, num_workers: int, environment: dict[str, str], *, wants_gpus: bool
) -> contextlib.ExitStack:
    """Connect to a cluster, or start a small one in this process; closing what is returned undoes what was done here.

    Who connected disconnects, which ends a cluster only where it was started: what Ray hears of lost nodes it prints,
    and that must not end up among the results of a command.

    Workers of a cluster started here inherit this process's environment. Workers of a joined cluster have that of
    their own node, and what a process needs to reach storage has to be there: nothing of this process's environment
    travels, because Ray shows the runtime environment of a job to everybody who may look at the cluster.

    Raises:
        ClusterUnavailableError: nobody answers at the address, or what answers refuses; or none can be started here.
    """
    connection = contextlib.ExitStack()
    if ray.is_initialized():
        return connection
    if address == LOCAL:
        os.environ.update(environment)
        num_gpus = None if wants_gpus else 0
        own = own_ray(max(num_workers, 1), num_gpus=num_gpus, runtime_env=_interpreter() or None)
        connection.enter_context(own)
    else:
        _join(address)
        connection.callback(ray.shutdown)
    return connection


def _join(address: str) -> None:
    runtime_env = _interpreter() | (_code() if Settings.from_environment().ray_ship_code else {})
    try:
        _check_answers(address)
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False, runtime_env=runtime_env or None)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        secrets = Secrets()
        raise ClusterUnavailableError(
            secrets.hide(
                f"the Ray cluster at {address} cannot be joined ({last_line(error)}): check LSAP_RAY_ADDRESS, that "
                "this machine is a node of that cluster, and that RAY_AUTH_MODE and RAY_AUTH_TOKEN are the cluster's"
            )
        ) from secrets.safe_cause(error)


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()


def _interpreter() -> dict[str, Any]:
    """What Ray starts with a runtime environment goes through a shell, which takes a path apart where it has a space.

    The machines of a joined cluster are taken to have the interpreter at the same place then.
    """
    return {"py_executable": shlex.quote(sys.executable)} if " " in sys.executable else {}


def _code() -> dict[str, Any]:
    """The packages of the project and nothing else; Ray keeps each under a digest of its content."""
    root = Path(__file__).resolve().parents[2]
    return {"py_modules": [str(root / name) for name in PACKAGES]}


@contextlib.contextmanager
def opened_cluster(address: str, num_workers: int, *, threads: int, device: str) -> Iterator[None]:
    """A cluster for several pools and trainings, one after the other or at the same time; left as it was found."""
    with join_cluster(address, num_workers, worker_environment(threads), wants_gpus=device != "cpu"):
        yield


def worker_environment(num_threads: int) -> dict[str, str]:
    """Variables of every worker's process."""
    return {"OMP_NUM_THREADS": str(num_threads), **KEEP_HEAP}


def runtime_environment(environment: dict[str, str], address: str) -> dict[str, Any]:
    """How a worker gets its variables where it does not inherit them."""
    return {} if address == LOCAL else {"env_vars": environment}


def share_of_gpus(num_workers: int) -> float:
    """GPUs for each of some workers when what the cluster has is shared out: one, or a share that lets all in."""
    num_gpus = int(ray.cluster_resources().get("GPU", 0.0))
    return 1.0 / math.ceil(num_workers / num_gpus) if num_gpus else 0.0


def has_node_for(num_cpus: float, num_gpus: float) -> bool:
    """Whether some node could hold such a worker if it had nothing else to do."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(has.get("CPU", 0.0) >= num_cpus and has.get("GPU", 0.0) >= num_gpus for has in alive)


def num_waiting_for_room(num_cpus: float, num_gpus: float) -> int:
    """How many such workers no node can take at present; one whose process is starting has its room already.

    As the cluster's autoscaler is told; somebody else's workers of the same wants are counted too.
    """
    state = get_cluster_resource_state(GcsClient(ray.get_runtime_context().gcs_address))
    wants = {name: number for name, number in (("CPU", num_cpus), ("GPU", num_gpus)) if number}
    waiting = state.pending_resource_requests
    return sum(one.count for one in waiting if dict(one.request.resources_bundle) == wants)


def described_cluster() -> str:
    """What the cluster has, and how much of it is free, in words."""
    has, free = ray.cluster_resources(), ray.available_resources()
    num_nodes = len([node for node in ray.nodes() if node["Alive"]])
    return (
        f"{num_nodes} {'node' if num_nodes == 1 else 'nodes'} with {_resources(has)} in all, {_resources(free)} of "
        "them free"
    )


def _resources(numbers: dict[str, float]) -> str:
    return f"{numbers.get('CPU', 0.0):g} CPUs and {numbers.get('GPU', 0.0):g} GPUs"
