"""NumPy's .npz, which MLX writes, too: a zip archive whose members are arrays, each with a header of its own."""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from vaespec.dtypes import KNOWN_DTYPES, numpy_dtype
from vaespec.errors import WeightFileError
from vaespec.escaping import shown
from vaespec.weights.containers.container import Container
from vaespec.weights.containers.tensor_file import (
    Stored,
    TensorFile,
    damaged,
    opened,
    require_apart,
    require_unchanged,
    state_of,
    tensor_in_errors,
)

KIND = "NumPy npz"
ARRAY = ".npy"  # the end of a member's name
MAGIC = b"\x93NUMPY"
WIDTHS = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}  # version of .npy -> bytes of its header's length
MAX_DIRECTORY = 1 << 20  # bytes of an archive's directory, of which Python makes twenty times as much
MAX_HEADER = 1 << 12  # bytes of an array's header
MAX_UNFOLDED = 64 << 20  # bytes that compressed arrays may have beside twice the file
STEP = 1 << 20  # bytes that are unfolded at a time

# A field of a header, which is a dict in Python's notation, and the dtype in it.
FIELD = r"""\s*['"](\w+)['"]\s*:\s*(['"][^'"]*['"]|\w+|\([^()]*\))\s*"""
FIELDS = ["descr", "fortran_order", "shape"]
HEADER = re.compile(rf"\s*\{{(?:{FIELD},)*(?:{FIELD})?\s*\}}\s*")
DTYPE = re.compile(r"""['"]([<>|=]?)([a-zA-Z?])(\d{0,6})(?:\[\w*\])?['"]""")
NUMBERS = {"f": "float", "i": "int", "u": "uint", "c": "complex"}
NAMES = {"b1": "bool", "V2": "bfloat16"}  # which NumPy and MLX store as two bytes of no known kind
NO_NUMBERS = "OUSaMm"  # Python objects, which are never read, text and times: no tensors

DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OverflowError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Member:
    """An array: `stored` has its place in the unfolded member, which `info` describes and byte `first` begins."""

    stored: Stored
    info: zipfile.ZipInfo
    first: int
    fortran: bool
    swapped: bool

    @property
    def count(self) -> int:
        """The bytes of the array, without its header."""
        return self.stored.runs[0][1]


class Npz(TensorFile):
    """The arrays of an archive; `open_npz` reads their headers."""

    def __init__(self, path: Path, members: Mapping[str, Member], file: BufferedReader) -> None:
        self.path, self.kind, self.metadata, self._members, self._state = path, KIND, {}, members, state_of(file)

    def shape(self, name: str) -> tuple[int, ...]:
        """From the array's header."""
        return self._members[name].stored.shape

    def dtype(self, name: str) -> str:
        """From the array's header."""
        return self._members[name].stored.dtype

    def __getitem__(self, name: str) -> np.ndarray:
        member = self._members[name]
        with opened(self.path) as file:
            require_unchanged(self.path, file, self._state)
            try:
                raw = _unfolded(file, member)
            except DAMAGE as error:
                raise damaged(self.path, KIND, f"tensor {name} cannot be read ({error})") from None
        dtype = numpy_dtype(member.stored.dtype)
        if member.swapped:
            raw.view(dtype if dtype.kind != "V" else np.uint16).byteswap(inplace=True)
        return raw.view(dtype).reshape(member.stored.shape, order="F" if member.fortran else "C")

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def begins_npz(start: bytes) -> bool:
    """Whether a file begins like a zip archive whose first member is an array."""
    return start.startswith(b"PK\3\4") and start[30 : 30 + int.from_bytes(start[26:28], "little")].endswith(b".npy")


