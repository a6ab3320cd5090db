"""A clock that jumps under a process at work, as when a machine's is set; a file has its hours ahead of the real one.

Run as a program inside a process, that process follows the file that the variable CLOCK_FILE names; commands and
workers run the program that CLOCK_FOLLOWER names.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import time_machine

LOOK_SECONDS = 0.02


class JumpingClock:
    """The clock of a machine's processes, as a test moves it."""

    def __init__(self, file: Path) -> None:
        self.environment = {"CLOCK_FOLLOWER": __file__, "CLOCK_FILE": str(file)}
        self._file = file

    def set(self, hours: float) -> None:
        """Let it be so far ahead, at once for everybody."""
        new = self._file.with_suffix(".new")
        new.write_text(str(hours))
        new.replace(self._file)

    def reset(self) -> None:
        """Let it be right."""
        self.set(0)


def follow(file: Path) -> None:
    """Show what the file says; the clock is left alone until it first says something."""
    shown, traveller = 0.0, None
    while True:
        with contextlib.suppress(FileNotFoundError):
            hours = float(file.read_text())
            if hours != shown:
                traveller = _jump(traveller, timedelta(hours=hours - shown))
                shown = hours
        time.sleep(LOOK_SECONDS)


def _jump(traveller: Any, by: timedelta) -> Any:
    if traveller is None:
        return time_machine.travel(datetime.now(UTC) + by, tick=True).start()
    traveller.shift(by)
    return traveller


if __name__ == "__main__":
    threading.Thread(target=follow, args=(Path(os.environ["CLOCK_FILE"]),), daemon=True).start()
