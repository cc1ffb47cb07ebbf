"""Shared by the tests of MLX: a narrow model's pictures, latents and loss as MLX's arrays."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from support.configs import TINY, images, narrow, uniform

from vaespec_mlx.ops import MlxOps

OPS = MlxOps("cpu", "float32")
WIDE = narrow((32, 64), layers_per_block=1, norm_num_groups=8)
"""Its attention is 64 wide: as wide as a group of nn.quantize."""


each_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])


def pictures(config=TINY, batch: int = 2) -> mx.array:
    return OPS.from_numpy(images(config, 16, 24, batch))


def noise(config=TINY) -> mx.array:
    return OPS.from_numpy(uniform("latents", (2, config.latent_channels, 3, 5), -2, 2))


def loss(encode, decode, x):
    """½ · MSE + 10⁻⁶ · KL, in operations that every framework's arrays have."""
    posterior = encode(x).latent_dist
    difference = decode(posterior.mode()).sample - x
    return 0.5 * (difference * difference).mean() + 1e-6 * posterior.kl().mean()


def functional_loss(params, encode, decode, x):
    return loss(partial(encode, params), partial(decode, params), x)


def module_loss(module, x):
    return loss(module.encode, module.decode, x)


def named(tree) -> dict[str, mx.array]:
    return dict(tree_flatten(tree))
