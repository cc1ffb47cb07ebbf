"""The pool of threads: an array is cut along its rows into strips, and the strips are computed on every core."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np
import threadpoolctl

STRIP_ELEMENTS = 1 << 18  # 1 MiB of float32: stays in a core's second-level cache from one step to the next
GRAIN = 1 << 13  # elements: computing fewer takes less time than handing half of them to another core

P = TypeVar("P")
T = TypeVar("T")


@cache
def cores() -> int:
    """Count the cores that this process may use: in a container, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    _forget_after_fork(_pool)
    return ThreadPoolExecutor(cores(), thread_name_prefix="vaespec")


class _SingleThreadedBlas:
    """A context in which each matrix product runs on one thread; the last to leave restores the earlier limit.

    The limit belongs to the process, so entries are counted: models may run in several threads at once. threadpoolctl
    must set and restore the limit in one thread, so a dedicated thread does both.
    """

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.controller = threadpoolctl.ThreadpoolController()
        self.owner = ThreadPoolExecutor(1, thread_name_prefix="vaespec-blas")

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.limit = self.owner.submit(self._limited).result()

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.owner.submit(self.limit.__exit__, None, None, None).result()

    def _limited(self) -> Any:
        return self.controller.limit(limits=1, user_api="blas").__enter__()


@cache
def single_threaded_blas() -> _SingleThreadedBlas:
    """Return this process's context in which each matrix product runs on one thread."""
    _forget_after_fork(single_threaded_blas)
    return _SingleThreadedBlas()


def _forget_after_fork(cached: Any) -> None:
    """Let a child process start threads of its own: threads do not survive a fork, and data loaders fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=cached.cache_clear)


def strips(rows: int, elements_per_row: int) -> Iterator[slice]:
    """Yield slices that cover `rows`: about STRIP_ELEMENTS each, and one per core unless that is less than GRAIN."""
    per_core = max(-(-rows // cores()), GRAIN // max(1, elements_per_row))
    height = max(1, min(STRIP_ELEMENTS // max(1, elements_per_row), per_core))
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


def on_every_core(work: Callable[[str], T], names: Iterable[str]) -> list[T]:
    """Compute work(name) for every name, in order."""
    return list(_pool().map(work, names))


def side_by_side(work: Callable[[slice], T], rows: int, elements_per_row: int) -> list[T]:
    """Compute work(strip) for every strip, in order of the strips."""
    return share(work, list(strips(rows, elements_per_row)))


def share(work: Callable[[P], T], pieces: Sequence[P]) -> list[T]:
    """Compute work(piece) for every piece, in order, on all cores; NumPy releases the interpreter lock meanwhile.

    Each matrix product runs on one thread: the pieces already fill the cores, and the order of summation, and with it
    the last bit, does not depend on what else the process does.
    """

    def quietly(piece: P) -> T:  # the caller reports what is not finite; errstate does not cross threads
        with np.errstate(over="ignore", invalid="ignore"):
            return work(piece)

    with single_threaded_blas():
        return [quietly(pieces[0])] if len(pieces) == 1 else list(_pool().map(quietly, pieces))
