"""A command that is told to stop: at which moments, how it ended, and what it left behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
import uuid
from dataclasses import dataclass
from typing import Any

import psutil

MARK = "INTERRUPTED_COMMAND"  # in the environment of a command, and so of all that it starts
INTERRUPTED = "lsap: interrupted; the same command goes on where this one stopped"
NOISE = ("Traceback", "*** SIG", "nanobind", "    @ ", "the pool was closed", "Exception ignored")
GONE_SECONDS = 5.0
END_SECONDS = 35.0


@dataclass(frozen=True)
class Interruption:
    """How a command ended.

    Attributes:
        moment: seconds after its start at which the signal was sent; None when it had ended before.
        code: exit code.
        err: what it printed on stderr.
        left: command lines of processes that were there some seconds after it had ended.
    """

    moment: float | None
    code: int
    err: str
    left: tuple[str, ...]

    @property
    def problems(self) -> list[str]:
        """What is not as it should be, each in a sentence."""
        lines = self.err.splitlines()
        has_ended_by_itself = self.code == 0  # it was done when the signal came
        found = [f"{word!r} in what it printed" for word in NOISE if word in self.err]
        if not has_ended_by_itself and (self.code != 1 or lines[-1:] != [INTERRUPTED]):
            found.append(f"exit code {self.code} after {lines[-1:]}")
        return [f"at {self.moment}: {problem}" for problem in [*found, *(f"left {line}" for line in self.left)]]


def moments(count: int, seconds: float, seed: int) -> list[float]:
    """Seconds after the start of a command, of which all moments up to `seconds` are equally likely."""
    drawn = random.Random(seed)
    return sorted(round(drawn.uniform(0.0, seconds), 3) for _ in range(count))


def interrupted(
    lsap: Any, moment: float, *arguments: str, by: signal.Signals = signal.SIGTERM, **fields: Any
) -> Interruption:
    """Start `run invert` and tell it to stop.

    Args:
        lsap: the fixture of that name.
        moment: when, in seconds after the start.
        arguments: further words of the command.
        by: the signal.
        fields: of the run, `__` for a dot.
    """
    mark = uuid.uuid4().hex
    command = lsap.with_variables(**{MARK: mark}).invert(*arguments, **fields)
    end = time.monotonic() + moment
    while time.monotonic() < end and not command.has_ended:
        time.sleep(0.01)
    is_told = not command.has_ended
    if is_told:
        os.kill(command.pid, by)
    finished = command.wait(END_SECONDS)
    return Interruption(moment if is_told else None, finished.code, finished.err, tuple(left_of(mark)))


def left_of(mark: str) -> list[str]:
    """Command lines of processes that still carry a mark after some seconds."""
    deadline = time.monotonic() + GONE_SECONDS
    while (found := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _marked(mark: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # gone meanwhile, or somebody else's
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found
