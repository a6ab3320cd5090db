"""How much memory codes may stay in."""

from __future__ import annotations

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_UNKNOWN_MEMORY = 4 * 2**30


def share_of_memory() -> int:
    """Bytes that resident codes may take: half of what this process may still take."""
    return _memory_left() // 2


def _memory_left() -> int:
    """Bytes that nobody uses, or no more than caches do; in a container as many as it may still take."""
    left = []
    try:
        told = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        left.append(int(told["MemAvailable"].split()[0]) * 1024)
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit.isdigit():
            statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
            used = int((_CGROUP / "memory.current").read_text()) - int(statistics["inactive_file"])
            left.append(int(limit) - used)
    except OSError:  # another system, or none of these files in this container
        pass
    return max(0, min(left, default=_UNKNOWN_MEMORY))
