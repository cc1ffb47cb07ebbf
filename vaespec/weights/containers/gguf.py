"""GGUF: counts, key-value pairs, a table of tensors, and their data, plain or in quantized blocks."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vaespec.dtypes import numpy_dtype
from vaespec.errors import WeightFileError
from vaespec.weights.containers.container import Container
from vaespec.weights.containers.tensor_file import (
    MAX_RANK,
    Stored,
    StoredTensors,
    TensorFile,
    damaged,
    opened,
    require_apart,
    require_possible,
    tensor_in_errors,
)

Shape = tuple[int, ...]

KIND = "GGUF"
VERSIONS = (2, 3)
BIG_ENDIAN = {version.to_bytes(4, "big") for version in VERSIONS}
MAX_COUNT, MAX_STRING, MAX_ARRAY = 1 << 14, 1 << 16, 1 << 20
MAX_HEADER = 16 << 20  # bytes; the vocabulary of a language model has less
ALIGNMENT = "general.alignment"
ORIGINAL = "comfy.gguf.orig_shape."  # and a tensor's name: its shape before ComfyUI-GGUF made it fit blocks

# GGUF's numbers for the types of values -> the letters of struct. 8 is text, 9 an array.
VALUES = dict(enumerate("BbHhIifB")) | {10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
INTEGERS = "BbHhIiQq"
FLOAT32 = 4  # bytes of a value that was in a block

# ggml's numbers for the types of tensors that are not quantized.
PLAIN = {0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 30: "bfloat16"}


class Blocks(TensorFile):
    """A file with quantized tensors, read as float32. `file` has their bytes; `quantized`: name -> type and shape."""

    def __init__(self, file: StoredTensors, quantized: dict[str, tuple[int, Shape]]) -> None:
        self.path, self.kind, self.metadata = file.path, file.kind, file.metadata
        self._file, self._quantized = file, quantized

    def shape(self, name: str) -> Shape:
        """From the header."""
        return self._quantized[name][1] if name in self._quantized else self._file.shape(name)

    def dtype(self, name: str) -> str:
        """From the header."""
        return "float32" if name in self._quantized else self._file.dtype(name)

    def __getitem__(self, name: str) -> np.ndarray:
        stored = self._file[name]
        if name not in self._quantized:
            return stored
        gguf, (kind, shape) = _gguf(self.path), self._quantized[name]
        try:
            with np.errstate(all="ignore"):  # NaN and infinity are reported by the reader of the weights
                array: np.ndarray = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType(kind))
        except (NotImplementedError, ValueError) as error:
            raise WeightFileError(f"{self.path}: tensor {name} cannot be dequantized ({error}).") from None
        return array.reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


def open_gguf(path: Path) -> TensorFile:
    """Read the header; shapes are in PyTorch's order. Raises WeightFileError for a damaged file, or without gguf."""
    with opened(path) as file:
        if os.pread(file.fileno(), 8, 0)[4:] in BIG_ENDIAN:
            raise WeightFileError(
                f"{path} is a big-endian GGUF file, which cannot be read: take the little-endian one."
            )
        cursor = _Cursor(file, os.fstat(file.fileno()).st_size)
        try:
            values, table = _header(cursor)
            rows = {name: _stored(path, name, *entry) for name, entry in table.items()}
            require_apart({name: row.runs[0] for name, row in rows.items()}, cursor.position, cursor.size)
            shapes = {name: _original(values, name, shape) for name, (shape, _, _) in table.items()}
            plain = {name: replace(row, shape=shapes[name]) for name, row in rows.items() if table[name][1] in PLAIN}
        except (ValueError, struct.error) as error:
            raise damaged(path, KIND, error) from None
    metadata = {key: value for key, value in values.items() if isinstance(value, str)}
    stored = StoredTensors(path, KIND, rows | plain, metadata)
    quantized = {name: (kind, shapes[name]) for name, (_, kind, _) in table.items() if kind not in PLAIN}
    return Blocks(stored, quantized) if quantized else stored


