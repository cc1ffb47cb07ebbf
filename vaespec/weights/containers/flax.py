"""Flax's msgpack: a nested map whose leaves are arrays, each in an extension type of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from vaespec.escaping import MAX_SHOWN
from vaespec.strict_json import unique
from vaespec.weights.containers.container import Container
from vaespec.weights.containers.tensor_file import Stored, StoredTensors, damaged, opened, tensor_in_errors

KIND = "Flax msgpack"
ARRAY, SCALAR = 1, 3  # the extension codes of flax.serialization; 2 is a complex number
CHUNKED = "__msgpack_chunked_array__"
CHUNK = 2**30  # bytes; flax writes larger arrays in pieces of this
MAX_DEPTH, MAX_NAME, MAX_ITEMS = 64, 1 << 12, 1 << 16
MAX_JOINED = 1 << 10  # characters of a tensor's name: short keys in deep maps would make long names of few bytes
MAX_SMALL = 4 << 20  # bytes of all that is not an array: names, shapes, counters

# First byte of an object -> how many bytes of length follow; EXT_OF has the objects of fixed length.
EXT, BIN, TEXT = {0xC7: 1, 0xC8: 2, 0xC9: 4}, {0xC4: 1, 0xC5: 2, 0xC6: 4}, {0xD9: 1, 0xDA: 2, 0xDB: 4}
EXT_OF = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def begins_msgpack(start: bytes) -> bool:
    """Whether a file begins with a map whose first key is text."""
    if not (0x81 <= (first := start[0] if start else 0) <= 0x8F or first in (0xDE, 0xDF)):
        return False
    key = start[{0xDE: 3, 0xDF: 5}.get(first, 1) :][:1]
    return b"\xa0" <= key <= b"\xbf" or b"\xd9" <= key <= b"\xdb"


def open_msgpack(path: Path) -> StoredTensors:
    """Read the maps and skip the arrays' data. Names are joined by dots; values that are no arrays are left out."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            tree, end = _Walk(file, size).value(0)
            if end != size:
                raise ValueError(f"{size - end:,} bytes follow its map")
            rows = unique(list(_leaves(tree, "")))
        except (ValueError, msgpack.UnpackException, TypeError) as error:
            raise damaged(path, KIND, str(error) or type(error).__name__) from None
    return StoredTensors(path, KIND, rows)


