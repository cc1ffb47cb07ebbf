"""Memory of the engine: big arrays with pages of their own, and scratch arrays that a thread uses again."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

Array = np.ndarray

HUGE_PAGE = 1 << 21  # bytes
BIG = 1 << 20  # bytes; smaller arrays fit into the gaps that others leave


def fresh(shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """np.empty, but a big array has pages of its own, which return to the system when it is freed.

    Freed memory that a process keeps has gaps, which the next map may not fit: a tenth of what a run of 256 px takes.
    The pages are huge if the system has such, since small ones cost as much as what is written into them.
    """
    size = math.prod(shape)
    if size * dtype.itemsize >= BIG and hasattr(mmap, "MADV_HUGEPAGE"):
        length = -(-size * dtype.itemsize // HUGE_PAGE) * HUGE_PAGE
        with suppress(OSError):  # no memory: np.empty raises the better error
            pages = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            pages.madvise(mmap.MADV_HUGEPAGE)
            return np.frombuffer(pages, dtype, size).reshape(shape)
    return np.empty(shape, dtype)


def give_back() -> None:
    """Return freed memory, which the threads' heaps keep, to the system, if the C library has a call for it."""
    if sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


class Scratch(threading.local):
    """Arrays that each thread uses again for the next piece: fresh memory costs as much as the work done in it."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype, self.arrays = dtype, dict[str, Array]()
        self.results = dict[str, tuple[Sequence[object], Any]]()

    def __reduce__(self) -> tuple[type[Scratch], tuple[np.dtype]]:
        """Copy and pickle without the arrays."""
        return Scratch, (self.dtype,)

    def __call__(self, name: str, *shape: int) -> Array:
        """Return an array of that shape, with arbitrary numbers in it; the array kept is at most twice as large."""
        size = math.prod(shape)
        if name not in self.arrays or not size <= self.arrays[name].size <= 2 * size:
            self.arrays.pop(name, None)  # freed before more is allocated
            self.arrays[name] = fresh((size,), self.dtype)
        return self.arrays[name][:size].reshape(shape)

    def again(self, name: str, *inputs: object, make: Callable[[], Array]) -> Array:
        """Return the last result if its inputs were the same objects: bands of a layer transform its kernels once."""
        last, result = self.results.pop(name, ((), None))
        if len(last) != len(inputs) or any(one is not other for one, other in zip(last, inputs, strict=True)):
            del result  # freed before more is allocated
            result = make()
        self.results[name] = inputs, result
        return result
