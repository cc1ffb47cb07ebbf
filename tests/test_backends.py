"""A backend computes the specification: whole models, and single operations at their worst inputs.

Bounds are relative L2 against the float64 reference. Single operations are bounded by (steps of rounding) · eps · the
size of what is summed, with the steps counted beside each.
"""

from __future__ import annotations

import math

import array_api_compat.numpy as compat_numpy
import numpy as np
import pytest
import torch
from configs import CONFIGS, EPS, assert_within, relative_l2, uniform
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from models import BACKENDS
from oracle import expected, oracle

from vaespec import AutoencoderKL, ReferenceOps, parameters
from vaespec.parameters import Parameter
from vaespec_numpy.ops import NumpyOps
from vaespec_torch.ops import TorchOps

SELECTION = ("sd", "sd3", "flux2", "kl-f16", "kl-f32", "cogview", "mish", "gelu", "relu", "grey-in-colour-out")
KINDS = {"numpy": NumpyOps, "torch": lambda dtype: TorchOps("cpu", dtype)}
MODEL_BOUND = {"float64": 1e-13, "float32": 5e-6}


# -- whole models ------------------------------------------------------------------------------------------------


def measured(name: str, size: str, backend: str, dtype: str) -> tuple[float, float]:
    """Errors of (encode, decode) on this backend."""
    vae = AutoencoderKL(CONFIGS[name], oracle(name)[1], backend=backend, device="cpu", dtype=dtype)
    x, moments, z, pictures = expected(name, size)
    posterior = vae.encode(x).latent_dist
    parts = [vae.to_numpy(part).astype(np.float64) for part in (posterior.mean, posterior.logvar)]
    found = np.concatenate(parts, axis=1)
    return relative_l2(found, moments), relative_l2(vae.to_numpy(vae.decode(z).sample), pictures)


@pytest.mark.parametrize("name", SELECTION)
@pytest.mark.parametrize("size", ["square", "odd"])
@pytest.mark.parametrize("dtype", MODEL_BOUND)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_computes_the_specification(backend, dtype, size, name):
    assert max(measured(name, size, backend, dtype)) <= MODEL_BOUND[dtype]


@pytest.mark.parametrize("name", SELECTION)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("backend", "roundings"), [("numpy", 1), ("torch", 5)])
def test_sixteen_bits_cost_the_rounding_of_what_they_store(backend, roundings, dtype, name):
    """Every rounding to 16 bits adds up to u = eps / 2, evenly spread: u / √3 in relative L2, independent of others.

    NumPy stores only weights: 1 rounding per convolution. PyTorch also rounds the result of norm, activation,
    convolution and sum: 5. Over D convolutions they add in quadrature to u · √(D · roundings / 3); the factor 2 is for
    branches that partly cancel. Measured: 0.8 of u · √(D / 3) for NumPy, 1.5 of it for PyTorch.
    """
    depth = sum(parameter.role == "conv" for parameter in parameters(CONFIGS[name]).values())
    bound = 2 * EPS[dtype] / 2 * math.sqrt(depth * roundings / 3)
    assert max(measured(name, "square", backend, dtype)) <= bound


# -- single operations -------------------------------------------------------------------------------------------

ROLES = {4: "conv", 2: "linear", 1: "bias"}
REFERENCE = ReferenceOps(compat_numpy)
OPS = {f"{name}-{dtype}": make(dtype) for dtype in MODEL_BOUND for name, make in KINDS.items()}

each_ops = pytest.mark.parametrize("ops", OPS.values(), ids=OPS.keys())
extents = st.integers(1, 9)


def on_maps(ops: ReferenceOps, op: str, x: np.ndarray, *weights: np.ndarray, **numbers) -> np.ndarray:
    """ops.op on an NCHW array and canonical weights, through the backend's own layouts; NumPy float64 out."""
    laid_out = [ops.from_numpy(Parameter(w.shape, ROLES[w.ndim]).to_layout(w, ops)) for w in weights]
    y = getattr(ops, op)(ops.from_nchw(ops.from_numpy(x)), *laid_out, **numbers)
    return ops.to_numpy(ops.to_nchw(y)).astype(np.float64)


def stored(ops: ReferenceOps, *arrays: np.ndarray) -> list[np.ndarray]:
    """float64 numbers that the dtype of the ops holds exactly, so that only the operation rounds."""
    return [a.astype(ops.dtype).astype(np.float64) for a in arrays]


