"""Reflected and replicated maps are those of diffusers' model with a padding_mode; on a torus there is no border."""

from __future__ import annotations

import copy
import re
from functools import cache

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.banded import CLOSE, difference, layers, placed, run, source
from support.configs import CONFIGS, narrow, relative_l2, uniform
from support.models import EXACT, FINEST, array, each_backend, model
from support.oracle import decoded, encoded, oracle, with_padding

import vaespec_cpu.ops
from vaespec import AutoencoderKL, decoder, encoder
from vaespec.errors import InputError
from vaespec.layouts import OIHW
from vaespec.model import Model
from vaespec.reference import ReferenceOps
from vaespec.tiling.padding import PaddingOps

AXES = [("circular", "zeros"), ("zeros", "circular"), ("circular", "circular")]
each_axis = pytest.mark.parametrize("circular", AXES, ids=["rows", "columns", "both"])
BORDERS = [("reflect", "reflect"), ("replicate", "replicate"), ("reflect", "zeros"), ("replicate", "reflect")]
each_border = pytest.mark.parametrize("padding", BORDERS, ids="-".join)


NAME = "attention-everywhere"  # f = 2


@cache
def theirs(padding: tuple[str, str]):
    return with_padding(oracle(NAME)[0], *padding)


def expected(padding: tuple[str, str], direction: str, x: np.ndarray) -> np.ndarray:
    """diffusers' moments or images."""
    return in_one_array(theirs(padding), direction, x)


def in_one_array(diffusers, direction: str, x: np.ndarray) -> np.ndarray:
    return np.concatenate(encoded(diffusers, x), axis=1) if direction == "encode" else decoded(diffusers, x)


def computed(vae, direction: str, x) -> np.ndarray:
    return array(vae.encode(x).latent_dist.parameters if direction == "encode" else vae.decode(x).sample)


SIZE = {"encode": (13, 18), "decode": (5, 8)}

each_direction = pytest.mark.parametrize("direction", ["encode", "decode"])


@each_border
@each_direction
@each_backend
def test_a_padded_model_is_diffusers_with_that_padding_mode_whole_and_in_bands(backend, direction, padding, tmp_path):
    vae, x = model(NAME, backend), source(NAME, direction, *SIZE[direction], batch=2)
    result = expected(padding, direction, x)
    assert relative_l2(expected(("zeros", "zeros"), direction, x), result) > 1e-2
    vae.set_padding(padding)
    assert relative_l2(computed(vae, direction, x), result) <= EXACT[vae.dtype]
    in_bands = ((1, "device"), (3, tmp_path), (64, "host"))
    for rows, store in in_bands[: 1 if backend == "jax" else None]:  # it compiles for each shape
        vae.enable_tiling("exact", band_rows=rows, store=store)
        assert relative_l2(computed(vae, direction, x), result) <= EXACT[vae.dtype]


@pytest.mark.parametrize("padding", BORDERS[:2], ids="-".join)
def test_jax_in_float64_is_diffusers_with_that_padding_mode_in_bands_of_fixed_shapes(padding):
    z = source(NAME, "decode", *SIZE["decode"])
    with jax.enable_x64(True):
        vae = model(NAME, "jax", "float64")
        vae.set_padding(padding)
        vae.enable_tiling("exact", band_rows=3)
        assert relative_l2(vae.to_numpy(vae.decode(z).sample), expected(padding, "decode", z)) <= 1e-13


@each_border
def test_bands_come_one_by_one_padded_at_the_borders_of_the_image(padding):
    vae, z = model(NAME, "numpy"), source(NAME, "decode", *SIZE["decode"])
    vae.set_padding(padding)
    vae.enable_tiling("auto", max_memory="1TiB", band_rows=3)
    assert relative_l2(computed(vae, "decode", z), expected(padding, "decode", z)) <= 1e-13
    vae.enable_tiling("exact", band_rows=3)
    bands = list(vae.decode_bands(z))
    assert len(bands) > 2
    assert relative_l2(np.concatenate(bands, axis=2), expected(padding, "decode", z)) <= 1e-13


@pytest.mark.parametrize("padding", BORDERS[:2], ids="-".join)
@each_direction
def test_blended_tiles_are_diffusers_tiles_with_that_padding_mode(direction, padding):
    x = source(NAME, direction, *((40, 57) if direction == "encode" else (20, 29)))
    diffusers, vae = copy.deepcopy(theirs(padding)), model(NAME, "numpy")
    diffusers.enable_tiling()
    diffusers.tile_sample_min_size, diffusers.tile_latent_min_size = 32, 16
    vae.set_padding(padding)
    vae.enable_tiling(tile_sample_min_size=32)
    tiles = in_one_array(diffusers, direction, x)
    assert relative_l2(tiles, expected(padding, direction, x)) > 1e-2
    assert relative_l2(computed(vae, direction, x), tiles) <= 1e-13


