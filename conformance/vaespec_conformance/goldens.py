"""Frozen results of diffusers, in float64, of the models that are examined: they hold without diffusers, and without us.

Weights and inputs come from Philox's raw bits, which NumPy promises never to change, keyed by a name.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from vaespec import AutoencoderConfig
from vaespec_conformance.models import CONFIGS

FILE = Path(__file__).with_name("goldens.npz")
SIZES = {"plain": (7, 10), "attentive": (8, 6), "bare": (12, 17)}
"""Of the images, in px; of the latents, ⌊n / f⌋."""


def uniform(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1), to 2⁻²³, that float32 holds; float64."""
    bits = np.random.Philox(key=zlib.crc32(key.encode())).random_raw(math.prod(shape))
    return ((bits >> np.uint64(40)) * 2.0**-23 - 1.0).reshape(shape)


def golden_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Canonical weights by names and shapes, as float32 holds them; no norm is the identity."""
    return {name: _weight(name, shape).astype(np.float32).astype(np.float64) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    drawn = uniform(name, shape)
    if name.endswith("bias"):
        return 0.3 * drawn
    return 1.0 + 0.5 * drawn if len(shape) == 1 else drawn * math.sqrt(3.6 / math.prod(shape[1:]))


def golden_images(name: str) -> np.ndarray:
    """(1, C, H, W)."""
    return uniform(f"images {name}", (1, CONFIGS[name].in_channels, *SIZES[name]))


def golden_latents(name: str) -> np.ndarray:
    """(1, C, h, w)."""
    config: AutoencoderConfig = CONFIGS[name]
    size = (n // config.downsampling_factor for n in SIZES[name])
    return 2 * uniform(f"latents {name}", (1, config.latent_channels, *size))


@cache
def goldens() -> dict[str, np.ndarray]:
    """ "plain/moments", "plain/decoded" …, and the "version" of diffusers."""
    with np.load(FILE) as file:
        return dict(file)
