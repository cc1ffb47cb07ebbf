"""One model on several devices of JAX, on one of them, and on a GPU; and buffers that are given away."""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support.configs import CONFIGS, EPS, FLUX2, TINY, images, narrow, relative_l2, uniform
from support.models import EXACT, model, tiny
from test_imports import loaded_by

from vaespec import AutoencoderKL, BackendError, parameters
from vaespec_jax import backend

X = images(TINY, 8, 8, batch=2).astype(np.float32)
ONE_LEVEL = narrow((8,), **FLUX2 | {"layers_per_block": 1})
Z = uniform("z", (1, 8, 4, 4)).astype(np.float32)

# -- several devices ---------------------------------------------------------------------------------------------


def test_pmap_runs_a_part_of_the_batch_on_each_device():
    vae, x = tiny("jax"), images(TINY, 8, 8, batch=4).astype(np.float32)
    params, encode, decode = vae.functional()
    posterior = jax.pmap(encode, in_axes=(None, 0))(params, x[:, None]).latent_dist
    assert len(posterior.parameters.devices()) == 4
    assert relative_l2(posterior.parameters[:, 0], vae.encode(x).latent_dist.parameters) <= EXACT["float32"]
    z = posterior.mode()
    pictures = jax.pmap(decode, in_axes=(None, 0))(params, z).sample
    assert relative_l2(pictures[:, 0], vae.decode(np.asarray(z)[:, 0]).sample) <= EXACT["float32"]


@pytest.mark.parametrize("grid", [(2, 2), (1, 4)], ids=["batch and height", "height"])
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_maps_may_be_sharded_over_batch_and_height(grid, direction):
    """Convolutions, one of stride 2, need rows of the neighbour, norms and attention (everywhere) need all of them."""
    vae = model("attention-everywhere", "jax")
    pure = vae.functional()
    params, function = pure.params, getattr(pure, direction)
    given = {"encode": images(vae.config, 16, 8, batch=4), "decode": uniform("z", (4, 4, 8, 4))}[direction]
    whole = jnp.asarray(given, jnp.float32)
    mesh = Mesh(np.array(jax.devices("cpu")).reshape(grid), ("batch", "height"))
    rows = NamedSharding(mesh, PartitionSpec("batch", None, "height"))
    split = jax.device_put(whole, rows)
    (expected,) = jax.tree.leaves(getattr(vae, direction)(whole))
    (result,) = jax.tree.leaves(jax.jit(function, out_shardings=rows)(params, split))
    assert result.sharding.is_equivalent_to(rows, 4)
    assert result.addressable_shards[0].data.shape[::2] == (4 // grid[0], expected.shape[2] // grid[1])
    assert relative_l2(result, expected) <= EXACT["float32"]
    (through_the_model,) = jax.tree.leaves(getattr(vae, direction)(split))
    assert len(through_the_model.devices()) == 4
    assert relative_l2(through_the_model, expected) <= EXACT["float32"]


# -- one device --------------------------------------------------------------------------------------------------


def test_devices_are_named_by_platform_and_number():
    assert backend.devices()[-4:] == ("cpu", "cpu:1", "cpu:2", "cpu:3")


def test_devices_are_those_of_this_process_best_first(monkeypatch):
    gpus = [SimpleNamespace(platform="gpu", id=i) for i in (9, 10)]  # of the second process, say
    cpus = [SimpleNamespace(platform="cpu", id=0)]
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: cpus if backend == "cpu" else gpus)
    assert backend.devices() == ("gpu:9", "gpu:10", "cpu")


def test_jax_without_its_cpu_is_no_failure(monkeypatch):
    def local_devices(backend=None):
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu")
        return [SimpleNamespace(platform="gpu", id=0)]

    monkeypatch.setattr(jax, "local_devices", local_devices)
    assert backend.devices() == ("gpu:0",)


