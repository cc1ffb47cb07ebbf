"""The memory of the process: what it holds, and how much there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# A container's limit and what it holds, in the second and the first version of Linux' control groups.
CONTAINERS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


@dataclass(frozen=True)
class Memory:
    """Of a device, in bytes: `used` by this process, and `free` for it."""

    used: int
    free: int


def host_memory() -> Memory:
    """Of this process: what is resident, and what the system or a container's limit leaves."""
    import psutil  # only those who ask wait for it

    free = psutil.virtual_memory().available
    for limit, current in CONTAINERS:
        if limit.exists() and (most := limit.read_text().strip()).isdecimal():
            free = min(free, max(0, int(most) - int(current.read_text())))
    return Memory(psutil.Process().memory_info().rss, free)
