"""What every container is to those who read weights: names, shapes and dtypes at once, arrays when asked for."""

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

from vaespec.errors import WeightFileError

INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
NUMPY_DTYPES = INTEGERS | {"bool", "float16", "float32", "float64", "complex64", "complex128"}
ML_DTYPES = {"bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"}
MAX_RANK = 64  # NumPy's own

State = tuple[int, int, int]


class TensorFile(Mapping[str, np.ndarray]):
    """name -> array, each read when asked for, into memory of its own: what becomes of the file later changes nothing.

    `kind` is the container in words, `metadata` what the file says beside its tensors. KeyError for a name it does
    not have, WeightFileError for what cannot be read.
    """

    path: Path
    kind: str
    metadata: Mapping[str, str]

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape; nothing is read."""

    @abstractmethod
    def dtype(self, name: str) -> str:
        """The tensor's dtype, by the name NumPy or ml_dtypes has for it; nothing is read."""

    def __contains__(self, name: object) -> bool:
        """Nothing is read, as Mapping's own would."""
        try:
            self.shape(str(name))
        except KeyError:
            return False
        return True


@dataclass(frozen=True)
class Stored:
    """A tensor's dtype and shape, and where in the file its bytes are: (first, count) of each run, in order."""

    dtype: str
    shape: tuple[int, ...]
    runs: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        """ValueError where the bytes are not as many as dtype and shape say, or NumPy can have no such array."""
        if self.dtype not in NUMPY_DTYPES | ML_DTYPES:
            raise ValueError(f"has the unknown dtype {self.dtype!r}")
        if len(self.shape) > MAX_RANK or not all(type(n) is int and 0 <= n < 2**63 for n in self.shape):
            raise ValueError("has a shape that is none")
        there, needed = sum(count for _, count in self.runs), prod(self.shape) * numpy_dtype(self.dtype).itemsize
        if there != needed:
            raise ValueError(f"has {there:,} bytes, but {self.dtype} {self.shape} takes {needed:,}")


def numpy_dtype(name: str) -> np.dtype:
    """The dtype of this name, one of NUMPY_DTYPES or ML_DTYPES."""
    if name in NUMPY_DTYPES:
        return np.dtype(name)
    import ml_dtypes  # here: only who meets such a tensor waits for it

    return np.dtype(getattr(ml_dtypes, name))


@dataclass(eq=False)
class StoredTensors(TensorFile):
    """A file whose tensors lie in it as they are, byte for byte: `rows` tells where."""

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
        """These bytes of the file, one run after the other, in memory of their own."""
        raw = np.empty(sum(count for _, count in runs), np.uint8)
        with opened(self.path) as file:
            require_unchanged(self.path, file, self._state)
            done = 0
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
    """The file to read from; WeightFileError where the system has none, or does not let it be read."""
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):  # a pipe would keep us waiting
            raise WeightFileError(f"{path} is a folder or device: give a file of weights.")
        with path.open("rb") as file:
            yield file
    except WeightFileError:
        raise
    except FileNotFoundError:
        raise WeightFileError(f"no file {path}.") from None
    except OSError as error:
        raise WeightFileError(f"{path} cannot be read ({error.strerror}).") from None


def damaged(path: Path, kind: str, why: object) -> WeightFileError:
    """The error of a file that begins like one of `kind` and is none."""
    return WeightFileError(f"{path} is a damaged {kind} file: {why}; download or save it again.")


def state_of(file: BufferedReader) -> State:
    """What changes when a file is written to or replaced."""
    now = os.fstat(file.fileno())
    return now.st_ino, now.st_size, now.st_mtime_ns


def require_unchanged(path: Path, file: BufferedReader, state: State) -> None:
    """WeightFileError unless the file is as it was."""
    if state_of(file) != state:
        raise WeightFileError(f"{path} has changed since it was opened: load it again.")
