"""How a picture of any size is fitted to a model that halves it a few times."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from vaespec.config import AutoencoderConfig

if TYPE_CHECKING:
    from PIL.Image import Image


class Pad(StrEnum):
    """What to do with a size that is no multiple of f."""

    FLOOR = "floor"  # nothing: each level floors, the last rows and columns are dropped (as diffusers 0.42)
    EDGE = "edge"  # repeat the last row and column, below and to the right; crop after decoding


def grid(config: AutoencoderConfig) -> tuple[int, int]:
    """The (height, width) that sizes must be multiples of: f px, times the patch of FLUX.2."""
    p1, p2 = config.patch_size or (1, 1)
    return config.downsampling_factor * p1, config.downsampling_factor * p2


def framed_size(height: int, width: int, config: AutoencoderConfig, pad: Pad) -> tuple[int, int]:
    """The size the encoder is given."""
    if pad is Pad.FLOOR:
        return height, width
    rows, columns = grid(config)
    return -(-height // rows) * rows, -(-width // columns) * columns


def frame(picture: Image, config: AutoencoderConfig, pad: Pad) -> Image:
    """A picture -> the picture the encoder is given."""
    from PIL import Image

    height, width = framed_size(picture.height, picture.width, config, pad)
    missing = (0, height - picture.height), (0, width - picture.width), (0, 0)
    if not any(map(any, missing)):
        return picture
    return Image.fromarray(np.pad(np.asarray(picture), missing, mode="edge"))


def latent_shape(height: int, width: int, config: AutoencoderConfig, pad: Pad, normalized: bool) -> tuple[int, ...]:
    """(C, h, w) of the picture's latents; normalising patchifies those of FLUX.2."""
    f = config.downsampling_factor
    h, w = (side // f for side in framed_size(height, width, config, pad))
    p1, p2 = (config.patch_size or (1, 1)) if normalized else (1, 1)
    return config.latent_channels * p1 * p2, h // p1, w // p2
