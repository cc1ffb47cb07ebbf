"""Damaged and hostile .msgpack and .gguf files, and counts that grew in any file: bounded by the file's size."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import msgpack
import numpy as np
import pytest
from support.depth import first
from support.weight_files import WRITERS, tensors

from vaespec import WeightFileError
from vaespec.weights.containers import open_tensors


def refused(path: Path, words: str) -> None:
    with pytest.raises(WeightFileError, match=words) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


# -- msgpack -----------------------------------------------------------------------------------------------------


def array(shape: object, dtype: object, content: bytes, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, content)))


def pieces(shape: object, chunks: object) -> dict:
    return {"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks}


GOOD = array((1,), "float32", bytes(4))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": array((2,), "float32", bytes(4))}, r"tensor a has 4 bytes, but float32 \(2,\) takes 8"),
        ({"b": {"a": array((-1,), "float32", bytes(4))}}, r"tensor b\.a has an impossible shape"),
        ({"a": array(("1",), "float32", bytes(4))}, "an impossible shape"),
        ({"a": array((2**62, 2**62), "int8", bytes(4))}, "has 4 bytes"),
        ({"a": array((1,), "object", bytes(8))}, "tensor a has the unknown dtype 'object'"),
        ({"a": array((1,), "S4", bytes(4))}, "the unknown dtype"),
        ({"a": array(1, "float32", bytes(4))}, "tensor a, at byte .*, is not complete"),
        ({"a": msgpack.ExtType(1, GOOD.data + b"more")}, "is not complete"),
        ({"a": msgpack.ExtType(1, GOOD.data[:-1]), "b": 1}, "is not complete"),
        ({"a": msgpack.ExtType(1, b"")}, "damaged Flax msgpack"),
        ({"a": msgpack.ExtType(1, msgpack.packb([1, 2]))}, "damaged Flax msgpack"),
        ({"a": pieces({"0": 2}, {"0": GOOD})}, "tensor a has 4 bytes, but"),
        ({"a": pieces({"0": 2}, {"0": GOOD, "2": GOOD})}, "tensor a lacks a piece"),
        ({"a": pieces({"0": 2}, {"0": GOOD, "1": array((2,), "float16", bytes(4))})}, "differ in dtype"),
        ({"a": pieces({"0": 2}, 3)}, "has no shape or no pieces"),
        ({"a": pieces({"x": 1}, {"0": GOOD})}, "tensor a has an impossible shape"),
        ({"a": {3: GOOD}}, "the key 3 is not text"),
        ({"a": {"b": GOOD}, "a.b": GOOD}, "the key 'a.b' twice"),
        ({"": {"a": GOOD}, "a": GOOD}, "the key 'a' twice"),
        ({"k" * 600: {"k" * 600: GOOD}}, "a name in it has more than 1,024 characters"),
        ({"a": array((1,), ">f4", bytes(4))}, "the unknown dtype '>f4'"),
    ],
)
def test_arrays_of_flax_must_be_whole(tmp_path, content, words):
    (tmp_path / "m").write_bytes(msgpack.packb(content))
    refused(tmp_path / "m", words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x81\xa1a", "it ends"),
        (b"\x82\xa1a\x01\xa1a\x01", "the key 'a' twice"),
        (b"\x81\xa1m\x82\xa1a\x01\xa1a\x01", "the key 'a' twice"),
        (b"\x81\xa1m\x91\x82\xa1a\x01\xa1a\x01", "the key 'a' twice"),
        (b"\xdf\xff\xff\xff\xff\xa1a\x01", "more than 65,536 entries"),
        (b"\x81\xa1a" * 100, "more than 64 maps deep"),
        (b"\x81\xa1a\xdb\xff\xff\xff\xffabc", "ends at byte 11, inside an object that would end at 4,294,967,303"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xffabc", "ends at byte 11, inside an object that would end at 4,294,967,303"),
        (b"\x81\xa1a\xc9\xff\xff\xff\xff\x02abc", "ends at byte 12, inside an object that would end at"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xffabc", "damaged Flax msgpack"),
        (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "damaged Flax msgpack"),
        (b"\x81\xa1a" + b"\x91" * 2000, "damaged Flax msgpack"),
        (b"\x81\xa1a\x01rest", "4 bytes follow its map"),
        (b"\x81\xa1a\xc1", "damaged Flax msgpack"),
        (b"\x81\xa2\xff\xfe\x01", "utf-8"),
    ],
)
def test_msgpack_of_any_bytes_ends(tmp_path, content, words):
    (tmp_path / "m").write_bytes(content)
    refused(tmp_path / "m", words)


def test_what_is_no_array_in_msgpack_is_bounded(tmp_path):
    """Each list is small, but unpacking all of them would take half a second for a megabyte."""
    lists = b"".join(msgpack.packb(f"{i:05}") + b"\xdc\x0f\x00" + b"\x90" * 3840 for i in range(1200))
    (tmp_path / "m").write_bytes(b"\xde\x04\xb0" + lists)
    refused(tmp_path / "m", "more than 4,194,304 bytes beside its arrays")


def test_what_is_no_array_in_msgpack_is_dropped(tmp_path):
    """An empty map takes one byte in the file and 64 in memory."""
    maps = b"".join(msgpack.packb(f"{i:05}") + b"\xdc\x0f\x00" + b"\x80" * 3840 for i in range(300))
    (tmp_path / "m").write_bytes(b"\xde\x01\x2c" + maps)
    open_tensors(tmp_path / "m")  # imports what opening needs
    tracemalloc.start()
    try:
        assert not open_tensors(tmp_path / "m")
        assert tracemalloc.get_traced_memory()[1] < 2 * len(maps)
    finally:
        tracemalloc.stop()


# -- GGUF --------------------------------------------------------------------------------------------------------


def gguf_bytes(
    *, pairs: bytes = b"", pair_count: int = 0, entries: bytes = b"", count: int = 0, version: int = 3
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, count, pair_count) + pairs + entries


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def entry(name: bytes, sizes: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def original_shape(kind: int, sizes: list[int]) -> bytes:
    """A file with four values in `a`, and ComfyUI's array of the shape before, of GGUF's type `kind` (6: float)."""
    letter = {4: "I", 5: "i", 6: "f", 11: "q"}[kind]
    key = text(b"comfy.gguf.orig_shape.a") + struct.pack(f"<IIQ{len(sizes)}{letter}", 9, kind, len(sizes), *sizes)
    return gguf_bytes(pair_count=1, pairs=key, count=1, entries=entry(b"a", [4], 0, 0)) + bytes(99)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gguf_bytes(version=1), "it has version 1"),
        (gguf_bytes(version=3 << 24), "is a big-endian GGUF file, which cannot be read: take the little-endian one"),
        (gguf_bytes(count=2**15), r"32,768 tensors, the limit is"),
        (gguf_bytes(pair_count=2, pairs=(text(b"a") + struct.pack("<IB", 0, 1)) * 2), "it has the key a twice"),
        (original_shape(4, [3, 2]), r"orig_shape\.a is \(3, 2\), which is no shape of the 4 values of tensor a"),
        (original_shape(5, [-2, -2]), r"orig_shape\.a is \(-2, -2\), which is no shape"),
        (original_shape(6, [4]), r"orig_shape\.a is None, which is no shape"),
        (original_shape(5, [1] * 65), r"orig_shape\.a is None, which is no shape"),
        (original_shape(11, [2**62, 4]), r"which is no shape of the 4 values"),
        (gguf_bytes(count=2**60), "1,152,921,504,606,846,976 tensors, the limit is"),
        (gguf_bytes(pair_count=2**60), "key-value pairs, the limit is"),
        (gguf_bytes(pair_count=1, pairs=struct.pack("<Q", 2**60)), "bytes in a text, the limit is"),
        (gguf_bytes(pair_count=1, pairs=text(b"a") + struct.pack("<I", 99)), "ends|unknown type"),
        (gguf_bytes(pair_count=1, pairs=text(b"a") + struct.pack("<IIQ", 9, 9, 1)), "the unknown type 9"),
        (
            gguf_bytes(pair_count=1, pairs=text(b"a") + struct.pack("<IIQ", 9, 0, 2**60)),
            "items in an array, the limit is",
        ),
        (gguf_bytes(pair_count=1, pairs=text(b"a") + struct.pack("<IIQ", 9, 0, 1000)), "inside its header"),
        (
            gguf_bytes(pair_count=1, pairs=text(b"general.alignment") + struct.pack("<II", 4, 0)),
            "general.alignment is 0",
        ),
        (
            gguf_bytes(pair_count=1, pairs=text(b"general.alignment") + struct.pack("<II", 4, 3)),
            "general.alignment is 3, expected a power of 2",
        ),
        (gguf_bytes(count=1, entries=text(b"a") + struct.pack("<I", 2**30)), "of 1,073,741,824 dimensions"),
        (gguf_bytes(count=1, entries=entry(b"a", [2**62, 2**62], 0, 0)), "but tensor a ends at|impossible shape"),
        (gguf_bytes(count=1, entries=entry(b"a", [4], 0, 0)), "but tensor a ends at"),
        (gguf_bytes(count=1, entries=entry(b"a", [0, 2**62], 0, 0)) + bytes(99), "tensor a has an impossible shape"),
        (gguf_bytes(count=1, entries=entry(b"a", [0, 2**62], 8, 0)) + bytes(99), "tensor a has an impossible shape"),
        (gguf_bytes(count=1, entries=entry(b"a", [4], 77, 0)), "tensor a is of the unknown type 77"),
        (gguf_bytes(count=1, entries=entry(b"a", [5], 8, 0)), r"tensor a is of shape \(5,\) in blocks of 32 values"),
        (gguf_bytes(count=1, entries=entry(b"a", [], 8, 0)), r"of shape \(\) in blocks of 32 values"),
        (gguf_bytes(count=2, entries=entry(b"a", [4], 0, 0) * 2) + bytes(99), "it has two tensors of one name"),
        (
            gguf_bytes(count=2, entries=entry(b"a", [4], 0, 0) + entry(b"b", [4], 0, 8)) + bytes(99),
            "tensor b begins at byte .*, before the end of the previous one",
        ),
        (gguf_bytes(count=1, entries=text(b"\xff") + struct.pack("<I", 0)), "utf-8"),
        (b"GGUF", "inside its header"),
    ],
)
def test_counts_of_gguf_are_bounded_by_the_file(tmp_path, content, words):
    (tmp_path / "m").write_bytes(content)
    refused(tmp_path / "m", words)


# -- any file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tries", first(1, [200, 1500]))
@pytest.mark.parametrize("container", [container for container in WRITERS if "torch" not in container])
def test_a_count_that_grew_is_refused_or_harmless_in_bounded_memory(tmp_path, container, tries):
    """A number of 1 to 8 bytes somewhere in a file becomes one of the largest that its bytes can hold."""
    path, rng = WRITERS[container](tmp_path, tensors()), np.random.default_rng(17)
    whole = path.read_bytes()
    for _ in range(tries):
        width, at, order = 2 ** int(rng.integers(4)), int(rng.integers(len(whole))), ("little", "big")[rng.integers(2)]
        grown = (2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 4), 2 ** (7 * width))[rng.integers(4)]
        path.write_bytes(whole[:at] + grown.to_bytes(width, order) + whole[at + width :])
        tracemalloc.start()
        words = outcome(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * len(whole) + 70_000_000
        assert words is None or (words.isprintable() and str(tmp_path) in words)


def outcome(path: Path) -> str | None:
    """Reads all tensors; returns the words of the error, if the file is refused."""
    try:
        file = open_tensors(path)
        assert all(file[name].shape == file.shape(name) for name in file)
    except WeightFileError as error:
        return str(error)
    return None
