"""Files that torch.save wrote, as zip archives or in its older format: read without PyTorch, and with no code run."""

from __future__ import annotations

import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vaespec.errors import WeightFileError
from vaespec.escaping import shown
from vaespec.weights.containers.container import Container
from vaespec.weights.containers.inert import MAX_NAME, Inert
from vaespec.weights.containers.pickled import PROTOCOLS, Machine, Window
from vaespec.weights.containers.rebuilt import ForbiddenError, Storage, Tensor, Unreadable, width
from vaespec.weights.containers.tensor_file import (
    State,
    Stored,
    StoredTensors,
    damaged,
    opened,
    state_of,
    tensor_in_errors,
)

ZIP, LEGACY = "PyTorch zip", "PyTorch legacy pickle"
SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
WRAPPERS = ("model", "module", "params", "params_ema", "ema", "model_ema", "state_dict_ema")
MAX_DEPTH, MAX_TENSORS = 128, 1 << 16  # dictionaries inside each other; tensors of a file
MAX_LETTERS = 8 << 20  # bytes of all their names together
MAX_DIRECTORY = 4 << 20  # bytes of a zip archive's directory: 40,000 entries
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip archive's entry: magic, lengths of its name and of its extra field
ENCRYPTED = 1  # a bit of an entry's flags
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of the older format

# Entries of zip archives that PyTorch writes for programs -> what they are called, and what opens them.
PROGRAMS = {
    "constants.pkl": ("a TorchScript archive", "torch.jit.load"),
    ".data/python_version": ("an archive of torch.package", "torch.package.PackageImporter"),
    "archive_format": ("an archive of torch.export", "torch.export.load"),
    "serialized_exported_program.json": ("an archive of torch.export", "torch.export.load"),
}


Place = tuple[int, int]  # the first byte, and the first byte after it


@dataclass(eq=False)
class Checkpoint(StoredTensors):
    """The tensors of a file of PyTorch. A row has the values from the tensor's first to its last one.

    `views` has the shape and the strides, in values, of each tensor whose values are not stored in order; `state` is
    that of the file when it was opened.
    """

    views: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    byteorder: str = sys.byteorder
    state: State = (0, 0, 0)

    def __post_init__(self) -> None:
        self._state = self.state

    def shape(self, name: str) -> tuple[int, ...]:
        """From the pickle."""
        return self.views[name][0] if name in self.views else super().shape(name)

    def __getitem__(self, name: str) -> np.ndarray:
        array = super().__getitem__(name)
        if self.byteorder != sys.byteorder:
            parts = array.real.dtype if array.dtype.kind == "c" else np.dtype(f"u{array.itemsize}")
            array.reshape(-1).view(parts).byteswap(inplace=True)
        if name not in self.views:
            return array
        shape, strides = self.views[name]
        view = np.lib.stride_tricks.as_strided(array, shape, [array.itemsize * stride for stride in strides])
        return np.array(view, order="C")


def open_zip(path: Path) -> Checkpoint:
    """Open an archive of torch.save. Raises WeightFileError for any other archive and for forbidden content."""
    with opened(path) as file, _told(path, ZIP):
        state = state_of(file)
        archive = _Archive(path, file)
        first, end = archive.run("data.pkl")
        byteorder = archive.byteorder()
        machine = Machine(Window(file, first, end))
        tensors = _selected(path, ZIP, machine.run())
        places = {key: archive.run(f"data/{key}") for key in {tensor.storage.key for tensor in tensors.values()}}
        return _checkpoint(path, ZIP, tensors, places, byteorder, state)


def open_legacy(path: Path) -> Checkpoint:
    """Open a file in the format of torch.save before PyTorch 1.6. Raises WeightFileError for any other pickle."""
    with opened(path) as file, _told(path, LEGACY):
        state = state_of(file)
        window = Window(file, 0, state[1])
        machine = Machine(window)
        if machine.run() != MAGIC or machine.run() != VERSION:
            raise ValueError("it is a pickle, but not of torch.save")
        machine.run()  # byte order and sizes of the machine that wrote it; the file is little-endian in any case
        tensors = _selected(path, LEGACY, machine.run())
        places = _places(window, machine.run(), machine.storages)
        return _checkpoint(path, LEGACY, tensors, places, "little", state)


