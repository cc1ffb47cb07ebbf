"""Every container gives back what other libraries wrote into it, lazily and in memory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gguf
import ml_dtypes
import mlx.core as mx
import msgpack
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from support.weight_files import WRITERS, gguf_file, tensors, torch_tensors

from vaespec import WeightFileError
from vaespec.weights.containers import (
    Container,
    TensorFile,
    flax,
    open_tensors,
    opening,
    write_msgpack,
    write_safetensors,
)

KINDS = {
    "safetensors": "safetensors",
    "shards": "safetensors in 3 shards",
    "torch-zip": "PyTorch zip",
    "torch-legacy": "PyTorch legacy pickle",
    "msgpack": "Flax msgpack",
    "gguf": "GGUF",
    "npz": "NumPy npz",
    "npz-packed": "NumPy npz",
}


def assert_holds(file: TensorFile, expected: dict[str, np.ndarray]) -> None:
    """Names, and arrays to the bit; dtypes and shapes from the header agree with the arrays."""
    assert set(file) == set(expected)
    assert len(file) == len(expected)
    for name, a in expected.items():
        assert (file.dtype(name), file.shape(name)) == (a.dtype.name, a.shape), name
        assert (file[name].dtype, file[name].shape, file[name].tobytes()) == (a.dtype, a.shape, a.tobytes()), name


@pytest.mark.parametrize("container", WRITERS)
def test_a_file_of_another_library_comes_back_to_the_bit(tmp_path, container):
    path = WRITERS[container](tmp_path, tensors())
    file = open_tensors(path)
    assert (file.path, file.kind) == (path, KINDS[container])
    assert_holds(file, tensors())
    assert "none" not in file
    for ask in (file.__getitem__, file.shape, file.dtype):
        with pytest.raises(KeyError):
            ask("none")


@pytest.mark.parametrize("container", sorted(set(WRITERS) - {"shards"}))
def test_what_a_file_is_called_does_not_matter(tmp_path, container):
    path = WRITERS[container](tmp_path, tensors()).rename(tmp_path / "model.png")
    assert_holds(open_tensors(path), tensors())


@pytest.mark.parametrize("container", WRITERS)
def test_arrays_are_nobody_elses(tmp_path, container):
    file = open_tensors(WRITERS[container](tmp_path, tensors()))
    for name, a in tensors().items():
        before = file[name]
        before[...] = 0
        assert file[name].tobytes() == a.tobytes()
    kept = {name: file[name] for name in file}
    for path in tmp_path.iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    assert {name: a.tobytes() for name, a in kept.items()} == {name: a.tobytes() for name, a in tensors().items()}


@pytest.mark.parametrize("container", sorted(set(WRITERS) - {"shards"}))
def test_a_file_that_changed_since_it_was_opened_is_refused(tmp_path, container):
    path = WRITERS[container](tmp_path, tensors())
    file = open_tensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightFileError, match=r"has changed since it was opened: load it again\.") as caught:
        file["encoder.conv_in.weight"]
    assert str(path) in str(caught.value)


# -- safetensors -------------------------------------------------------------------------------------------------

DTYPES = st.sampled_from(
    [np.dtype(t) for t in "?bBhHiIlLefd"] + [np.dtype(getattr(ml_dtypes, t)) for t in ("bfloat16", "float8_e4m3fn")]
)


@given(data=st.data())
def test_any_tensors_survive_a_write_and_a_read(tmp_path_factory, data):
    shapes = data.draw(
        st.dictionaries(st.text(min_size=1).filter("__metadata__".__ne__), npst.array_shapes(min_dims=0, min_side=0))
    )
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in shapes.items():
        dtype = data.draw(DTYPES)
        arrays[name] = rng.integers(0, 2, (*shape, dtype.itemsize), dtype=np.uint8).view(dtype).reshape(shape)
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    write_safetensors(path, arrays, {"format": "pt"})
    file = open_tensors(path)
    assert file.metadata == {"format": "pt"}
    assert_holds(file, arrays)


def test_files_of_torch_and_mlx_are_read(tmp_path):
    plain = {name: a for name, a in tensors().items() if a.dtype != ml_dtypes.bfloat16}
    float8 = torch.arange(9.0).to(torch.float8_e5m2)
    safetensors.torch.save_file(torch_tensors(tensors()) | {"f8": float8}, tmp_path / "torch")
    bits = float8.view(torch.uint8).numpy().view(ml_dtypes.float8_e5m2)
    assert_holds(open_tensors(tmp_path / "torch"), tensors() | {"f8": bits})
    mx.save_safetensors(str(tmp_path / "mlx.safetensors"), {name: mx.array(a) for name, a in plain.items()})
    assert_holds(open_tensors(tmp_path / "mlx.safetensors"), plain)


def test_a_header_whose_length_looks_like_another_magic_is_a_header(tmp_path):
    """640 bytes begin like a pickle, 60 like a web page, 0x81 like msgpack."""
    for length in (640, 60 + 256, 0x81 + 256):
        table = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(length)
        (tmp_path / "model").write_bytes(length.to_bytes(8, "little") + table + bytes(4))
        assert_holds(open_tensors(tmp_path / "model"), {"a": np.zeros(1, np.float32)})


# -- shards ------------------------------------------------------------------------------------------------------


def test_shards_may_be_of_pytorch_and_share_their_metadata(tmp_path):
    (first, a), (second, b), _ = tensors().items()
    safetensors.numpy.save_file({first: a}, tmp_path / "1.bin", metadata={"quantization_level": "8"})
    torch.save({second: torch.from_numpy(b)}, tmp_path / "2.bin")
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": {first: "1.bin", second: "2.bin"}}))
    file = open_tensors(tmp_path / "index.json")
    assert file.kind == "PyTorch zip and safetensors in 2 shards"
    assert file.metadata == {"quantization_level": "8"}
    assert_holds(file, {first: a, second: b})


# -- PyTorch -----------------------------------------------------------------------------------------------------

ONE = {"a.w": torch.arange(3.0)}


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    ("content", "names"),
    [
        (ONE, ["a.w"]),
        ({"a": ONE}, ["a.a.w"]),
        ({"state_dict": ONE, "model": {"b": torch.ones(1)}}, ["a.w"]),
        ({"model": ONE, "optimizer": [torch.ones(1)], "step": torch.tensor(1).item()}, ["a.w"]),
        ({"ema": ONE, "model": {"b": torch.ones(1)}}, ["ema.a.w", "model.b"]),
        ({"params": torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.ones(2))}).state_dict()}, ["w"]),
    ],
)
def test_wrappers_are_taken_off_where_they_hold_the_weights(tmp_path, content, names, new):
    torch.save(content, tmp_path / "m", _use_new_zipfile_serialization=new)
    assert list(open_tensors(tmp_path / "m")) == names


@pytest.mark.parametrize("new", [True, False])
def test_views_and_strides_are_followed(tmp_path, new):
    base = torch.arange(24.0)
    content = {"t": base.reshape(4, 6).T, "part": base[5:9], "every": base[::3], "scalar": base[7], "none": base[:0]}
    torch.save(content, tmp_path / "m", _use_new_zipfile_serialization=new)
    assert_holds(open_tensors(tmp_path / "m"), {name: t.contiguous().numpy() for name, t in content.items()})


def lightning(module: str) -> type:
    """A class that pickles as Lightning's callback does, by name."""
    name = "ModelCheckpoint"
    return type(name, (), {"__module__": module, "__qualname__": name})


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_what_lightning_leaves_beside_the_weights_is_read_as_nothing(tmp_path, monkeypatch, package, new):
    module = f"{package}.callbacks.model_checkpoint"
    callback = lightning(module)
    parts = module.split(".")
    for i in range(len(parts)):
        fake = type(sys)(".".join(parts[: i + 1]))
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    sys.modules[module].ModelCheckpoint = callback
    left = {callback: {"best_model_score": np.float64(0.5), "instance": callback()}}
    torch.save({"state_dict": ONE, "callbacks": left}, tmp_path / "m.ckpt", _use_new_zipfile_serialization=new)
    monkeypatch.undo()
    assert_holds(open_tensors(tmp_path / "m.ckpt"), {"a.w": np.arange(3, dtype=np.float32)})


