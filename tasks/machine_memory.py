"""The memory of this machine, of which its container may use a part; and who was ended because there was none left."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

LARGEST_MEMORY = 2**45
"""Of a machine that nobody here can look at, as those of a cluster; 32 TiB."""
CGROUP_USE = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
KILL_COUNTS = (
    Path("/proc/vmstat"),
    Path("/sys/fs/cgroup/memory.events"),
    Path("/sys/fs/cgroup/memory/memory.oom_control"),
)
"""Where Linux counts whom it has killed: of all the machine, and of a container, which may not see the former."""


def memory_of_machine() -> int:
    """Bytes in all, used or free; as many as its container may use."""
    texts = [limit.read_text().strip() for limit, _ in CGROUP_USE if limit.is_file()]
    limits = [int(text) for text in texts if text.isdigit()]  # else "max"
    return min(int(psutil.virtual_memory().total), *limits, LARGEST_MEMORY)


def free_memory_of_machine() -> int:
    """Bytes that nobody uses; as many as its container may still take."""
    left = [int(psutil.virtual_memory().available)]
    for limit, used in CGROUP_USE:
        if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
            left.append(int(text) - int(used.read_text()))
    return max(0, min(left))


def num_killed_for_memory() -> int:
    """How many processes the system has killed for want of memory, as a number that grows; 0 where it does not say."""
    counted = 0
    for place in KILL_COUNTS:
        try:
            found = re.search(r"^oom_kill (\d+)$", place.read_text(), re.MULTILINE)
        except OSError:  # another system, or another version of it
            continue
        counted += int(found[1]) if found else 0
    return counted


def held_by(process: int) -> int:
    """Bytes that a process of this machine has; 0 where that is not to be seen."""
    try:
        return int(psutil.Process(process).memory_info().rss)
    except psutil.Error:
        return 0


def in_words(num_bytes: int) -> str:
    """A number of bytes for people.

    Example:
        >>> in_words(3 * 2**30), in_words(2**80)
        ('3.0 GiB', '1125899906842624.0 GiB')
    """
    return f"{num_bytes / 2**30:.1f} GiB"
