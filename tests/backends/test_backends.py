"""A backend computes the specification: whole models, and single operations at their worst inputs.

Bounds are relative L2 against the float64 reference. Single operations are bounded by (steps of rounding) · eps · the
size of what is summed, with the steps counted beside each.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support.configs import CONFIGS, EPS, assert_within, images, relative_l2, sizes, uniform
from support.depth import first
from support.models import BACKENDS, EXACT, FINEST, array, each_backend, model
from support.oracle import oracle

from vaespec import DiagonalGaussian, ReferenceOps, decoder, encoder
from vaespec.analysis.rounding import predicted_error, rounded
from vaespec.dtypes import storage_dtype
from vaespec.layouts import OIHW
from vaespec.noise import standard_normal
from vaespec.registry import get_backend, make_ops

SELECTION = ("sd", "sd3", "flux2", "kl-f16", "kl-f32", "cogview", "mish", "gelu", "relu", "grey-in-colour-out")
REFERENCE = ReferenceOps(np)
FAMILIES = ("sd", "sdxl", "playground", "sd3", "flux1", "flux2", "flux2-small-decoder", "cogview", "kl-f4", "kl-f16")


# -- whole models ------------------------------------------------------------------------------------------------


@cache
def specified(name: str, size: str, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(images, moments, latents, decoded images) of the float64 specification, on inputs rounded to `dtype`."""
    config, weights = CONFIGS[name], {key: rounded(a, dtype) for key, a in oracle(name)[1].items()}
    x = rounded(images(config, *sizes(config)[size], batch=2), dtype)
    moments = encoder(config)(x, weights, REFERENCE)
    z = rounded(uniform(f"latents {size}", DiagonalGaussian(moments).mean.shape, -2, 2), dtype)
    return x, moments, z, decoder(config)(z, weights, REFERENCE)


def measured(name: str, size: str, backend: str, dtype: str) -> tuple[float, float]:
    """Errors of (encode, decode) on this backend, on inputs rounded to its dtype."""
    x, moments, z, pictures = specified(name, size, dtype)
    vae = model(name, backend, dtype)
    posterior = vae.encode(x).latent_dist
    result = np.concatenate(
        [vae.to_numpy(part).astype(np.float64) for part in (posterior.mean, posterior.logvar)], axis=1
    )
    expected = DiagonalGaussian(moments)
    return (
        relative_l2(result, np.concatenate((expected.mean, expected.logvar), axis=1)),
        relative_l2(vae.to_numpy(vae.decode(z).sample), pictures),
    )


