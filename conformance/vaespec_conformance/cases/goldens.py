"""Goldens: float64 results of diffusers for the suite's models, stored in a file, so that diffusers is not needed.

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
from vaespec_conformance.cases.models import CONFIGS

FILE = Path(__file__).with_name("goldens.npz")
SIZES = {
    name: (5, 7) if name == "plain" else {2: (6, 8), 3: (12, 16), 4: (16, 32)}[config.levels]
    for name, config in CONFIGS.items()
}
"""Image sizes in px; latents are ⌊n / f⌋. Other checks use the same sizes, so that nothing is compiled for these."""


def uniform(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Multiples of 2⁻⁷ in [-1, 1), which every dtype represents exactly; float64."""
    bits = np.random.Philox(key=zlib.crc32(key.encode())).random_raw(math.prod(shape))
    return ((bits >> np.uint64(56)) * 2.0**-7 - 1.0).reshape(shape)


def golden_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Canonical weights by names and shapes; no norm is the identity.

    They are exact in every dtype but bfloat16, whose eight bits do not hold the nine of scales and variances.
    """
    return {name: _weight(name, shape) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name == "bn.num_batches_tracked":
        return np.array(7.0)
    drawn = uniform(name, shape)
    if name.endswith(("bias", "mean")):
        return bias_of(drawn)
    return scale_of(drawn) if len(shape) == 1 else kernel_of(drawn, math.prod(shape[1:]))


def bias_of(drawn: np.ndarray) -> np.ndarray:
    """Biases, shifts and means in [-¼, ¼)."""
    return drawn / 4


def scale_of(drawn: np.ndarray) -> np.ndarray:
    """Scales and variances in [½, 1)."""
    return (drawn + 3) / 4


def kernel_of(drawn: np.ndarray, fan_in: int) -> np.ndarray:
    """A kernel with a variance of about 1 / fan-in, by a factor that is a power of two."""
    return drawn * 2.0 ** round(0.5 * math.log2(3.6 / fan_in))


def golden_images(name: str) -> np.ndarray:
    """Images (2, C, H, W)."""
    return uniform(f"images {name}", (2, CONFIGS[name].in_channels, *SIZES[name]))


def golden_latents(name: str) -> np.ndarray:
    """Latents (2, C, h, w)."""
    config: AutoencoderConfig = CONFIGS[name]
    size = (n // config.downsampling_factor for n in SIZES[name])
    return 2 * uniform(f"latents {name}", (2, config.latent_channels, *size))


@cache
def goldens() -> dict[str, np.ndarray]:
    """The arrays by name, "plain/moments", "plain/decoded" …, and the "version" of diffusers."""
    with np.load(FILE) as file:
        return dict(file)
