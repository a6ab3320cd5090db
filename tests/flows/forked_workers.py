"""Ray's workers, forked from a process that has behind it what they import: that spares each three seconds of work.

Ray starts a worker by a script of the node's own choice (`setup_worker_path`), which prepares the environment and then
becomes Ray's `default_worker.py`. This file is such a script: it hands on all that it was given and ends; the server at
the other end forks a process, in which the rest is Ray's. A server forks further servers too, one for each node of a
cluster: the workers of a node are the children of its server.

    python forked_workers.py --serve SOCKET
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import psutil

SERVER = "TESTS_WORKER_SERVER"  # the variable that tells the workers of a node where their server listens
# What workers import, and what ray imports; not ray itself, which reads the variables of a job on its import.
MODULES = (
    *("tasks.inversion.worker", "tasks.editing.worker", "tasks.evaluation.worker", "tasks.training.loop"),
    *("torch._dynamo", "torchmetrics.image.fid"),  # by the first optimizer, and by a Fréchet distance
    *("aiohttp", "google.protobuf", "grpc", "jsonschema", "msgpack", "pandas", "pydantic"),
)


class WorkerServer(NamedTuple):
    """Where it listens, and its process, the parent of its workers."""

    path: str
    pid: int

    def node_arguments(self) -> dict[str, Any]:
        """What a node of Ray is started with, so that its workers are forked here."""
        return {"setup_worker_path": __file__, "env_vars": {SERVER: self.path}}

    def another(self) -> WorkerServer:
        """A server for a further node."""
        path = f"{self.path}-{os.urandom(4).hex()}"
        return WorkerServer(path, ask(self.path, {"serve": path}))

    def workers(self, title: str = "ray::Host") -> list[int]:
        """Process ids of the workers whose title begins like this; inside a call it goes on with the call's name."""
        found = []
        for process in psutil.Process(self.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                if "".join(process.cmdline()).startswith(title):
                    found.append(process.pid)
        return found


def ask(server: str, asked: dict[str, Any], descriptors: Sequence[int] = ()) -> int:
    """Process id of what a server has forked: a worker, or another server where it was asked to `serve`."""
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rw") as talk:
        connection.connect(server)
        socket.send_fds(connection, [b"."], descriptors)
        talk.write(json.dumps(asked) + "\n")
        talk.flush()
        return int(talk.readline())


def serve(listener: socket.socket) -> None:
    """Fork what is asked for, until stdin is closed; returns in the process of a worker, about to become one."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    while True:
        if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
            os._exit(0)  # at once: an interpreter with all that in it takes a second to end
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as talk:
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
            asked = json.loads(talk.readline())
            further = listening(asked["serve"]) if "serve" in asked else None
            process = os.fork()
            if process:
                talk.write(f"{process}\n")
                for descriptor in descriptors:
                    os.close(descriptor)
        if process:
            continue
        listener.close()
        if further is not None:
            return serve(further)
        return become_worker(descriptors, **asked)


def listening(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


def become_worker(descriptors: Sequence[int], arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """What Ray has started a process with, in this one."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = arguments
    sys.path[0] = os.path.dirname(arguments[0])
    if "CLOCK_FOLLOWER" in environment:
        runpy.run_path(environment["CLOCK_FOLLOWER"], run_name="__main__")


def hand_over(arguments: Sequence[str]) -> None:
    """Have the server fork what Ray wants to be this process."""
    given = dict(word.removeprefix("--").split("=", 1) for word in arguments if word.startswith("--"))
    prepared = json.loads(given.get("serialized-runtime-env-context", "{}"))
    assert not prepared.get("command_prefix"), prepared
    wanted = [word for word in arguments if not word.startswith(("--serialized-runtime-env-context=", "--language="))]
    environment = {**os.environ, **(prepared.get("env_vars") or {})}
    asked = {"arguments": wanted, "environment": environment, "folder": os.getcwd()}
    ask(os.environ[SERVER], asked, descriptors=(0, 1, 2))


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        for name in MODULES:
            importlib.import_module(name)
        assert "ray" not in sys.modules
        gc.freeze()  # what is there already is nobody's garbage: a collection would only copy its pages
        serve(listening(sys.argv[2]))
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        hand_over(sys.argv[1:])
