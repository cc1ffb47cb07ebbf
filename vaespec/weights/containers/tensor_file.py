"""TensorFile, the interface of every container: names, shapes and dtypes from the header, each array when indexed."""

from __future__ import annotations

import os
import stat
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from math import prod
from pathlib import Path

import numpy as np

from vaespec.dtypes import KNOWN_DTYPES, numpy_dtype
from vaespec.errors import WeightFileError
from vaespec.escaping import MAX_SHOWN, shown
from vaespec.files import open_at_once

MAX_RANK = 64  # NumPy's own

State = tuple[int, int, int]


class TensorFile(Mapping[str, np.ndarray]):
    """A mapping from names to arrays. Indexing reads one array into memory of its own, independent of the file.

    `kind` is the container's name, `metadata` the file's own text beside its tensors. Raises KeyError for an unknown
    name, WeightFileError if the tensor cannot be read.
    """

    path: Path
    kind: str
    metadata: Mapping[str, str]

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape; reads nothing."""

    @abstractmethod
    def dtype(self, name: str) -> str:
        """The tensor's dtype, one of `vaespec.dtypes.KNOWN_DTYPES`; reads nothing."""

    def __contains__(self, name: object) -> bool:
        """Looks at names only; Mapping's own method would read the tensor."""
        try:
            self.shape(str(name))
        except KeyError:
            return False
        return True


@dataclass(frozen=True)
class Stored:
    """A tensor's dtype and shape, and the place of its bytes in the file: (first, count) of each run, in order."""

    dtype: str
    shape: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        """Raises ValueError if NumPy can have no such array, or if the bytes do not match dtype and shape."""
        if self.dtype not in KNOWN_DTYPES:
            raise ValueError(f"has the unknown dtype {self.dtype!r}")
        require_possible(self.shape, numpy_dtype(self.dtype).itemsize)
        stored, needed = sum(count for _, count in self.runs), prod(self.shape) * numpy_dtype(self.dtype).itemsize
        if stored != needed:
            raise ValueError(f"has {stored:,} bytes, but {self.dtype} {self.shape} takes {needed:,}")


@dataclass(eq=False)
class StoredTensors(TensorFile):
    """A file that stores its tensors unchanged, byte for byte, at the places in `rows`."""

    path: Path
    kind: str
    rows: Mapping[str, Stored]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with opened(self.path) as file:
            self._state = state_of(file)

    def shape(self, name: str) -> tuple[int, ...]:
        """From the header."""
        return self.rows[name].shape

    def dtype(self, name: str) -> str:
        """From the header."""
        return self.rows[name].dtype

    def __getitem__(self, name: str) -> np.ndarray:
        row = self.rows[name]
        return self.read(name, row.runs).view(numpy_dtype(row.dtype)).reshape(row.shape)

    def read(self, name: str, runs: tuple[tuple[int, int], ...]) -> np.ndarray:
        """Reads the bytes of these runs, in order, into new memory."""
        with opened(self.path) as file:
            require_unchanged(self.path, file, self._state)
            raw, done = np.empty(sum(count for _, count in runs), np.uint8), 0
            for first, count in runs:
                file.seek(first)
                if file.readinto(raw.data[done : done + count]) != count:
                    raise WeightFileError(f"{self.path} ends inside tensor {name}: load it again.")
                done += count
        return raw

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """The file, open for reading. Raises WeightFileError if it does not exist or cannot be read, and MemoryError.

    Every error names the file, also one that the block raises while it reads.
    """
    if "\0" in str(path):
        raise WeightFileError(f"{str(path)!r} is no path, since it has a null character: check it.")
    try:
        _require_regular(path, path.stat())  # before it is opened, which may change a device
        with memory_for(path), open(path, "rb", opener=open_at_once) as file:
            _require_regular(path, os.fstat(file.fileno()))  # and after, since it may have been replaced
            yield file
    except WeightFileError:
        raise
    except FileNotFoundError:
        if path.is_symlink():
            raise WeightFileError(
                f"{path} is a link to {os.readlink(path)}, which does not exist: restore that file."
            ) from None
        raise WeightFileError(f"no file {path}: check the path.") from None
    except OSError as error:
        raise WeightFileError(
            f"{path} cannot be read ({error.strerror or error}): check the file and its disk."
        ) from None


def _require_regular(path: Path, state: os.stat_result) -> None:
    """Raises WeightFileError for a pipe, which may block, and for a folder or a device."""
    if not stat.S_ISREG(state.st_mode):
        raise WeightFileError(f"{path} is a folder or device: give a file of weights.")


@contextmanager
def memory_for(path: Path) -> Iterator[None]:
    """Names the file in a MemoryError that the block raises: without memory, a file is not damaged."""
    try:
        yield
    except MemoryError:
        raise MemoryError(f"not enough memory to read {path}: close other programs, or take a smaller file.") from None


@contextmanager
def tensor_in_errors(name: str) -> Iterator[None]:
    """Names the tensor in a ValueError that the block raises, as its subject."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"tensor {name[: MAX_SHOWN // 2]} {error}") from None


def damaged(path: Path, kind: str, reason: object) -> WeightFileError:
    """The error for a file that begins like one of `kind` and is none."""
    return WeightFileError(f"{path} is a damaged {kind} file: {shown(str(reason))}; download or save it again.")


def require_possible(shape: tuple[object, ...], itemsize: int) -> None:
    """Raises ValueError if NumPy can have no array of this shape; of an empty one it counts the sizes beside 0."""
    sizes = [n for n in shape if type(n) is int and 0 <= n < 2**63]
    overflows = 0 in sizes and prod(filter(None, sizes)) * itemsize >= 2**63
    if len(shape) > MAX_RANK or len(sizes) < len(shape) or overflows:
        raise ValueError("has an impossible shape")  # which may be too long to show


def require_apart(rows: Mapping[str, tuple[int, int]], first: int, size: int) -> None:
    """Raises ValueError if two of these pieces (first, count) of a file overlap, or one is not in `first` to `size`."""
    end = first
    for (start, count), name in sorted((row, name) for name, row in rows.items()):
        if start < end:
            raise ValueError(f"tensor {name} begins at byte {start:,}, before the end of the previous one at {end:,}")
        if (end := start + count) > size:
            raise ValueError(f"it has {size:,} bytes, but tensor {name} ends at {end:,}")


def state_of(file: BufferedReader) -> State:
    """The file's inode, size and time: at least one changes when it is written to or replaced."""
    now = os.fstat(file.fileno())
    return now.st_ino, now.st_size, now.st_mtime_ns


def require_unchanged(path: Path, file: BufferedReader, state: State) -> None:
    """Raises WeightFileError unless the file is still in that state."""
    if state_of(file) != state:
        raise WeightFileError(f"{path} has changed since it was opened: load it again.")