@each_ops
@given(
    extent=st.tuples(st.integers(1, 3), extents, extents),
    channels=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.sampled_from([(1, 0), (3, 0), (3, 1), (3, 2)]),
    stride=st.integers(1, 2),
    above_left=st.tuples(st.integers(0, 1), st.integers(0, 1)),
)
@example(extent=(1, 8, 6), channels=(3, 4), kernel=(3, 1), stride=2, above_left=(0, 0))  # the layer `downsample`
@example(extent=(2, 1, 1), channels=(3, 4), kernel=(3, 2), stride=1, above_left=(1, 1))
def test_conv2d_is_the_specification(ops, extent, channels, kernel, stride, above_left):
    """K = k·k·C products and a bias are summed: (K + 2) roundings of at most eps / 2 each, of the sum of magnitudes."""
    (B, H, W), (C, O), (k, pad) = extent, channels, kernel
    padding = tuple((min(pad, before), pad - min(pad, before)) for before in above_left)
    assume(H + pad >= k)
    assume(W + pad >= k)
    x, w, b = stored(ops, uniform("x", (B, C, H, W)), uniform("w", (O, C, k, k)), uniform("b", (O,)))
    how = {"stride": stride, "padding": padding}
    magnitudes = on_maps(REFERENCE, "conv2d", abs(x), abs(w), abs(b), **how)
    bound = (k * k * C + 2) * EPS[ops.dtype] * magnitudes
    assert_within(on_maps(ops, "conv2d", x, w, b, **how), on_maps(REFERENCE, "conv2d", x, w, b, **how), bound)


@each_ops
@given(
    extent=st.tuples(st.integers(1, 3), extents, extents),
    groups=st.integers(1, 4),
    per_group=st.integers(1, 4),
    spread=st.sampled_from([1e-3, 1.0, 1e3]),
    ratio=st.sampled_from([0.0, 1.0, 1e3]),
    eps=st.sampled_from([1e-6, 1e-5]),
)
@example(extent=(1, 1, 1), groups=2, per_group=1, spread=1.0, ratio=1.0, eps=1e-6)  # variance 0: only eps is left
@example(extent=(1, 9, 9), groups=1, per_group=4, spread=0.03, ratio=1e3, eps=1e-6)
def test_group_norm_is_the_specification(ops, extent, groups, per_group, spread, ratio, eps):
    """The mean is off by a few roundings of its own size: c · u · |μ| / √(σ² + ε) in the normalised map; c = 8.

    The formula E[x²] - E[x]² is off by u · (μ / σ)² instead: 500 times this bound where μ / σ is 1000.
    """
    (B, H, W), C = extent, groups * per_group
    x = uniform("x", (B, C, H, W), -1, 1) * spread * math.sqrt(3) + ratio * spread
    x, scale, shift = stored(ops, x, uniform("scale", (C,), 0.5, 2), uniform("shift", (C,)))
    how = {"groups": groups, "eps": eps}
    expected = on_maps(REFERENCE, "group_norm", x, scale, shift, **how)
    grouped = x.reshape(B, groups, -1)
    conditioning = (abs(grouped).max(-1) / np.sqrt(grouped.var(-1) + eps)).repeat(per_group, axis=1)[..., None, None]
    of_channel = scale[None, :, None, None]
    normalised = abs(expected - shift[None, :, None, None]) / of_channel
    bound = 4 * EPS[ops.dtype] * (of_channel * (1 + conditioning) * (1 + normalised) + abs(expected))
    assert_within(on_maps(ops, "group_norm", x, scale, shift, **how), expected, bound)


@each_ops
@pytest.mark.parametrize("op", ["silu", "mish", "relu"])
def test_activations_are_the_specification_at_every_magnitude(ops, op):
    """A few roundings of the result; below the smallest normal number, of that number times |x|."""
    info = np.finfo(ops.dtype)
    magnitudes = np.concatenate((np.geomspace(info.tiny, 1e4, 997), [0.0, 88.0, 89.0, 104.0, 710.0, 746.0, 1e4]))
    (x,) = stored(ops, np.concatenate((magnitudes, -magnitudes)).reshape(1, 8, 251, 1))
    expected = on_maps(REFERENCE, op, x)
    bound = 8 * EPS[ops.dtype] * abs(expected) + float(info.tiny) * (1 + abs(x))
    assert_within(on_maps(ops, op, x), expected, bound)


@each_ops
def test_gelu_is_the_specification_at_every_magnitude(ops):
    """1 + erf cancels on the negative side: the error is a few roundings of |x|, not of the result."""
    magnitudes = np.concatenate((np.geomspace(1e-30, 1e4, 999), [0.0]))
    (x,) = stored(ops, np.concatenate((magnitudes, -magnitudes)).reshape(1, 4, 10, 50))
    bound = 8 * EPS[ops.dtype] * abs(x) + 1e-40
    assert_within(on_maps(ops, "gelu", x), on_maps(REFERENCE, "gelu", x), bound)


