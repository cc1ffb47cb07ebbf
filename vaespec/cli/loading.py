"""The model that a command runs, as its options choose it."""

from __future__ import annotations

import numpy as np

from vaespec import autoencoder, families
from vaespec.autoencoder import AutoencoderKL
from vaespec.cli.console import progress
from vaespec.cli.options import padding_of
from vaespec.config import AutoencoderConfig
from vaespec.dtypes import dtype_name
from vaespec.errors import InputError
from vaespec.model import Model
from vaespec.registry import choose_backend, make_ops
from vaespec.tiling.settings import Tiling
from vaespec.weights.load import Loaded, load_weights


def open_weights(weights: str, family: str | None, strict: bool = True) -> Loaded:
    """Reads the header of weights, and checks that a model has these names and shapes."""
    with progress(f"opening {weights}"):
        return load_weights(autoencoder.locate(weights), family, strict=strict)


def outline(
    opened: Loaded, backend: str | None, device: str | None, dtype: str | None, precision: str, padding: str = "zeros"
) -> Model:
    """The model that `place` will return, without weights."""
    ops = make_ops(choose_backend(backend), device, dtype and dtype_name(dtype), precision)
    ops.from_numpy(np.zeros(1, np.float32))  # with its first array a framework takes memory, which plans have to count
    return Model.outline(*opened, Tiling(padding=padding_of(padding)).padded(ops))


def place(
    weights: str,
    opened: Loaded,
    backend: str | None,
    device: str | None,
    dtype: str | None,
    precision: str,
    padding: str = "zeros",
) -> AutoencoderKL:
    """Reads weights to a backend."""
    with progress(f"loading {weights}"):
        vae = AutoencoderKL(*opened, backend=backend, device=device, dtype=dtype, precision=precision)
    vae.set_padding(padding_of(padding))
    return vae


def open_model(
    weights: str,
    family: str | None,
    backend: str | None,
    device: str | None,
    dtype: str | None,
    precision: str,
    strict: bool = True,
    padding: str = "zeros",
) -> AutoencoderKL:
    """Loads weights on a backend, as `vaespec.load` does."""
    return place(weights, open_weights(weights, family, strict), backend, device, dtype, precision, padding)


def require_scale(config: AutoencoderConfig, weights: str, instead: str) -> None:
    """Raises InputError if the config has no scale of the latents; `instead` is what to do but for --family."""
    if config.scaling_factor is None and config.patch_size is None:
        candidates = families.scaling_candidates(config)
        raise InputError(f"the scaling factor of {weights} is unknown ({candidates}): give --family, or {instead}.")


def placement(vae: AutoencoderKL) -> str:
    """Formats the backend, device and dtype of a model."""
    return f"{vae.backend} on {vae.device or 'cpu'}, {vae.dtype}"
