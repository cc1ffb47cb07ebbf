"""Warnings that show a line of the user's program, from whatever depth of ours or of a framework."""

from __future__ import annotations

import sys
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from types import FrameType


def warn_user(message: str, category: type[Warning]) -> None:
    """Warns at the innermost line that belongs neither to vaespec nor to what is installed beside it.

    A framework's module or a pipeline may stand between the two. Without such a line, it is the caller of vaespec.
    """
    callers = [(level, frame) for level, frame in enumerate(_below(sys._getframe()), start=2) if not _is_ours(frame)]
    users = (level for level, frame in callers if not frame.f_code.co_filename.startswith(_installed()))
    level = next(users, callers[0][0] if callers else 1)
    warnings.warn(message, category, stacklevel=level)  # from Python 3.12 on, skip_file_prefixes does this


def _below(frame: FrameType) -> Iterator[FrameType]:
    """The frames that led to this one, the innermost first."""
    while caller := frame.f_back:
        yield caller
        frame = caller


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith("vaespec")


@cache
def _installed() -> tuple[str, ...]:
    """How the file names of installed packages, and of Python itself, begin."""
    paths = sysconfig.get_paths()
    return ("<frozen ", *(paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")))
