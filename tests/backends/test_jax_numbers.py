"""JAX's dtypes and precision, the number of traces, and who owns which memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr
from support.configs import CONFIGS, EPS, TINY, assert_within, images, narrow, relative_l2, uniform
from support.depth import first
from support.models import EXACT, model, tiny
from support.oracle import oracle

from vaespec import AutoencoderKL, BackendError, DiagonalGaussian, parameters
from vaespec.arrays import asarray_like
from vaespec_jax.ops import JaxOps

X = images(TINY, 8, 8, batch=2).astype(np.float32)
Z = uniform("z", (2, 4, 4, 4)).astype(np.float32)
MOMENTS = jnp.asarray(uniform("moments", (2, 8, 4, 4)), jnp.float32)

# -- dtypes and precision ----------------------------------------------------------------------------------------


def equations(jaxpr):
    """List all equations, also of the functions that are called."""
    for equation in jaxpr.eqns:
        yield equation
        for called in equation.params.values():
            if isinstance(called, ClosedJaxpr):
                yield from equations(called.jaxpr)


def traced(function, *arguments, named: tuple[str, ...]) -> list:
    """The equations of some primitives in JAX's trace of function(*arguments)."""
    result = [eqn for eqn in equations(jax.make_jaxpr(function)(*arguments).jaxpr) if eqn.primitive.name in named]
    assert result
    return result


def test_params_cast_to_bfloat16_give_bfloat16_from_float32_statistics():
    params, encode, decode = tiny("jax").functional()
    params, x, z = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, jnp.asarray(X), jnp.asarray(Z)))
    posterior, pictures = jax.eval_shape(encode, params, x).latent_dist, jax.eval_shape(decode, params, z).sample
    assert posterior.parameters.dtype == pictures.dtype == jnp.bfloat16
    for function, argument in ((encode, x), (decode, z)):
        sums = traced(function, params, argument, named=("reduce_sum", "reduce_max"))
        assert {eqn.invars[0].aval.dtype.name for eqn in sums} == {"float32"}
        products = traced(function, params, argument, named=("conv_general_dilated",))
        assert {eqn.outvars[0].aval.dtype.name for eqn in products} == {"bfloat16"}


def test_a_bfloat16_posterior_has_float32_statistics_and_bfloat16_samples():
    posterior = DiagonalGaussian(MOMENTS.astype(jnp.bfloat16))
    assert posterior.mean.dtype == posterior.sample(seed=1).dtype == jnp.bfloat16
    assert posterior.std.dtype == posterior.kl().dtype == jnp.float32


def test_the_norm_of_a_bfloat16_map_far_from_zero_is_exact_to_its_last_rounding():
    """Mean 100, deviation 1: statistics in bfloat16 would be off by 0.4."""
    x = jnp.asarray(100 + uniform("x", (1, 8, 8, 8), -2, 2), jnp.bfloat16)
    one, zero = jnp.ones(8, jnp.bfloat16), jnp.zeros(8, jnp.bfloat16)
    normalized = tiny("jax")._model.ops.group_norm(x, one, zero, groups=1, eps=1e-6)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean()) / exact.std()
    assert normalized.dtype == jnp.bfloat16
    assert_within(np.asarray(normalized, np.float64), exact, EPS["bfloat16"] * abs(exact) + 1e-4)


@pytest.mark.parametrize("name", first(1, ["gelu", "sd", "kl-f16"]))
def test_float64_is_the_specification(name):
    config = CONFIGS[name]
    x, reference = images(config, 32, 16), model(name)
    moments = reference.encode(x).latent_dist.parameters
    z = uniform("z", (1, config.latent_channels, 2, 1))
    with jax.enable_x64(True):
        ours = model(name, "jax", "float64")
        assert relative_l2(ours.encode(x).latent_dist.parameters, moments) <= EXACT["float64"]
        assert relative_l2(ours.decode(z).sample, reference.decode(z).sample) <= EXACT["float64"]


