"""The accelerators and the memory of this machine, read from files of the system, without importing a framework.

A file can report an accelerator that a framework cannot use, as in a container without access to the GPU. The reverse
never happens: an accelerator without a file cannot be used.
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

# On Linux, one entry per GPU in each folder: the driver's, and the device's, which some sandboxes show alone.
NVIDIA = (Path("/proc/driver/nvidia/gpus"), "*"), (Path("/dev"), "nvidia[0-9]*")
# The driver in Windows' subsystem for Linux, and on Windows: it proves at least one GPU.
NVIDIA_ELSEWHERE = (Path("/usr/lib/wsl/lib/libcuda.so.1"), Path(r"C:\Windows\System32\nvcuda.dll"))
# TPUs up to v4, and from v5 on; /dev/accel/ holds chips of other makers, and /dev/vfio/vfio is no device.
TPU = (Path("/dev"), "accel[0-9]*"), (Path("/dev/vfio"), "[0-9]*")

# The memory limit and the memory use of a container, in versions 2 and 1 of Linux's control groups.
CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
CPUINFO = Path("/proc/cpuinfo")
BFLOAT16 = {"avx512_bf16", "amx_bf16"}  # the CPU's flags, as Linux names them


def nvidia_gpus() -> int:
    """The number of NVIDIA's GPUs that this process may use; CUDA_VISIBLE_DEVICES can hide some."""
    counted = _most_entries(NVIDIA)
    present = counted or int(any(path.exists() for path in NVIDIA_ELSEWHERE))
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if listed is None else min(present, _visible(listed, counted or math.inf))


def _visible(listed: str, count: float) -> int:
    """The number of GPUs that CUDA shows if `listed` is CUDA_VISIBLE_DEVICES and the machine has `count` GPUs.

    `listed` holds indices, and UUIDs or beginnings of UUIDs. CUDA shows the GPUs before the first unknown one, and none
    if one is listed twice: CUDA Programming Guide, "Environment Variables", and torch.cuda._parse_visible_devices. A
    UUID counts as known without a check.
    """

    def known(name: str) -> bool:
        return name.startswith(("GPU-", "MIG-")) or (name.isdecimal() and int(name) < count)

    shown = list(takewhile(known, (name.strip() for name in listed.split(","))))
    return len(shown) if len(set(shown)) == len(shown) else 0


def apple_gpu() -> bool:
    """Whether this machine is a Mac with Apple's own chip."""
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def tpus() -> int:
    """The number of TPU chips in this machine."""
    return _most_entries(TPU)


@cache
def multiplies_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16, with sums in float32, faster than it multiplies float32."""
    return CPUINFO.exists() and not BFLOAT16.isdisjoint(CPUINFO.read_text().split())


def _most_entries(folders: Iterable[tuple[Path, str]]) -> int:
    """The greatest number of entries in one folder that match its pattern."""
    return max(len(list(folder.glob(pattern))) for folder, pattern in folders)


IN_MEMORY = {"tmpfs", "ramfs"}  # file systems whose files are memory


def stored_in_memory(folder: str | os.PathLike[str]) -> bool:
    """Whether files in this folder are in memory: /dev/shm, and on many systems /tmp. Raises OSError without it."""
    import psutil  # imported late: most runs never call this

    device = os.stat(folder).st_dev
    mounts = [mount.mountpoint for mount in psutil.disk_partitions(all=True) if mount.fstype in IN_MEMORY]
    return any(os.path.exists(mount) and os.stat(mount).st_dev == device for mount in mounts)


@dataclass(frozen=True)
class MemoryUse:
    """The memory of a device, in bytes: `used` by this process, and `free` for it."""

    used: int
    free: int


def host_memory() -> MemoryUse:
    """The host's memory: resident pages of this process, and what the system or a container's limit leaves free."""
    import psutil  # imported late: most runs never call this

    free = psutil.virtual_memory().available
    for limit, current in CGROUPS:
        if limit.exists() and (allowed := limit.read_text().strip()).isdecimal():
            free = min(free, max(0, int(allowed) - int(current.read_text())))
    return MemoryUse(psutil.Process().memory_info().rss, free)
