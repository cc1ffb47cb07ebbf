"""Stores for the rows of a feature map, between the operation that computes them and those that read them.

A store is filled from the top down, then read by functions that it opens. A reader goes from the top down too: it never
returns to rows above the first row of its last read, so that memory is freed while a map is read, as soon as every
reader has passed.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from vaespec.errors import InputError
from vaespec.ops import Array, BandableOps

Place = str | os.PathLike[str]
"""Where rows are stored: "device", "host" (NumPy's memory), or a folder for a temporary file."""

NewStore = Callable[[Any, int], "Store"]
"""new_store(ops, axis) -> an empty store for arrays of `ops`, whose rows are counted along `axis`."""

Read = Callable[[int, int], Array]
"""read(start, stop) -> rows start … stop - 1."""


class Store(Protocol):
    """A place for the rows of one map, or the tokens of one sequence."""

    def append(self, rows: Array) -> None:
        """Store the next rows."""

    def open(self) -> Read:
        """A function that reads what was appended, from the top down."""


def new_store(place: Place | NewStore, ops: BandableOps, axis: int) -> Store:
    """An empty store at `place` for arrays of `ops`, whose rows are counted along `axis`."""
    if callable(place):
        return place(ops, axis)
    if place == "device":
        return MemoryStore(axis, lambda x: x, lambda x: x, partial(ops.concat, axis=axis))
    if place == "host":
        return MemoryStore(axis, ops.to_numpy, ops.from_host, partial(ops.concat, axis=axis))
    return FileStore(axis, ops.to_numpy, ops.from_host, place)


@dataclass
class MemoryStore:
    """Bands in memory, one array each, as they were appended: never written to, each freed by itself once it was read.

    `keep` converts a band to what is stored, `load` converts it back, and `join` makes one array of several bands.
    """

    axis: int
    keep: Callable[[Array], Any]
    load: Callable[[Any], Array]
    join: Callable[[list[Array]], Array]
    bands: list[tuple[int, int, Any]] = field(default_factory=list)  # (first row, last row + 1, what is stored)

    def append(self, rows: Array) -> None:
        start = self.bands[-1][1] if self.bands else 0
        self.bands.append((start, start + rows.shape[self.axis], self.keep(rows)))

    def open(self) -> Read:
        left, axis, load, join = list(self.bands), self.axis, self.load, self.join  # not self, which holds every band

        def read(start: int, stop: int) -> Array:
            while left[0][1] <= start:
                del left[0]
            parts = [
                load(rows if first >= start and last <= stop else cut(rows, axis, start - first, stop - first))
                for first, last, rows in left
                if first < stop
            ]
            return join(parts)

        return read


class FileStore:
    """A temporary file without a name, in `folder`. It is not mapped into memory, so that the process does not grow.

    Rows are stored one after the other whatever the layout of a map, so that a read is one piece of the file. The file
    is deleted with its last reader, or with the process. Raises InputError if it cannot be created or written.
    """

    def __init__(
        self, axis: int, keep: Callable[[Array], np.ndarray], load: Callable[[np.ndarray], Array], folder: Place
    ) -> None:
        self.axis, self.keep, self.load, self.folder = axis, keep, load, os.fspath(folder)
        with self._as_input_error():
            self.file: Any = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115  (open while it is read)
        weakref.finalize(self, self.file.close)

    def append(self, rows: Array) -> None:
        a = np.ascontiguousarray(np.moveaxis(self.keep(rows), self.axis, 0))
        self.row, self.dtype = a.shape[1:], a.dtype
        left = _bytes(a)
        with self._as_input_error():
            self.file.seek(0, os.SEEK_END)
            while left:
                left = left[self.file.write(left) :]

    def open(self) -> Read:
        def read(start: int, stop: int) -> Array:
            a = np.empty((stop - start, *self.row), self.dtype)
            left = _bytes(a)
            with self._as_input_error():
                self.file.seek(start * (a.nbytes // len(a)))
                while left:
                    left = left[self.file.readinto(left) :]
            return self.load(np.ascontiguousarray(np.moveaxis(a, 0, self.axis)))

        return read

    @contextmanager
    def _as_input_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"store {self.folder!r}: {error.strerror or error}; give a folder with room for temporary files."
            ) from error


def cut(x: Any, axis: int, start: int, stop: int) -> Any:
    """Positions start … stop - 1 of x along `axis`, without those that x does not have: a view."""
    return x[(slice(None),) * axis + (slice(max(0, start), min(stop, x.shape[axis])), ...)]


def _bytes(a: np.ndarray) -> memoryview:
    """The memory of `a` as bytes, since not every dtype (bfloat16) can be written to a file."""
    return a.reshape(-1).view(np.uint8).data