def write_msgpack(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write names with dots as nested maps, as flax.serialization does; the format has no place for metadata.

    Raises OSError if the system refuses.
    """
    tree: dict[str, Any] = {}
    for name, array in tensors.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    packer = msgpack.Packer()
    with path.open("wb") as file:
        _write(file, packer, tree)


def _write(file: BinaryIO, packer: msgpack.Packer, value: Any) -> None:
    """Writes maps and arrays one by one, so that only one array is copied at a time."""
    if isinstance(value, dict):
        file.write(packer.pack_map_header(len(value)))
        for key, inner in value.items():
            file.write(packer.pack(key))
            _write(file, packer, inner)
    elif value.nbytes > CHUNK:
        flat, step = value.reshape(-1), CHUNK // value.itemsize
        pieces = [flat[i : i + step] for i in range(0, flat.size, step)]
        chunks, shape = dict(_numbered(pieces)), dict(_numbered(value.shape))
        file.write(packer.pack_map_header(3) + packer.pack(CHUNKED) + packer.pack(True))
        file.write(packer.pack("shape") + packer.pack(shape) + packer.pack("chunks"))
        _write(file, packer, chunks)
    else:
        value = value.astype(value.dtype.newbyteorder("="), copy=False)  # the dtype's name does not say the order
        payload = packer.pack((value.shape, value.dtype.name, value.tobytes()))
        file.write(packer.pack_ext_type(ARRAY, payload))


def _numbered(items: Any) -> Iterator[tuple[str, Any]]:
    return ((str(i), item) for i, item in enumerate(items))


class _Walk:
    """Reads the objects of an open file. Every method takes the position to begin at and returns the end, too."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._items, self._small_bytes = file, size, 0, 0

    def value(self, at: int, name: str = "", depth: int = 0) -> tuple[Any, int]:
        """A map as a dict, an array as Stored, an integer; None for anything else, so that it takes no memory.

        `name`, the end of an array's, is for errors.
        """
        first = self._bytes(at, 1)[0]
        if 0x80 <= first <= 0x8F or first in (0xDE, 0xDF):
            return self._map(at, name, depth)
        if first in EXT or first in EXT_OF:
            return self._extension(at, first, name)
        if width := (BIN | TEXT).get(first, 0):  # of any length: what is no array is not read
            return None, self._end(at + 1 + width + int.from_bytes(self._bytes(at + 1, width), "big"))
        small, end = self._small(at, "unpack")
        return small if isinstance(small, int) else None, end

    def _map(self, at: int, name: str, depth: int) -> tuple[dict[str, Any], int]:
        count, at = self._small(at, "read_map_header")
        self._items += count
        if depth > MAX_DEPTH or self._items > MAX_ITEMS:
            raise ValueError(f"it is more than {MAX_DEPTH} maps deep or has more than {MAX_ITEMS:,} entries")
        table: dict[str, Any] = {}
        for _ in range(count):
            key, at = self._small(at, "unpack")
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not text")
            if key in table:
                raise ValueError(f"it has the key {key!r} twice")
            table[key], at = self.value(at, f"{name}.{key}"[-MAX_SHOWN:] if name else key, depth + 1)
        return table, at

    def _extension(self, at: int, first: int, name: str) -> tuple[Stored | None, int]:
        """One array: an object with its length, then shape, dtype and bytes. None for an extension of another type."""
        width = EXT.get(first, 0)
        length = int.from_bytes(self._bytes(at + 1, width), "big") if width else EXT_OF[first]
        code, at = self._bytes(at + 1 + width, 1)[0], at + 2 + width
        end = at + length
        if code not in (ARRAY, SCALAR):
            return None, self._end(end)
        fields, at = self._small(at, "read_array_header")
        shape, at = self._small(at, "unpack")
        dtype, at = self._small(at, "unpack")
        width = BIN.get(self._bytes(at, 1)[0], 0)
        count, at = int.from_bytes(self._bytes(at + 1, width), "big"), at + 1 + width
        if fields != 3 or not width or at + count != end or end > self._size or not isinstance(shape, list):
            raise ValueError(f"tensor {name}, at byte {at:,} of {self._size:,}, is not complete")
        with tensor_in_errors(name):
            return Stored(str(dtype), tuple(shape), ((at, count),)), end

    def _small(self, at: int, method: str) -> tuple[Any, int]:
        """Reads a small object with msgpack's own reader.

        Raises ValueError if it needs more than MAX_NAME bytes, or all of them more than MAX_SMALL.
        """
        unpacker = msgpack.Unpacker(max_buffer_size=MAX_NAME, strict_map_key=True, object_pairs_hook=unique)
        unpacker.feed(self._bytes(at, min(MAX_NAME, self._size - at)))
        try:
            value = getattr(unpacker, method)()
        except msgpack.OutOfData:
            raise ValueError(
                f"it ends, or has an unknown object or one of over {MAX_NAME:,} bytes, at byte {at:,} of {self._size:,}"
            ) from None
        self._small_bytes += unpacker.tell()
        if self._small_bytes > MAX_SMALL:
            raise ValueError(f"it has more than {MAX_SMALL:,} bytes beside its arrays")
        return value, at + unpacker.tell()

    def _end(self, end: int) -> int:
        """The end of an object. Raises ValueError if it is beyond that of the file."""
        if end > self._size:
            raise ValueError(f"it ends at byte {self._size:,}, inside an object that would end at {end:,}")
        return end

    def _bytes(self, at: int, count: int) -> bytes:
        self._file.seek(at)
        content = self._file.read(count)
        if len(content) != count or not count:
            raise ValueError(f"it ends at byte {self._size:,}, inside an object")
        return content


def _leaves(node: Any, name: str) -> Iterator[tuple[str, Stored]]:
    """Yields the arrays under a node with their names; an array in pieces is joined."""
    if isinstance(node, Stored):
        yield name, node
    elif isinstance(node, dict) and CHUNKED in node:
        yield name, _whole(node, name)
    elif isinstance(node, dict):
        for key, inner in node.items():
            if len(longer := f"{name}.{key}" if name else key) > MAX_JOINED:
                raise ValueError(f"a name in it has more than {MAX_JOINED:,} characters")
            yield from _leaves(inner, longer)


def _whole(node: Mapping[str, Any], name: str) -> Stored:
    """Joins an array that was written in pieces."""
    shape, chunks = node.get("shape"), node.get("chunks")
    if not isinstance(shape, dict) or not isinstance(chunks, dict) or not chunks:
        raise ValueError(f"tensor {name} is in pieces, but has no shape or no pieces")
    numbered = [chunks.get(str(i)) for i in range(len(chunks))]
    pieces = [piece for piece in numbered if isinstance(piece, Stored)]
    if len(pieces) < len(numbered) or len({piece.dtype for piece in pieces}) > 1:
        raise ValueError(f"tensor {name} lacks a piece, or its pieces differ in dtype")
    sizes: Any = tuple(shape.get(str(i)) for i in range(len(shape)))
    with tensor_in_errors(name):
        return Stored(pieces[0].dtype, sizes, tuple(run for piece in pieces for run in piece.runs))


MSGPACK = Container(KIND, begins_msgpack, open_msgpack, (".msgpack",), write_msgpack)
