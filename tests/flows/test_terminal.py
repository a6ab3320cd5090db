"""Ctrl-C in a terminal, which signals all processes of the session's foreground group and not the command alone."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

IN_FOREGROUND = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
CTRL_C = b"\x03"
BAR = "images x methods"
END_SECONDS = 30.0  # on a machine that is busy; else it is one or two, where it took minutes
PATIENCE_SECONDS = 600.0


class Shown:
    """What a terminal has shown so far."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._data = b""

    def read(self, seconds: float) -> None:
        """Take what comes within some time."""
        end = time.monotonic() + seconds
        while select.select([self._descriptor], [], [], max(end - time.monotonic(), 0.0))[0]:
            try:
                self._data += os.read(self._descriptor, 65536)
            except OSError:  # nobody has it open any more
                return

    def text(self) -> str:
        return self._data.decode()

    def lines(self, start: int) -> list[str]:
        """Whole lines from a character on, without colours, bars and what the terminal itself echoes."""
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\^C", "", self.text()[start:])
        return [line for line in re.split(r"[\r\n]+", plain) if line.strip() and not line.startswith(BAR)]


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """What these tests were started to ignore, as by `make test &` in a script, their commands would too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def num_working(pid: int, built: dict[int, float]) -> int:
    """How many actors of a command have worked for a second since they were built.

    Ray calls an actor by the method that it is at only until another one, such as that for the progress, has ended.

    Args:
        pid: the command's.
        built: processor seconds of each actor when it was first seen built; is added to.
    """
    count = 0
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if process.cmdline()[:1] in (["ray::Host"], ["ray::Host.call"]):
                used = process.cpu_times()
                seconds = used.user + used.system
                count += seconds > built.setdefault(process.pid, seconds) + 1.0
    return count


def test_ctrl_c_ends_a_run_with_two_shards_under_way_in_one_line(config: Path, tmp_path: Path) -> None:
    """With a Prefect server and a Ray of its own: they stay deaf, and end with the command."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    command = [sys.executable, "-c", IN_FOREGROUND, sys.executable, "-m", "flows.commands.cli"]
    command += ["run", "invert", str(config)]
    changes = [
        "source=digits:test[:32]",
        f"archive={tmp_path / 'archive'}",
        "workers.count=2",
        "embedding.num_steps=9999",
        "compile=never",
    ]
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [*command, *(word for one in changes for word in ("--set", one))],
        env={**environment, "PREFECT_HOME": str(tmp_path / "prefect"), "COLUMNS": "200"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        shown = Shown(ours)
        deadline = time.monotonic() + PATIENCE_SECONDS
        built: dict[int, float] = {}
        while num_working(running.pid, built) < 2:
            assert running.poll() is None and time.monotonic() < deadline, shown.text()
            shown.read(0.2)
        started = psutil.Process(running.pid).children(recursive=True)
        assert [one for one in started if os.getsid(one.pid) == running.pid] == []
        before = shown.text()
        told_at = time.monotonic()
        os.write(ours, CTRL_C)
        while running.poll() is None and time.monotonic() < told_at + END_SECONDS:
            shown.read(0.1)
        assert running.poll() == 1, shown.text()
        shown.read(0.5)
        assert shown.lines(len(before)) == ["lsap: interrupted; the same command goes on where this one stopped"]
        assert psutil.wait_procs(started, timeout=5)[1] == []
    finally:
        running.kill()
        running.wait()
        os.close(ours)
