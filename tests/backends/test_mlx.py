"""MLX as its users know it: lazy arrays, keys, devices and memory.

That it computes the specification is in test_backends. On this machine MLX computes on the CPU; on Apple's chips the
same code runs on Metal.
"""

from __future__ import annotations

from functools import partial

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import torch
from support.configs import EPS, assert_within, narrow, relative_l2, uniform
from support.mlx_models import OPS, each_dtype, noise, pictures
from support.models import EXACT, array, model, tiny

from vaespec import BackendError, InputError, ReferenceOps, backends
from vaespec.registry import Switch
from vaespec_mlx import MlxBackend
from vaespec_mlx.ops import MlxOps

# -- arrays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)])
def test_every_finite_16_bit_number_passes_through_unchanged(dtype, kind):
    """Subnormal ones, negative zero and the largest among them."""
    every = np.arange(2**16, dtype=np.uint16).view(kind)
    every = every[np.isfinite(every.astype(np.float32))]
    ops = MlxOps("cpu", dtype)
    for given in (every, every.astype(np.float32), every.astype(np.float64)):
        back = ops.to_numpy(ops.from_numpy(given))
        assert back.dtype == kind
        np.testing.assert_array_equal(back.view(np.uint16), every.view(np.uint16))


@each_dtype
def test_results_become_numpy_without_a_copy_and_cannot_be_changed_there(dtype):
    vae = tiny("mlx", dtype)
    result = vae.decode(noise()).sample
    read = vae.to_numpy(result)
    assert np.shares_memory(read, vae.to_numpy(result))
    with pytest.raises(ValueError, match="read-only"):
        read[:] = 0


@each_dtype
def test_everything_is_in_the_dtype_of_the_model(dtype):
    vae, kind = tiny("mlx", dtype), getattr(mx, dtype)
    params, encode, decode = vae.functional()
    assert {p.dtype for p in params.values()} == {kind}
    x, z = pictures().astype(kind), noise().astype(kind)
    for result in (vae.encode(x).latent_dist.mean, vae.decode(z).sample, vae.encode_latents(x, seed=1)):
        assert result.dtype == kind
    assert encode(params, x).latent_dist.parameters.dtype == decode(params, z).sample.dtype == kind


def test_a_single_pixel_decodes_and_encodes():
    vae, reference = model("sd", "mlx"), model("sd", "numpy")
    z = uniform("pixel", (1, 4, 1, 1))
    x = array(reference.decode(z).sample)
    assert relative_l2(array(vae.decode(z).sample), x) <= EXACT["float32"]
    expected = array(reference.encode(x).latent_dist.parameters)
    assert relative_l2(array(vae.encode(x).latent_dist.parameters), expected) <= EXACT["float32"]


@pytest.mark.parametrize("ratio", [0.0, 30.0])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_norm_of_a_large_map_is_as_good_as_that_of_a_small_one(groups, ratio):
    """As in test_backends, the mean is off by a few roundings of the largest of its 2 million numbers."""
    x = (np.random.default_rng(0).standard_normal((1, 8, 512, 512)) + ratio).astype(np.float32)
    scale, shift, options = np.ones(8), np.zeros(8), {"groups": groups, "eps": 1e-6}
    expected = ReferenceOps(np).group_norm(x.astype(np.float64), scale, shift, **options)
    result = OPS.group_norm(OPS.from_nchw(mx.array(x)), OPS.from_numpy(scale), OPS.from_numpy(shift), **options)
    bound = 4 * EPS["float32"] * (1 + abs(x).max()) * (1 + abs(expected))  # σ is 1
    assert_within(array(OPS.to_nchw(result)), expected, bound)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_attention_in_16_bits_rounds_its_result_only(dtype):
    """Logits reach hundreds, and bfloat16 has steps of one there, which would change the weights by their own size."""
    ops = MlxOps("cpu", dtype)
    q, k, v = (ops.from_numpy(uniform(name, (2, 50, 64), -size, size)) for name, size in (("q", 9), ("k", 9), ("v", 1)))
    expected = ReferenceOps(np).attention(array(q), array(k), array(v), scale=0.5)
    result = ops.attention(q, k, v, scale=0.5)
    assert result.dtype == ops.storage
    assert_within(array(result), expected, EPS[dtype])


# -- samples -----------------------------------------------------------------------------------------------------


@each_dtype
def test_a_key_draws_the_noise_of_mlx_in_the_dtype_of_the_model(dtype):
    posterior, key = tiny("mlx", dtype).encode(pictures()).latent_dist, mx.random.key(7)
    drawn = posterior.sample(key)
    epsilon = mx.random.normal(posterior.mean.shape, getattr(mx, dtype), key=key)
    assert drawn.dtype == getattr(mx, dtype)
    assert mx.array_equal(drawn, posterior.sample(noise=epsilon))
    assert not mx.array_equal(drawn, posterior.sample(mx.random.key(8)))


