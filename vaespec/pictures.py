"""Pictures of Pillow <-> arrays in [-1, 1]. Pillow is imported only when a picture is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vaespec.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


def is_picture(x: Any) -> bool:
    """Whether x is a Pillow image; asks its class, so that Pillow need not be there."""
    return any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in type(x).__mro__)


class Pixels:
    """Pictures of one size, kept in 8 bits: arrays (B, 3, H, W) float32 in [-1, 1] where they are looked at.

    v / 127.5 - 1 of their `as_rgb`. InputError for pictures of several sizes.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, pictures: Sequence[Image]) -> None:
        pictures = [as_rgb(picture) for picture in pictures]
        sizes = {picture.size for picture in pictures}
        if len(sizes) > 1:
            raise InputError(f"pictures of sizes {sorted(sizes)} in one batch: give one size at a time.")
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
    """The picture as it is to be seen: turned as its EXIF says, transparency on white, 8 bits per channel."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F"):
        raise InputError(
            f"a picture of Pillow's mode {picture.mode!r} has no known white: give 8 or 16 bits per channel."
        )
    if picture.mode.startswith("I;16"):  # Pillow would clip at 255
        return Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def to_pixels(images: np.ndarray) -> np.ndarray:
    """(B, C, H, W) about [-1, 1] -> (B, H, W, C) uint8: clipped, then rounded."""
    scaled = np.clip(images.astype(np.float32), -1.0, 1.0) * np.float32(127.5) + np.float32(127.5)
    return np.rint(scaled).astype(np.uint8).transpose(0, 2, 3, 1)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures, dB: 10 log₁₀(255² / mean squared difference)."""
    squares = sum(int(np.sum((one.astype(np.int64) - other) ** 2)) for one, other in zip(a, b, strict=True))
    return float("inf") if squares == 0 else float(10.0 * np.log10(255.0**2 * a.size / squares))
