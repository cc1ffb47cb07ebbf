"""Blended tiles are diffusers': to the bit in float32 when its own layers are run, to rounding with ours."""

from __future__ import annotations

import itertools
import random
from contextlib import nullcontext
from functools import cache, partial

import array_api_strict as xp
import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from array_api_compat import array_namespace
from hypothesis import given
from hypothesis import strategies as st
from support.configs import narrow, relative_l2, uniform
from support.geometries import geometries
from support.models import EXACT, FINEST, array, each_backend, tiny
from support.oracle import diffusers_model, weighted

from vaespec import AutoencoderKL, InputError
from vaespec.architecture import half_of
from vaespec.arrays import asarray_like
from vaespec.tiling.blend import HEIGHT, WIDTH, blended, fade
from vaespec.tiling.geometry import TileGeometry

F, TILE, STRIDE = 4, {"encode": 32, "decode": 8}, {"encode": 24, "decode": 6}
CONFIG = narrow((8, 12, 12), layers_per_block=1, sample_size=TILE["encode"])
CHANNELS = {"encode": CONFIG.in_channels, "decode": CONFIG.latent_channels}

each_direction = pytest.mark.parametrize("direction", ["encode", "decode"])


def cuts(direction: str, geometry: TileGeometry | None = None):
    geometry = geometry or TileGeometry.from_config(CONFIG)
    return geometry.encoding if direction == "encode" else geometry.decoding


class Diffusers:
    """diffusers' model, tiling: `whole` is what its users call, `tile` the layers it runs on each tile."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.vae, self.weights = weighted(CONFIG)
        self.vae.to(dtype).requires_grad_(False).enable_tiling()
        self.vae.encoder.register_forward_hook(self._count)
        self.vae.decoder.register_forward_hook(self._count)
        self.runs = 0

    def _count(self, *_: object) -> None:
        self.runs += 1

    def whole(self, direction: str, x: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(x).sample if direction == "decode" else self.vae.encode(x).latent_dist.parameters

    def tile(self, direction: str, x: torch.Tensor) -> torch.Tensor:
        if direction == "decode":
            return self.vae.decoder(self.vae.post_quant_conv(x))
        return self.vae.quant_conv(self.vae.encoder(x))

    def counted(self, compute, *args) -> tuple[torch.Tensor, int]:
        """A result, and how often layers ran for it."""
        before = self.runs
        return compute(*args), self.runs - before


@cache
def theirs(dtype: torch.dtype = torch.float32) -> Diffusers:
    return Diffusers(dtype)


def drawn(direction: str, size: tuple[int, int]) -> np.ndarray:
    return uniform(f"{direction} {size}", (2, CHANNELS[direction], *size), -1.5, 1.5)


def number_of_tiles(direction: str, size: tuple[int, int]) -> int:
    """The number of diffusers' tiles, if the last tile is not too thin for it."""
    return len(range(0, size[0], STRIDE[direction])) * len(range(0, size[1], STRIDE[direction]))


def too_thin(size: tuple[int, int]) -> bool:
    """Whether the last tile of an image is less than f px high or wide, which makes no latent."""
    return any((length - 1) % STRIDE["encode"] + 1 < F for length in size)


def sizes(direction: str, count: int, thin: bool = False) -> list[tuple[int, int]]:
    """Larger than a tile on an axis or two, of lengths k · stride + {0, 1, f, tile - 1, tile} with k = 0, 1, 2."""
    stride, tile, least = STRIDE[direction], TILE[direction], F if direction == "encode" else 1
    lengths = {k * stride + more for k in range(3) for more in (0, 1, F, tile - 1, tile)}
    pairs = itertools.product(sorted(length for length in lengths if length >= least), repeat=2)
    cut = [pair for pair in pairs if max(pair) > tile and (direction == "encode" and too_thin(pair)) == thin]
    return random.Random(5).sample(cut, count)