@pytest.mark.parametrize("new", [True, False])
def test_other_code_is_refused_by_name_and_not_run(tmp_path, new):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"a": torch.ones(2), "b": Harm()}, tmp_path / "m.ckpt", _use_new_zipfile_serialization=new)
    with pytest.raises(WeightFileError, match=r"refers to \w+\.mkdir, which .* none of its code was run") as caught:
        open_tensors(tmp_path / "m.ckpt")
    assert not (tmp_path / "harm").exists()
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("problem", [None, "backend 'toy' needs toy: pip install toy."])
def test_a_backend_may_bring_containers_of_its_own(tmp_path, monkeypatch, problem):
    path = WRITERS["safetensors"](tmp_path, tensors())
    (tmp_path / "m.toy").write_bytes(b"TOY!")
    toy = Container("toy", lambda start: start.startswith(b"TOY!"), lambda _: open_tensors(path), (".toy",))
    monkeypatch.setattr(opening, "backends", lambda: [SimpleNamespace(name="toy", problem=problem)])
    monkeypatch.setattr(opening, "get_backend", lambda name: SimpleNamespace(containers=(toy,)))
    if problem is None:
        assert_holds(open_tensors(tmp_path / "m.toy"), tensors())
    else:
        with pytest.raises(WeightFileError, match=r"is a toy file: .* pip install toy, or convert it to \.safetensors"):
            open_tensors(tmp_path / "m.toy")


# -- Flax's msgpack ----------------------------------------------------------------------------------------------


