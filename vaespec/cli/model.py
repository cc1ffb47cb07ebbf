"""The model that the options ask for."""

from __future__ import annotations

from vaespec import autoencoder, families
from vaespec.autoencoder import AutoencoderKL
from vaespec.cli.console import progress
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError
from vaespec.reference import ReferenceOps
from vaespec.registry import choose_backend, make_ops


def open_model(
    weights: str, family: str | None, backend: str | None, device: str | None, dtype: str, precision: str
) -> AutoencoderKL:
    """Weights on a backend, as `vaespec.load`."""
    with progress(f"loading {weights}"):
        return autoencoder.load(
            weights, family=family, backend=backend, device=device, dtype=dtype, precision=precision
        )


def chosen_ops(backend: str | None, device: str | None, dtype: str, precision: str) -> ReferenceOps:
    """The operations that a model on that backend would be computed with."""
    return make_ops(choose_backend(backend), device, dtype, precision)


def require_scale(config: AutoencoderConfig, weights: str, instead: str = "") -> None:
    """InputError unless the config says how latents are scaled for a diffusion model."""
    if config.scaling_factor is None and config.patch_size is None:
        told = families.scaling_candidates(config)
        raise InputError(f"the scaling factor of {weights} is not known: {told}. Give --family{instead}.")


def described(vae: AutoencoderKL) -> str:
    """The backend, device and dtype, in words."""
    return f"{vae.backend} on {vae.device or 'cpu'}, {vae.dtype}"
