"""Gradients of a training loss, ½ · MSE + 1e-6 · KL, with respect to every parameter."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import jax
import mlx.core as mx
import numpy as np
import pytest
import torch
from support.configs import CONFIGS, images, narrow, relative_l2, uniform
from support.depth import first
from support.models import array
from support.oracle import weighted

from vaespec import AutoencoderConfig, AutoencoderKL
from vaespec.layouts import OIHW

FRAMEWORKS = ("torch", "jax", "mlx")
SMALL = narrow((2, 4), (1,), layers_per_block=1, latent_channels=1, norm_num_groups=2)
"""Downsampling, upsampling, attention, a shortcut and both quant convs, in two thousand numbers."""


def loss_of(functional, x, noise):
    """The loss as a function of the params, in any framework."""
    _, encode, decode = functional

    def loss(params):
        posterior = encode(params, x).latent_dist
        pictures = decode(params, posterior.sample(noise=noise)).sample
        return 0.5 * ((pictures - x) ** 2).mean() + 1e-6 * posterior.kl().mean()

    return loss


def torch_grad(loss):
    def grad(params):
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        return dict(zip(leaves, torch.autograd.grad(loss(leaves), leaves.values()), strict=True))

    return grad


GRAD = {"torch": torch_grad, "jax": jax.grad, "mlx": mx.grad}


def drawn(config: AutoencoderConfig) -> tuple[np.ndarray, np.ndarray]:
    """(images, noise)."""
    m = max(4, 2 * config.downsampling_factor)
    x = images(config, m, m, batch=2)
    f = config.downsampling_factor
    return x, uniform("noise", (2, config.latent_channels, m // f, m // f), -1.7, 1.7)


@cache
def gradients(config: AutoencoderConfig, backend: str) -> dict[str, np.ndarray]:
    """By canonical name, in canonical axes."""
    vae = AutoencoderKL(config, weighted(config)[1], backend=backend, device="cpu")
    functional = vae.functional()
    x, noise = (vae._model.ops.from_numpy(a) for a in drawn(config))
    result = GRAD[backend](loss_of(functional, x, noise))(functional.params)
    table = {name: row for name, row in vae._model.table().items() if row.trained}
    return {name: vae._model.ops.layout.convert(array(result[name]), OIHW) for name in table}


@cache
def differences(config: AutoencoderConfig) -> dict[str, np.ndarray]:
    """Central differences of the float64 loss, for every number: error h² / 6 · f‴ + 2⁻⁵³ f / h, about 1e-10.

    PyTorch evaluates it for all numbers of a tensor side by side (vmap); no gradient of anybody's is in it.
    """
    vae = AutoencoderKL(config, weighted(config)[1], backend="torch", device="cpu", dtype="float64")
    vae.set_attn_processor("eager")  # vmap takes PyTorch's own one item at a time
    functional, h, result = vae.functional(), 1e-5, {}
    loss = loss_of(functional, *map(torch.tensor, drawn(config)))
    for name, p in functional.params.items():
        one = torch.func.vmap(lambda moved, name=name: loss({**functional.params, name: moved}))
        steps = h * torch.eye(p.numel(), dtype=p.dtype).reshape(-1, *p.shape)
        result[name] = ((one(p + steps) - one(p - steps)) / (2 * h)).reshape(p.shape).numpy()
    return result


def together(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


def assert_alike(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """To 1e-4, all together and each tensor by itself; if a tensor's gradient cancels, to 1e-6 of the whole."""
    assert one.keys() == other.keys()
    whole = np.linalg.norm(together(other))
    assert relative_l2(together(one), together(other)) <= 1e-4
    for name, expected in other.items():
        off = np.linalg.norm(one[name] - expected)
        assert off <= 1e-4 * np.linalg.norm(expected) + 1e-6 * whole, name


NAMES = ("attention-everywhere", "mish", "sd", "flux1", "flux2", "kl-f16", "gelu", "relu")


@pytest.mark.parametrize("name", first(1, NAMES))
def test_frameworks_agree_on_every_gradient(name):
    result = [gradients(CONFIGS[name], backend) for backend in FRAMEWORKS]
    for one, other in combinations(result, 2):
        assert_alike(one, other)


@pytest.mark.parametrize("backend", FRAMEWORKS)
def test_gradients_are_central_differences_of_the_float64_loss(backend):
    assert_alike(gradients(SMALL, backend), differences(SMALL))