def test_a_file_of_flax_itself_is_read(tmp_path):
    golden = Path(__file__).parents[1] / "goldens" / "flax.msgpack"  # flax's own bytes: see make_flax_golden.py
    more = {"scalar": np.float32(0.5).reshape(()), "pieces": np.arange(60, dtype=np.float32).reshape(3, 20)}
    assert_holds(open_tensors(golden), tensors() | more)
    expected = dict(open_tensors(golden))
    write_msgpack(tmp_path / "m", expected)
    assert_holds(open_tensors(tmp_path / "m"), expected)


def test_what_is_written_is_what_flax_writes(tmp_path, monkeypatch):
    golden = Path(__file__).parents[1] / "goldens" / "flax.msgpack"
    monkeypatch.setattr(flax, "CHUNK", 64)
    write_msgpack(tmp_path / "m", tensors() | {"pieces": np.arange(60, dtype=np.float32).reshape(3, 20)})

    def tree(path: Path) -> dict:
        return msgpack.unpackb(path.read_bytes(), strict_map_key=False)

    ours, theirs = tree(tmp_path / "m"), tree(golden)
    assert {k: theirs[k] for k in theirs if k not in ("scalar", "step")} == ours


def test_big_endian_arrays_are_written_as_what_they_hold(tmp_path):
    write_msgpack(tmp_path / "m", {"a.b": np.arange(3, dtype=">f4")})
    assert_holds(open_tensors(tmp_path / "m"), {"a.b": np.arange(3, dtype=np.float32)})


def test_long_text_and_bytes_beside_the_arrays_are_passed_over(tmp_path):
    one = {"a": msgpack.ExtType(1, msgpack.packb(((1,), "int8", b"\7"))), "t": "x" * 10_000, "b": bytes(70_000)}
    (tmp_path / "m").write_bytes(msgpack.packb(one))
    assert_holds(open_tensors(tmp_path / "m"), {"a": np.array([7], np.int8)})


# -- GGUF --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "Q4_K"])
def test_quantized_tensors_of_gguf_come_as_that_package_undoes_them(tmp_path, kind):
    quant = gguf.GGMLQuantizationType[kind]
    w = np.random.default_rng(0).normal(size=(4, 512)).astype(np.float32)
    try:
        blocks = gguf.quants.quantize(w, quant)
    except NotImplementedError:  # it reads more types than it writes
        _, size = gguf.GGML_QUANT_SIZES[quant]
        blocks = np.random.default_rng(0).integers(0, 60, (4, 512 // 256 * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m", "vae")
    writer.add_tensor("w", blocks, raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = open_tensors(tmp_path / "m")
    assert file.metadata == {"general.architecture": "vae"}
    assert_holds(file, {"w": gguf.quants.dequantize(blocks, quant)})


@pytest.mark.parametrize("kind", [None, "Q8_0"])
def test_shapes_that_comfyui_kept_are_those_of_the_tensors(tmp_path, kind):
    """ComfyUI-GGUF lays a kernel out in rows of 256 values, and keeps its shape as an array of integers."""
    w = np.random.default_rng(0).normal(size=(32, 8, 3, 3)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "m", "sdxl")
    writer.add_array("comfy.gguf.orig_shape.w", list(w.shape))
    rows = w.reshape(-1, 256)
    if kind is None:
        writer.add_tensor("w", rows)
    else:
        quant = gguf.GGMLQuantizationType[kind]
        blocks = gguf.quants.quantize(rows, quant)
        writer.add_tensor("w", blocks, raw_dtype=quant)
        w = gguf.quants.dequantize(blocks, quant).reshape(w.shape)
    writer.add_tensor("plain", np.ones((2, 3), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_holds(open_tensors(tmp_path / "m"), {"w": w, "plain": np.ones((2, 3), np.float32)})


def test_quantized_gguf_without_its_package_names_the_extra_and_plain_gguf_needs_none(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert_holds(open_tensors(gguf_file(tmp_path, tensors())), tensors())
    one = {"encoder.conv_in.weight": np.ones((2, 32), np.float32)}
    path = gguf_file(tmp_path, one, {"encoder.conv_in.weight": gguf.GGMLQuantizationType.Q8_0})
    with pytest.raises(WeightFileError, match=r"needs gguf: pip install .vaespec\[gguf\]"):
        open_tensors(path)


def test_opening_plain_containers_loads_no_framework(tmp_path):
    code = (
        "import sys; from pathlib import Path; from vaespec.weights.containers import open_tensors\n"
        "for path in sys.argv[1:]: print(open_tensors(Path(path))['decoder.conv_in.weight'].dtype)\n"
        "print(sorted({'torch', 'jax', 'mlx', 'gguf', 'safetensors'} & set(sys.modules)))"
    )
    paths = []
    for container in ("safetensors", "msgpack", "gguf", "torch-zip", "torch-legacy"):
        (tmp_path / container).mkdir()
        paths.append(str(WRITERS[container](tmp_path / container, tensors())))
    run = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n") == ["bfloat16"] * 5 + ["[]", ""]
