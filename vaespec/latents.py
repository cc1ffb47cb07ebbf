"""Conversions between the encoder's latents and the latents that a diffusion model is trained on.

Three conventions: scale and shift (SD, SDXL, SD3, FLUX.1), per-channel mean and standard deviation (Playground v2.5),
patchify and batch-norm (FLUX.2). The config says which one; an unknown scale raises ConfigError, it is never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from array_api_compat import array_namespace

from vaespec import families
from vaespec.arrays import asarray_like
from vaespec.config import AutoencoderConfig
from vaespec.dtypes import narrow, widen
from vaespec.errors import ConfigError, InputError
from vaespec.ops import Array


def normalize(z: Array, config: AutoencoderConfig, statistics: Mapping[str, Array]) -> Array:
    """Latents (B, C, h, w) of the encoder -> latents of about unit variance for the diffusion model.

    `statistics` holds bn.running_mean and bn.running_var (C · p₁ · p₂,) for FLUX.2, and is not read for the others.
    FLUX.2's result is (B, C · p₁ · p₂, h / p₁, w / p₂).
    """
    xp = array_namespace(z)
    patches = z if config.patch_size is None else patchify(z, config.patch_size)
    with np.errstate(all="ignore"):  # what is not finite is the caller's to report
        offset, spread = _affine(z, config, statistics)
        return narrow((widen(patches, xp) - offset) / spread, z, xp)


def denormalize(z: Array, config: AutoencoderConfig, statistics: Mapping[str, Array]) -> Array:
    """The inverse of `normalize`."""
    xp = array_namespace(z)
    with np.errstate(all="ignore"):
        offset, spread = _affine(z, config, statistics)
        patches = narrow(widen(z, xp) * spread + offset, z, xp)
    return patches if config.patch_size is None else unpatchify(patches, config.patch_size)


def _affine(z: Array, config: AutoencoderConfig, statistics: Mapping[str, Array]) -> tuple[Array, Array]:
    """(offset, spread) such that the diffusion model sees (z - offset) / spread; arrays are float32 or wider."""
    xp = array_namespace(z)
    if config.patch_size is not None:
        assert config.batch_norm_eps is not None  # the config checked it
        if "bn.running_mean" not in statistics:
            raise InputError(
                "these weights are half of a model, without bn.running_mean and bn.running_var, which normalize the "
                "latents: load the whole model, or add them from its weights()."
            )
        mean, var = (widen(statistics[f"bn.{name}"], xp) for name in ("running_mean", "running_var"))
        return _per_channel(mean), _per_channel(xp.sqrt(var + config.batch_norm_eps))
    if config.scaling_factor is None:
        raise ConfigError(
            f"the scaling factor of these weights is not known: {families.scaling_candidates(config)}; pass family=, "
            "or scaling_factor= in the config."
        )
    if config.latents_mean is not None and config.latents_std is not None:
        wide = np.float64 if z.dtype == xp.float64 else np.float32
        mean, std = (asarray_like(z, np.array(values, wide)) for values in (config.latents_mean, config.latents_std))
        return _per_channel(mean), _per_channel(std) / config.scaling_factor
    return config.shift_factor or 0.0, 1.0 / config.scaling_factor


def _per_channel(values: Array) -> Array:
    return values[None, :, None, None]


def patchify(z: Array, patch: tuple[int, int]) -> Array:
    """(B, C, h, w) -> (B, C · p₁ · p₂, h / p₁, w / p₂); channel c·p₁·p₂ + dy·p₂ + dx (as in diffusers 0.42)."""
    (B, C, h, w), (p1, p2) = z.shape, patch
    if h % p1 or w % p2:
        raise InputError(f"latents of {h} x {w} cannot be cut into {p1} x {p2} patches: crop or pad the images first.")
    xp = array_namespace(z)
    z = xp.reshape(z, (B, C, h // p1, p1, w // p2, p2))
    return xp.reshape(xp.permute_dims(z, (0, 1, 3, 5, 2, 4)), (B, C * p1 * p2, h // p1, w // p2))


def unpatchify(z: Array, patch: tuple[int, int]) -> Array:
    """The inverse of `patchify`."""
    (B, C, h, w), (p1, p2) = z.shape, patch
    xp = array_namespace(z)
    z = xp.reshape(z, (B, C // (p1 * p2), p1, p2, h, w))
    return xp.reshape(xp.permute_dims(z, (0, 1, 4, 2, 5, 3)), (B, C // (p1 * p2), h * p1, w * p2))
