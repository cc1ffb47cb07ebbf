"""NumPy's archives of arrays, by NumPy and by MLX: read to the bit; what is no plain array is never unpickled."""

from __future__ import annotations

import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest

from vaespec import AutoencoderKL, WeightFileError
from vaespec.weights.containers import open_tensors

HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"


def npy(header: str, data: bytes = bytes(8), version: int = 1) -> bytes:
    """An array file as its specification says; the length of the header has 2 bytes in version 1, else 4."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def zipped(path: Path, members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two members of one name
        for name, content in members:
            archive.writestr(name, content)
    return path


def refused(path: Path, words: str) -> None:
    with pytest.raises(WeightFileError, match=words) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_file_of_mlx_is_read_with_its_bfloat16_and_its_order(tmp_path):
    """MLX writes bfloat16 as two bytes of no kind, and the order of Fortran for vectors."""
    ramp = mx.arange(6).reshape(2, 3)
    arrays = {"a.b": ramp.astype(mx.bfloat16), "t": ramp.astype(mx.float32).T, "v": mx.arange(3.0), "s": mx.array(2.5)}
    mx.savez(str(tmp_path / "m.npz"), **arrays)
    file = open_tensors(tmp_path / "m.npz")
    assert file.dtype("a.b") == "bfloat16"
    assert file["a.b"].tolist() == np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16).tolist()
    assert file["t"].tolist() == np.arange(6).reshape(2, 3).T.tolist()
    assert (file["v"].tolist(), file["s"].shape, file["s"].item()) == ([0, 1, 2], (), 2.5)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_big_endian_and_fortran_arrays_are_read_right(tmp_path, save):
    arrays = {dtype: np.arange(-3, 3).astype(dtype) for dtype in (">f4", ">f2", ">f8", ">i8", ">c8", "<f4", "|i1")}
    arrays["fortran"] = np.asfortranarray(np.arange(24, dtype=">f8").reshape(2, 3, 4))
    save(tmp_path / "m.npz", **arrays)
    file = open_tensors(tmp_path / "m.npz")
    for name, a in arrays.items():
        assert (file.shape(name), file.dtype(name)) == (a.shape, a.dtype.name)
        assert file[name].dtype.isnative
        assert np.array_equal(file[name], a), name


@pytest.mark.parametrize(
    ("header", "version"),
    [
        (HEADER, 1),
        (HEADER, 2),
        (HEADER, 3),
        (HEADER.replace("(2,)", "(2L, )"), 1),  # Python 2
        ("{'shape':(2,),'descr':'f4','fortran_order':True}", 1),  # the fields may have any order
    ],
)
def test_headers_of_other_writers_are_read(tmp_path, header, version):
    data = np.float32([1, 2]).tobytes()
    file = open_tensors(zipped(tmp_path / "m.npz", [("w.npy", npy(header, data, version))]))
    assert file["w"].tolist() == [1, 2]


def test_a_model_loads_from_an_npz(tmp_path):
    vae = AutoencoderKL.from_config({"block_out_channels": (32,)}, backend="numpy")
    np.savez(tmp_path / "m.npz", **vae.weights())
    loaded = AutoencoderKL.from_single_file(tmp_path / "m.npz", backend="numpy")
    assert all(np.array_equal(loaded.weights()[name], a) for name, a in vae.weights().items())


def test_objects_and_text_beside_the_arrays_are_left_out_and_never_unpickled(tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path.mkdir, (tmp_path / "harm",))

    objects = np.array([Harm()], dtype=object)
    np.savez(tmp_path / "m.npz", objects=objects, text=np.array("epoch"), day=np.datetime64("2020-01-01"), w=np.ones(2))
    assert list(open_tensors(tmp_path / "m.npz")) == ["w"]
    np.savez(tmp_path / "m.npz", objects)
    refused(tmp_path / "m.npz", r"no arrays of numbers, and the Python objects in a \.npz are never read: save each")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy(HEADER, bytes(4)), r"tensor w has 4 bytes, but float32 \(2,\) takes 8"),
        (npy(HEADER, bytes(9)), "tensor w has 9 bytes"),
        (npy(HEADER.replace("(2,)", f"({2**62}, 4)")), "tensor w has 8 bytes, but"),
        (npy(HEADER.replace("(2,)", "(1," * 65)[:-1] + ")"), "is no plain array"),
        (npy(HEADER.replace("(2,)", "(2, -1)")), "is no plain array"),
        (npy(HEADER.replace("(2,)", f"({'1,' * 65})")), "tensor w has an impossible shape"),
        (npy(HEADER.replace("(2,)", "(__import__('os').abort(),)")), "is no plain array"),
        (npy(HEADER.replace("'<f4'", "[('a', '<f4')]")), "is no plain array"),
        (npy(HEADER.replace("<f4", "<f3")), "array w has values of 3 bytes and the kind 'f', which cannot be read"),
        (npy(HEADER.replace("<f4", "|V1")), "array w has values of 1 bytes and the kind 'V', which cannot be read"),
        (npy("(" * 4000), "is no plain array"),
        (npy("{" * 4000), "is no plain array"),
        (npy(HEADER + "\x1b[31m"), "is no plain array"),
        (npy(HEADER + " " * 5000), "a header of more than 4096 bytes"),
        (npy(HEADER + " " * 100_000, version=2), "a header of more than 4096 bytes"),
        (b"no array", "is no array"),
        (b"", "is no array"),
    ],
)
def test_the_header_of_an_array_must_be_plain_and_true(tmp_path, content, words):
    refused(zipped(tmp_path / "m.npz", [("w.npy", content)]), words)


def test_a_member_twice_is_refused(tmp_path):
    refused(zipped(tmp_path / "m.npz", [("w.npy", npy(HEADER))] * 2), r"it has the member w\.npy twice")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_numpy_does_not_use_is_refused(tmp_path, compression):
    refused(zipped(tmp_path / "m.npz", [("w.npy", npy(HEADER))], compression), "in a way that NumPy does not use")


def test_an_array_whose_checksum_is_wrong_is_damaged(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.frombuffer(b"abcdefgh" * 10_000, np.float32))
    path = tmp_path / "m.npz"
    content = path.read_bytes()
    path.write_bytes(content[:60_000] + b"?" + content[60_001:])
    with pytest.raises(WeightFileError, match=r"damaged NumPy npz file: tensor w cannot be read \(Bad CRC-32"):
        open_tensors(path)["w"]


def test_an_archive_that_unfolds_to_much_more_than_itself_is_refused_before_it_is_unfolded(tmp_path):
    np.savez_compressed(tmp_path / "m.npz", a=np.zeros(300_000_000, np.uint8))
    tracemalloc.start()
    try:
        refused(tmp_path / "m.npz", r"and its compressed arrays would take 300,000,000: save it with numpy\.savez")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_members_that_share_their_bytes_are_refused(tmp_path):
    """Many entries of a directory for one place in the file: a bomb that needs no compression."""
    path = zipped(tmp_path / "m.npz", [("w.npy", npy(HEADER)), ("v.npy", npy(HEADER))])
    content = path.read_bytes()
    second = content.rindex(b"PK\3\4")
    at = content.rindex(b"PK\1\2") + 42  # where the second entry says its member begins
    assert content[at : at + 4] == second.to_bytes(4, "little")
    path.write_bytes(content[:at] + bytes(4) + content[at + 4 :])
    refused(path, "damaged NumPy npz")


def test_a_directory_of_a_hundred_thousand_members_is_refused(tmp_path):
    content = zipped(tmp_path / "m.npz", [("w.npy", npy(HEADER))]).read_bytes()
    first, end = content.index(b"PK\1\2"), content.rindex(b"PK\5\6")
    entries = content[first:end] * 100_000
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(entries), first, 0)
    (tmp_path / "m.npz").write_bytes(content[:first] + entries + tail)
    refused(tmp_path / "m.npz", r"its directory would have [\d,]+ bytes, the limit is")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr':'>f4','fortran_order':False,'shape':(2,),'descr':'<f4'}",
        "{'descr':'<f4','fortran_order':True,'shape':(2,),'fortran_order':False}",
        HEADER.replace("}", "'more': 1, }"),  # NumPy refuses it, too
    ],
)
def test_a_header_has_each_field_once_and_no_other(tmp_path, header):
    refused(zipped(tmp_path / "m.npz", [("w.npy", npy(header))]), "no plain array, with each field once")


@pytest.mark.parametrize("names", [("K.npy", "K"), ("K", "K.npy"), ("K.npy", "K.NPY"), ("K.NPY", "K")])
def test_two_members_of_one_name_are_refused(tmp_path, names):
    path = zipped(tmp_path / "m.npz", [("a.npy", npy(HEADER)), *((name, npy(HEADER)) for name in names)])
    refused(path, rf"it has the member {names[1]} beside {names[0]}, and both are named K")


def test_names_that_differ_in_case_are_two_arrays(tmp_path):
    np.savez(tmp_path / "m.npz", k=np.zeros(2), K=np.ones(2))
    assert open_tensors(tmp_path / "m.npz")["K"].tolist() == [1, 1]


@pytest.mark.parametrize(("version", "words"), [(b"\x09\0", "9.0"), (b"\1\1", "1.1"), (b"\0\0", "0.0")])
def test_an_unknown_version_of_npy_is_refused(tmp_path, version, words):
    content = bytearray(npy(HEADER, version=2))
    content[6:8] = version
    refused(zipped(tmp_path / "m.npz", [("w.npy", bytes(content))]), f"has version {words} of .npy, which NumPy does")
