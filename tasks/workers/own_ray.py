"""A Ray of this process's own, which nobody else reaches: its ports, its folder and who may speak to it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_constants, services
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled

from tasks.errors import TaskError
from tasks.visible_text import visible

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
CLOSED = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GLOO_SOCKET_IFNAME": "lo",  # where the processes of a training talk to each other
    "NCCL_SOCKET_IFNAME": "lo",
}
OBJECT_STORE_BYTES = 80 * 2**20  # workers write to storage themselves; only numbers travel
END_SECONDS = 30.0  # that Ray may take to end
LONGEST_SOCKET = 107  # bytes that the system allows for its name
SOCKET = "lsap-12345678/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # the longest of Ray's
LONGEST_FOLDER = LONGEST_SOCKET - len(f"/{SOCKET}")


class ClusterUnavailableError(TaskError, ConnectionError):
    """The Ray cluster that the settings name cannot be joined, or none can be started here."""


@contextlib.contextmanager
def own_ray(num_cpus: int, *, num_gpus: int | None, runtime_env: Mapping[str, Any] | None) -> Iterator[None]:
    """Ray on this machine, for the time of a context.

    It listens on the loopback address alone. Who speaks to it needs a token that is made anew each time and that only
    the environment of its processes holds; so does the folder around Ray's own, which Ray opens to everybody, belong
    to this user alone. Metrics, dashboard and usage reports are off.

    Raises:
        ClusterUnavailableError: there is no folder for its sockets.
    """
    closed = {**CLOSED, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with _private_folder() as folder, _environment(closed, without=("RAY_AUTH_TOKEN_PATH", "RAY_REDIS_ADDRESS")):
        try:
            with _loopback_alone(), _in_sessions_of_their_own():
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    num_gpus=num_gpus,
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    runtime_env=runtime_env,
                    _node_ip_address=LOOPBACK,
                    _temp_dir=folder,
                    _system_config={"enable_metrics_collection": False},
                )
            yield
        finally:
            with _killed_in_the_end(folder):
                ray.shutdown()


@contextlib.contextmanager
def _killed_in_the_end(folder: str) -> Iterator[None]:
    """What Ray has started in a folder is killed where it does not end: for stopped processes Ray waits without end."""
    timer = threading.Timer(END_SECONDS, _kill_all, [folder])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _kill_all(folder: str) -> None:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if folder in " ".join(child.cmdline()):
                logger.warning("Ray's process %d did not end within %.0f s and is killed", child.pid, END_SECONDS)
                child.kill()


@contextlib.contextmanager
def _loopback_alone() -> Iterator[None]:
    """Ray takes this machine's address in the network where it is told 127.0.0.1, unless it is without clusters.

    A variable says so that was made for other systems, and is read when Ray is imported.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _in_sessions_of_their_own() -> Iterator[None]:
    """A terminal's Ctrl-C is for the command, which ends Ray's processes; in its session each would answer by itself.

    The system kills them with the command all the same, as Ray asks it to.
    """
    before = services.ConsolePopen
    services.ConsolePopen = functools.partial(before, start_new_session=True)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        services.ConsolePopen = before  # type: ignore[misc]


@contextlib.contextmanager
def _environment(variables: Mapping[str, str], *, without: tuple[str, ...]) -> Iterator[None]:
    """The environment changed, as Ray sees it too, which has read it on import."""
    before = {name: os.environ.get(name) for name in (*variables, *without)}
    for name in without:
        os.environ.pop(name, None)
    os.environ.update(variables)
    _read_environment_again()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _read_environment_again()


def _read_environment_again() -> None:
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _private_folder() -> Iterator[str]:
    """A path for Ray's folder, in one that only this user may enter; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="lsap-", dir=scratch_folder(), ignore_cleanup_errors=True) as private:
        yield str(Path(private, "r"))


def scratch_folder() -> str:
    """The first folder whose name leaves room for those of Ray's sockets.

    Of `RAY_TMPDIR`, the usual folder of temporary files and two short ones.

    Raises:
        ClusterUnavailableError: none does, or may be written to.
    """
    folder, problems = _first_folder()
    if problems:
        logger.warning("Ray's sockets are below %s, because %s", folder, "; ".join(problems))
    return folder


def check_scratch_folder() -> None:
    """Make sure that there is a folder for Ray's sockets, before any work is done.

    Raises:
        ClusterUnavailableError: there is none.
    """
    _first_folder()


def _first_folder() -> tuple[str, list[str]]:
    """The first folder that can hold Ray's sockets, and what keeps those before it from that, in words."""
    problems: list[str] = []
    for folder in filter(None, (os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp", "/var/tmp")):
        problem = _problem_of(os.path.abspath(folder))
        if problem is None:
            return folder, problems
        if problem not in problems:
            problems.append(problem)
    raise ClusterUnavailableError(
        f"no folder can hold Ray's sockets ({'; '.join(problems)}): set RAY_TMPDIR to one with a short name that may "
        "be written to, such as RAY_TMPDIR=/tmp"
    )


def _problem_of(folder: str) -> str | None:
    """What keeps Ray from having its sockets below a folder, in words."""
    length = len(os.fsencode(folder))
    if length > LONGEST_FOLDER:
        return f"the name of {visible(folder)} is {length} bytes long, and sockets allow {LONGEST_FOLDER}"
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        return f"{visible(folder)} is no folder that may be written to"
    return None
