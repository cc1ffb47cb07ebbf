"""The picture and the latents that are computed: functions of the place alone, so that a smaller one is a crop."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

COARSE, FINE = 0.55, 0.35
"""The shares of smooth waves and of noise, so that the picture is within [-1, 1]."""
PRIMES = (73856093, 19349663, 83492791)


def picture(channels: int, height: int, width: int) -> np.ndarray:
    """A picture (1, channels, height, width) in [-1, 1], float32: waves of several lengths, and noise.

    Any two rows, columns or channels differ, so that rows of another place are seen.
    """
    y, x = np.arange(height, dtype=np.uint32)[:, None], np.arange(width, dtype=np.uint32)
    result = np.empty((1, channels, height, width), np.float32)
    for c in range(channels):
        result[0, c] = FINE * _noise(y, x, c)
        result[0, c] += COARSE * np.sin(y / np.float32(23 + 5 * c) + c) * np.cos(x / np.float32(31 + 3 * c) - c)
        result[0, c] += np.float32(0.1) * np.sin((y + 2 * x) / np.float32(401))
    return result


def latents(channels: int, height: int, width: int, scale: Scale) -> np.ndarray:
    """Latents (1, channels, height, width) of the mean and the deviation that `scale` gives, of each channel."""
    waves = picture(channels, height, width)
    return (scale.mean + scale.deviation * waves / np.float32(0.35)).astype(np.float32)  # 0.35: that of the waves


class Scale(NamedTuple):
    """The mean and the deviation of latents: of each channel (1, C, 1, 1), or of all."""

    mean: np.ndarray | float
    deviation: np.ndarray | float

    @classmethod
    def of(cls, moments: np.ndarray) -> Scale:
        """The scale of an encoder's means; `moments` are (1, 2 C, h, w)."""
        mean = np.split(moments, 2, axis=1)[0]
        return cls(mean.mean((0, 2, 3), keepdims=True), mean.std((0, 2, 3), keepdims=True))


def _noise(y: np.ndarray, x: np.ndarray, channel: int) -> np.ndarray:
    """Numbers in [-1, 1) that have no pattern, from the place of each (an integer hash)."""
    mixed = y * np.uint32(PRIMES[0]) ^ x * np.uint32(PRIMES[1]) ^ np.uint32(channel * PRIMES[2] % 2**32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        mixed = (mixed ^ mixed >> np.uint32(shift)) * np.uint32(factor)
    return (mixed >> np.uint32(8)).astype(np.float32) / 2**23 - 1
