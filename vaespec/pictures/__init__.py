"""Pillow's pictures <-> arrays in [-1, 1]. Pillow is imported only when there is a picture to convert."""

from vaespec.pictures.pixels import Pixels, SquaredError, is_picture, psnr, to_array, to_pixels
from vaespec.pictures.reading import (
    PictureWarning,
    as_pixels,
    as_rgb,
    reading,
    reading_bytes,
    value_bytes,
)
from vaespec.pictures.rotation import header_size
from vaespec.pictures.values import CHANNELS, DEPTHS, WHITE

__all__ = [
    "CHANNELS",
    "DEPTHS",
    "WHITE",
    "PictureWarning",
    "Pixels",
    "SquaredError",
    "as_pixels",
    "as_rgb",
    "header_size",
    "is_picture",
    "psnr",
    "reading",
    "reading_bytes",
    "to_array",
    "to_pixels",
    "value_bytes",
]
