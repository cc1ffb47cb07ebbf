"""Programs that a backend compiles are kept in the user's cache, so that they are compiled in the first run only."""

from __future__ import annotations

import os
import platform
import sys
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vaespec.machine import CPUINFO
from vaespec_conformance.subjects.subjects import Subject

KIND_OF_CPU = ("model name", "flags", "Features")  # lines of CPUINFO: a program may be wrong for another CPU


def keep_programs(subject: Subject) -> None:
    """Lets the subject's backend keep its programs, if it can; a folder that cannot be written to changes nothing."""
    keep = getattr(getattr(subject, "backend", None), "keep_programs", None)
    if keep is not None:
        with suppress(OSError, RuntimeError):  # there is no home, or it is read-only
            folder = programs_folder(os.environ)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            keep(folder)


def programs_folder(environment: Mapping[str, str]) -> Path:
    """The folder of this user's programs for this kind of CPU. Raises RuntimeError if the user has no home."""
    names = {"win32": "LOCALAPPDATA"}
    usual = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    cache = Path(environment.get(names.get(sys.platform, "XDG_CACHE_HOME")) or usual)
    return cache / "vaespec" / "programs" / f"{platform.machine()}-{zlib.crc32(_cpu().encode()):08x}"


def _cpu() -> str:
    """What tells this CPU from others."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return "\n".join(sorted({line for line in lines if line.startswith(KIND_OF_CPU)})) or platform.processor()
