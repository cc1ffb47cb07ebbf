"""The machine: its accelerators and its memory, as the system's own files show them, without importing a framework.

A file may promise what a framework then cannot use, as in a container that was given no GPU; never the reverse.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

# On Linux one entry for each: the driver's, which is always there, and the device's, all that some sandboxes show.
NVIDIA = (Path("/proc/driver/nvidia/gpus"), "*"), (Path("/dev"), "nvidia[0-9]*")
# In Windows' subsystem for Linux, and on Windows: the driver, so at least one.
NVIDIA_ELSEWHERE = (Path("/usr/lib/wsl/lib/libcuda.so.1"), Path(r"C:\Windows\System32\nvcuda.dll"))
# Up to v4, and since v5; /dev/accel/ is Linux's folder for chips of other makers, /dev/vfio/vfio is no device.
TPU = (Path("/dev"), "accel[0-9]*"), (Path("/dev/vfio"), "[0-9]*")

# A container's limit and what it holds, in the second and the first version of Linux' control groups.
CONTAINERS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
CPUINFO = Path("/proc/cpuinfo")
BFLOAT16 = {"avx512_bf16", "amx_bf16"}  # as Linux names them


def nvidia_gpus() -> int:
    """How many GPUs of NVIDIA this process may use; CUDA_VISIBLE_DEVICES hides some."""
    counted = _most(NVIDIA)
    present = counted or int(any(path.exists() for path in NVIDIA_ELSEWHERE))
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if listed is None else min(present, _visible(listed, counted or math.inf))


def _visible(listed: str, count: float) -> int:
    """How many of a list of indices and UUIDs, or beginnings of UUIDs, CUDA shows where there are `count` GPUs.

    Those before the first that is not there, and none if one is given twice: CUDA Programming Guide, "Environment
    Variables", and torch.cuda._parse_visible_devices. Whether there is a GPU of that UUID is not looked at.
    """

    def there(name: str) -> bool:
        return name.startswith(("GPU-", "MIG-")) or (name.isdecimal() and int(name) < count)

    shown = list(takewhile(there, (name.strip() for name in listed.split(","))))
    return len(shown) if len(set(shown)) == len(shown) else 0


def apple_gpu() -> bool:
    """Whether this is a Mac with Apple's own chip."""
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def tpus() -> int:
    """How many chips of a TPU this machine holds."""
    return _most(TPU)


@cache
def multiplies_bfloat16() -> bool:
    """Whether the CPU has products of bfloat16, with sums in float32, that are quicker than those of float32."""
    return CPUINFO.exists() and not BFLOAT16.isdisjoint(CPUINFO.read_text().split())


def _most(places: Iterable[tuple[Path, str]]) -> int:
    """The entries that match, where most do."""
    return max(len(list(folder.glob(pattern))) for folder, pattern in places)


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
