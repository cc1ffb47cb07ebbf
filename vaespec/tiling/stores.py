"""Where the rows of a map are kept between the layer that makes them and those that read them.

A store is filled from the top down, then read through functions that it opens. Such a reader also goes from the top
down: what lies above the first row of a read is not asked for again, so that memory is given back while a map is read,
as soon as nobody else holds it.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np

from vaespec.errors import InputError
from vaespec.ops import Array

Place = str | os.PathLike[str]
"""Where rows are kept: "device", "host" (NumPy's memory), or a folder for a temporary file."""

NewStore = Callable[[Any, int], "Store"]
"""new_store(ops, axis) -> an empty store for arrays of `ops`, whose rows are counted along `axis`."""

Read = Callable[[int, int], Array]
"""read(start, stop) -> the rows from start to stop - 1."""


class Store(Protocol):
    """The rows of one map, or the tokens of one sequence."""

    def append(self, rows: Array) -> None:
        """Keep the rows that come next."""

    def open(self) -> Read:
        """A reader of everything appended, from the top down."""


def new_store(place: Place | NewStore, ops: Any, axis: int) -> Store:
    """An empty store for arrays of `ops`, whose rows are counted along `axis`."""
    if callable(place):
        return place(ops, axis)
    if place == "device":
        return MemoryStore(axis, lambda x: x, lambda x: x, partial(ops.xp.concat, axis=axis))
    if place == "host":
        return MemoryStore(axis, ops.to_numpy, ops.from_host, partial(ops.xp.concat, axis=axis))
    return FileStore(axis, ops.to_numpy, ops.from_host, place)


class MemoryStore:
    """Arrays one below the other, as they came: never written to, each freed by itself."""

    def __init__(
        self,
        axis: int,
        keep: Callable[[Array], Any],
        load: Callable[[Any], Array],
        join: Callable[[list[Array]], Array],
    ) -> None:
        self.axis, self.keep, self.load, self.join = axis, keep, load, join
        self.bands: list[tuple[int, int, Any]] = []

    def append(self, rows: Array) -> None:
        start = self.bands[-1][1] if self.bands else 0
        self.bands.append((start, start + rows.shape[self.axis], self.keep(rows)))

    def open(self) -> Read:
        left, axis, load, join = list(self.bands), self.axis, self.load, self.join  # not the store: it holds every band

        def read(start: int, stop: int) -> Array:
            while left[0][1] <= start:
                del left[0]
            parts = [
                load(rows if first >= start and last <= stop else cut(rows, axis, start - first, stop - first))
                for first, last, rows in left
                if first < stop
            ]
            return parts[0] if len(parts) == 1 else join(parts)

        return read


class FileStore:
    """A temporary file without a name, in `folder`: written and read explicitly, so that its pages are nobody's memory.

    Rows lie one after the other whatever the layout of a map, so that a read is one piece of the file. The file goes
    with the last reader, and with the process. InputError where the system does not let it be.
    """

    def __init__(
        self, axis: int, keep: Callable[[Array], np.ndarray], load: Callable[[np.ndarray], Array], folder: Place
    ) -> None:
        self.axis, self.keep, self.load, self.folder = axis, keep, load, os.fspath(folder)
        with self._worded():
            self.file: Any = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115  (open while it is read)
        weakref.finalize(self, self.file.close)

    def append(self, rows: Array) -> None:
        a = np.ascontiguousarray(np.moveaxis(self.keep(rows), self.axis, 0))
        self.row, self.dtype = a.shape[1:], a.dtype
        left = _bytes(a)
        with self._worded():
            self.file.seek(0, os.SEEK_END)
            while left:
                left = left[self.file.write(left) :]

    def open(self) -> Read:
        def read(start: int, stop: int) -> Array:
            a = np.empty((stop - start, *self.row), self.dtype)
            left = _bytes(a)
            with self._worded():
                self.file.seek(start * (a.nbytes // len(a)))
                while left:
                    left = left[self.file.readinto(left) :]
            return self.load(np.ascontiguousarray(np.moveaxis(a, 0, self.axis)))

        return read

    @contextmanager
    def _worded(self) -> Iterator[None]:
        """What the system says, as InputError."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"store {self.folder!r}: {error.strerror or error}; give a folder with room for temporary files."
            ) from error


def cut(x: Any, axis: int, start: int, stop: int) -> Any:
    """Rows start … stop - 1 of x along `axis`, or as many of them as there are."""
    return x[(slice(None),) * axis + (slice(max(0, start), min(stop, x.shape[axis])), ...)]


def _bytes(a: np.ndarray) -> memoryview:
    """The same memory: not every dtype can be written as it is."""
    return a.reshape(-1).view(np.uint8).data
