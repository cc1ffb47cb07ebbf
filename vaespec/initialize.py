"""The initial weights of a new model, drawn as diffusers (that is, PyTorch) draws them."""

from __future__ import annotations

import math

import numpy as np

from vaespec.architecture import parameters
from vaespec.config import AutoencoderConfig
from vaespec.parameter import Parameter


def initialize(config: AutoencoderConfig, seed: int) -> dict[str, np.ndarray]:
    """Canonical float32 weights: kernels and biases U(-1/√fan_in, 1/√fan_in), norms the identity.

    This is PyTorch's default (kaiming_uniform with a = √5; He et al. 2015), which diffusers keeps. A seed gives
    the same weights on every backend.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    return {name: _draw(parameter, name, rng) for name, parameter in parameters(config).items()}


def _draw(parameter: Parameter, name: str, rng: np.random.Generator) -> np.ndarray:
    match parameter.role:
        case "norm_scale":
            return np.ones(parameter.shape, np.float32)
        case "norm_shift":
            return np.zeros(parameter.shape, np.float32)
        case "statistic":  # before any batch: mean 0, variance 1
            return np.full(parameter.shape, 1.0 if name.endswith("running_var") else 0.0, np.float32)
        case "counter":
            return np.zeros(parameter.shape, np.int64)
    bound = 1.0 / math.sqrt(parameter.fan_in)
    return rng.uniform(-bound, bound, parameter.shape).astype(np.float32)