class Layer(torch.nn.Module):
    """A function in the place of diffusers' layers."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


# -- diffusers', to the bit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "size"), [(way, size) for way in STRIDE for size in sizes(way, 60)])
def test_tiles_of_diffusers_layers_are_blended_to_diffusers_own_bits(direction, size):
    model, x = theirs(), torch.tensor(drawn(direction, size), dtype=torch.float32)
    expected, their_runs = model.counted(model.whole, direction, x)
    actual, our_runs = model.counted(blended, partial(model.tile, direction), x, cuts(direction))
    assert our_runs == their_runs == number_of_tiles(direction, size) > 1
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("size", sizes("encode", 12, thin=True))
def test_a_last_tile_too_thin_for_diffusers_is_left_out(size):
    """diffusers stops; with an encoder that makes no latents of such a tile, its blending gives the same bits."""
    model, x = theirs(), torch.tensor(drawn("encode", size), dtype=torch.float32)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        model.whole("encode", x)

    def tile_or_nothing(tile: torch.Tensor) -> torch.Tensor:
        if min(tile.shape[2:]) < F:
            return tile.new_empty((2, 2 * CONFIG.latent_channels, tile.shape[2] // F, tile.shape[3] // F))
        return model.tile("encode", tile)

    patient = diffusers_model(CONFIG)
    patient.enable_tiling()
    patient.encoder, patient.quant_conv = Layer(tile_or_nothing), torch.nn.Identity()
    expected, their_runs = model.counted(lambda: patient.encode(x).latent_dist.parameters)
    actual, our_runs = model.counted(blended, partial(model.tile, "encode"), x, cuts("encode"))
    assert our_runs == their_runs >= 1
    assert tuple(actual.shape) == (2, 2 * CONFIG.latent_channels, size[0] // F, size[1] // F)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("factor", [0.0, 0.125, 0.5, 0.75, 0.875])
@each_direction
def test_other_tiles_and_overlaps_are_diffusers_too(direction, factor):
    """Overlaps up to 7/8: a tile fades in from a tile that has faded in itself, eight times over."""
    model, size = Diffusers(torch.float32), (52, 44) if direction == "encode" else (13, 11)
    model.vae.tile_overlap_factor = factor
    geometry = TileGeometry.from_config(CONFIG, tile_overlap_factor=factor)
    x = torch.tensor(drawn(direction, size), dtype=torch.float32)
    expected, their_runs = model.counted(model.whole, direction, x)
    actual, our_runs = model.counted(blended, partial(model.tile, direction), x, cuts(direction, geometry))
    assert our_runs == their_runs > 1
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("sample", [16, 24, 30, 32])
@pytest.mark.parametrize("factor", [0.0, 0.2, 0.25, 0.3, 0.5, 0.9, 0.99])
def test_tiles_are_refused_exactly_if_diffusers_has_no_result_of_the_right_size(sample, factor):
    """Runs diffusers' own loops around layers that only make arrays of the right size."""
    vae = diffusers_model(CONFIG.replace(sample_size=sample))
    vae.enable_tiling()
    vae.tile_overlap_factor = factor
    vae.quant_conv = vae.post_quant_conv = torch.nn.Identity()
    vae.encoder = Layer(lambda x: x.new_zeros((1, 2, x.shape[2] // F, x.shape[3] // F)))
    vae.decoder = Layer(lambda z: z.new_zeros((1, 2, F * z.shape[2], F * z.shape[3])))

    def all_sizes_right() -> bool:
        for n in range(1, 30):
            try:
                z = vae.encode(torch.zeros(1, 2, F * n, F)).latent_dist.parameters
                x = vae.decode(torch.zeros(1, 2, n, 1)).sample
            except (ValueError, RuntimeError):  # no way to step, or tiles that cannot be put together
                return False
            if (z.shape[2], x.shape[2]) != (n, F * n):
                return False
        return True

    with nullcontext() if all_sizes_right() else pytest.raises(InputError, match="do not join"):
        TileGeometry.from_config(CONFIG.replace(sample_size=sample), tile_overlap_factor=factor)


# -- on every backend ------------------------------------------------------------------------------------------------


@each_direction
@each_backend
def test_each_backend_blends_its_tiles_to_the_numbers_of_diffusers(backend, direction):
    model = theirs(torch.float64)
    ours = AutoencoderKL(CONFIG, model.weights, backend=backend, device="cpu", dtype=FINEST[backend])._model
    half = half_of(direction)
    like = next(iter(ours.params.values()))

    def run(tile):
        shapes.append(tile.shape)
        return ours.run(half, tile)

    unit = F if direction == "encode" else 1
    for size in ((14 * unit, 8 * unit), (20 * unit, 6 * unit)):  # few shapes, since each is compiled
        shapes: list[tuple[int, ...]] = []
        x = drawn(direction, size).astype(FINEST[backend])
        actual = blended(run, asarray_like(like, x), cuts(direction))
        assert isinstance(actual, type(like))
        assert actual.dtype == like.dtype
        assert len(shapes) == number_of_tiles(direction, size) > 1
        expected = model.whole(direction, torch.tensor(x, dtype=torch.float64))
        assert relative_l2(array(actual), expected) < EXACT[FINEST[backend]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@each_backend
def test_each_backend_fades_in_float32(backend, dtype):
    """Compares with the formula on NumPy, rounded to the dtype of the tiles, for extents within and beyond a tile."""
    like = next(iter(tiny(backend, dtype).functional().params.values()))
    a, b = (uniform(key, (1, 2, 5, 3), -3, 3).astype(ml_dtypes.bfloat16).astype(np.float32) for key in "ab")
    y = np.arange(3, dtype=np.float64) / 3
    before, after = (1 - y).astype(np.float32), y.astype(np.float32)
    faded = np.concatenate((a[:, :, 2:] * before[:, None] + b[:, :, :3] * after[:, None], b[:, :, 3:]), axis=2)
    whole = a * before + b * after

    def placed(values: np.ndarray):
        return array_namespace(like).astype(asarray_like(like, values), like.dtype)

    for extent, axis, expected in ((3, HEIGHT, faded), (9, WIDTH, whole), (0, HEIGHT, b)):
        actual = fade(placed(a), placed(b), extent, axis)
        assert actual.dtype == like.dtype
        np.testing.assert_array_equal(array(actual), array(placed(expected)))


@given(
    geometry=geometries(), height=st.integers(1, 60), width=st.integers(1, 60), direction=st.sampled_from(list(STRIDE))
)
def test_layers_that_look_at_one_place_only_give_the_same_in_tiles(geometry, height, width, direction):
    """On array_api_strict: tiles agree on what a place holds, so fading changes nothing, unless one is misplaced."""
    f = geometry.f

    def encode(x):
        h, w = (length // f * f for length in x.shape[2:])
        return x[:, :, :h:f, :w:f]

    def decode(z):
        return xp.repeat(xp.repeat(z, f, axis=2), f, axis=3)

    run = encode if direction == "encode" else decode
    size = (max(height, f), max(width, f)) if direction == "encode" else (height, width)
    x = xp.asarray(uniform(f"{size}", (1, 2, *size)))
    assert relative_l2(blended(run, x, cuts(direction, geometry)), run(x)) < 1e-15


# -- arguments, and transformations ----------------------------------------------------------------------------------


def test_nothing_is_written_to():
    """Tiles may be views of the input: writing to a tile would write to the input."""
    x = uniform("read only", (2, 2, 50, 70))
    before = x.copy()
    x.flags.writeable = False
    geometry = TileGeometry((16, 24), (8, 4), 1)
    np.testing.assert_allclose(blended(lambda tile: tile, x, geometry.encoding), before, rtol=1e-15)
    tensor = torch.tensor(before)
    blended(lambda tile: tile, tensor, geometry.encoding)
    assert tensor._version == 0
    assert np.array_equal(x, before)
    assert np.array_equal(tensor, before)


def test_blending_may_be_compiled_and_differentiated():
    x = uniform("traced", (1, 2, 12, 12)).astype(np.float32)
    cuts = TileGeometry((8, 8), (2, 2), 1).encoding
    blend = partial(blended, jax.numpy.tanh, cuts=cuts)
    np.testing.assert_allclose(jax.jit(blend)(x), np.tanh(x), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: blend(x).sum())(x), 1 - np.tanh(x) ** 2, rtol=1e-5)
    tensor = torch.tensor(x, requires_grad=True)
    blended(torch.tanh, tensor, cuts).sum().backward()
    np.testing.assert_allclose(tensor.grad, 1 - np.tanh(x) ** 2, rtol=1e-5)
