"""A backend computes the specification: whole models, single operations at their worst inputs, and how one is chosen.

Bounds are relative L2 against the float64 reference. Single operations are bounded by (steps of rounding) · eps · the
size of what is summed, with the steps counted beside each.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata

import array_api_compat.numpy as compat_numpy
import array_api_strict
import ml_dtypes
import numpy as np
import pytest
import torch
from configs import CONFIGS, TINY, images, relative_l2, sizes, uniform
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from oracle import decoded, encoded, oracle
from threadpoolctl import threadpool_info

import vaespec.backend
import vaespec_numpy.strips
from vaespec import AutoencoderKL, BackendError, ReferenceOps, backends, parameters, register_backend
from vaespec.parameters import Parameter
from vaespec_numpy.ops import NumpyOps, group_moments
from vaespec_torch.ops import TorchOps

SELECTION = ("sd", "sd3", "flux2", "kl-f16", "kl-f32", "cogview", "mish", "gelu", "relu", "grey-in-colour-out")
KINDS = {"numpy": NumpyOps, "torch": lambda dtype: TorchOps("cpu", dtype)}
BACKENDS = tuple(KINDS)
MODEL_BOUND = {"float64": 1e-13, "float32": 5e-6}
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


# -- whole models ----------------------------------------------------------------------------------------------


@cache
def expected(name: str, size: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(images, moments, latents, decoded images) of diffusers in float64."""
    config, (model, _) = CONFIGS[name], oracle(name)
    x = images(config, *sizes(config)[size], batch=2)
    mean, logvar = encoded(model, x)
    z = uniform(f"latents {size}", mean.shape, -2, 2)
    return x, np.concatenate((mean, logvar), axis=1), z, decoded(model, z)


def measured(name: str, size: str, backend: str, dtype: str) -> tuple[float, float]:
    """Errors of (encode, decode) on this backend."""
    vae = AutoencoderKL(CONFIGS[name], oracle(name)[1], backend=backend, device="cpu", dtype=dtype)
    x, moments, z, pictures = expected(name, size)
    posterior = vae.encode(x).latent_dist
    parts = [vae._ops.to_numpy(part).astype(np.float64) for part in (posterior.mean, posterior.logvar)]
    found = np.concatenate(parts, axis=1)
    return relative_l2(found, moments), relative_l2(vae._ops.to_numpy(vae.decode(z).sample), pictures)


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


# -- single operations -----------------------------------------------------------------------------------------

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


def assert_within(actual: np.ndarray, expected: np.ndarray, bound: np.ndarray | float) -> None:
    assert actual.shape == expected.shape
    excess = np.abs(actual - expected) / np.broadcast_to(bound, expected.shape)
    worst = np.unravel_index(excess.argmax(), excess.shape)
    assert excess[worst] <= 1, f"{excess[worst]:.3g} times the bound, at {worst}"


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


# -- strips of the NumPy backend ---------------------------------------------------------------------------------


def in_strips(monkeypatch, elements: int, cores: int):
    monkeypatch.setattr(vaespec_numpy.strips, "STRIP_ELEMENTS", elements)
    monkeypatch.setattr(vaespec_numpy.strips, "cores", lambda: cores)


@pytest.mark.parametrize("elements", [20, 1000, 1 << 30])
@pytest.mark.parametrize("cores", [1, 2, 7])
@pytest.mark.parametrize("name", ["kl-f16", "flux2"])
def test_results_do_not_depend_on_strips_or_cores(monkeypatch, name, cores, elements):
    """But for the order of summation: float64 rounding."""
    config = CONFIGS[name]
    x = images(config, *sizes(config)["odd"], batch=2)
    vae = AutoencoderKL(config, oracle(name)[1], backend="numpy", dtype="float64")
    whole = vae(x, return_posterior=True)
    in_strips(monkeypatch, elements, cores)
    cut = vae(x, return_posterior=True)
    assert relative_l2(cut.sample, whole.sample) <= 1e-14
    assert relative_l2(cut.posterior.parameters, whole.posterior.parameters) <= 1e-14