@pytest.mark.parametrize("padding", [BORDERS[0], BORDERS[3]], ids="-".join)
def test_gradients_of_inputs_and_parameters_are_those_of_diffusers(padding):
    x = source(NAME, "encode", 6, 8)
    diffusers, leaf = copy.deepcopy(theirs(padding)), torch.tensor(x, requires_grad=True)
    diffusers.decode(diffusers.encode(leaf).latent_dist.mean).sample.square().mean().backward()
    expected = {"x": leaf.grad} | {name: p.grad for name, p in diffusers.named_parameters()}

    def loss(functional, square):
        def of(params, x):
            return square(functional.decode(params, functional.encode(params, x).latent_dist.mean).sample).mean()

        return of

    vae = model(NAME, "torch")
    vae.set_padding(padding)
    functional = vae.functional()
    params, leaf = {n: p.requires_grad_() for n, p in functional.params.items()}, torch.tensor(x, requires_grad=True)
    loss(functional, torch.square)(params, leaf).backward()
    assert_gradients({"x": leaf.grad} | {name: p.grad for name, p in params.items()}, expected, OIHW)
    with jax.enable_x64(True):
        vae = vae.with_backend("jax", dtype="float64")
        functional = vae.functional()
        of_params, of_x = jax.grad(loss(functional, jax.numpy.square), (0, 1))(functional.params, jax.numpy.array(x))
        assert_gradients({"x": of_x} | of_params, expected, vae._model.ops.layout)


def assert_gradients(ours, theirs, layout) -> None:
    """Relative to the longest gradient, since those of biases before a norm are rounding errors."""
    longest = max(gradient.norm().item() for name, gradient in theirs.items() if name != "x")
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        own = np.asarray(ours[name]) if name == "x" else layout.convert(np.asarray(ours[name]), OIHW)
        assert np.linalg.norm(own - gradient.numpy()) <= 1e-13 * (gradient.norm().item() if name == "x" else longest)


def test_mlx_compiled_or_traced_pads_alike():
    z = source(NAME, "decode", 3, 4)
    for options in ({"compile": True, "precision": "highest"}, {}):
        vae = AutoencoderKL(CONFIGS[NAME], oracle(NAME)[1], backend="mlx", device="cpu", **options)
        vae.set_padding("reflect")
        assert relative_l2(array(vae.decode(z).sample), expected(BORDERS[0], "decode", z)) <= 2e-6
        functional = vae.functional()
        latents = vae._model.ops.from_numpy(z)
        assert (
            relative_l2(array(functional.decode(functional.params, latents).sample), array(vae.decode(z).sample)) < 2e-6
        )


@pytest.mark.parametrize("padding", BORDERS[:2], ids="-".join)
@pytest.mark.parametrize(("direction", "rows"), [("encode", None), ("decode", None), ("decode", 16)])
def test_the_fast_forms_of_the_engine_read_the_rows_and_columns_beyond_the_border(
    padding, direction, rows, monkeypatch
):
    """Wide enough for forms with fewer multiplications, an upsampled map read before it is upsampled among them."""
    config, taken = narrow((64, 128), norm_num_groups=32, layers_per_block=1), set()
    vae = AutoencoderKL.from_config(config, backend="numpy")
    choose = vaespec_cpu.ops.choose_form
    monkeypatch.setattr(
        vaespec_cpu.ops, "choose_form", lambda *task: taken.add((chosen := choose(*task)).form) or chosen
    )
    x = uniform(f"{direction} wide", (1, config.in_channels if direction == "encode" else 4, 21, 23))
    vae.set_padding(padding)
    exact = PaddingOps(ReferenceOps(np), *padding)
    weights = {name: weight.astype(np.float64) for name, weight in vae.weights().items()}
    whole = {"encode": encoder, "decode": decoder}[direction](config)(x, weights, exact)
    if rows:
        vae.enable_tiling("exact", band_rows=rows)
    assert relative_l2(computed(vae, direction, x), whole) <= 3e-5
    assert "F(4, 3)" in taken
    assert ("doubled" in taken) == (direction == "decode")


