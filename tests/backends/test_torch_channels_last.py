"""PyTorch's operations on maps that are channels-last; without a GPU, Triton's kernels run in its interpreter."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.configs import CONFIGS, relative_l2, uniform
from support.models import array, model
from torch.nn.functional import silu

import vaespec_torch.ops
from vaespec.architecture import DECODER
from vaespec_torch.ops import ChannelsLastOps, TorchOps
from vaespec_torch.upsampled import Upsampled2x

MAPS = [(2, 64, 9, 7), (1, 128, 16, 33), (2, 512, 3, 5), (1, 32, 1, 1)]
"""Maps of one strip and of several strips, the last of which is whole or partial."""

pytest.importorskip("triton")
from vaespec_torch import group_norm as kernels  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""If there is no GPU, tests/conftest.py sets Triton's interpreter."""


@pytest.mark.filterwarnings("ignore:overflow")  # in rows beyond the map, which are not stored
@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("shape", MAPS)
@pytest.mark.parametrize(("dtype", "eps"), [("float32", 2.0**-24), ("float16", 2.0**-11)])
def test_the_kernels_are_group_norm_and_silu(dtype, eps, shape, activated):
    B, C = shape[:2]
    maps = uniform("x", shape, -3, 3) + uniform("mean", (B, C, 1, 1), -9, 9)
    x, scale, shift = (
        torch.tensor(a, device=DEVICE).to(getattr(torch, dtype))
        for a in (maps, uniform("scale", (C,), 0.5, 2), uniform("shift", (C,)))
    )
    exact = torch.group_norm(x.double(), 32, scale.double(), shift.double(), 1e-6)
    exact = silu(exact) if activated else exact
    y = kernels.group_norm(x, scale, shift, groups=32, eps=1e-6, silu=activated)
    assert y.dtype == x.dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative_l2(array(y.cpu()), array(exact.cpu())) <= 8 * eps


def test_a_map_far_from_zero_loses_no_more_than_its_mean_is_rounded_by():
    """The mean of squares less the square of the mean would lose a million times as much."""
    x = torch.tensor(1000 + uniform("x", (1, 64, 20, 20)), dtype=torch.float32, device=DEVICE)
    scale, shift = torch.ones(64, device=DEVICE), torch.zeros(64, device=DEVICE)
    exact = torch.group_norm(x.double(), 32, scale.double(), shift.double(), 1e-6)
    y = kernels.group_norm(x, scale, shift, groups=32, eps=1e-6, silu=False)
    assert relative_l2(array(y.cpu()), array(exact.cpu())) <= 1000 * np.sqrt(3) * 2.0**-24 * 4


COMPILED = """
import warnings
warnings.simplefilter("ignore")
import triton
from triton.backends.compiler import GPUTarget
from vaespec_torch.group_norm import NUMBERS, _moments, _normalized
maps, sizes = {"x": "*bf16", "y": "*bf16", "shift": "*bf16"}, {"C": 128, "G": 32, "ROWS": NUMBERS // 128, "SILU": True}
for kernel in (_moments, _normalized):
    signature = {name: maps.get(name, "i32" if name == "size" else "*fp32") for name in kernel.arg_names}
    signature |= {name: "constexpr" for name in sizes if name in kernel.arg_names}
    constants = {name: size for name, size in sizes.items() if name in kernel.arg_names}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


def test_the_kernels_compile_for_a_gpu_that_is_not_there():
    """The interpreter accepts more than the compiler does."""
    subprocess.run([sys.executable, "-c", COMPILED], env={**os.environ, "TRITON_INTERPRET": "0"}, check=True)


@pytest.mark.parametrize(("channels", "groups", "suits"), [(512, 32, True), (96, 32, False), (64, 24, False)])
def test_kernels_are_for_powers_of_two(channels, groups, suits):
    assert kernels.suits(channels, groups) is suits


# -- a run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "mish", "gelu", "relu", "attention-everywhere"])
def test_a_run_is_the_models_without_triton(name):
    result, expected = run(name)
    assert relative_l2(array(result), array(expected)) <= 2e-6


@pytest.mark.parametrize("name", ["sd", "mish"])
def test_a_run_is_the_models_with_the_kernels(monkeypatch, name):
    monkeypatch.setattr(vaespec_torch.ops, "has_triton", lambda x: True)
    called = []
    right = kernels.group_norm
    monkeypatch.setattr(
        kernels, "group_norm", lambda *args, silu, **more: called.append(silu) or right(*args, silu=silu, **more)
    )
    result, expected = run(name)
    assert relative_l2(array(result), array(expected)) <= 4e-6
    assert called.count(True) == (len(called) if name == "sd" else 1)  # the last activation is always SiLU


def run(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A decoder with ChannelsLastOps, and the same with TorchOps."""
    vae = model(name, "torch", "float32")
    ops, decoder = vae._model.ops, vae._model.layers(DECODER)
    z = ops.from_numpy(uniform("z", (2, CONFIGS[name].latent_channels, 5, 4)))
    return decoder(z, vae._model.params, ChannelsLastOps.like(ops)), decoder(z, vae._model.params, ops)


