"""GGUF: counts, key-value pairs, a table of tensors, and their data, plain or in quantised blocks."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vaespec.errors import WeightFileError
from vaespec.weights.containers.tensor_file import (
    MAX_RANK,
    Stored,
    StoredTensors,
    TensorFile,
    damaged,
    numpy_dtype,
    opened,
)

Shape = tuple[int, ...]

KIND = "GGUF"
VERSIONS = (2, 3)
MAX_COUNT, MAX_STRING, MAX_ARRAY = 1 << 16, 1 << 16, 1 << 20
ALIGNMENT = "general.alignment"

# The types of values, by GGUF's numbers: struct's letters. 8 is text, 9 an array.
VALUES = dict(enumerate("BbHhIifB")) | {10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9

# The types of tensors that are stored plainly, by ggml's numbers.
PLAIN = {
    0: "float32",
    1: "float16",
    24: "int8",
    25: "int16",
    26: "int32",
    27: "int64",
    28: "float64",
    30: "bfloat16",
}


class Blocks(TensorFile):
    """`file`, whose `quantised` tensors (name -> ggml's type and shape) are bytes in it, as float32."""

    def __init__(self, file: StoredTensors, quantised: dict[str, tuple[int, Shape]]) -> None:
        self.path, self.kind, self.metadata = file.path, file.kind, file.metadata
        self._file, self._quantised = file, quantised

    def shape(self, name: str) -> Shape:
        """From the header."""
        return self._quantised[name][1] if name in self._quantised else self._file.shape(name)

    def dtype(self, name: str) -> str:
        """From the header."""
        return "float32" if name in self._quantised else self._file.dtype(name)

    def __getitem__(self, name: str) -> np.ndarray:
        stored = self._file[name]
        if name not in self._quantised:
            return stored
        gguf, (kind, shape) = _gguf(self.path), self._quantised[name]
        try:
            with np.errstate(all="ignore"):  # what is not finite is for others to judge
                array: np.ndarray = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType(kind))
        except (NotImplementedError, ValueError) as error:
            raise WeightFileError(f"{self.path}: tensor {name} cannot be dequantised ({error}).") from None
        return array.reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


def open_gguf(path: Path) -> TensorFile:
    """Read the header; shapes come in PyTorch's order. WeightFileError if it is damaged, or needs the gguf package."""
    with opened(path) as file:
        cursor = _Cursor(file, os.fstat(file.fileno()).st_size)
        try:
            values, table = _header(cursor)
            rows = {name: _stored(path, *entry) for name, entry in table.items()}
            _require_apart(rows, cursor)
        except (ValueError, struct.error) as error:
            raise damaged(path, KIND, error) from None
    metadata = {key: value for key, value in values.items() if isinstance(value, str)}
    stored = StoredTensors(path, KIND, rows, metadata)
    quantised = {name: (kind, shape) for name, (shape, kind, _) in table.items() if kind not in PLAIN}
    return Blocks(stored, quantised) if quantised else stored


class _Cursor:
    """Reads little-endian values one after the other; ValueError at the end of the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size = file, size

    @property
    def position(self) -> int:
        return self._file.tell()

    def take(self, count: int) -> bytes:
        content = self._file.read(min(count, self.size - self.position))
        if len(content) != count:
            raise ValueError(f"it ends at byte {self.size:,}, inside its header")
        return content

    def number(self, letter: str) -> Any:
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]

    def count(self, most: int, what: str) -> int:
        count: int = self.number("Q")
        if count > most:
            raise ValueError(f"it has {count:,} {what}, at most {most:,} may be")
        return count

    def text(self) -> str:
        return self.take(self.count(MAX_STRING, "bytes in a text")).decode()


def _header(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, tuple[Shape, int, int]]]:
    """The key-value pairs, and the table: name -> shape, type, where its data begin."""
    cursor.take(len(KIND))
    if (version := cursor.number("I")) not in VERSIONS:
        raise ValueError(f"it is of version {version}, versions {VERSIONS} in little-endian order are read")
    tensors, pairs = cursor.count(MAX_COUNT, "tensors"), cursor.count(MAX_COUNT, "key-value pairs")
    values = {cursor.text(): _value(cursor, cursor.number("I")) for _ in range(pairs)}
    table = {cursor.text(): _entry(cursor) for _ in range(tensors)}
    if len(table) != tensors:
        raise ValueError("it has a tensor twice")
    alignment = values.get(ALIGNMENT, 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 16:
        raise ValueError(f"{ALIGNMENT} is {alignment!r}")
    data = -(-cursor.position // alignment) * alignment
    return values, {name: (shape, kind, data + offset) for name, (shape, kind, offset) in table.items()}


def _value(cursor: _Cursor, kind: int) -> Any:
    """One value; arrays, which say nothing about a VAE, are stepped over and come as None."""
    if kind in VALUES:
        return cursor.number(VALUES[kind])
    if kind == TEXT:
        return cursor.text()
    inner, count = cursor.number("I") if kind == ARRAY else None, cursor.count(MAX_ARRAY, "items in an array")
    if inner in VALUES:
        cursor.take(count * struct.calcsize(f"<{VALUES[inner]}"))
    elif inner == TEXT:
        for _ in range(count):
            cursor.text()
    else:
        raise ValueError(f"it has a value of the unknown type {kind if inner is None else inner}")
    return None


def _entry(cursor: _Cursor) -> tuple[Shape, int, int]:
    """Shape, type and offset. ggml counts dimensions from the innermost."""
    rank = cursor.number("I")
    if rank > MAX_RANK:
        raise ValueError(f"it has a tensor of {rank:,} dimensions")
    sizes = tuple(cursor.number("Q") for _ in range(rank))
    return sizes[::-1], cursor.number("I"), cursor.number("Q")


def _stored(path: Path, shape: Shape, kind: int, first: int) -> Stored:
    """A tensor as it lies in the file; of a quantised one, rows of bytes."""
    if kind in PLAIN:
        dtype = PLAIN[kind]
        return Stored(dtype, shape, ((first, prod(shape) * numpy_dtype(dtype).itemsize),))
    gguf = _gguf(path)
    if kind not in gguf.GGML_QUANT_SIZES:
        raise ValueError(f"it has a tensor of the unknown type {kind}")
    values, size = gguf.GGML_QUANT_SIZES[kind]
    if not shape or shape[-1] % values:
        raise ValueError(f"it has a tensor of shape {shape} in blocks of {values} values")
    rows = (*shape[:-1], shape[-1] // values * size)
    return Stored("uint8", rows, ((first, prod(rows)),))


def _require_apart(rows: dict[str, Stored], cursor: _Cursor) -> None:
    """ValueError unless the tensors are all inside the file, none inside another or the header."""
    end = cursor.position
    for (first, count), name in sorted((row.runs[0], name) for name, row in rows.items()):
        if first < end:
            raise ValueError(f"tensor {name} begins at byte {first:,}, what comes before it ends at {end:,}")
        if (end := first + count) > cursor.size:
            raise ValueError(f"it has {cursor.size:,} bytes, but tensor {name} ends at {end:,}")


def _gguf(path: Path) -> Any:
    """The package that knows ggml's blocks."""
    try:
        import gguf
        import gguf.quants
    except ImportError:
        raise WeightFileError(
            f'{path} is a GGUF file of quantised weights, and reading them needs gguf: pip install "vaespec[gguf]", '
            "or take the file they were made from."
        ) from None
    return gguf