@contextmanager
def _told(path: Path, kind: str) -> Iterator[None]:
    """Raises WeightFileError instead of the errors of the readers."""
    try:
        yield
    except ForbiddenError as error:
        raise WeightFileError(
            f"{path} refers to {error}, which weights do not need: it was refused, and none of its code was run; get "
            "the weights as .safetensors."
        ) from None
    except (ValueError, IndexError) as error:
        reason = str(error) if isinstance(error, ValueError) else "its opcodes do not fit together"
        raise damaged(path, kind, reason) from None


# -- where the values of a storage are ---------------------------------------------------------------------------------


class _Archive:
    """The directory of PyTorch's zip archive. Raises WeightFileError for another archive, ValueError for damage."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(_Bounded(file, self._size)) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, struct.error, OverflowError, OSError) as error:
            raise ValueError(error) from None
        self._folder = entries[0].filename.partition("/")[0] if entries else ""
        self._entries = {entry.filename: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise ValueError("it has two entries of one name")
        for name, (what, opener) in PROGRAMS.items():
            if f"{self._folder}/{name}" in self._entries:
                raise WeightFileError(
                    f"{path} is {what}, a program with weights inside: open it with {opener}, and save its "
                    "state_dict() with torch.save or as .safetensors."
                )
        if f"{self._folder}/data.pkl" not in self._entries:
            raise WeightFileError(f"{path} is a zip archive, but not of PyTorch: unpack it and give the file inside.")

    def run(self, name: str) -> Place:
        """The first byte of an entry, and the first byte after it."""
        entry = self._entries.get(f"{self._folder}/{name}")
        if entry is None:
            raise ValueError(f"it has no entry {name!r}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ValueError("it is compressed, which PyTorch's files never are")
        if entry.flag_bits & ENCRYPTED:
            raise ValueError("it is encrypted")
        if not 0 <= entry.header_offset < self._size:
            raise ValueError(f"its entry {name!r} begins beyond its end")
        self._file.seek(entry.header_offset)
        magic, *lengths = LOCAL_HEADER.unpack(self._file.read(LOCAL_HEADER.size).ljust(LOCAL_HEADER.size))
        first = entry.header_offset + LOCAL_HEADER.size + sum(lengths)
        if magic != b"PK\3\4" or first + entry.file_size > self._size:
            raise ValueError(f"its entry {name!r} is not where its directory says")
        return first, first + entry.file_size

    def byteorder(self) -> str:
        """The byte order of the values: "little", unless an entry says "big"."""
        if f"{self._folder}/byteorder" not in self._entries:
            return "little"
        first, end = self.run("byteorder")
        order = Window(self._file, first, end).take(min(end - first, 16)).decode()
        if order not in ("little", "big"):
            raise ValueError(f"its byte order is {order!r}")
        return order


class _Bounded:
    """A file for `zipfile`, which would read a directory of any size. Raises ValueError for a large one."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.seek, self.tell, self.seekable, self._file, self._size = file.seek, file.tell, file.seekable, file, size

    def read(self, count: int = -1) -> bytes:
        """At most MAX_DIRECTORY bytes."""
        rest = max(self._size - self.tell(), 0)
        count = min(count, rest) if count >= 0 else rest
        if count > MAX_DIRECTORY:
            raise ValueError(f"its directory has {count:,} bytes, the limit is {MAX_DIRECTORY:,}")
        return self._file.read(count)


def _checkpoint(
    path: Path, kind: str, tensors: Mapping[str, Tensor], places: Mapping[str, Place], byteorder: str, state: State
) -> Checkpoint:
    """The tensors at their places. Raises ValueError if a storage is not there, or if one stands for very many."""
    size = state[1]
    taken = sum(tensor.nbytes for tensor in tensors.values())
    if taken > 2 * size:  # twice: some models have one tensor under two names
        raise ValueError(f"its tensors take {taken:,} bytes, the file {size:,}")
    spread = sum(tensor.span * width(tensor.dtype) for tensor in tensors.values())
    if spread > 16 * size:  # each column of a matrix is spread over the whole of it
        raise ValueError(f"its tensors are spread over {spread:,} bytes, the file has {size:,}")
    rows, views = {}, {}
    for name, tensor in tensors.items():
        if tensor.storage.key not in places:
            raise ValueError(f"it has no storage {tensor.storage.key!r}")
        first, end = places[tensor.storage.key]
        count = tensor.span * width(tensor.dtype)
        if first + tensor.begin + count > end:
            raise ValueError(f"tensor {shown(name)} ends beyond its storage of {end - first:,} bytes")
        shape = tensor.shape if tensor.in_order else (tensor.span,)
        with tensor_in_errors(name):
            rows[name] = Stored(tensor.dtype, shape, ((first + tensor.begin, count),))
        if not tensor.in_order:
            views[name] = tensor.shape, tensor.strides
    return Checkpoint(path, kind, rows, views=views, byteorder=byteorder, state=state)


