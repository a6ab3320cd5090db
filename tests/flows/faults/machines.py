"""What runs beside a command and may die under it: machines of a Ray cluster, a Prefect server."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import psutil

from tests.flows.ray_nodes import RayNode, RayNodes


@dataclass
class Machines:
    """Those of a Ray cluster that work, of which some may die."""

    cluster: RayNodes
    working: list[RayNode]

    def of(self, worker: int) -> RayNode:
        """The machine of a worker's process."""
        parent = psutil.Process(worker).ppid()
        return next(node for node in self.working if node.server.pid == parent)

    def replace(self, node: RayNode) -> None:
        """Another machine takes the place of one that has stopped."""
        self.working.remove(node)
        self.cluster.forget(node)
        self.working.append(self.cluster.add())


@dataclass
class MortalServer:
    """A Prefect server that may be killed and comes back on the same database."""

    url: str
    pipe: Connection
    process: int = 0
    is_up: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """A server, answering; the one before is dead."""
        self.pipe.send("start")
        self.process = self.pipe.recv()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                self.is_up.set()
                return
            time.sleep(0.05)
        raise TimeoutError(f"{self.url} does not answer")

    def kill(self) -> None:
        """kill -9, once it is up."""
        assert self.is_up.wait(60)
        self.is_up.clear()
        os.kill(self.process, signal.SIGKILL)