def test_without_a_key_the_state_of_mlx_is_used():
    posterior, draws = tiny("mlx").encode(pictures()).latent_dist, []
    for seed in (3, 3, 4):
        mx.random.seed(seed)
        draws.append(posterior.sample())
    assert mx.array_equal(draws[0], draws[1])
    assert not mx.array_equal(draws[0], draws[2])
    assert not mx.array_equal(draws[2], posterior.sample())


def test_a_list_has_a_key_for_each_item():
    posterior = tiny("mlx").encode(pictures()).latent_dist
    keys = [mx.random.key(1), mx.random.key(2)]
    drawn = posterior.sample(keys)
    for i, key in enumerate(keys):
        item = posterior.replace(parameters=posterior.parameters[i : i + 1])
        assert mx.array_equal(drawn[i : i + 1], item.sample(key))
    with pytest.raises(InputError, match="2 generators for a batch of 1"):
        item.sample(keys)


def test_the_noise_of_a_seed_is_float32_and_rounded_once():
    posterior = tiny("mlx", "bfloat16").encode(pictures()).latent_dist
    wide = posterior.replace(parameters=posterior.parameters.astype(mx.float32)).sample(seed=5)
    assert mx.array_equal(posterior.sample(seed=5), wide.astype(mx.bfloat16))


def test_a_generator_of_another_framework_is_refused():
    posterior = tiny("mlx").encode(pictures()).latent_dist
    with pytest.raises(InputError, match=r"generator is a Generator: give a key of mlx\.core\.random, a numpy\.random"):
        posterior.sample(torch.Generator())


# -- precision and devices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [None, "1", "0"])
def test_the_cpu_is_always_precise(monkeypatch, setting):
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    if setting:
        monkeypatch.setenv("MLX_ENABLE_TF32", setting)
    assert MlxOps("cpu", "float32", "highest").precision == "highest"


@pytest.mark.parametrize("setting", [None, "1"])
def test_the_gpu_is_precise_only_if_the_environment_says_so(monkeypatch, setting):
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    assert MlxOps("gpu", "float32", "highest").precision == "highest"
    monkeypatch.delenv("MLX_ENABLE_TF32")
    if setting:
        monkeypatch.setenv("MLX_ENABLE_TF32", setting)
    assert MlxOps("gpu", "float32").precision == "default"
    with pytest.raises(BackendError, match=r"'highest' on gpu: MLX decides about TF32 once.*set MLX_ENABLE_TF32=0"):
        MlxOps("gpu", "float32", "highest")


@pytest.mark.parametrize("switch", ["MLX_ENABLE_TF32", "MLX_CONV_WINOGRAD_WORKING_SET"])
def test_switches_are_listed_with_their_values(monkeypatch, switch):
    def listed() -> Switch:
        (row,) = (row for row in backends() if row.name == "mlx")
        return row.switches[switch]

    monkeypatch.delenv(switch, raising=False)
    assert listed().value is None
    monkeypatch.setenv(switch, "0")
    assert listed().value == "0"
    assert listed().default == MlxBackend.switches[switch]


@pytest.mark.parametrize("view", ["model", "functional", "module"])
def test_every_view_runs_on_the_device_of_the_model(monkeypatch, view):
    """MLX's arrays are on no device: unless a device is given, operations would use the default one."""
    vae, entered = tiny("mlx", precision="highest"), []
    params, _, decode = vae.functional()
    run = {"model": vae.decode, "functional": partial(decode, params), "module": vae.module().decode}[view]
    stream = mx.stream
    monkeypatch.setattr(mx, "stream", lambda device: entered.append(device) or stream(device))
    run(noise())
    assert entered == [vae.device] * len(vae._model.decoder.layers)


# -- memory ------------------------------------------------------------------------------------------------------


def test_the_model_evaluates_after_each_layer_and_functions_are_lazy(monkeypatch):
    vae, evaluated = tiny("mlx", precision="highest"), []
    evaluate = mx.eval
    monkeypatch.setattr(mx, "eval", lambda *arrays: evaluated.append(arrays) or evaluate(*arrays))
    vae.decode(noise())
    assert len(evaluated) == len(vae._model.decoder.layers)
    vae.encode(pictures())
    assert len(evaluated) == len(vae._model.decoder.layers) + len(vae._model.encoder.layers)
    (params, _, decode), module = vae.functional(), vae.module()  # copies, which are made at once
    evaluated.clear()
    decode(params, noise())
    module.decode(noise())
    assert evaluated == []


def test_memory_is_that_of_one_layer():
    """Peak memory does not grow with the number of layers, and is less than if the whole graph is evaluated at once."""

    def peak(compute) -> int:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(compute())
        return mx.get_peak_memory() - before

    z = OPS.from_numpy(uniform("z", (1, 4, 32, 32)))
    few, many = (tiny("mlx", precision="highest", config=narrow((8, 8), layers_per_block=layers)) for layers in (1, 12))
    params, _, decode = many.functional()
    mx.eval(z, params)
    by_layer, at_once = peak(lambda: many.decode(z).sample), peak(lambda: decode(params, z).sample)
    assert by_layer <= 1.01 * peak(lambda: few.decode(z).sample)
    assert by_layer < at_once