def _places(window: Window, keys: Any, storages: Mapping[str, Storage]) -> dict[str, Place]:
    """The first byte of each storage's values, and the first byte after them, in the older format.

    Each storage is its number of values, in 8 bytes, and the values.
    """
    places: dict[str, Place] = {}
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in storages or key in places:
            raise ValueError("its list of storages is not that of its tensors")
        (count,) = struct.unpack("<q", window.take(8))
        if count != storages[key].count:
            raise ValueError(f"its storage {key!r} has {count:,} values, its tensors need {storages[key].count:,}")
        first = window.at
        window.skip(storages[key].nbytes)
        places[key] = first, window.at
    return places


# -- which tensors -----------------------------------------------------------------------------------------------------


def _selected(path: Path, kind: str, content: Any) -> dict[str, Tensor]:
    """The tensors by name. Raises WeightFileError if there are none, or one that cannot become an array."""
    tensors: dict[str, Tensor] = {}
    letters = 0
    for name, tensor in _named(_unnested(content)):
        letters += len(name.encode())  # a name that is no UTF-8 could not be shown
        if len(tensors) == MAX_TENSORS or letters > MAX_LETTERS:
            raise ValueError(f"it has more than {MAX_TENSORS:,} tensors, or {MAX_LETTERS:,} bytes in their names")
        if name in tensors:
            raise ValueError(f"it has two tensors of the name {shown(name)}")
        if isinstance(tensor, Unreadable):
            raise WeightFileError(f"{path}: tensor {shown(name)} {tensor.problem}; save it as a plain tensor.")
        tensors[name] = tensor
    if not tensors:
        raise WeightFileError(f"{path} is a {kind} without tensors{_instead(content)}.")
    return tensors


def _instead(content: Any) -> str:
    """What a file without tensors has, and what to do."""
    values = [content, *(_entries(content) or {}).values()]
    kinds = [value.kind for value in values if isinstance(value, Inert) and value.entries is None]
    kinds = [kind for kind in kinds if not kind.startswith("builtins.")]
    if not kinds:
        return ": give a checkpoint with weights"
    return f", but with an object of {kinds[0]}: save a dictionary of tensors, as the state_dict() of a module is"


def _unnested(content: Any) -> Any:
    """The value of `state_dict`, else of the only wrapper with tensors in it, else the whole content."""
    if (entries := _entries(content)) is None:
        return content
    if _entries(entries.get("state_dict")) is not None:
        return entries["state_dict"]
    wrapped = [entries[key] for key in WRAPPERS if any(_named(entries.get(key)))]
    bare = any(isinstance(value, (Tensor, Unreadable)) for value in entries.values())
    return wrapped[0] if len(wrapped) == 1 and not bare else content


def _named(content: Any) -> Iterator[tuple[str, Tensor | Unreadable]]:
    """Yields the tensors in nested dictionaries, with names joined by dots; lists and other objects are left out."""
    return _named_under(content, "", MAX_DEPTH, set())


def _named_under(node: Any, name: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Tensor | Unreadable]]:
    entries = _entries(node)
    if entries is None or id(node) in seen:  # each once: a dictionary may contain itself
        return
    seen.add(id(node))
    if not depth:
        raise ValueError(f"it has more than {MAX_DEPTH} dictionaries inside each other")
    if len(name) > MAX_NAME:
        raise ValueError(f"it has a name of more than {MAX_NAME:,} letters")
    for key, value in entries.items():
        if isinstance(value, (Tensor, Unreadable)):
            yield f"{name}.{key}" if name else key, value
        elif _entries(value):
            yield from _named_under(value, f"{name}.{key}" if name else key, depth - 1, seen)


def _entries(node: Any) -> dict[str, Any] | None:
    """The entries of a dictionary, whatever its class is."""
    return node.entries if isinstance(node, Inert) else node if isinstance(node, dict) else None


def _begins_pickle(start: bytes) -> bool:
    return len(start) > 1 and start[0] == pickle.PROTO[0] and start[1] in PROTOCOLS


PYTORCH_ZIP = Container(ZIP, lambda start: start.startswith(b"PK\x03\x04"), open_zip, SUFFIXES)
PYTORCH_LEGACY = Container(LEGACY, _begins_pickle, open_legacy, SUFFIXES)