def open_npz(path: Path) -> Npz:
    """Read the header of every array. Members that are no arrays of numbers are left out.

    Raises WeightFileError for a damaged archive, for one that unfolds to much more than itself, and for one in which
    there are no arrays of numbers.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(_Bounded(file)) as archive:
                members = dict(_members(path, archive, file))
            require_apart({name: (row.first, row.info.compress_size) for name, row in members.items()}, 0, size)
        except DAMAGE as error:
            raise damaged(path, KIND, error) from None
        file_of_arrays = Npz(path, members, file)
    if not members:
        raise WeightFileError(
            f"{path} has no arrays of numbers, and the Python objects in a .npz are never read: save each array under "
            "its name, numpy.savez(path, **weights)."
        )
    if (total := sum(row.count for row in members.values())) > 2 * size + MAX_UNFOLDED:
        raise WeightFileError(
            f"{path} has {size:,} bytes, and its compressed arrays would take {total:,}: save it with numpy.savez, "
            "which does not compress."
        )
    return file_of_arrays


class _Bounded:
    """A file from which no more than MAX_DIRECTORY bytes are read at once: zipfile lists any directory it reads."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file

    def read(self, count: int = -1) -> bytes:
        if count > MAX_DIRECTORY:
            raise ValueError(f"its directory would have {count:,} bytes, the limit is {MAX_DIRECTORY:,}")
        return self._file.read(count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _members(path: Path, archive: zipfile.ZipFile, file: BufferedReader) -> Iterator[tuple[str, Member]]:
    seen: dict[str, str] = {}
    for info in archive.infolist():
        stem, end = os.path.splitext(info.filename)
        name = stem if end.lower() == ARRAY else info.filename
        if name in seen:
            both = "twice" if seen[name] == info.filename else f"beside {seen[name]}, and both are named {name}"
            raise ValueError(f"it has the member {info.filename} {both}")
        seen[name] = info.filename
        if info.filename.endswith(ARRAY) and (member := _member(path, archive, file, info)):
            yield info.filename.removesuffix(ARRAY), member


def _member(path: Path, archive: zipfile.ZipFile, file: BufferedReader, info: zipfile.ZipInfo) -> Member | None:
    """The array in a member, by its header; None if it holds no numbers."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"the member {info.filename} is compressed in a way that NumPy does not use")
    with archive.open(info) as content:  # which compares both places where the archive describes the member
        start = content.read(len(MAGIC) + 2)
        if start.startswith(MAGIC) and start[len(MAGIC) :] not in WIDTHS:
            version = ".".join(map(str, start[len(MAGIC) :]))
            raise ValueError(f"the member {info.filename} has version {version} of .npy, which NumPy does not know")
        width = WIDTHS.get(start[len(MAGIC) :], 0)
        length = int.from_bytes(content.read(width), "little")
        if not start.startswith(MAGIC) or length > MAX_HEADER:
            raise ValueError(f"the member {info.filename} is no array, or has a header of more than {MAX_HEADER} bytes")
        fields = _fields(content.read(length).decode("latin-1"), info.filename)
    order, kind, bits = fields["descr"]
    if kind in NO_NUMBERS:
        return None
    name = info.filename.removesuffix(ARRAY)
    if (dtype := _dtype(kind, bits)) not in KNOWN_DTYPES:
        raise WeightFileError(
            f"{path}: array {shown(name)} has values of {bits} bytes and the kind {kind!r}, which cannot be read: save "
            "it in another dtype, or as .safetensors."
        )
    file.seek(info.header_offset + 26)
    names = sum(struct.unpack("<HH", file.read(4)))
    begin = len(start) + width + length
    with tensor_in_errors(name):
        stored = Stored(dtype, fields["shape"], ((begin, info.file_size - begin),))
    return Member(stored, info, info.header_offset + 30 + names, fields["fortran_order"], order == ">")


def _fields(text: str, name: str) -> dict[str, Any]:
    """The fields of a header: descr as byte order, kind and size, and the others as Python values."""
    pairs = re.findall(FIELD, text) if HEADER.fullmatch(text) else []
    fields = dict(pairs)
    dtype = DTYPE.fullmatch(fields.get("descr", ""))
    order, shape = fields.get("fortran_order"), fields.get("shape", "")
    sizes = [size.strip().removesuffix("L") for size in shape.strip("()").split(",")]  # 3L is Python 2's 3
    if sizes and not sizes[-1]:
        sizes.pop()
    is_shape = shape.startswith("(") and all(map(str.isdecimal, sizes))
    if sorted(field for field, _ in pairs) != FIELDS or not dtype or order not in ("True", "False") or not is_shape:
        raise ValueError(f"the member {name} is no plain array, with each field once: its header is {text.strip()!r}")
    return {"descr": dtype.groups(), "fortran_order": order == "True", "shape": tuple(map(int, sizes))}


def _dtype(kind: str, size: str) -> str:
    """The dtype's name: "float32" of "f" and "4"; a name that no dtype has for anything else."""
    return NAMES.get(kind + size) or f"{NUMBERS.get(kind, kind)}{8 * int(size or 0)}"


def _unfolded(file: BufferedReader, member: Member) -> np.ndarray:
    """The bytes of an array in new memory; their checksum is compared."""
    raw, done = np.empty(member.count, np.uint8), 0
    file.seek(member.first)
    with zipfile.ZipExtFile(file, "r", member.info) as content:
        content.read(member.stored.runs[0][0])
        while piece := content.read(STEP):
            raw[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
    if done != member.count:
        raise ValueError(f"it has {done:,} of {member.count:,} bytes")
    return raw


NPZ = Container(KIND, begins_npz, open_npz, (".npz",))
