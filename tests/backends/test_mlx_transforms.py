"""MLX's transforms: grad, compile and vmap of the model's functions."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from support.configs import CONFIGS, EPS, assert_within, images, relative_l2
from support.mlx_models import OPS, functional_loss, noise, pictures
from support.models import EXACT, array, model, tiny


@pytest.mark.parametrize("name", ["sd", "flux2", "attention-everywhere", "gelu", "mish", "relu"])
def test_gradients_are_those_of_torch_in_float64(name):
    """Encode and decode are each within EXACT of the specification, and the way back through them as much again."""
    result = {}
    for backend, grad in (("mlx", mx.grad), ("torch", torch.func.grad)):
        vae = model(name, backend)
        params, encode, decode = vae.functional()
        grads = grad(functional_loss)(params, encode, decode, vae._model.ops.from_numpy(images(CONFIGS[name], 16, 24)))
        assert grads.keys() == params.keys()
        result[backend] = vae._model.ops.export_params(grads, vae._model.table())
    mine, theirs = (np.concatenate([result[backend][key].ravel() for key in result["torch"]]) for backend in result)
    assert relative_l2(mine, theirs) <= 4 * EXACT["float32"]


def test_gradients_pass_through_the_model_itself():
    """Its evaluations do not cut them."""
    vae, z = tiny("mlx", precision="highest"), noise()
    params, _, decode = vae.functional()
    expected = mx.grad(lambda z: decode(params, z).sample.square().sum())(z)
    result = mx.grad(lambda z: vae.decode(z).sample.square().sum())(z)
    assert float(mx.abs(expected).max()) > 0
    assert relative_l2(array(result), array(expected)) <= EXACT["float32"]


def test_the_gradient_of_relu_is_zero_at_zero():
    """As in torch."""
    grad = mx.grad(lambda x: OPS.relu(x).sum())(mx.array([-1.0, -0.0, 0.0, 1.0]))
    assert grad.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("op", ["silu", "mish", "gelu", "relu"])
def test_gradients_of_activations_are_those_of_torch_at_every_magnitude(op):
    """Derivatives are of size 1; gelu's come from e^(-x² / 2), whose error is some roundings of x² / 2 ≤ 104."""
    magnitudes = np.concatenate((np.geomspace(1e-38, 1e4, 500), [88.0, 89.0, 104.0, 3e38])).astype(np.float32)
    x = np.concatenate((magnitudes, -magnitudes))
    result = mx.grad(lambda x: getattr(OPS, op)(x).sum())(mx.array(x))
    exact = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    getattr(torch.nn.functional, op)(exact).sum().backward()
    assert_within(array(result), exact.grad.numpy(), 8 * EPS["float32"])


def test_gradients_of_a_constant_map_are_finite():
    x, weight = mx.full((1, 4, 4, 8), 3.1), mx.ones(8)
    grad = mx.grad(lambda x: OPS.group_norm(x, weight, weight, groups=4, eps=1e-6).square().sum())(x)
    assert mx.isfinite(grad).all()


def test_compiled_functions_give_the_same_arrays():
    """mx.compile returns arrays, so the posterior is created again from its parameters."""
    vae = model("attention-everywhere", "mlx")
    params, encode, decode = vae.functional()
    module = vae.module()
    x = pictures()
    z = vae.encode(x).latent_dist.mode()
    functions = {
        lambda x: encode(params, x).latent_dist.parameters: x,
        lambda z: decode(params, z).sample: z,
        lambda x: module.encode(x).latent_dist.parameters: x,
        lambda z: module.decode(z).sample: z,
    }
    for function, argument in functions.items():
        result = mx.compile(function)(argument)
        assert relative_l2(array(result), array(function(argument))) <= EXACT["float32"]


def test_the_params_of_a_compiled_function_are_an_argument():
    vae, z = tiny("mlx"), noise()
    params, _, decode = vae.functional()
    compiled = mx.compile(lambda params, z: decode(params, z).sample)
    for scale in (1.0, 0.5):
        scaled = {name: scale * p for name, p in params.items()}
        assert relative_l2(array(compiled(scaled, z)), array(decode(scaled, z).sample)) <= EXACT["float32"]


def test_vmap_adds_an_axis():
    vae, z = tiny("mlx"), noise()
    params, _, decode = vae.functional()
    mapped = mx.vmap(lambda z: decode(params, z[None]).sample[0])(z)
    assert relative_l2(array(mapped), array(vae.decode(z).sample)) <= EXACT["float32"]
