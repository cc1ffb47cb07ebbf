"""JAX's idioms: outputs that are pytrees, pure functions under every transform, keys of jax.random."""

from __future__ import annotations

import gc
import weakref
from functools import cache, lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from support.configs import EPS, FLUX2, TINY, assert_within, images, narrow, relative_l2, uniform
from support.models import EXACT, tiny

import vaespec_jax.ops as ops_module
from vaespec import (
    AutoencoderKL,
    AutoencoderKLOutput,
    DecoderOutput,
    DiagonalGaussian,
    InputError,
    parameters,
)
from vaespec.autoencoder import Functional

X = images(TINY, 8, 8, batch=2).astype(np.float32)
Z = uniform("z", (2, 4, 4, 4)).astype(np.float32)
MOMENTS = jnp.asarray(uniform("moments", (2, 8, 4, 4)), jnp.float32)
SHAPE = (2, 4, 4, 4)  # of the latents of both
FAST = {"xla_backend_optimization_level": 0}
"""Options of XLA: gradients compile in half the time, and no test in this file is about their speed."""


@cache
def vae() -> AutoencoderKL:
    """Shared between tests, so not to be changed."""
    return tiny("jax")


@cache
def jitted() -> Functional:
    params, encode, decode = vae().functional()
    return Functional(params, jax.jit(encode), jax.jit(decode))


def objective(encode, decode, params, x):
    """½ MSE + 1e-6 KL, in any framework."""
    posterior = encode(params, x).latent_dist
    pictures = decode(params, posterior.mode()).sample
    return 0.5 * ((pictures - x) ** 2).mean() + 1e-6 * posterior.kl().mean()


def close(actual, expected) -> bool:
    return relative_l2(actual, expected) <= EXACT["float32"]


# -- outputs are pytrees, functions are pure ---------------------------------------------------------------------


def test_jitted_functions_return_the_outputs_of_the_model():
    params, encode, decode = jitted()
    posterior, pictures = encode(params, X), decode(params, Z)
    assert isinstance(posterior, AutoencoderKLOutput)
    assert isinstance(posterior.latent_dist, DiagonalGaussian)
    assert isinstance(pictures, DecoderOutput)
    assert close(posterior.latent_dist.parameters, vae().encode(X).latent_dist.parameters)
    assert close(pictures.sample, vae().decode(Z).sample)


def test_the_output_of_a_jitted_function_can_be_changed_by_replace():
    params, encode, decode = jitted()
    posterior = encode(params, X).latent_dist.replace(deterministic=True)
    assert not posterior.std.any()
    output = decode(params, Z).replace(posterior=posterior)
    assert output.keys() == ("sample", "posterior")


OUTPUTS = {
    ".parameters": DiagonalGaussian(MOMENTS),
    ".latent_dist.parameters": AutoencoderKLOutput(DiagonalGaussian(MOMENTS, deterministic=True)),
    ".sample": DecoderOutput(MOMENTS),
    ".sample .posterior.parameters": DecoderOutput(MOMENTS, DiagonalGaussian(MOMENTS)),
}


@pytest.mark.parametrize(("paths", "output"), OUTPUTS.items(), ids=OUTPUTS)
def test_outputs_are_pytrees_whose_leaves_are_arrays_with_names(paths, output):
    result = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(output)]
    assert " ".join(result) == paths
    leaves, structure = jax.tree.flatten(output)
    assert all(leaf is MOMENTS for leaf in leaves)
    assert vars(jax.tree.unflatten(structure, leaves)).keys() == vars(output).keys()
    doubled = jax.tree.map(lambda leaf: 2 * leaf, output)
    assert type(doubled) is type(output)
    assert jax.tree.structure(doubled) == structure
    for leaf in jax.tree.leaves(doubled):
        np.testing.assert_array_equal(leaf, 2 * MOMENTS)


def test_whether_a_posterior_is_deterministic_is_structure_and_not_a_leaf():
    sure, unsure = (DiagonalGaussian(MOMENTS, deterministic=kind) for kind in (True, False))
    assert jax.tree.structure(sure) != jax.tree.structure(unsure)
    assert jax.jit(lambda posterior: posterior)(sure).deterministic is True
    np.testing.assert_array_equal(jax.jit(DiagonalGaussian.kl)(sure), np.zeros(2))


def test_shapes_are_known_without_computing():
    params, encode, decode = vae().functional()
    latents = jax.eval_shape(encode, params, jax.ShapeDtypeStruct((5, 3, 1024, 768), jnp.float32))
    assert latents.latent_dist.parameters.shape == (5, 8, 512, 384)
    pictures = jax.eval_shape(decode, params, jax.ShapeDtypeStruct((5, 4, 512, 384), jnp.float32)).sample
    assert (pictures.shape, pictures.dtype) == ((5, 3, 1024, 768), jnp.float32)


