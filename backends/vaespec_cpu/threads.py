"""Work on strips: a big array is cut along its rows, and the pieces are computed side by side on every core."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import numpy as np
import threadpoolctl

STRIP_ELEMENTS = 1 << 18  # 1 MiB of float32: stays in a core's second-level cache from one step to the next
HUGE_PAGE = 1 << 21  # bytes
BIG = 1 << 20  # bytes; smaller arrays do fit what others leave
GRAIN = 1 << 13  # elements that are computed sooner than half of them are handed to another core

P = TypeVar("P")
T = TypeVar("T")


@cache
def cores() -> int:
    """How many this process may use: fewer than the machine has, in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    _forget_after_fork(_pool)
    return ThreadPoolExecutor(cores(), thread_name_prefix="vaespec")


class _SingleThreadedBlas:
    """While anybody is inside, matrix products run on one thread each; the last one out restores what was.

    The setting belongs to the process, so it is counted: models may run in several threads at once. threadpoolctl lets
    one thread at a time change it, which cannot be whichever comes first here; so a thread of our own does.
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
    """Matrix products inside run on one thread each; of this process."""
    _forget_after_fork(single_threaded_blas)
    return _SingleThreadedBlas()


def _forget_after_fork(cached: Any) -> None:
    """Threads do not survive a fork, which data loaders do: the child makes its own."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=cached.cache_clear)


def fresh(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """np.empty, but what is big has pages of its own, which go back to the system with it.

    Of what a process frees it keeps gaps, which the next map may not fit: a tenth of what a run of 256 px takes. The
    pages are huge where the system has any, since small ones cost as much as what is written into them.
    """
    size = math.prod(shape)
    if size * dtype.itemsize >= BIG and hasattr(mmap, "MADV_HUGEPAGE"):
        length = -(-size * dtype.itemsize // HUGE_PAGE) * HUGE_PAGE
        with suppress(OSError):  # NumPy says better that there is no memory
            pages = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            pages.madvise(mmap.MADV_HUGEPAGE)
            return np.frombuffer(pages, dtype, size).reshape(shape)
    return np.empty(shape, dtype)


def give_back() -> None:
    """What was freed goes back to the system, where the C library is one that can be asked: threads' heaps keep it."""
    if sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


class Scratch(threading.local):
    """Arrays that each thread uses again for the next piece: fresh memory costs as much as what is done in it."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype, self.kept, self.made = dtype, dict[str, np.ndarray](), dict[str, tuple[Sequence[object], Any]]()

    def __call__(self, name: str, *shape: int) -> np.ndarray:
        """An array of that shape, with whatever numbers were left in it; what is kept is at most twice as large."""
        size = math.prod(shape)
        if name not in self.kept or not size <= self.kept[name].size <= 2 * size:
            self.kept.pop(name, None)  # given back before more is asked for
            self.kept[name] = fresh((size,), self.dtype)
        return self.kept[name][:size].reshape(shape)

    def again(self, name: str, *of: object, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What was made last, if it was of the same objects: a layer that runs in bands needs its kernels once."""
        last, found = self.made.pop(name, ((), None))
        if len(last) != len(of) or any(one is not other for one, other in zip(last, of, strict=True)):
            del found  # given back before more is asked for
            found = make()
        self.made[name] = of, found
        return found


def strips(rows: int, elements_per_row: int) -> Iterator[slice]:
    """Slices that cover `rows`, each of about STRIP_ELEMENTS, and one per core unless that is less than GRAIN."""
    of_a_core = max(-(-rows // cores()), GRAIN // max(1, elements_per_row))
    height = max(1, min(STRIP_ELEMENTS // max(1, elements_per_row), of_a_core))
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


def on_every_core(work: Callable[[str], T], names: Iterable[str]) -> list[T]:
    """work(name) for every name, in order."""
    return list(_pool().map(work, names))


def side_by_side(work: Callable[[slice], T], rows: int, elements_per_row: int) -> list[T]:
    """work(strip) for every strip, in order of the strips."""
    return share(work, list(strips(rows, elements_per_row)))


def share(work: Callable[[P], T], pieces: Sequence[P]) -> list[T]:
    """work(piece) for every piece, in order, shared by the cores; NumPy releases the interpreter lock inside.

    The matrix products inside run on one thread each: the pieces already fill the cores, and the order of summation,
    and with it the last bit, does not depend on what else the process does.
    """

    def quietly(piece: P) -> T:  # what is not finite is reported by the caller; errstate does not cross threads
        with np.errstate(over="ignore", invalid="ignore"):
            return work(piece)

    with single_threaded_blas():
        return [quietly(pieces[0])] if len(pieces) == 1 else list(_pool().map(quietly, pieces))
