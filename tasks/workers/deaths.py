"""Why the process of a worker is gone, as far as Ray and the system tell."""

from __future__ import annotations

import re
from pathlib import Path

from ray.exceptions import OutOfMemoryError, RayError

from tasks.errors import LESS_MEMORY

VMSTAT = Path("/proc/vmstat")
_IN_USE = re.compile(r"was (\S+) used / (\S+) limit")
_DETAIL = re.compile(r"Worker exit detail: (.*?)\s*(?:Some common causes|$)", re.DOTALL)
_KILLED = "connection error code 2"  # how Ray tells of a process that ended without a word
_WAY_OUT = f"{LESS_MEMORY}, or take machines with more of it"


def num_killed_for_memory() -> int:
    """How many processes the system has killed on this machine for want of memory; 0 where it does not say."""
    try:
        found = re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(), re.MULTILINE)
    except OSError:  # no Linux
        return 0
    return int(found[1]) if found else 0


def is_for_memory(error: RayError, *, has_killed_for_memory: bool) -> bool:
    """Whether a process is gone because memory ran out, as far as that is known; arguments as of `cause_of_death`."""
    return isinstance(error, OutOfMemoryError) or (has_killed_for_memory and _KILLED in str(error))


def cause_of_death(error: RayError, *, has_killed_for_memory: bool = False) -> str:
    """Why a process is gone, and what to do about it where that is known.

    Args:
        error: what Ray has raised instead of an answer.
        has_killed_for_memory: whether the system has killed a process of that machine for want of memory meanwhile.
    """
    text = str(error)
    if isinstance(error, OutOfMemoryError):  # Ray ends workers before the system has to
        used = f" ({found[1]} of {found[2]} were in use)" if (found := _IN_USE.search(text)) else ""
        return f"its machine ran out of memory{used}: {_WAY_OUT}"
    if has_killed_for_memory and _KILLED in text:
        return f"the system killed it, as it does where memory runs out: {_WAY_OUT}"
    if detail := _DETAIL.search(text):
        return detail[1]
    return last_line(error)


def last_line(error: BaseException) -> str:
    """The last line of an error; what Ray puts before it is a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