@pytest.mark.parametrize("name", SELECTION)
@pytest.mark.parametrize("size", ["square", "odd"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_model_computes_the_specification_in_float64(backend, size, name):
    assert max(measured(name, size, backend, "float64")) <= EXACT["float64"]


@pytest.mark.parametrize("name", CONFIGS)
@each_backend
def test_a_model_computes_the_specification_in_float32(backend, name):
    assert max(measured(name, "odd", backend, "float32")) <= EXACT["float32"]


@cache
def predicted(name: str, dtype: str) -> tuple[float, float]:
    """What rounding to `dtype` costs (encode, decode)."""
    config, weights = CONFIGS[name], oracle(name)[1]
    x, _, z, _ = specified(name, "square", dtype)
    return predicted_error(encoder(config), x, weights, dtype), predicted_error(decoder(config), z, weights, dtype)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@each_backend
def test_sixteen_bits_cost_at_most_four_times_the_predicted_error(backend, dtype, name):
    for actual, least in zip(measured(name, "square", backend, dtype), predicted(name, dtype), strict=True):
        assert actual <= 4 * least


@pytest.mark.parametrize("name", ["sd", "kl-f16"])
def test_the_prediction_follows_the_dtype(name):
    """u of float32, float16 and bfloat16 are 2**-24, 2**-11 and 2**-8: so must be the errors, to a factor of 3."""
    float32, float16, bfloat16 = (np.array(predicted(name, dtype)) for dtype in ("float32", "float16", "bfloat16"))
    assert (abs(np.log(bfloat16 / float16 / 8)) < np.log(3)).all()
    assert (float16 / float32 > 2**13 / 8).all()


@pytest.mark.parametrize("name", first(2, FAMILIES))
def test_the_same_latents_decode_alike_on_every_pair_of_backends(name):
    """Each is within 2e-6 of the specification; two of them within 5e-6 of each other."""
    z = specified(name, "odd", "float32")[2]
    pictures = [array(model(name, backend, "float32").decode(z).sample) for backend in BACKENDS]
    assert max(relative_l2(one, other) for one, other in combinations(pictures, 2)) <= 5e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_seed_gives_the_same_bits_of_noise_on_every_backend(dtype):
    """Seen through a posterior of mean 0 and variance 1, on which the sample is the noise."""
    samples = []
    for backend in BACKENDS:
        ops = make_ops(get_backend(backend), "cpu", dtype, "default")
        drawn = DiagonalGaussian(ops.from_numpy(np.zeros((3, 8, 5, 7)))).sample(seed=11)
        samples.append(ops.to_numpy(drawn))
    noise = standard_normal((3, 4, 5, 7), 11).astype(storage_dtype(dtype))
    for sample in samples:
        assert sample.dtype == noise.dtype
        np.testing.assert_array_equal(sample, noise)


# -- single operations -------------------------------------------------------------------------------------------

ROLES = {4: "conv", 2: "linear", 1: "bias"}
OPS = {
    f"{backend}-{dtype}": make_ops(get_backend(backend), "cpu", dtype, "default")
    for backend in BACKENDS
    for dtype in sorted({"float32", FINEST[backend]})
}

each_ops = pytest.mark.parametrize("ops", OPS.values(), ids=OPS.keys())
extents = st.sampled_from((1, 2, 3, 7, 9))  # few, since JAX compiles for each shape


def on_maps(ops: ReferenceOps, op: str, x: np.ndarray, *weights: np.ndarray, **numbers) -> np.ndarray:
    """ops.op on an NCHW array and canonical weights, through the backend's own layouts; NumPy float64 out."""
    laid_out = [ops.from_numpy(OIHW.convert(w, ops.layout)) for w in weights]
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
    options = {"stride": stride, "padding": padding}
    magnitudes = on_maps(REFERENCE, "conv2d", abs(x), abs(w), abs(b), **options)
    bound = (k * k * C + 2) * EPS[ops.dtype] * magnitudes
    assert_within(on_maps(ops, "conv2d", x, w, b, **options), on_maps(REFERENCE, "conv2d", x, w, b, **options), bound)


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
    """The mean is off by a few roundings of its own size: c · u · |μ| / √(σ² + ε) in the normalized map; c = 8.

    The formula E[x²] - E[x]² is off by u · (μ / σ)² instead: 500 times this bound where μ / σ is 1000.
    """
    (B, H, W), C = extent, groups * per_group
    x = uniform("x", (B, C, H, W), -1, 1) * spread * math.sqrt(3) + ratio * spread
    x, scale, shift = stored(ops, x, uniform("scale", (C,), 0.5, 2), uniform("shift", (C,)))
    options = {"groups": groups, "eps": eps}
    expected = on_maps(REFERENCE, "group_norm", x, scale, shift, **options)
    grouped = x.reshape(B, groups, -1)
    conditioning = (abs(grouped).max(-1) / np.sqrt(grouped.var(-1) + eps)).repeat(per_group, axis=1)[..., None, None]
    of_channel = scale[None, :, None, None]
    normalized = abs(expected - shift[None, :, None, None]) / of_channel
    bound = 4 * EPS[ops.dtype] * (of_channel * (1 + conditioning) * (1 + normalized) + abs(expected))
    assert_within(on_maps(ops, "group_norm", x, scale, shift, **options), expected, bound)


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
    laid_out = (ops.from_numpy(OIHW.convert(a, ops.layout)) for a in (w, b))
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
