"""MLX's few bits are undone and made as MLX does; what cannot be undone is refused with the reason."""

from __future__ import annotations

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from vaespec import AutoencoderKL, WeightFileError
from vaespec.weights import load_file, save_file
from vaespec.weights.containers import open_tensors, quantize, require_plain, with_inputs
from vaespec.weights.containers.quantized import GROUP, dequantize

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
BITS = [2, 4, 8]  # which `quantize` writes: no value crosses a word


def numpy_of(a: mx.array) -> np.ndarray:
    return np.array(mx.view(a, mx.uint16)).view(ml_dtypes.bfloat16) if a.dtype == mx.bfloat16 else np.array(a)


def weights(seed: int, rows: int = 8, groups: int = 2) -> np.ndarray:
    """With what is special in some rows: zeros, one sign only, a constant, a single large value, tiny ones."""
    w = np.random.default_rng(seed).normal(0, 0.05, (rows, groups * GROUP)).astype(np.float32)
    w[0], w[1], w[2], w[3] = 0, abs(w[1]), -abs(w[2]), 3
    w[4, 7] = 100
    w[5] *= 1e-6
    return w


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**32))
def test_quantized_weights_are_mlxs_to_the_bit_both_ways(dtype, bits, seed):
    w = mx.array(weights(seed)).astype(DTYPES[dtype])
    theirs = mx.quantize(w, group_size=GROUP, bits=bits)
    for ours, a in zip(quantize(numpy_of(w), bits), theirs, strict=True):
        assert (ours.dtype, ours.tobytes()) == (numpy_of(a).dtype, numpy_of(a).tobytes())
    back = numpy_of(mx.dequantize(*theirs, group_size=GROUP, bits=bits))
    ours = dequantize(*map(numpy_of, theirs), bits)
    assert (ours.dtype, ours.shape, ours.tobytes()) == (back.dtype, back.shape, back.tobytes())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_with_quantized_layers_reads_as_floats(tmp_path, dtype, bits):
    w, b = mx.array(weights(1)).astype(DTYPES[dtype]), mx.arange(8.0)
    words, scales, biases = mx.quantize(w, group_size=GROUP, bits=bits)
    tensors = {"to_q.weight": words, "to_q.scales": scales, "to_q.biases": biases, "to_q.bias": b, "norm.weight": b}
    mx.save_safetensors(str(tmp_path / "m.safetensors"), tensors, {"quantization_level": str(bits)})
    file = open_tensors(tmp_path / "m.safetensors")
    assert list(file) == sorted(["norm.weight", "to_q.bias", "to_q.weight"])
    assert (file.kind, file.metadata) == ("safetensors", {"quantization_level": str(bits)})
    assert (file.shape("to_q.weight"), file.dtype("to_q.weight")) == ((8, 2 * GROUP), dtype)
    expected = numpy_of(mx.dequantize(words, scales, biases, group_size=GROUP, bits=bits))
    assert file["to_q.weight"].tobytes() == expected.tobytes()
    assert file["to_q.bias"].tolist() == list(range(8))
    require_plain(file, file)
    for hidden in ("to_q.scales", "to_q.biases", "none"):
        assert hidden not in file
        for ask in (file.__getitem__, file.shape, file.dtype):
            with pytest.raises(KeyError):
                ask(hidden)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_width_and_group_of_mlx_is_undone_to_the_bit(dtype, bits, group):
    w = mx.array(weights(2, groups=6)).astype(DTYPES[dtype])  # 384 inputs
    theirs = mx.quantize(w, group_size=group, bits=bits)
    back = numpy_of(mx.dequantize(*theirs, group_size=group, bits=bits))
    assert dequantize(*map(numpy_of, theirs), bits).tobytes() == back.tobytes()


def quantized_layers(layers: dict[str, tuple[np.ndarray, int, int]]) -> tuple[dict, dict]:
    """name -> (w, bits, group) as the tensors of a file, and as what MLX makes of them again."""
    stored, floats = {}, {}
    for name, (w, bits, group) in layers.items():
        parts = mx.quantize(mx.array(w), group_size=group, bits=bits)
        stored |= dict(zip((f"{name}.weight", f"{name}.scales", f"{name}.biases"), parts, strict=True))
        floats[f"{name}.weight"] = numpy_of(mx.dequantize(*parts, group_size=group, bits=bits))
    return stored, floats


