"""A local Ray in a process of its own; conftest.py hands over PIPE and ENVIRONMENT as globals.

It lives until the other end of PIPE is closed, also by the death of whoever holds it.
"""

import contextlib
import os
from collections.abc import Mapping
from multiprocessing.connection import Connection

import ray


def run(pipe: Connection, environment: Mapping[str, str]) -> None:
    """Tell the cluster's address, then wait."""
    os.environ.update(environment)
    started = ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    pipe.send(started.address_info["gcs_address"])
    with contextlib.suppress(EOFError):
        pipe.recv()
    ray.shutdown()


if __name__ == "__main__":
    run(PIPE, ENVIRONMENT)  # noqa: F821
