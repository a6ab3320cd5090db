"""The temporary Prefect server of a command: in a session of its own, and gone when the command is gone.

Prefect's own way starts it among the processes that a terminal's Ctrl-C reaches, and leaves it where the command is
killed.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import Any

import prefect
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, get_current_settings

logger = logging.getLogger("lsap")

APPLICATION = "prefect.server.api.server:create_app"
VARIABLES = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
TIED = """\
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
    sys.exit(os.strerror(ctypes.get_errno()))
if os.getppid() != int(sys.argv[1]):
    sys.exit("the command has ended meanwhile")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
"""Has the system kill the process with the thread that started it, and then becomes a call of the interpreter."""


class OwnServer(SubprocessASGIServer):
    """What Prefect takes for its temporary server once one is made (it keeps one for each process)."""

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        application = ["--app-dir", str(prefect.__module_path__.parent), "--factory", APPLICATION]
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        uvicorn = ["-m", "uvicorn", *application, *address, "--log-level", "error", "--lifespan", "on"]
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", TIED, str(os.getpid()), *uvicorn],
            env={**os.environ, **VARIABLES, **settings},
            start_new_session=True,
        )


def start_own_server() -> None:
    """Start the server, unless one is named or none is wanted; called by the thread that lives longest.

    Raises:
        RuntimeError: it does not answer in time.
    """
    if not PREFECT_API_URL.value() and PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        logger.info("starting a temporary Prefect server")
        OwnServer().start()
