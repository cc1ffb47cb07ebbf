"""Damaged and hostile files: each is refused in a sentence, in bounded time and memory, whatever is in it."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.weight_files import WRITERS, safetensors_file, tensors

from vaespec import WeightFileError
from vaespec.weights.containers import open_tensors, tensor_file
from vaespec.weights.containers.tensor_file import opened


def table(*rows: tuple, metadata: object = None) -> str:
    """A safetensors header of (name, dtype, shape, offsets)."""
    parts = [
        f"{json.dumps(name)}: {json.dumps({'dtype': dtype, 'shape': shape, 'data_offsets': offsets})}"
        for name, dtype, shape, offsets in rows
    ]
    if metadata is not None:
        parts.insert(0, f'"__metadata__": {json.dumps(metadata)}')
    return "{" + ", ".join(parts) + "}"


def safetensors_bytes(header: str | bytes, data: int = 8) -> bytes:
    content = header.encode() if isinstance(header, str) else header
    return len(content).to_bytes(8, "little") + content + bytes(data)


A = ("a", "F32", [1], [0, 4])

SAFETENSORS = {
    "a hole": (table(A, ("b", "F16", [1], [6, 8])), "tensor b begins at byte .*, the one before ends"),
    "a hole at the start": (table(("a", "F32", [1], [4, 8])), "tensor a begins at byte"),
    "an overlap": (table(A, ("b", "F32", [1], [2, 6])), "tensor b begins at byte"),
    "two in one place": (table(A, ("b", "F32", [1], [0, 4])), "tensor b begins at byte"),
    "trailing bytes": (table(A), "4 bytes follow its last tensor"),
    "no tensors but data": ("{}", "8 bytes follow"),
    "data missing": (table(("a", "F32", [400], [0, 1600])), r"is incomplete: it has \d+ of 1,\d+ bytes; download"),
    "one key twice": ("{" + table(A)[1:-1] + ", " + table(A)[1:], "it has the key 'a' twice"),
    "one field twice": (
        '{"a": {"dtype": "F32", "dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}',
        "the key 'dtype' twice",
    ),
    "a wrong size": (table(("a", "F32", [3], [0, 8])), r"tensor a has 8 bytes, but float32 \(3,\) takes 12"),
    "an unknown dtype": (table(("a", "F4", [16], [0, 8])), "tensor a has the unknown dtype 'F4'"),
    "a dtype of no text": (table(("a", ["F32"], [2], [0, 8])), "tensor a has the unknown dtype"),
    "a negative size": (table(("a", "F32", [-2], [0, 8])), "tensor a has an impossible shape"),
    "two negative sizes": (table(("a", "F32", [-2, -1], [0, 8])), "tensor a has an impossible shape"),
    "a size of no integer": (table(("a", "F32", [2.0], [0, 8])), "tensor a has an impossible shape"),
    "a size of true": (table(("a", "F64", [True], [0, 8])), "tensor a has an impossible shape"),
    "an overflowing shape": (table(("a", "F32", [2**32, 2**32], [0, 8])), "tensor a has 8 bytes, but"),
    "an empty overflow": (table(A, ("b", "F32", [0, 2**62], [4, 4])), "tensor b has an impossible shape"),
    "too many dimensions": (table(("a", "F64", [1] * 65, [0, 8])), "tensor a has an impossible shape"),
    "endless dimensions": (table(("a", "F64", [10**4000] * 1000, [0, 8])), "tensor a has an impossible shape"),
    "negative offsets": (table(("a", "F32", [2], [-8, 0])), "tensor a has the impossible offsets"),
    "offsets in the wrong order": (table(("a", "F32", [0], [8, 0])), "tensor a has the impossible offsets"),
    "three offsets": (table(("a", "F32", [2], [0, 8, 8])), "tensor a has no list of sizes or no two offsets"),
    "a shape of text": (table(("a", "F32", "2", [0, 8])), "tensor a has no list of sizes"),
    "a missing field": ('{"a": {"dtype": "F32", "shape": [2]}}', "tensor a has other fields"),
    "an entry of no fields": ('{"a": 3}', "tensor a has other fields"),
    "metadata of numbers": (table(A, metadata={"format": 3}), "its metadata are not strings"),
    "metadata of no table": (table(A, metadata=["pt"]), "its metadata are not strings"),
    "no JSON": ('{"a": not json}', "Expecting value"),
    "a list in the header": ('{"a": [', "Expecting value"),
    "deep JSON": ('{"a":' + "[" * 200_000, "recursion"),
    "an endless number": ('{"a": ' + "9" * 10_000 + "}", "4300|digits"),
    "no UTF-8": (b'{"\xff": 1}', "utf-8"),
    "UTF-16": (b"{\0" + '"a": 1}'.encode("utf-16-le"), "damaged"),
}


def refused(path: Path, words: str) -> None:
    with pytest.raises(WeightFileError, match=words) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("what", SAFETENSORS)
def test_a_safetensors_header_must_account_for_every_byte(tmp_path, what):
    header, words = SAFETENSORS[what]
    (tmp_path / "m").write_bytes(safetensors_bytes(header))
    refused(tmp_path / "m", words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty and does not begin like a file of weights: download or save it again"),
        (b"{", "damaged shard index"),
        (bytes(4096), r"\(4096 bytes\) does not begin like"),
        (b"\xff" * 4096, "does not begin like"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"a git-lfs pointer.*run `git lfs pull`"),
        (b'{"weight_map": []}', "is JSON, but no index of shards"),
        ((2**25).to_bytes(8, "little") + b"{}", r"its header would have 33,554,440 bytes, the limit is 4,194,304"),
        ((2**40).to_bytes(8, "little") + b"{}", "does not begin like"),
        ((99).to_bytes(8, "little") + b"{}", "ends inside its header, at 10 bytes: the download is incomplete"),
    ],
)
def test_a_file_without_weights_is_named_in_the_error(tmp_path, content, words):
    (tmp_path / "m.safetensors").write_bytes(content)
    refused(tmp_path / "m.safetensors", words)


@pytest.mark.parametrize("name", ["n" * 1001, "\x1b[31m" * 1000])
def test_names_that_no_error_could_repeat_are_refused(tmp_path, name):
    (tmp_path / "m").write_bytes(safetensors_bytes(table((name, "F32", [2], [0, 8]))))
    refused(tmp_path / "m", r"a tensor whose name has [\d,]+ characters, the limit is 1,000: rename it")


def test_control_characters_of_a_damaged_header_are_escaped(tmp_path):
    (tmp_path / "m").write_bytes(safetensors_bytes(table(("\x1b[31m", "F32", [3], [0, 8]))))
    refused(tmp_path / "m", r"tensor \\x1b\[31m has 8 bytes")


def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch):
    path = safetensors_file(tmp_path, tensors())
    file = open_tensors(path)

    def broken(*args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("vaespec.weights.containers.tensor_file.np.empty", broken)
    with pytest.raises(
        WeightFileError, match=r"cannot be read \(Input/output error\): check the file and its disk\."
    ) as caught:
        file["encoder.conv_in.bias"]
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("container", [container for container in WRITERS if "torch" not in container])
def test_without_memory_a_file_is_not_called_damaged(tmp_path, monkeypatch, container):
    path = WRITERS[container](tmp_path, tensors())
    file = open_tensors(path)

    def full(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr("vaespec.weights.containers.tensor_file.Stored.__post_init__", full)
    with pytest.raises(MemoryError, match=r"not enough memory to read .*model"):
        open_tensors(path)
    monkeypatch.setattr(np, "empty", full)
    with pytest.raises(MemoryError, match=r"not enough memory to read .*model"):
        file["encoder.conv_in.weight"]


def test_a_path_that_is_no_file_is_refused(tmp_path):
    with pytest.raises(WeightFileError, match=r"a\\x00b' is no path, since it has a null character"):
        open_tensors(tmp_path / "a\0b")
    refused(tmp_path / ("n" * 300), r"cannot be read \(File name too long\)")
    refused(tmp_path / "none", "no file .*none")
    refused(tmp_path, "is a folder or device: give a file of weights")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is a folder or device")
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "m", r"cannot be read \(Not a directory\)")


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    path = safetensors_file(tmp_path, tensors())

    def denied(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tensor_file, "open_at_once", denied)  # root may read anything
    refused(path, r"cannot be read \(Permission denied\)")


# -- shards ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "..", ".", "", "sub/a", "sub\\a", "C:a", "a\0b"])
def test_shards_lie_beside_their_index(tmp_path, name):
    (tmp_path / "i.json").write_text(json.dumps({"weight_map": {"a": name}}))
    refused(tmp_path / "i.json", "is not a plain file name")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda names: names.update(more="1.st"), r"tensor more is not in 1\.st, as it says"),
        (lambda names: names.pop("b"), r"tensor b is in 1\.st, it says nowhere"),
        (lambda names: names.update(b="2.st"), r"tensor b is not in 2\.st"),
        (lambda names: names.update(c="3.st"), r"names the shard 3\.st, which is not beside it"),
        (lambda names: names.update(c="i.json"), r"i\.json"),
        (
            lambda names: names.update(c="twice.st"),
            r"tensor a is in 1\.st, it says in twice\.st|tensor a is in twice\.st",
        ),
        (lambda names: names.clear(), "is JSON, but no index of shards"),
        (lambda names: names.update(c=3), "is JSON, but no index of shards"),
    ],
)
def test_an_index_and_its_shards_must_agree(tmp_path, change, words):
    f32 = ("F32", [1])
    (tmp_path / "1.st").write_bytes(safetensors_bytes(table(("a", *f32, [0, 4]), ("b", *f32, [4, 8]))))
    (tmp_path / "2.st").write_bytes(safetensors_bytes(table(("c", *f32, [0, 4])), 4))
    (tmp_path / "twice.st").write_bytes(safetensors_bytes(table(("a", *f32, [0, 4]), ("c", *f32, [4, 8]))))
    names = {"a": "1.st", "b": "1.st", "c": "2.st"}
    (tmp_path / "i.json").write_text(json.dumps({"weight_map": names}))
    assert set(open_tensors(tmp_path / "i.json")) == set(names)
    change(names)
    (tmp_path / "i.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(WeightFileError, match=words):
        open_tensors(tmp_path / "i.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"weight_map": {"a": "1", "a": "2"}}', "the key 'a' twice"),
        (b'{"weight_map": {"a": "1"}, "weight_map": {"a": "1"}}', "the key 'weight_map' twice"),
        (b'{"weight_map": {"a": "' + b"b" * 300 + b'"}}', "is not a plain file name"),
        (b'{"weight_map": {"\\ud800": "b"}}', "surrogates not allowed"),
        (
            json.dumps({"weight_map": {str(i): str(i) for i in range(1001)}}).encode(),
            "1,001 shards, the limit is 1,000",
        ),
        (b'{"weight_map": {"a": "' + b"b" * (4 << 20) + b'"}}', "bytes, the limit is 4,194,304"),
    ],
)
def test_an_index_has_each_key_once_and_names_few_files(tmp_path, content, words):
    (tmp_path / "i.json").write_bytes(content)
    refused(tmp_path / "i.json", words)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch would have it no more, but files have it
    QUANTIZED = torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.quint8)

# -- PyTorch -----------------------------------------------------------------------------------------------------


def zipped(path: Path, files: Iterable[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return path


def test_zips_that_are_not_pytorchs_are_refused(tmp_path):
    refused(zipped(tmp_path / "a.ckpt", [("readme.txt", b"hello")]), "is a zip archive, but not of PyTorch")
    refused(zipped(tmp_path / "b.ckpt", [("a/data.pkl", b"\x80\x02}.")]), "is a damaged PyTorch zip|without tensors")


def test_a_zip_that_unfolds_to_more_than_itself_is_refused(tmp_path):
    bomb = [("a/data.pkl", b"\x80\x02" + b"N0" * 5_000_000 + b"}."), ("a/version", b"3\n")]
    refused(
        zipped(tmp_path / "m.ckpt", bomb, zipfile.ZIP_DEFLATED), "it is compressed, which PyTorch's files never are"
    )


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(1).expand(2**40), r"tensor t claims 1,099,511,627,776 values, but stores fewer"),
        (torch.eye(3).to_sparse(), "tensor t is sparse or of a subclass"),
        (QUANTIZED, "tensor t has the dtype quint8, which NumPy does not have"),
        (torch.ones(3, device="meta"), "tensor t is on the device meta, without its values"),
    ],
)
def test_incomplete_tensors_are_refused(tmp_path, tensor, words, new):
    torch.save({"t": tensor}, tmp_path / "m.ckpt", _use_new_zipfile_serialization=new)
    refused(tmp_path / "m.ckpt", words)


@pytest.mark.parametrize("container", ["torch-zip", "torch-legacy"])
def test_a_tensor_larger_than_its_storage_is_refused(tmp_path, container):
    """60 values become 200 in the pickle, and the storage would grow to hold what is not in the file."""
    one = {"t": np.arange(60, dtype=np.float32)}
    path = WRITERS[container](tmp_path, one)
    content = path.read_bytes()
    shape = b"K\x3c\x85"  # the pickled (60,)
    assert content.count(shape) == 1
    path.write_bytes(content.replace(shape, b"K\xc8\x85"))
    refused(path, "is a damaged PyTorch")


def test_many_names_for_one_storage_are_refused(tmp_path):
    big = torch.zeros(10_000)
    torch.save({f"t{i}": big[i:] for i in range(100)}, tmp_path / "m.ckpt")
    refused(tmp_path / "m.ckpt", r"its tensors take [\d,]+ bytes, the file [\d,]+;")


@pytest.mark.parametrize("new", [True, False])
def test_mappings_within_themselves_end(tmp_path, new):
    loop: dict = {"w": torch.ones(1)}
    loop["again"] = loop
    for _ in range(64):
        loop = {"a": loop, "b": loop, "c": loop}  # 3^64 ways to one tensor
    torch.save(loop, tmp_path / "m.ckpt", _use_new_zipfile_serialization=new)
    assert len(open_tensors(tmp_path / "m.ckpt")) == 1


def test_pickles_of_others_are_refused(tmp_path):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "m.pkl").write_bytes(pickle.dumps({"a": np.ones(3)}, protocol))
        refused(tmp_path / "m.pkl", "damaged PyTorch|refers to numpy|a Python pickle that torch.save did not write")


# -- cut off ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", WRITERS)
def test_a_file_cut_anywhere_is_refused_or_has_lost_nothing(tmp_path, container):
    path = WRITERS[container](tmp_path, tensors())
    whole = path.read_bytes()
    for cut in sorted({1, 2, 7, 8, 9, 30, *range(0, len(whole), 97), len(whole) - 1}):
        path.write_bytes(whole[:cut])
        try:
            file = open_tensors(path)
        except WeightFileError:
            continue
        assert container == "gguf"  # which pads its end
        assert all(file[name].tobytes() == a.tobytes() for name, a in tensors().items())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFO on Windows")
def test_a_pipe_that_takes_the_place_of_a_file_is_refused_at_once(tmp_path, monkeypatch):
    path = safetensors_file(tmp_path, tensors())
    state = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda self, **options: state)  # as it was before it was replaced
    with pytest.raises(WeightFileError, match="is a folder or device: give a file of weights"), opened(path):
        pass
