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


@dataclass
class RayNodes:
    """A Ray cluster whose nodes come and go; the head has no room for work."""

    address: str
    pipe: Connection
    raylets: list[int] = field(default_factory=list)

    def add(self, num_cpus: int = 1) -> None:
        """One more machine."""
        self.pipe.send(("add", num_cpus))
        self.raylets.append(self.pipe.recv())

    def kill(self, raylet: int) -> None:
        """A machine stops: its raylet and all that runs below it."""
        machine = psutil.Process(raylet)
        for process in [machine, *machine.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def replace(self, raylet: int) -> None:
        """Another machine takes the place of one that has stopped."""
        self.raylets.remove(raylet)
        self.pipe.send(("forget", raylet))
        assert self.pipe.recv() == raylet
        self.add()


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