@pytest.mark.parametrize("op", ["silu", "mish", "gelu", "relu"])
def test_the_reference_activations_are_those_of_torch(op):
    x = uniform(op, (2, 3, 40, 40), -40, 40)
    expected = getattr(torch.nn.functional, op)(torch.tensor(x)).numpy()
    assert_within(on_maps(REFERENCE, op, x), expected, 32 * EPS["float64"] * (1 + abs(x)))


@each_ops
@given(extent=st.tuples(st.integers(1, 3), st.integers(1, 4), extents, extents))
def test_upsampling_repeats_every_pixel(ops, extent):
    (x,) = stored(ops, uniform("x", extent))
    expected = x.repeat(2, axis=2).repeat(2, axis=3)
    np.testing.assert_array_equal(on_maps(ops, "upsample_nearest2x", x), expected)
    np.testing.assert_array_equal(on_maps(REFERENCE, "upsample_nearest2x", x), expected)


@each_ops
@given(extent=st.tuples(st.integers(1, 3), st.integers(1, 4), extents, extents))
def test_tokens_are_pixels_row_by_row_and_go_back(ops, extent):
    (x,) = stored(ops, uniform("x", extent))
    entered = ops.from_nchw(ops.from_numpy(x))
    tokens = ops.tokens(entered)
    B, C, H, W = extent
    np.testing.assert_array_equal(ops.to_numpy(tokens), x.transpose(0, 2, 3, 1).reshape(B, H * W, C))
    np.testing.assert_array_equal(ops.to_numpy(ops.to_nchw(ops.pixels(tokens, like=entered))), x)


@each_ops
@given(extent=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 40)), out=st.integers(1, 9))
def test_linear_is_the_specification(ops, extent, out):
    """C products and a bias are summed: C + 2 roundings."""
    C = extent[-1]
    t, w, b = stored(ops, uniform("t", extent), uniform("w", (out, C)), uniform("b", (out,)))
    laid_out = (ops.from_numpy(Parameter(a.shape, ROLES[a.ndim]).to_layout(a, ops)) for a in (w, b))
    actual = ops.to_numpy(ops.linear(ops.from_numpy(t), *laid_out))
    bound = (C + 2) * EPS[ops.dtype] * REFERENCE.linear(abs(t), abs(w), abs(b))
    assert_within(actual, REFERENCE.linear(t, w, b), bound)


@each_ops
@settings(max_examples=15)
@given(batch=st.integers(1, 2), n=st.integers(1, 70), size=st.sampled_from([1, 8, 64]), seed=st.integers(0, 99))
@example(batch=1, n=1200, size=64, seed=0)  # more logits than one strip holds
def test_attention_is_the_specification_for_large_logits(ops, batch, n, size, seed):
    """q and k are integers and the scale 1/4, so that logits, up to 16,384, are exact.

    What is left to round is exp, the sum of n weights and the sum of n products: (√n + 8) roundings, as they vary.
    """
    C = 16
    q, k = (np.rint(uniform(f"{name}{seed}", (batch, n, C), -size, size)) for name in "qk")
    (v,) = stored(ops, uniform(f"v{seed}", (batch, n, C)))
    actual = ops.to_numpy(ops.attention(*map(ops.from_numpy, (q, k, v)), scale=0.25))
    bound = (math.sqrt(n) + 8) * EPS[ops.dtype] * REFERENCE.attention(q, k, abs(v), scale=0.25)
    assert_within(actual, REFERENCE.attention(q, k, v, scale=0.25), bound + np.finfo(ops.dtype).tiny)


@each_ops
def test_attention_weighs_equal_keys_equally(ops):
    q, v = uniform("q", (1, 5, 4)), uniform("v", (1, 5, 4))
    y = ops.to_numpy(ops.attention(*map(ops.from_numpy, (q, np.ones_like(q), v)), scale=0.5))
    np.testing.assert_allclose(y, np.broadcast_to(v.mean(1, keepdims=True), v.shape), rtol=0, atol=4 * EPS[ops.dtype])


@pytest.mark.parametrize("op", ["conv2d", "group_norm", "silu", "attention", "linear", "upsample_nearest2x"])
def test_our_backends_have_their_own_kernels(op):
    assert [ops.provenance(op) for ops in OPS.values()] == ["native"] * len(OPS)
    assert REFERENCE.provenance(op) == "fallback"
