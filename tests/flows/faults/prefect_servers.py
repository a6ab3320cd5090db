"""Prefect servers on one database, one after the other; conftest.py hands over PIPE and ENVIRONMENT as globals.

Tells their port first. Then the other end of PIPE asks for one ("start") and gets its process id, also when the one
before was killed. A process that has the server's imports behind it forks them: that takes a second instead of ten.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Mapping
from multiprocessing.connection import Connection

import uvicorn
from prefect.context import refresh_global_settings_context


def run(pipe: Connection, environment: Mapping[str, str]) -> None:
    """Start servers as asked; the last one ends when the other end of the pipe is closed."""
    os.environ.update(environment)
    refresh_global_settings_context()
    from prefect.server.api.server import create_app

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    pipe.send(port)
    server = 0
    with contextlib.suppress(EOFError):
        while pipe.recv() == "start":
            if server:
                os.waitpid(server, 0)
            server = os.fork()
            if not server:
                pipe.close()
                log = os.open(
                    os.path.join(environment["PREFECT_HOME"], "server.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND
                )
                os.dup2(log, 1)
                os.dup2(log, 2)
                uvicorn.run(create_app(final=True), host="127.0.0.1", port=port, log_level="warning")
                os._exit(0)
            pipe.send(server)
    if server:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


if __name__ == "__main__":
    run(PIPE, ENVIRONMENT)  # noqa: F821
