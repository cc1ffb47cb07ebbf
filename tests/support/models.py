"""Small models on a backend, and their results as NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from support.configs import CONFIGS, TINY
from support.oracle import oracle

from vaespec import AutoencoderConfig, AutoencoderKL, BackendError, ReferenceOps, backends
from vaespec.registry import get_backend, make_ops

BACKENDS = tuple(info.name for info in backends() if info.distribution == "vaespec" and info.name != "reference")
"""The adapters; tests/backends/test_namespaces.py has the reference, and other namespaces of the Array API."""
NATIVE = {name: "default" if name == "numpy" else "highest" for name in BACKENDS}
"""The precision in which every operation is the framework's own; tests/backends/test_engine.py has the other."""


def native_ops(backend: str, dtype: str) -> ReferenceOps:
    """The operations of a backend on the CPU. Raises BackendError if it does not have the dtype in this process."""
    ops = make_ops(get_backend(backend), "cpu", dtype, NATIVE[backend])
    ops.from_numpy(np.zeros(1))  # JAX has float64 only if a process enables it
    return ops


def finest(backend: str) -> str:
    """The widest dtype of a backend in this process: the dtype to compare in."""
    try:
        return native_ops(backend, "float64").dtype
    except BackendError:
        return "float32"


FINEST = {name: finest(name) for name in BACKENDS}
EXACT = {"float64": 1e-13, "float32": 2e-6}
"""The largest relative L2 distance of a model from the specification in float64."""

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def model(name: str = "sd", backend: str = "numpy", dtype: str | None = None) -> AutoencoderKL:
    """A named config with the oracle's weights, in the finest dtype of the backend, computed by its own operations."""
    options = {"dtype": dtype or FINEST[backend], "precision": NATIVE[backend]}
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
    owners = (native_ops(backend, "float32") for backend in BACKENDS)
    ops = next((ops for ops in owners if ops.is_array(x)), None)
    return np.array(x if ops is None else ops.to_numpy(x), np.float64)
