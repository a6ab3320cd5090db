"""Why the process of a worker is gone, as far as Ray and the system tell."""

from __future__ import annotations

import re

from ray.exceptions import OutOfMemoryError, RayError

from tasks.errors import LESS_MEMORY
from tasks.machine_memory import free_memory_of_machine, in_words, memory_of_machine

_IN_USE = re.compile(r"was (\S+) used / (\S+) limit")
_THRESHOLD = re.compile(r"exceeded threshold of \S+ \((\S+)% of")
_HELD = re.compile(r"actual memory used=(\S+?),")
_DETAIL = re.compile(r"Worker exit detail: (.*?)\s*(?:Some common causes|$)", re.DOTALL)
_KILLED = "connection error code 2"  # how Ray tells of a process that ended without a word
WAY_OUT = f"{LESS_MEMORY}, end what else takes memory there, or take machines with more of it"


def is_for_memory(error: RayError, *, has_killed_for_memory: bool) -> bool:
    """Whether a process is gone because memory ran out, as far as that is known; arguments as of `cause_of_death`."""
    return isinstance(error, OutOfMemoryError) or (has_killed_for_memory and _KILLED in str(error))


def cause_of_death(
    error: RayError, *, has_killed_for_memory: bool = False, held_bytes: int = 0, num_workers: int = 1
) -> str:
    """Why a process is gone, and what to do about it where that is known: with figures where memory ran out.

    Args:
        error: what Ray has raised instead of an answer.
        has_killed_for_memory: whether the system has killed a process of that machine, which is this one, for want of
            memory meanwhile.
        held_bytes: what the process had of memory when it was last looked at; 0 where that is not known.
        num_workers: that share the memory of this machine.
    """
    text = str(error)
    if isinstance(error, OutOfMemoryError):  # Ray ends workers before the system has to
        used, most, held = _IN_USE.search(text), _THRESHOLD.search(text), _HELD.search(text)
        figures = [f"{used[1]} of {used[2]} were in use"] if used else []
        figures += [f"workers are ended above {float(most[1]):g} %"] if most else []
        figures += [f"this one held {held[1]}"] if held else []
        told = f" ({', '.join(figures)})" if figures else ""
        return f"its machine ran out of memory{told}: {WAY_OUT}"
    if has_killed_for_memory and _KILLED in text:
        return f"the system killed it, as it does where memory runs out ({shares(held_bytes, num_workers)}): {WAY_OUT}"
    if detail := _DETAIL.search(text):
        return detail[1]
    return last_line(error)


def shares(held_bytes: int, num_workers: int) -> str:
    """What a worker had of this machine's memory, where that is known, and what there is of it for each."""
    held = f"it held {in_words(held_bytes)} when last looked at, and " if held_bytes else ""
    has = memory_of_machine()
    each = f", {in_words(has // num_workers)} for each of {num_workers} workers" if num_workers > 1 else ""
    return f"{held}the machine has {in_words(has)}{each}"


def free_here() -> str:
    """How much memory of this machine is free, in words."""
    return f"{in_words(free_memory_of_machine())} of {in_words(memory_of_machine())} of memory are free"


def last_line(error: BaseException) -> str:
    """The last line of an error; what Ray puts before it is a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
