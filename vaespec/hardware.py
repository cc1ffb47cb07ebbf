"""Accelerators that are there, as far as can be seen without importing a framework: from the system's own files."""

from __future__ import annotations

import os
import platform
from pathlib import Path

NVIDIA = Path("/proc/driver/nvidia/gpus")  # Linux: one entry for each
NVIDIA_ELSEWHERE = (Path("/usr/lib/wsl/lib/libcuda.so.1"), Path(r"C:\Windows\System32\nvcuda.dll"))  # at least one
TPU = (Path("/dev"), "accel*"), (Path("/dev/vfio"), "[0-9]*")


def nvidia_gpus() -> int:
    """How many GPUs of NVIDIA this process may use; CUDA_VISIBLE_DEVICES hides some."""
    present = len(list(NVIDIA.iterdir())) if NVIDIA.is_dir() else int(any(path.exists() for path in NVIDIA_ELSEWHERE))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    named = visible.split(",") if visible else []
    return min(present, len(named[: named.index("-1")] if "-1" in named else named))


def apple_gpu() -> bool:
    """Whether this is a Mac with Apple's own chip."""
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def tpus() -> int:
    """How many chips of a TPU this machine holds."""
    return max(len(list(folder.glob(pattern))) for folder, pattern in TPU)