@given(rows=st.integers(1, 300), per_row=st.integers(1, 1000), cores=st.integers(1, 9), elements=st.integers(1, 5000))
def test_strips_cover_every_row_once_and_occupy_every_core(rows, per_row, cores, elements):
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_strips(monkeypatch, elements, cores)
        pieces = list(vaespec_numpy.strips.strips(rows, per_row))
    assert [row for piece in pieces for row in range(rows)[piece]] == list(range(rows))
    assert len(pieces) >= min(cores, rows) or max(piece.stop - piece.start for piece in pieces) <= -(-rows // cores)
    assert all((piece.stop - piece.start) * per_row <= max(elements, per_row) for piece in pieces)


@pytest.mark.parametrize("elements", [1 << 4, 1 << 12, 1 << 30])
def test_moments_are_centred_where_the_mean_is_ten_thousand_deviations(monkeypatch, elements):
    """float32 holds the mean to u · 10⁴ = 6e-4 deviations; a few of these are lost, not u · 10⁸ as in E[x²] - E[x]²."""
    in_strips(monkeypatch, elements, 2)
    x = (1e4 + math.sqrt(3) * uniform("x", (1024, 16))).astype(np.float32)
    mean, var = group_moments(x, 4)
    grouped = x.astype(np.float64).reshape(1024, 4, 4)
    u = EPS["float32"] / 2
    assert_within(mean, grouped.mean(axis=(0, 2)), 4 * u * 1e4)
    assert_within(var, grouped.var(axis=(0, 2)), 4 * u * 1e4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 13), (13, 1)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_maps_of_one_row_or_column_are_the_specification(backend, shape):
    _, weights = oracle("kl-f4")
    z = uniform("z", (2, 3, *shape))
    vae = AutoencoderKL(CONFIGS["kl-f4"], weights, backend=backend, dtype="float64")
    assert relative_l2(vae._ops.to_numpy(vae.decode(z).sample), decoded(oracle("kl-f4")[0], z)) <= 1e-13


# -- which backend -----------------------------------------------------------------------------------------------


class Strict:
    """Tier 0: an Array API namespace and nothing else."""

    name = "strict"
    framework = "array-api-strict"
    dtypes = ("float32", "float64")

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def ops(self, device: str, dtype: str) -> ReferenceOps:
        return ReferenceOps(array_api_strict, dtype)


class Missing(Strict):
    name = "cuneiform"
    framework = "no-such-framework"


def test_the_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("VAESPEC_BACKEND", "torch")
    assert AutoencoderKL.from_config(TINY).backend == "torch"
    assert AutoencoderKL.from_config(TINY, backend="numpy").backend == "numpy"


def test_the_environment_is_checked_as_the_argument_is(monkeypatch):
    monkeypatch.setenv("VAESPEC_BACKEND", "cupy")
    with pytest.raises(BackendError, match="no backend named 'cupy': known are numpy, torch"):
        AutoencoderKL.from_config(TINY)


def test_without_a_choice_an_accelerator_is_taken_else_numpy(monkeypatch):
    monkeypatch.setattr("vaespec_torch.TorchBackend.devices", lambda self: ("cpu",))
    assert vaespec.backend.choose_backend().name == "numpy"
    monkeypatch.setattr("vaespec_torch.TorchBackend.devices", lambda self: ("cuda:0", "cpu"))
    assert vaespec.backend.choose_backend().name == "torch"


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(BackendError, match="no backend named 'tensorflow': known are numpy, torch"):
        AutoencoderKL.from_config(TINY, backend="tensorflow")


def test_backends_are_listed_numpy_first_with_what_they_need():
    register_backend(Missing())
    listed = {info.name: info for info in backends()}
    assert list(listed) == ["numpy", "cuneiform", "torch"]
    assert listed["numpy"].available
    assert listed["torch"].available
    assert listed["torch"].version == metadata.version("torch")
    assert not listed["cuneiform"].available
    assert listed["torch"].distribution == "vaespec"
    assert listed["cuneiform"].distribution == "this process"


def test_a_missing_framework_of_a_stranger_is_named():
    register_backend(Missing())
    with pytest.raises(BackendError, match=r"needs no-such-framework.*pip install no-such-framework"):
        AutoencoderKL.from_config(TINY, backend="cuneiform")


def test_torch_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    installed = metadata.version

    def version(distribution):
        if distribution == "torch":
            raise metadata.PackageNotFoundError(distribution)
        return installed(distribution)

    monkeypatch.setattr(vaespec.backend.metadata, "version", version)
    with pytest.raises(BackendError, match=r'needs torch, which is not installed: pip install "vaespec\[torch\]"'):
        AutoencoderKL.from_config(TINY, backend="torch")
    assert not {info.name: info for info in backends()}["torch"].available
    assert vaespec.backend.choose_backend().name == "numpy"


@pytest.fixture
def plugins(monkeypatch):
    """Sets the entry points that are found: name -> import path, one list per name."""

    def found(**paths: list[str]) -> None:
        pairs = [(name, path) for name, several in paths.items() for path in several]
        points = [metadata.EntryPoint(name, path, vaespec.backend.GROUP) for name, path in pairs]
        monkeypatch.setattr(vaespec.backend.metadata, "entry_points", lambda group: points)
        vaespec.backend._entry_points.cache_clear()

    yield found
    monkeypatch.undo()
    vaespec.backend._entry_points.cache_clear()


def test_two_plugins_of_one_name_are_an_error_that_names_both(plugins):
    plugins(numpy=["vaespec_numpy:backend"], mine=["one.package:backend", "another.package:backend"])
    with pytest.raises(BackendError, match=r"'mine' is provided by another\.package:backend and one\.package:backend"):
        vaespec.backend.get_backend("mine")
    assert [info.name for info in backends()] == ["numpy", "mine"]
    assert "uninstall one" in backends()[1].problem


def test_a_plugin_that_cannot_be_imported_says_why(plugins):
    plugins(numpy=["vaespec_numpy:backend"], mine=["no_such_module:backend"])
    with pytest.raises(BackendError, match=r"'mine' of .* cannot be loaded .*No module named 'no_such_module'"):
        vaespec.backend.get_backend("mine")
    assert vaespec.backend.choose_backend().name == "numpy"


def test_a_plugin_that_is_no_backend_is_refused(plugins):
    plugins(mine=["math:pi"])
    with pytest.raises(BackendError, match=r"has not the members of vaespec\.backend\.Backend"):
        vaespec.backend.get_backend("mine")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unknown_dtype_is_refused_with_the_known_ones(backend):
    with pytest.raises(BackendError, match=f"{backend!r} has no dtype 'int8': choose float32, float64"):
        AutoencoderKL.from_config(TINY, backend=backend, dtype="int8")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unknown_device_is_refused_with_those_at_hand(backend):
    with pytest.raises(BackendError, match=f"{backend!r} has no device 'tpu:0' here: choose .*cpu"):
        AutoencoderKL.from_config(TINY, backend=backend, device="tpu:0")


@pytest.mark.parametrize("dtype", [np.float64, np.dtype("float64"), torch.float64, "float64", "torch.float64"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes_may_be_those_of_any_framework(backend, dtype):
    vae = AutoencoderKL.from_config(TINY, backend=backend, device="cpu", dtype=dtype)
    assert vae.dtype == "float64"
    assert str(vae.decode(np.zeros((1, 4, 1, 1))).sample.dtype).endswith("float64")


def test_bfloat16_may_be_that_of_ml_dtypes():
    assert AutoencoderKL.from_config(TINY, backend="numpy", dtype=ml_dtypes.bfloat16).dtype == "bfloat16"


@pytest.mark.parametrize("name", ["sd", "flux2", "gelu"])
def test_an_array_api_namespace_alone_is_a_backend(name):
    register_backend(Strict())
    config, (_, weights) = CONFIGS[name], oracle(name)
    vae = AutoencoderKL(config, weights, backend="strict", dtype="float64")
    x, moments, z, pictures = expected(name, "square")
    posterior = vae.encode(x).latent_dist
    assert relative_l2(vae._ops.to_numpy(posterior.mean), moments[:, : config.latent_channels]) <= 1e-13
    assert relative_l2(vae._ops.to_numpy(vae.decode(z).sample), pictures) <= 1e-13
    numpy_vae = AutoencoderKL(config, weights, backend="numpy", dtype="float64")
    latents = vae._ops.to_numpy(vae.encode_latents(x, seed=1))
    assert relative_l2(latents, numpy_vae.encode_latents(x, seed=1)) <= 1e-13
    assert vae._ops.to_numpy(vae(x).sample).shape == x.shape
    vae.enable_slicing()
    assert relative_l2(vae._ops.to_numpy(vae.decode(vae._ops.from_numpy(z)).sample), pictures) <= 1e-13


def test_a_registered_backend_hides_an_installed_one():
    class Mine(Strict):
        name = "numpy"

    register_backend(Mine())
    assert vaespec.backend.get_backend("numpy").framework == "array-api-strict"


class Broken(Strict):
    name = "broken"

    def devices(self):
        raise OSError("libchip.so: cannot open shared object file")


def test_a_framework_that_cannot_start_is_told_to_who_asks_and_passed_over_otherwise():
    register_backend(Broken())
    with pytest.raises(BackendError, match=r"backend 'broken' cannot start \(OSError.*libchip.*repair"):
        AutoencoderKL.from_config(TINY, backend="broken")
    assert AutoencoderKL.from_config(TINY).backend == "numpy"


def test_models_in_several_threads_leave_blas_as_it_was():
    """The number of its threads belongs to the process; strips.py sets it while it works."""

    def blas():
        return sorted((pool["filepath"], pool["num_threads"]) for pool in threadpool_info())

    vae, x = AutoencoderKL.from_config(TINY, backend="numpy"), np.zeros((1, 3, 64, 64), np.float32)
    expected, before = vae(x).sample, blas()
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: vae(x).sample, range(12)))
    assert blas() == before
    for result in results:
        np.testing.assert_array_equal(result, expected)