def test_layers_of_the_same_shapes_are_told_apart_by_their_inputs(tmp_path):
    """4 bits in groups of 64, and 8 bits in groups of 32 or 2 in groups of 128, are stored alike."""
    w = weights(3, rows=16, groups=4)
    layers = {"a": (w[:, :128], 4, 64), "b": (w[:, :64], 8, 32), "c": (w, 2, 128), "d": (w[:, :96], 3, 32)}
    stored, floats = quantized_layers(layers)
    assert len({stored[f"{name}.weight"].shape for name in "abc"}) == 1
    mx.save_safetensors(str(tmp_path / "m.safetensors"), stored)
    inputs = {name: w.shape[1] for name, w in floats.items()}
    file = with_inputs(open_tensors(tmp_path / "m.safetensors"), inputs)
    for name, w in floats.items():
        assert file.shape(name) == w.shape
        assert file[name].tobytes() == w.tobytes()


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
@pytest.mark.parametrize("dialect", ["mlx", "mflux", "mlx-flux"])
def test_a_model_of_mixed_widths_loads_with_the_width_of_each_layer(tmp_path, dialect, kind):
    """In the names of mlx also the shortcuts are linear maps, which have not as many inputs as outputs."""
    sizes = {"block_out_channels": (32, 64, 128), "down_block_types": ("DownEncoderBlock2D",) * 3}
    vae = AutoencoderKL.from_config(sizes | {"up_block_types": ("UpDecoderBlock2D",) * 3}, backend="numpy")
    save_file(tmp_path / "plain.safetensors", vae.config, vae.weights(), dialect=dialect)
    plain = safetensors.numpy.load_file(tmp_path / "plain.safetensors")
    names = [name for name, a in plain.items() if a.ndim == 2]
    ways = ((bits, group) for _ in names for group in (32, 64, 128) for bits in (8, 6, 5, 4, 3, 2))
    layers = {}
    for name in names:
        w = plain[name]
        bits, group = next(way for way in ways if w.shape[1] % way[1] == 0) if w.shape[1] % 32 == 0 else (0, 0)
        if bits:
            layers[name.removesuffix(".weight")] = (w, bits, group)
    stored, floats = quantized_layers(layers)
    every = {name: mx.array(a) for name, a in plain.items()} | stored
    path = tmp_path / f"m.{kind}"
    mx.save_safetensors(str(path), every) if kind == "safetensors" else mx.savez(str(path), **every)
    _, read = load_file(path)
    shapes = {w.shape for w in floats.values()}
    assert len(floats) >= 8
    assert dialect == "mflux" or len(shapes) > 1
    seen = {read.vae.stored(name): name for name in read}
    for name, w in floats.items():
        assert read[seen[name]].reshape(w.shape).tobytes() == w.tobytes(), name


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
def test_other_modes_of_mlx_are_refused_by_name(tmp_path, mode):
    words, scales = mx.quantize(mx.array(weights(4)), mode=mode)
    mx.save_safetensors(str(tmp_path / "m.safetensors"), {"q.weight": words, "q.scales": scales})
    file = open_tensors(tmp_path / "m.safetensors")
    with pytest.raises(WeightFileError, match=rf"q is quantized in MLX's mode {mode}, which cannot be read: take"):
        require_plain(file, ["q.weight"])


F32, U32 = np.float32, np.uint32


@pytest.mark.parametrize(
    ("weight", "scales", "biases"),
    [
        (np.zeros((8, 16), U32), np.zeros((8, 3), F32), np.zeros((8, 3), F32)),
        (np.zeros((8, 7), U32), np.zeros((8, 5), F32), np.zeros((8, 5), F32)),
        (np.zeros((8, 16), U32), np.zeros((8, 2), F32), np.zeros((8, 1), F32)),
        (np.zeros((8, 16), U32), np.zeros((4, 2), F32), np.zeros((4, 2), F32)),
        (np.zeros((8, 16), U32), np.zeros((8, 2), F32), np.zeros((8, 2), np.float16)),
        (np.zeros((8, 16), U32), np.zeros((8, 2), np.int32), np.zeros((8, 2), np.int32)),
        (np.zeros((1, 8, 16), U32), np.zeros((1, 8, 2), F32), np.zeros((1, 8, 2), F32)),
        (np.zeros(16, U32), np.zeros(2, F32), np.zeros(2, F32)),
        (np.zeros((8, 0), U32), np.zeros((8, 0), F32), np.zeros((8, 0), F32)),
    ],
)
def test_layers_quantized_in_another_way_are_refused_with_their_shapes(tmp_path, weight, scales, biases):
    path = tmp_path / "m"
    plain = np.ones(3, F32)
    safetensors.numpy.save_file({"q.weight": weight, "q.scales": scales, "q.biases": biases, "p": plain}, path)
    file = open_tensors(path)
    assert file["p"].tolist() == [1, 1, 1]  # what is quantized may be of another part of a checkpoint
    assert "q.weight" in file
    for ask in (file.shape, file.__getitem__):
        with pytest.raises(WeightFileError, match=r"m: q is not quantized as MLX does, .* weight \(.*take the file"):
            ask("q.weight")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.bool_])
def test_integers_are_refused_by_name_and_counters_are_not(tmp_path, dtype):
    path = tmp_path / "m"
    safetensors.numpy.save_file({"q.weight": np.zeros(3, dtype), "bn.count": np.zeros((), np.int64)}, path)
    file = open_tensors(path)
    require_plain(file, ["bn.count"])
    with pytest.raises(WeightFileError, match=rf"tensor q\.weight holds integers \({np.dtype(dtype)}\): quantized"):
        require_plain(file, file)


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale", "input_scale"])
def test_scaled_float8_is_refused_and_plain_float8_is_not(tmp_path, scale):
    path, f8 = tmp_path / "m", np.zeros((2, 2), ml_dtypes.float8_e4m3fn)
    tensors = {"scaled_fp8": np.zeros(2, ml_dtypes.float8_e4m3fn), "unet.q.weight": f8, "vae.q.weight": f8}
    safetensors.numpy.save_file(tensors | {f"unet.q.{scale}": np.ones(1, F32)}, path)
    file = open_tensors(path)
    require_plain(file, ["vae.q.weight"])
    assert file["vae.q.weight"].dtype == ml_dtypes.float8_e4m3fn
    words = rf"tensor unet\.q\.weight is float8_e4m3fn with a scale \(unet\.q\.{scale}\), which cannot be read"
    with pytest.raises(WeightFileError, match=words):
        require_plain(file, ["unet.q.weight"])
