"""Pillow's pictures <-> arrays in [-1, 1]. Pillow is imported only when there is a picture to convert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vaespec.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


def is_picture(x: Any) -> bool:
    """Whether x is a Pillow image; looks at the names of its classes, so that Pillow is not imported."""
    return any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in type(x).__mro__)


class Pixels:
    """Pictures of one size, stored in 8 bits; indexing converts that part to float32.

    An array (B, 3, H, W) in [-1, 1]: v / 127.5 - 1 for each value v of `as_rgb`. Raises InputError if sizes differ.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, pictures: Sequence[Image]) -> None:
        pictures = [as_rgb(picture) for picture in pictures]
        sizes = {picture.size for picture in pictures}
        if len(sizes) > 1:
            raise InputError(f"pictures of sizes {sorted(sizes)} in one batch: give pictures of one size.")
        self.values = np.stack([np.asarray(picture) for picture in pictures]).transpose(0, 3, 1, 2)
        self.shape = self.values.shape

    def __getitem__(self, index: Any) -> np.ndarray:
        scaled = self.values[index] / np.float32(127.5)
        scaled -= np.float32(1.0)
        return np.ascontiguousarray(scaled)


def to_array(pictures: Sequence[Image]) -> np.ndarray:
    """Pictures of one size -> (B, 3, H, W) float32 in [-1, 1]."""
    return Pixels(pictures)[...]


def as_rgb(picture: Image) -> Image:
    """The picture as a viewer shows it: rotated as its EXIF says, on white if transparent, 8 bits per channel."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F"):
        raise InputError(
            f"a picture in Pillow's mode {picture.mode!r} has no known white: give 8 or 16 bits per channel."
        )
    if picture.mode.startswith("I;16"):  # Pillow would clip at 255
        return Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def to_pixels(images: np.ndarray) -> np.ndarray:
    """(B, C, H, W), about [-1, 1] -> (B, H, W, C) uint8: clipped, then rounded."""
    scaled = np.clip(images.astype(np.float32), -1.0, 1.0) * np.float32(127.5) + np.float32(127.5)
    return np.rint(scaled).astype(np.uint8).transpose(0, 2, 3, 1)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures, dB: 10 log₁₀(255² / mean squared difference)."""
    squares = sum(int(np.sum((one.astype(np.int64) - other) ** 2)) for one, other in zip(a, b, strict=True))
    return float("inf") if squares == 0 else float(10.0 * np.log10(255.0**2 * a.size / squares))
