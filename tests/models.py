"""Small models on a backend, and their results as NumPy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from configs import CONFIGS, TINY
from oracle import oracle

from vaespec import AutoencoderConfig, AutoencoderKL

BACKENDS = ("numpy", "torch", "jax", "mlx")
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def model(name: str = "sd", backend: str = "numpy", dtype: str = "float64") -> AutoencoderKL:
    """A named config with the oracle's weights."""
    return AutoencoderKL(CONFIGS[name], oracle(name)[1], backend=backend, device="cpu", dtype=dtype)


def tiny(backend: str = "numpy", dtype: str = "float32", config: AutoencoderConfig = TINY, **fields) -> AutoencoderKL:
    return AutoencoderKL.from_config(config.replace(**fields), backend=backend, device="cpu", dtype=dtype)


def array(x) -> np.ndarray:
    """Any backend's array as NumPy."""
    if isinstance(x, torch.Tensor):
        return x.detach().double().numpy()
    return np.array(x.astype(mx.float32) if isinstance(x, mx.array) else x, np.float64)