def test_a_model_stays_on_the_device_it_was_given():
    third, fourth = jax.devices("cpu")[2:]
    vae = AutoencoderKL.from_config(ONE_LEVEL, backend="jax", device="cpu:2")
    assert vae.device == third
    x, z = images(ONE_LEVEL, 4, 4).astype(np.float32), uniform("z", (1, 8, 4, 4)).astype(np.float32)
    posterior = vae.encode(x).latent_dist
    on_another = jax.device_put(z, jax.devices("cpu")[1])
    results = (
        posterior.mean,
        posterior.kl(),
        posterior.sample(seed=0),
        vae.decode(on_another).sample,
        vae.encode_latents(x),
    )
    for array in (*vae.functional().params.values(), *results):
        assert array.devices() == {third}
    vae.to("cpu:3")
    assert vae.decode(z).sample.devices() == vae.functional().params["encoder.conv_in.bias"].devices() == {fourth}


@pytest.mark.parametrize("device", ["cpu:4", "tpu", "cuda:0", "gpu:99"])
def test_an_unknown_device_is_refused_with_the_known_ones(device):
    with pytest.raises(BackendError, match=rf"backend 'jax' has no device '{device}' here: choose .*cpu, cpu:1"):
        AutoencoderKL.from_config(TINY, backend="jax", device=device)


def test_looking_for_accelerators_does_not_import_jax():
    assert loaded_by("import vaespec_jax; vaespec_jax.backend.accelerators()") == set()


# -- donation ----------------------------------------------------------------------------------------------------


@cache
def step(**options):
    """(params, x) -> params, for any model of ONE_LEVEL."""
    _, encode, decode = tiny("jax", config=ONE_LEVEL).functional()

    def loss(params, x):
        return ((decode(params, encode(params, x).latent_dist.mode()).sample - x) ** 2).mean()

    def stepped(params, x):
        return jax.tree.map(lambda p, grad: p - 0.1 * grad, params, jax.grad(loss)(params, x))

    return jax.jit(stepped, **options)


def test_a_step_may_be_given_a_copy_of_the_params_to_overwrite():
    vae = tiny("jax", config=ONE_LEVEL)
    params, before = vae.functional().params, np.array(vae.decode(Z).sample)
    donated = jax.tree.map(jnp.copy, params)
    result, expected = step(donate_argnums=0)(donated, X), step()(params, X)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))
    for name, leaf in expected.items():
        np.testing.assert_allclose(result[name], leaf, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(vae.decode(Z).sample, before)


def test_params_given_away_without_a_copy_leave_the_model_as_it_was():
    vae = tiny("jax", config=ONE_LEVEL)
    params, before = vae.functional().params, np.array(vae.decode(Z).sample)
    expected = vae.with_params(step(donate_argnums=0)(jax.tree.map(jnp.copy, params), X)).decode(Z).sample
    new = step(donate_argnums=0)(params, X)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    np.testing.assert_array_equal(vae.decode(Z).sample, before)
    np.testing.assert_array_equal(vae.with_params(new).decode(Z).sample, expected)


# -- a GPU -------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu() -> str:
    result = [name for name in backend.devices() if name.startswith("gpu")]
    if not result:
        pytest.skip("no GPU that JAX can see")
    return result[0]


@pytest.mark.parametrize("name", ["sd", "kl-f16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_gpu_computes_the_specification(gpu, dtype, name):
    """In 16 bits, the results of norm, activation, convolution and sum, and the weights, are rounded: 5 times for each
    of D convolutions, by u / √3 with u = eps / 2, in quadrature; twice that, for branches that partly cancel.
    """
    reference, x = model(name), images(CONFIGS[name], 32, 16)
    depth = sum(row.role == "conv" for row in parameters(CONFIGS[name]).values())
    bound = EXACT["float32"] if dtype == "float32" else EPS[dtype] * math.sqrt(5 * depth / 3)
    vae = AutoencoderKL(CONFIGS[name], reference.weights(), backend="jax", device=gpu, dtype=dtype, precision="highest")
    moments = vae.encode(x).latent_dist.parameters
    assert moments.devices() == {vae.device}
    assert relative_l2(moments, reference.encode(x).latent_dist.parameters) <= bound
    z = uniform("z", (1, vae.config.latent_channels, 2, 1))
    assert relative_l2(vae.decode(z).sample, reference.decode(z).sample) <= bound
