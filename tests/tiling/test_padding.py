"""On a torus there is no border: a shifted input gives the shifted result."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.banded import CLOSE, difference, layers, placed, run, source
from support.configs import relative_l2, uniform
from support.models import FINEST, each_backend, model

from vaespec.errors import InputError
from vaespec.reference import ReferenceOps
from vaespec.tiling.padding import CircularOps

AXES = [(True, False), (False, True), (True, True)]
each_axis = pytest.mark.parametrize("circular", AXES, ids=["rows", "columns", "both"])


@each_axis
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 1), (0, 1))])
def test_a_convolution_is_pytorchs_with_circular_padding(circular, padding):
    x, w, b = uniform("x", (2, 3, 5, 4)), uniform("w", (2, 3, 3, 3)), uniform("b", (2,))
    y = CircularOps(ReferenceOps(np), *circular).conv2d(x, w, b, stride=1, padding=padding)
    padded = torch.tensor(x)
    for sides, wraps in (((0, 0, *padding[0]), circular[0]), ((*padding[1], 0, 0), circular[1])):
        padded = F.pad(padded, sides, mode="circular" if wraps else "constant")
    expected = F.conv2d(padded, torch.tensor(w), torch.tensor(b))
    assert relative_l2(y, expected.numpy()) < 1e-14


@each_axis
@pytest.mark.parametrize("direction", ["encode", "decode"])
@each_backend
def test_a_shifted_input_gives_the_shifted_result(backend, direction, circular):
    """By one latent, f = 8 px."""
    ops, params = placed("sd", backend)
    ops, whole, axes = CircularOps(ops, *circular), layers("sd", direction), [2 + i for i in range(2) if circular[i]]
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
    assert difference("sd", "numpy", direction, size, circular=circular, band_rows=rows) <= CLOSE["float64"]


def test_it_can_be_copied():
    ops = CircularOps(ReferenceOps(np))
    assert copy.copy(ops) == ops


# -- AutoencoderKL.set_padding -------------------------------------------------------------------------------------


@each_axis
def test_a_model_pads_with_the_other_end_whole_and_in_bands(circular):
    vae, z = model("sd", "numpy"), source("sd", "decode", 3, 4)
    zeros = vae.decode(z).sample
    vae.set_padding(["circular" if wraps else "zeros" for wraps in circular])
    whole = vae.decode(z).sample
    assert relative_l2(whole, zeros) > 1e-3
    axes = [2 + i for i in range(2) if circular[i]]
    shifted = vae.decode(np.roll(z, [1] * len(axes), axes)).sample
    assert relative_l2(shifted, np.roll(whole, [8] * len(axes), axes)) <= 2e-12
    vae.enable_tiling("exact", band_rows=5)
    assert relative_l2(vae.decode(z).sample, whole) <= CLOSE["float64"]
    moved = vae.with_backend("torch")
    assert relative_l2(moved.decode(z).sample.numpy(), whole) <= 1e-12
    moved.set_padding("zeros")
    assert relative_l2(moved.decode(z).sample.numpy(), zeros) <= 1e-12


@pytest.mark.parametrize("wrong", ["wrap", ("circular",), ("circular", "zeros", "zeros"), ("circular", "mirror")])
def test_unknown_paddings_are_refused(wrong):
    vae = model("sd", "numpy")
    with pytest.raises(InputError, match=r"padding .*: choose 'zeros' or 'circular', or two of them"):
        vae.set_padding(wrong)
    assert vae.padding == ("zeros", "zeros")


def test_tiles_refuse_circular_padding():
    vae = model("sd", "torch")
    vae.set_padding("circular")
    with pytest.raises(InputError, match=r"blended tiles cannot be padded with their other end"):
        vae.enable_tiling()
    blending = model("sd", "numpy")
    blending.enable_tiling(tile_sample_min_size=64)
    with pytest.raises(InputError, match=r"blended tiles cannot be padded with their other end"):
        blending.set_padding("circular")
    assert blending.padding == ("zeros", "zeros")