class _Cursor:
    """Reads little-endian values in sequence. Raises ValueError at the end of the file, and of MAX_HEADER bytes."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._start, self.size, self.position = file.read(min(size, MAX_HEADER)), size, 0

    def take(self, count: int) -> bytes:
        content = self._start[self.position : self.position + count]
        if len(content) != count:
            limit = "" if self.size <= MAX_HEADER else ", or is longer than any"
            raise ValueError(f"it ends at byte {len(self._start):,}, inside its header{limit}")
        self.position += count
        return content

    def number(self, letter: str) -> Any:
        return self.numbers(letter, 1)[0]

    def numbers(self, letter: str, count: int) -> tuple[Any, ...]:
        letters = f"<{count}{letter}"
        return struct.unpack(letters, self.take(struct.calcsize(letters)))

    def count(self, limit: int, items: str) -> int:
        count: int = self.number("Q")
        if count > limit:
            raise ValueError(f"it has {count:,} {items}, the limit is {limit:,}")
        return count

    def text(self) -> str:
        return self.take(self.count(MAX_STRING, "bytes in a text")).decode()

    def skip_texts(self, count: int) -> None:
        """Passes over many texts; a vocabulary may have hundreds of thousands."""
        content, at = self._start, self.position
        for _ in range(count):
            at += 8 + int.from_bytes(content[at : at + 8], "little")
            if at > len(content):
                raise ValueError(f"it ends at byte {len(content):,}, inside an array of text")
        self.position = at


def _header(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, tuple[Shape, int, int]]]:
    """The key-value pairs, and the table: name -> shape, type, first byte of its data."""
    cursor.take(len(KIND))
    if (version := cursor.number("I")) not in VERSIONS:
        raise ValueError(f"it has version {version}, only versions {VERSIONS} can be read")
    tensors, pairs = cursor.count(MAX_COUNT, "tensors"), cursor.count(MAX_COUNT, "key-value pairs")
    values: dict[str, Any] = {}
    for _ in range(pairs):
        if (key := cursor.text()) in values:
            raise ValueError(f"it has the key {key} twice")
        values[key] = _value(cursor, cursor.number("I"), kept=key.startswith(ORIGINAL))
    table = {cursor.text(): _entry(cursor) for _ in range(tensors)}
    if len(table) != tensors:
        raise ValueError("it has two tensors of one name")
    alignment = values.get(ALIGNMENT, 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 16 or alignment & (alignment - 1):
        raise ValueError(f"{ALIGNMENT} is {alignment!r}, expected a power of 2 up to {1 << 16:,}")
    data = -(-cursor.position // alignment) * alignment
    return values, {name: (shape, kind, data + offset) for name, (shape, kind, offset) in table.items()}


def _value(cursor: _Cursor, kind: int, kept: bool = False) -> Any:
    """One value. An array is skipped, and None stands for it, unless it is to be kept and has few integers."""
    if kind in VALUES:
        return cursor.number(VALUES[kind])
    if kind == TEXT:
        return cursor.text()
    inner, count = cursor.number("I") if kind == ARRAY else None, cursor.count(MAX_ARRAY, "items in an array")
    if inner in VALUES:
        if kept and count <= MAX_RANK and VALUES[inner] in INTEGERS:
            return cursor.numbers(VALUES[inner], count)
        cursor.take(count * struct.calcsize(f"<{VALUES[inner]}"))
    elif inner == TEXT:
        cursor.skip_texts(count)
    else:
        raise ValueError(f"it has a value of the unknown type {kind if inner is None else inner}")
    return None


def _original(values: dict[str, Any], name: str, shape: Shape) -> Shape:
    """A tensor's shape before ComfyUI-GGUF made it fit blocks, if the file has it; else the one in the table."""
    if (key := ORIGINAL + name) not in values:
        return shape
    original = values[key]
    if not isinstance(original, tuple) or min(original, default=1) < 0 or prod(original) != prod(shape):
        raise ValueError(f"{key} is {original}, which is no shape of the {prod(shape):,} values of tensor {name}")
    with tensor_in_errors(name):
        require_possible(original, FLOAT32)
    return original


def _entry(cursor: _Cursor) -> tuple[Shape, int, int]:
    """Shape, type and offset. ggml counts dimensions from the innermost."""
    rank = cursor.number("I")
    if rank > MAX_RANK:
        raise ValueError(f"it has a tensor of {rank:,} dimensions")
    sizes = cursor.numbers("Q", rank)
    return sizes[::-1], cursor.number("I"), cursor.number("Q")


def _stored(path: Path, name: str, shape: Shape, kind: int, first: int) -> Stored:
    """A tensor as the file stores it; a quantized one is rows of bytes."""
    dtype = PLAIN.get(kind)
    with tensor_in_errors(name):
        require_possible(shape, numpy_dtype(dtype).itemsize if dtype else FLOAT32)
    if dtype:
        return Stored(dtype, shape, ((first, prod(shape) * numpy_dtype(dtype).itemsize),))
    gguf = _gguf(path)
    if kind not in gguf.GGML_QUANT_SIZES:
        raise ValueError(f"tensor {name} is of the unknown type {kind}")
    values, size = gguf.GGML_QUANT_SIZES[kind]
    if not shape or shape[-1] % values:
        raise ValueError(f"tensor {name} is of shape {shape} in blocks of {values} values")
    rows = (*shape[:-1], shape[-1] // values * size)
    return Stored("uint8", rows, ((first, prod(rows)),))


def _gguf(path: Path) -> Any:
    """The package gguf, which dequantizes blocks."""
    try:
        import gguf
        import gguf.quants
    except ImportError:
        raise WeightFileError(
            f'{path} is a GGUF file of quantized weights, and reading them needs gguf: pip install "vaespec[gguf]", '
            "or take the original file."
        ) from None
    return gguf


GGUF = Container(KIND, lambda start: start.startswith(b"GGUF"), open_gguf, (".gguf",))
