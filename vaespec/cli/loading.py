"""The model that a command runs, as its options choose it."""

from __future__ import annotations

from vaespec import autoencoder, families
from vaespec.autoencoder import AutoencoderKL
from vaespec.cli.console import progress
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError


def open_model(
    weights: str,
    family: str | None,
    backend: str | None,
    device: str | None,
    dtype: str,
    precision: str,
    strict: bool = True,
) -> AutoencoderKL:
    """Loads weights on a backend, as `vaespec.load` does."""
    with progress(f"loading {weights}"):
        return autoencoder.load(
            weights, family=family, strict=strict, backend=backend, device=device, dtype=dtype, precision=precision
        )


def require_scale(config: AutoencoderConfig, weights: str, instead: str) -> None:
    """Raises InputError if the config has no scale of the latents; `instead` is what to do but for --family."""
    if config.scaling_factor is None and config.patch_size is None:
        candidates = families.scaling_candidates(config)
        raise InputError(f"the scaling factor of {weights} is unknown ({candidates}): give --family, or {instead}.")


def placement(vae: AutoencoderKL) -> str:
    """Formats the backend, device and dtype of a model."""
    return f"{vae.backend} on {vae.device or 'cpu'}, {vae.dtype}"
