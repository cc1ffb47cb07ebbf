"""Small models on a backend, and their results as NumPy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch
from support.configs import CONFIGS, TINY
from support.oracle import oracle

from vaespec import AutoencoderConfig, AutoencoderKL

BACKENDS = ("numpy", "torch", "jax", "mlx")
FINEST = {"numpy": "float64", "torch": "float64", "jax": "float32", "mlx": "float32"}
"""The dtype to compare in. JAX has float64 only if a process enables it, MLX has none."""
NATIVE = {"torch": "highest", "jax": "highest", "mlx": "highest"}
"""The precision in which every operation is the framework's own; tests/backends/test_engine.py has the other."""
EXACT = {"float64": 1e-13, "float32": 2e-6}
"""The largest relative L2 distance of a model from the specification in float64."""

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def model(name: str = "sd", backend: str = "numpy", dtype: str | None = None) -> AutoencoderKL:
    """A named config with the oracle's weights, in the finest dtype of the backend, computed by its own operations."""
    options = {"dtype": dtype or FINEST[backend], "precision": NATIVE.get(backend, "default")}
    return AutoencoderKL(CONFIGS[name], oracle(name)[1], backend=backend, device="cpu", **options)


def tiny(
    backend: str = "numpy",
    dtype: str = "float32",
    config: AutoencoderConfig = TINY,
    *,
    precision: str = "default",
    **fields,
) -> AutoencoderKL:
    options = {"backend": backend, "device": "cpu", "dtype": dtype, "precision": precision}
    return AutoencoderKL.from_config(config.replace(**fields), **options)


def array(x) -> np.ndarray:
    """Any backend's array as NumPy."""
    if isinstance(x, torch.Tensor):
        return x.detach().double().numpy()
    return np.array(x.astype(mx.float32) if isinstance(x, mx.array) else x, np.float64)
