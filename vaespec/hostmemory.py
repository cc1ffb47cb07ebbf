"""The memory of the process: how much there is, and arrays that give theirs back at once."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# A container's limit and what it holds, in the second and the first version of Linux' control groups.
CONTAINERS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)

M_MMAP_THRESHOLD = -3  # of glibc's mallopt: the size from which an allocation has pages of its own


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


@contextmanager
def given_back_at_once() -> Iterator[None]:
    """Inside, what is freed goes back to the system, from 1 MiB on; where the C library is glibc, elsewhere as it does.

    By itself glibc keeps pieces of up to 32 MiB for later, of which bands of rows are made, and they lie apart.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if adjust is None:
        yield
        return
    adjust(M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        adjust(M_MMAP_THRESHOLD, 2**25)  # what it comes to by itself, once anything large was freed


def in_own_pages(a: np.ndarray) -> np.ndarray:
    """A copy that goes back to the system as soon as it is let go.

    Of what NumPy allocates, pieces below 32 MiB stay with the process, and lie apart when others are freed.
    """
    pages = np.frombuffer(mmap.mmap(-1, max(1, a.nbytes)), np.uint8, a.nbytes)
    copied = pages.view(a.dtype).reshape(a.shape)
    copied[...] = a
    return copied
