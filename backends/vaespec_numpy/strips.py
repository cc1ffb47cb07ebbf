"""Work on strips: a big array is cut along its rows, and the pieces are computed side by side on every core."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import threadpoolctl

STRIP_ELEMENTS = 1 << 18  # 1 MiB of float32: stays in a core's second-level cache from one step to the next

T = TypeVar("T")


@cache
def cores() -> int:
    """How many this process may use: fewer than the machine has, in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork (data loaders do that)
    return ThreadPoolExecutor(cores(), thread_name_prefix="vaespec")


@cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


def strips(rows: int, elements_per_row: int) -> Iterator[slice]:
    """Slices that cover `rows`, each of about STRIP_ELEMENTS, and at least one per core where rows allow."""
    height = max(1, min(STRIP_ELEMENTS // max(1, elements_per_row), -(-rows // cores())))
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


def side_by_side(work: Callable[[slice], T], rows: int, elements_per_row: int) -> list[T]:
    """work(strip) for every strip, in order of the strips; NumPy releases the interpreter lock inside.

    The matrix products inside run on one thread each, since the strips already fill the cores.
    """

    def quietly(piece: slice) -> T:  # what is not finite is reported by the caller; errstate does not cross threads
        with np.errstate(over="ignore", invalid="ignore"):
            return work(piece)

    pieces = list(strips(rows, elements_per_row))
    if len(pieces) == 1:
        return [quietly(pieces[0])]
    with _blas().limit(limits=1, user_api="blas"):
        return list(_pool().map(quietly, pieces))
