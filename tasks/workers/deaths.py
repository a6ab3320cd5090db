"""Why the process of a worker is gone, as far as Ray and the system tell."""

from __future__ import annotations


def last_line(error: BaseException) -> str:
    """The last line of an error; what Ray puts before it is a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