def test_the_model_itself_may_be_traced():
    encode = jax.jit(vae().encode)
    assert close(encode(X).latent_dist.parameters, vae().encode(X).latent_dist.parameters)
    assert np.isnan(encode(np.full_like(X, np.nan)).latent_dist.parameters).all()  # a trace has no numbers to check
    params, _, decode = jitted()
    through_the_model = jax.grad(lambda z: vae().decode(z).sample.sum())(jnp.asarray(Z))
    assert close(through_the_model, jax.grad(lambda z: decode(params, z).sample.sum())(Z))


# -- compiled programs -------------------------------------------------------------------------------------------


@pytest.fixture
def compilations(monkeypatch):
    """The names of the programs that XLA compiles."""
    found, compile_ = [], jax._src.compiler.compile_or_get_cached

    def noted(backend, computation, *args, **kwargs):
        found.append(str(computation.operation.attributes["sym_name"]))
        return compile_(backend, computation, *args, **kwargs)

    monkeypatch.setattr("jax._src.compiler.compile_or_get_cached", noted)
    return found


@pytest.mark.parametrize("tiling", [False, "exact"])
def test_on_a_cpu_a_new_size_compiles_nothing(compilations, tiling):
    """XLA keeps a program, of more than 1 MiB, for each operation and size."""
    model = tiny("jax")
    model.enable_tiling(tiling)
    compilations.clear()
    for size in (18, 20):
        model.decode(model.encode(images(TINY, size, 18, batch=2).astype(np.float32)).latent_dist.mean)
    assert compilations == []


def test_the_programs_of_the_last_shapes_are_kept(monkeypatch, compilations):
    monkeypatch.setattr(ops_module, "_half", lru_cache(2)(ops_module._half.__wrapped__))
    model = tiny("jax", precision="highest")
    counts = []
    for height in (3, 4, 3, 5, 3, 4):
        model.decode(uniform("z", (1, 4, height, 3)).astype(np.float32))
        counts.append(sum("lambda" in name for name in compilations))
    assert counts == [1, 2, 2, 3, 3, 4]
    assert ops_module._half.cache_info().currsize == 2


def test_the_programs_that_are_not_kept_are_freed(monkeypatch):
    """JAX itself would keep the program of each function for as long as the function lives."""
    freed, made = [], ops_module._half.__wrapped__
    monkeypatch.setattr(ops_module, "_half", lru_cache(2)(lambda *args: watched(made(*args), freed)))
    model = tiny("jax", precision="highest")
    for height in (3, 4, 5, 6):
        model.decode(uniform("z", (1, 4, height, 3)).astype(np.float32))
    gc.collect()
    assert len(freed) == 2


def watched(program, freed: list):
    weakref.finalize(program, freed.append, 1)
    return program


def test_operations_in_bands_keep_a_bounded_number_of_programs():
    assert ops_module._operation.cache_info().maxsize == ops_module.OPERATIONS_KEPT
    assert ops_module._half.cache_info().maxsize == ops_module.HALVES_KEPT
    model = tiny("jax", precision="highest")
    model.enable_tiling("exact", band_rows=4)
    before = ops_module._operation.cache_info().misses
    model.decode(Z)
    model.decode(Z)
    assert 0 < ops_module._operation.cache_info().misses - before <= ops_module.OPERATIONS_KEPT


# -- gradients ---------------------------------------------------------------------------------------------------


def test_params_are_all_to_be_trained():
    config = narrow((8,), **FLUX2)  # with statistics, and a counter that is an integer
    params = tiny("jax", config=config).functional().params
    assert {name for name, row in parameters(config).items() if row.trained} == params.keys()
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in params.values())


def test_a_step_lowers_the_loss_and_the_model_takes_the_new_params():
    params, encode, decode = vae().functional()
    value_and_grad = jax.jit(jax.value_and_grad(partial(objective, encode, decode)), compiler_options=FAST)
    before, grads = value_and_grad(params, X)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert all(np.isfinite(grad).all() for grad in grads.values())
    stepped = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    after, _ = value_and_grad(stepped, X)
    assert after < before
    old, new = vae().decode(Z).sample, vae().with_params(stepped).decode(Z).sample
    assert close(new, jitted().decode(stepped, Z).sample)
    assert not close(new, old)
    np.testing.assert_array_equal(vae().decode(Z).sample, old)


def test_gradients_are_finite_if_nothing_varies():
    """The variance of a constant map is 0, and so is that of one pixel: eps alone is left."""
    params, encode, _ = jitted()
    flat = jnp.full_like(X, 0.5)
    assert np.isfinite(jax.grad(lambda x: (encode(params, x).latent_dist.parameters ** 2).sum())(flat)).all()

    def normalized(x):
        return (vae()._model.ops.group_norm(x, jnp.ones(8), jnp.ones(8), groups=4, eps=1e-6) ** 3).sum()

    for shape in ((1, 4, 4, 8), (1, 1, 1, 8)):
        assert np.isfinite(jax.grad(normalized)(jnp.full(shape, 3.0))).all()