def test_padding_costs_the_engine_no_memory_and_a_framework_one_padded_map():
    estimates = {}
    for backend, precision in (("numpy", "default"), ("torch", "highest")):
        vae = AutoencoderKL.from_config(CONFIGS["sd"], backend=backend, device="cpu", precision=precision)
        for padding in ("zeros", "reflect"):
            vae.set_padding(padding)
            for tiling in (False, "exact"):
                vae.enable_tiling(tiling)
                estimates[backend, padding, bool(tiling)] = vae.estimate_memory((1, 3, 1024, 512)).run
    for tiled in (False, True):
        assert estimates["numpy", "reflect", tiled] <= 1.02 * estimates["numpy", "zeros", tiled]
        padded = 4 * 16 * 1026 * 514  # float32 numbers of the widest map that is convolved at full size
        more = estimates["torch", "reflect", tiled] - estimates["torch", "zeros", tiled]
        assert 0 < more <= 1.02 * padded


SMALL = {"encode": ((1, 3, 3, 9), (1, 3, 9, 3)), "decode": ((1, 4, 1, 5), (1, 4, 5, 1))}


@each_direction
@pytest.mark.parametrize("axis", [0, 1], ids=["height", "width"])
def test_one_row_or_column_cannot_be_reflected_and_nothing_runs(direction, axis, monkeypatch):
    vae, x = model(NAME, "numpy"), uniform("small", SMALL[direction][axis])
    name, words = ("row", "column")[axis], ["zeros", "zeros"]
    words[axis] = "reflect"
    vae.set_padding(words)
    what = {"encode": "images of {} x {} px", "decode": "latents of {} x {}"}[direction].format(*x.shape[2:])
    message = f"{what}: a feature map would have 1 {name}, but padding 'reflect' mirrors at least 2 {name}s; use larger"
    monkeypatch.setattr(ReferenceOps, "surround", None)
    functional = vae.functional()
    runs = [
        lambda: computed(vae, direction, x),
        lambda: getattr(functional, direction)(functional.params, x),
        lambda: vae.estimate_memory((1, 3, *(max(2, n * (1 if direction == "encode" else 2)) for n in x.shape[2:]))),
        lambda: list(vae.decode_bands(x if direction == "decode" else uniform("z", SMALL["decode"][axis]))),
        lambda: getattr(vae, f"tiled_{direction}")(x),
    ]
    for tiling in (False, "exact", "auto", "blend"):
        vae.enable_tiling(tiling, **({"tile_sample_min_size": 64} if tiling == "blend" else {}))
        for attempt in runs[: None if tiling else 2]:
            with pytest.raises(
                InputError, match=re.escape(message) if attempt in runs[:2] else rf"would have 1 {name}, but"
            ):
                attempt()
    words[axis] = "replicate"
    vae.set_padding(words)
    assert computed(vae, direction, x).size


def test_a_tile_of_one_row_cannot_be_reflected_and_no_tile_runs(monkeypatch):
    vae, z = model(NAME, "numpy"), source(NAME, "decode", 25, 16)  # tiles of 16 rows start at rows 0, 12 and 24
    vae.set_padding("reflect")
    vae.enable_tiling(tile_sample_min_size=32)
    monkeypatch.setattr(Model, "run", None)
    for attempt in (vae.decode, lambda z: vae.estimate_memory((1, 3, 50, 32))):
        with pytest.raises(InputError, match=r"tiles of 1 x \d+ latents: a feature map would have 1 row, but"):
            attempt(z)


@pytest.mark.parametrize("words", BORDERS, ids="-".join)
def test_a_convolution_of_stride_2_keeps_its_zeros_below_and_right(words):
    x, w, b = uniform("x", (2, 3, 6, 4)), uniform("w", (2, 3, 3, 3)), uniform("b", (2,))
    y = PaddingOps(ReferenceOps(np), *words).conv2d(x, w, b, stride=2, padding=((0, 1), (0, 1)))
    expected = F.conv2d(F.pad(torch.tensor(x), (0, 1, 0, 1)), torch.tensor(w), torch.tensor(b), stride=2)
    assert relative_l2(y, expected.numpy()) < 1e-14