@pytest.mark.parametrize("mean", [0, 5, 1000])
def test_a_norm_of_bfloat16_on_a_cpu_is_rounded_once(mean):
    """Its order in memory does not change; far from zero, E[x²] - E[x]² would lose σ."""
    x = torch.tensor(mean + 8 * uniform("x", (2, 64, 9, 7), -3, 3)).bfloat16()
    scale, shift = torch.tensor(uniform("scale", (64,), 0.5, 2)).bfloat16(), torch.zeros(64, dtype=torch.bfloat16)
    exact = torch.group_norm(x.double(), 32, scale.double(), shift.double(), 1e-6)
    ops = ChannelsLastOps("cpu", "bfloat16")
    y = ops.to_nchw(ops.relu(ops.group_norm(ops.from_nchw(x), scale, shift, groups=32, eps=1e-6)))
    assert relative_l2(array(y), array(exact.relu())) <= 2.0**-9


WINDOWS = [(0, 10, (1, 1)), (0, 4, (1, 0)), (3, 5, (0, 0)), (4, 6, (0, 1)), (2, 8, (0, 0)), (1, 9, (0, 1))]
"""Rows of an upsampled map of 10 rows: the number left out, the number read, zeros (above, below)."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("above", "height", "vertical"), WINDOWS)
def test_a_convolution_of_an_upsampled_map_is_computed_from_the_map(monkeypatch, above, height, vertical, dtype):
    x, w, b, padding = *doubling(dtype), (vertical, (1, 1))
    doubled = torch.nn.functional.interpolate(x.double(), scale_factor=2.0)[:, :, above : above + height]
    expected = TorchOps("cpu", "float64").conv2d(doubled, w.double(), b.double(), stride=1, padding=padding)
    monkeypatch.setattr(Upsampled2x, "whole", None)
    ops = ChannelsLastOps("cpu", dtype)
    y = ops.conv2d(ops.rows(ops.upsample_nearest2x(x), above, above + height), w, b, stride=1, padding=padding)
    assert y.dtype == x.dtype
    rounded_twice = 2 * {"float32": 2.0**-24, "bfloat16": 2.0**-9}[dtype]  # the sums of taps, and what comes of them
    assert relative_l2(array(y.float()), array(expected)) <= rounded_twice


OTHERS = [
    (0, 10, 1, ((1, 1), (0, 0))),
    (0, 10, 2, ((0, 1), (1, 1))),
    (2, 8, 1, ((1, 1), (1, 1))),
    (0, 8, 1, ((1, 1), (1, 1))),
]


@pytest.mark.parametrize(("above", "height", "stride", "padding"), OTHERS)
def test_other_convolutions_compute_the_upsampled_map(above, height, stride, padding):
    """With borders other than zeros around all of the map, and with other strides."""
    x, w, b = doubling("float32")
    doubled = torch.nn.functional.interpolate(x, scale_factor=2.0)[:, :, above : above + height]
    expected = TorchOps("cpu", "float32").conv2d(doubled, w, b, stride=stride, padding=padding)
    ops = ChannelsLastOps("cpu", "float32")
    lazy = ops.rows(ops.upsample_nearest2x(x), above, above + height)
    assert lazy.shape == doubled.shape
    assert torch.equal(ops.conv2d(lazy, w, b, stride=stride, padding=padding), expected)


def doubling(dtype: str) -> tuple[torch.Tensor, ...]:
    """A map, a kernel and a bias."""
    shapes = {"x": (2, 6, 5, 4), "w": (7, 6, 3, 3), "b": (7,)}
    return tuple(torch.tensor(uniform(name, shape)).to(getattr(torch, dtype)) for name, shape in shapes.items())