@pytest.mark.parametrize("op", ["silu", "mish", "gelu", "relu"])
def test_activations_have_the_slopes_of_torch_at_zero_and_far_out(op):
    x = np.array([-1e4, -50, -1, -0.0, 0.0, 1e-30, 1, 50, 1e4], np.float32)
    tensor = torch.tensor(x, requires_grad=True)
    getattr(torch.nn.functional, op)(tensor).sum().backward()
    slopes = jax.grad(lambda x: getattr(vae()._model.ops, op)(x).sum())(x)
    np.testing.assert_allclose(slopes, tensor.grad.numpy(), rtol=1e-5, atol=1e-6)


# -- vmap --------------------------------------------------------------------------------------------------------


def test_vmap_computes_the_same_as_a_loop():
    params, encode, decode = jitted()
    x, z = uniform("x", (3, 2, 3, 8, 8)).astype(np.float32), uniform("z", (3, *SHAPE)).astype(np.float32)
    mapped = jax.vmap(encode, in_axes=(None, 0))(params, x).latent_dist
    looped = [encode(params, item).latent_dist for item in x]
    key = jax.random.key(3)
    noise = jax.random.normal(key, mapped.mean.shape)
    for result, one_by_one in {
        "mean": (mapped.mean, [one.mean for one in looped]),
        "std": (mapped.std, [one.std for one in looped]),
        "kl": (mapped.kl(), [one.kl() for one in looped]),
        "nll": (mapped.nll(z), [one.nll(item) for one, item in zip(looped, z, strict=True)]),
        "sample": (mapped.sample(key), [one.sample(noise=item) for one, item in zip(looped, noise, strict=True)]),
        "decoded": (
            jax.vmap(decode, in_axes=(None, 0))(params, z).sample,
            [decode(params, item).sample for item in z],
        ),
    }.values():
        assert close(result, np.stack(one_by_one))
    assert (mapped.mean.shape, mapped.kl().shape) == ((3, *SHAPE), (3, 2))


# -- noise -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [jax.random.key(7), jax.random.PRNGKey(7)], ids=["typed", "raw"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_key_draws_the_noise_of_jax_random_in_the_dtype_of_the_latents(key, dtype):
    """Inside jit, XLA may leave out roundings: of the noise, the product and the sum, four in all with exp's."""
    posterior, noise = DiagonalGaussian(MOMENTS.astype(dtype)), jax.random.normal(key, SHAPE, dtype)
    mean, deviation = posterior.mean.astype("float32"), posterior.std * noise.astype("float32")
    outside, inside = posterior.sample(key), jax.jit(DiagonalGaussian.sample)(posterior, key)
    assert outside.dtype == inside.dtype == dtype
    np.testing.assert_array_equal(outside, (mean + deviation).astype(dtype))
    assert_within(inside.astype("float32"), mean + deviation, 4 * EPS[dtype] * (abs(mean) + abs(deviation)))


def test_a_list_of_keys_draws_each_item_alone():
    posterior, keys = DiagonalGaussian(MOMENTS), list(jax.random.split(jax.random.key(0), 2))
    whole = posterior.sample(keys)
    for i, key in enumerate(keys):
        np.testing.assert_array_equal(whole[i : i + 1], DiagonalGaussian(MOMENTS[i : i + 1]).sample(key))
    assert close(jax.jit(DiagonalGaussian.sample)(posterior, keys), whole)


@pytest.mark.parametrize("generator", [None, np.random.default_rng(0)])
def test_noise_that_a_trace_would_draw_once_for_all_is_refused(generator):
    assert DiagonalGaussian(MOMENTS).sample(generator).shape == SHAPE
    for transform in (jax.jit, jax.vmap, lambda f: jax.grad(lambda p: f(p).sum())):
        with pytest.raises(InputError, match=r"drawn once for all: give a key of jax\.random, or noise="):
            transform(lambda p: DiagonalGaussian(p).sample(generator))(
                MOMENTS[None] if transform is jax.vmap else MOMENTS
            )


@pytest.mark.parametrize(
    ("generator", "words"),
    [
        (torch.Generator(), "generator is a Generator: give"),
        (
            jax.random.split(jax.random.key(0), 2),
            r"generator is key<fry> of shape \(2,\): give a key of jax\.random, or a list",
        ),
        (jnp.ones(3), r"generator is float32 of shape \(3,\): give a key of jax\.random"),
    ],
    ids=["torch", "keys", "floats"],
)
def test_a_generator_that_is_no_key_is_refused(generator, words):
    posterior = DiagonalGaussian(MOMENTS)
    for sample in (posterior.sample, lambda generator: jax.jit(lambda p: p.sample(generator))(posterior)):
        with pytest.raises(InputError, match=words):
            sample(generator)