@each_axis
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 1), (0, 1))])
def test_a_convolution_is_pytorchs_with_circular_padding(circular, padding):
    x, w, b = uniform("x", (2, 3, 5, 4)), uniform("w", (2, 3, 3, 3)), uniform("b", (2,))
    y = PaddingOps(ReferenceOps(np), *circular).conv2d(x, w, b, stride=1, padding=padding)
    padded = torch.tensor(x)
    for sides, wraps in (((0, 0, *padding[0]), circular[0]), ((*padding[1], 0, 0), circular[1])):
        padded = F.pad(padded, sides, mode=wraps.replace("zeros", "constant"))
    expected = F.conv2d(padded, torch.tensor(w), torch.tensor(b))
    assert relative_l2(y, expected.numpy()) < 1e-14


@each_axis
@pytest.mark.parametrize("direction", ["encode", "decode"])
@each_backend
def test_a_shifted_input_gives_the_shifted_result(backend, direction, circular):
    """By one latent, f = 8 px."""
    ops, params = placed("sd", backend)
    ops, whole, axes = (
        PaddingOps(ops, *circular),
        layers("sd", direction),
        [2 + i for i in range(2) if circular[i] == "circular"],
    )
    before, after = (8, 1) if direction == "encode" else (1, 8)
    x = source("sd", direction, *((24, 16) if direction == "encode" else (3, 4)))
    y = run(ops, params, whole, x)
    shifted = run(ops, params, whole, np.roll(x, [before] * len(axes), axes))
    assert relative_l2(shifted, np.roll(y, [after] * len(axes), axes)) <= 2 * CLOSE[FINEST[backend]]


def test_padding_with_zeros_does_not_commute_with_a_shift():
    ops, params = placed("sd", "numpy")
    x, whole = source("sd", "decode", 3, 4), layers("sd", "decode")
    rolled = run(ops, params, whole, np.roll(x, 1, 3))
    assert relative_l2(rolled, np.roll(run(ops, params, whole, x), 8, 3)) > 1e-3


@each_axis
@pytest.mark.parametrize("direction", ["encode", "decode"])
@settings(max_examples=10)
@given(rows=st.integers(1, 12), height=st.integers(1, 5))
def test_bands_are_the_whole(circular, direction, rows, height):
    size = (8 * height + 3, 17) if direction == "encode" else (height, 3)
    assert difference("sd", "numpy", direction, size, padding=circular, band_rows=rows) <= CLOSE["float64"]


def test_it_can_be_copied():
    ops = PaddingOps(ReferenceOps(np), "reflect")
    assert copy.copy(ops) == ops


# -- AutoencoderKL.set_padding -------------------------------------------------------------------------------------


@each_axis
def test_a_model_pads_with_the_other_end_whole_and_in_bands(circular):
    vae, z = model("sd", "numpy"), source("sd", "decode", 3, 4)
    zeros = vae.decode(z).sample
    vae.set_padding(circular)
    whole = vae.decode(z).sample
    assert relative_l2(whole, zeros) > 1e-3
    axes = [2 + i for i in range(2) if circular[i] == "circular"]
    shifted = vae.decode(np.roll(z, [1] * len(axes), axes)).sample
    assert relative_l2(shifted, np.roll(whole, [8] * len(axes), axes)) <= 2e-12
    vae.enable_tiling("exact", band_rows=5)
    assert relative_l2(vae.decode(z).sample, whole) <= CLOSE["float64"]
    moved = vae.with_backend("torch")
    assert relative_l2(moved.decode(z).sample.numpy(), whole) <= 1e-12
    moved.set_padding("zeros")
    assert relative_l2(moved.decode(z).sample.numpy(), zeros) <= 1e-12


@pytest.mark.parametrize(
    "wrong",
    ["wrap", "Reflect", None, 3, ("reflect",), ("zeros", "zeros", "zeros"), ("circular", "mirror"), ([], "zeros")],
)
def test_unknown_paddings_are_refused(wrong):
    vae = model("sd", "numpy")
    with pytest.raises(
        InputError, match=r"padding .*: choose 'zeros', 'circular', 'reflect' or 'replicate', or two of them"
    ):
        vae.set_padding(wrong)
    assert vae.padding == ("zeros", "zeros")


def test_tiles_and_modules_refuse_circular_padding():
    vae = model("sd", "torch")
    vae.set_padding("circular")
    with pytest.raises(InputError, match=r"blended tiles cannot be padded with their other end"):
        vae.enable_tiling()
    blending = model("sd", "numpy")
    blending.enable_tiling(tile_sample_min_size=64)
    with pytest.raises(InputError, match=r"blended tiles cannot be padded with their other end"):
        blending.set_padding("circular")
    assert blending.padding == ("zeros", "zeros")
    with pytest.raises(InputError, match=r"a module pads with zeros: set_padding\('zeros'\) first"):
        vae.module()