def test_float64_is_refused_if_jax_has_none():
    words = r"JAX makes float64 float32: jax\.config\.update\('jax_enable_x64', True\) comes first"
    with pytest.raises(BackendError, match=words):
        tiny("jax", "float64")
    with jax.enable_x64(True):
        made_inside = tiny("jax", "float64")
    for x in (X, jnp.asarray(X)):
        with pytest.raises(BackendError, match=words):
            made_inside.encode(x)


@pytest.mark.parametrize("processor", ["sdpa", "eager", "chunked", "fused", "lora"])
@pytest.mark.parametrize(("precision", "expected"), [("highest", (jax.lax.Precision.HIGHEST,) * 2), ("default", None)])
def test_the_precision_of_the_model_is_that_of_every_product(precision, expected, processor):
    careful = AutoencoderKL.from_config(TINY, backend="jax", device="cpu", precision=precision)
    careful.set_attn_processor(processor)
    params, encode, decode = careful.functional()
    gradient = jax.grad(lambda params, z: (decode(params, z).sample ** 2).sum())
    for function, argument in ((encode, X), (decode, Z), (gradient, Z)):
        products = traced(function, params, argument, named=("conv_general_dilated", "dot_general"))
        assert {eqn.primitive.name for eqn in products} == {"conv_general_dilated", "dot_general"}
        assert {eqn.params["precision"] for eqn in products} == {expected}


# -- compilation -------------------------------------------------------------------------------------------------


def test_each_shape_of_each_architecture_is_traced_once(monkeypatch):
    """Layers run in Python only while JAX traces them; this config is of no other test."""
    config = narrow((4, 8), layers_per_block=1, norm_num_groups=2)
    calls, conv2d = [], JaxOps.conv2d
    monkeypatch.setattr(JaxOps, "conv2d", lambda *args, **options: calls.append(1) or conv2d(*args, **options))
    encoder_convs = sum(row.role == "conv" and "decoder" not in name for name, row in parameters(config).items()) - 1

    def traces(model, height: int, dtype: str = "float32") -> float:
        calls.clear()
        model.encode(images(config, height, 8).astype(dtype))
        return len(calls) / encoder_convs  # all but post_quant_conv

    first = tiny("jax", precision="highest", config=config)
    assert [traces(first, height) for height in (8, 8, 12, 8)] == [1, 0, 1, 0]
    assert traces(first, 8, "float64") == 0  # the model's own dtype is what counts
    second = AutoencoderKL.from_config(config, seed=1, backend="jax", device="cpu", precision="highest")
    assert traces(second, 8) == 0
    assert [traces(first.to(dtype="bfloat16"), 8), traces(first, 8)] == [1, 0]
    second.set_attn_processor("eager")
    assert [traces(second, 8), traces(second, 8)] == [1, 0]
    second.set_attn_processor("sdpa")
    assert traces(second, 8) == 0


# -- memory ------------------------------------------------------------------------------------------------------


def aligned(a: np.ndarray) -> np.ndarray:
    """A copy that begins at a multiple of 64 bytes, so that JAX could share its memory."""
    memory = np.empty(a.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    copy[:] = a
    return copy


def test_changing_numpy_arrays_after_a_call_changes_nothing():
    weights = {name: aligned(a.astype(np.float32)) for name, a in oracle("attention-everywhere")[1].items()}
    vae = AutoencoderKL(CONFIGS["attention-everywhere"], weights, backend="jax", device="cpu")
    before = np.array(vae.encode(X).latent_dist.parameters)
    given = aligned(X)
    entered, placed = vae._model.ops.from_numpy(given), asarray_like(MOMENTS, given)  # images, and noise
    for a in (*weights.values(), given):
        a[:] = 0
    np.testing.assert_array_equal(vae.encode(X).latent_dist.parameters, before)
    np.testing.assert_array_equal(entered, X)
    np.testing.assert_array_equal(placed, X)


def test_results_as_numpy_cannot_be_written_to():
    vae = tiny("jax")
    assert not vae.to_numpy(vae.decode(Z).sample).flags.writeable
