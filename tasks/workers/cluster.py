"""The Ray that work runs on: started in this process, or joined; and what it has."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from tasks.errors import TaskError
from tasks.settings import Settings

# glibc gives every large tensor back to the system and maps it again a moment later; 9 to 14 % of a CPU step.
KEEP_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
OBJECT_STORE_BYTES = 80 * 2**20  # workers write to storage themselves; only numbers travel
PACKAGES = ("flows", "tasks", "domains", "lsap_core", "lsap_archive")
LOCAL = "local"
ANSWER_SECONDS = 10.0


class ClusterUnavailableError(TaskError, ConnectionError):
    """The Ray cluster that the settings name cannot be joined."""


def join_cluster(address: str, num_workers: int, environment: dict[str, str], *, wants_gpus: bool) -> bool:
    """Connect to a cluster, or start a small one in this process; returns whether that was done here.

    Who connected disconnects (`ray.shutdown`, which ends a cluster only where it was started): what Ray hears of lost
    nodes it prints, and that must not end up among the results of a command.

    Workers of a cluster started here inherit this process's environment. Workers of a joined cluster have that of
    their own node, and what a process needs to reach storage has to be there: nothing of this process's environment
    travels, because Ray shows the runtime environment of a job to everybody who may look at the cluster.

    Raises:
        ClusterUnavailableError: nobody answers at the address, or what answers refuses.
    """
    if ray.is_initialized():
        return False
    if address != LOCAL:
        _join(address)
        return True
    os.environ.update(environment)
    ray.init(
        address=LOCAL,
        num_cpus=max(num_workers, 1),
        num_gpus=None if wants_gpus else 0,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        runtime_env=_interpreter() or None,
    )
    return True


def _join(address: str) -> None:
    runtime_env = _interpreter() | (_code() if Settings.from_environment().ray_ship_code else {})
    try:
        _check_answers(address)
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False, runtime_env=runtime_env or None)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterUnavailableError(
            f"the Ray cluster at {address} cannot be joined ({one_line(error)}): check LSAP_RAY_ADDRESS, that this "
            "machine is a node of that cluster, and that RAY_AUTH_MODE and RAY_AUTH_TOKEN are the cluster's"
        ) from error


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
    has_connected = join_cluster(address, num_workers, worker_environment(threads), wants_gpus=device != "cpu")
    try:
        yield
    finally:
        if has_connected:
            ray.shutdown()


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


def one_line(error: BaseException) -> str:
    """The last line of an error; what Ray puts before it is a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
