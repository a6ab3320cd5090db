"""The Prefect server of a command: its own for a while, unless another one is named."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

from lsap_core.errors import ConfigError

_NOT_STARTED = "Timed out while attempting to connect to ephemeral Prefect API server"  # as Prefect words it


def check_home() -> None:
    """Make sure, before any work is done, that a server of the command's own can keep its database.

    Without, it would write pages of tracebacks, and Prefect wait for it for minutes.

    Raises:
        ConfigError: its folder may not be written to.
    """
    if PREFECT_API_URL.value():
        return
    home = Path(PREFECT_HOME.value())
    problem = ""
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot be made ({error.strerror})"
    if not problem and not os.access(home, os.W_OK | os.X_OK):
        problem = "may not be written to"
    if problem:
        raise ConfigError(
            f"the temporary Prefect server keeps its database in {home}, which {problem}: set PREFECT_HOME to a folder "
            "that may be written to, or PREFECT_API_URL to a server"
        )


def is_gone(error: BaseException) -> bool:
    """Whether the Prefect server does not answer; only its client asks with httpx."""
    return isinstance(error, httpx.TransportError) or isinstance(error.__cause__, httpx.TransportError)


def told(error: BaseException) -> str | None:
    """What is wrong with the server, and what to do, where that is what failed; else None."""
    if is_gone(error):
        return (
            f"the Prefect server at {PREFECT_API_URL.value()} does not answer ({error}): start it again, or unset "
            "PREFECT_API_URL to do without; the same command goes on where this one stopped"
        )
    if _NOT_STARTED in str(error):
        return (
            f"the temporary Prefect server did not answer within "
            f"{PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()} s: try again when the machine has less to do, "
            "allow it more by PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, or name a server by PREFECT_API_URL"
        )
    return None
