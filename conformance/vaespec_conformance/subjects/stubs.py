"""Methods that a port has in name only, since they raise NotImplementedError whatever they are given."""

from __future__ import annotations

from typing import Any

import numpy as np

from vaespec import AutoencoderConfig
from vaespec_conformance.subjects.capabilities import Sizes, refused_size

TRIED = ((4, 4, 1), (3, 4, 2), (8, 8, 1))
"""Sizes of latents (height, width, batch) in which a method must raise NotImplementedError to be a stub."""


def stub_words(vae: Any, method: str, config: AutoencoderConfig, sizes: Sizes) -> str | None:
    """What a stub says; None if the method answers a call, or raises another exception in one.

    It is called on zeros of a few sizes that the port takes.
    """
    words = f"{method} raised NotImplementedError"
    for size in TRIED:
        if refused_size(sizes, *size) is not None:
            continue
        try:
            getattr(vae, method)(*_arguments(method, config, *size))
        except NotImplementedError as error:
            words = str(error) or words
        except (Exception, SystemExit):  # the checks report it
            return None
        else:
            return None
    return words


def _arguments(method: str, config: AutoencoderConfig, height: int, width: int, batch: int) -> list[np.ndarray]:
    """Arguments of a VAE's method, for latents of this size."""
    latents = np.zeros((batch, config.latent_channels, height, width), np.float32)
    f = config.downsampling_factor
    images = np.zeros((batch, config.in_channels, f * height, f * width), np.float32)
    if method == "sample":
        return [images, latents]
    return [] if method == "weights" else [latents if "decode" in method else images]
