"""Pictures that were read -> arrays in [-1, 1], and back."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from vaespec.errors import InputError
from vaespec.pictures.reading import PictureWarning, as_pixels, reading
from vaespec.pictures.values import DEPTHS, EIGHT, FLOAT, WHITE, scaled

if TYPE_CHECKING:
    from PIL.Image import Image


def is_picture(x: Any) -> bool:
    """Whether x is a Pillow image; looks at the names of its classes, so that Pillow is not imported."""
    return any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in type(x).__mro__)


class Pixels:
    """Pictures of one size, stored in their depth; indexing converts that part to float32.

    An array (B, channels, H, W), 2 v - 1 for each value v of `as_pixels` that is scaled to white = 1. The greatest
    depth of the pictures counts for all. Warns of what was not kept, and raises InputError if sizes differ.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, pictures: Sequence[Image], channels: int = 3) -> None:
        lines: list[str] = []
        with reading("the input"):
            arrays = [as_pixels(picture, channels, lines.append) for picture in pictures]
        for line in dict.fromkeys(lines):
            warnings.warn(line, PictureWarning, stacklevel=3)
        sizes = {(a.shape[1], a.shape[0]) for a in arrays}
        if len(sizes) > 1:
            raise InputError(f"pictures of sizes {sorted(sizes)} in one batch: give pictures of one size.")
        deepest = max((a.dtype for a in arrays), key=lambda dtype: dtype.itemsize)
        arrays = [scaled(a, deepest) for a in arrays]
        self._store(np.stack(arrays) if len(arrays) > 1 else arrays[0][None])

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """One picture that was read before: (H, W, C) uint8, uint16 or float32, which is not copied."""
        pixels = cls.__new__(cls)
        pixels._store(values[None])
        return pixels

    def _store(self, values: np.ndarray) -> None:
        """Store (B, H, W, C)."""
        self.values = values.transpose(0, 3, 1, 2)
        self.shape = self.values.shape

    def __getitem__(self, index: Any) -> np.ndarray:
        part = self.values[index] / np.float32(WHITE[self.values.dtype] / 2)
        part -= np.float32(1.0)
        return np.ascontiguousarray(part)


def to_array(pictures: Sequence[Image], channels: int = 3) -> np.ndarray:
    """Pictures of one size -> (B, channels, H, W) float32 in [-1, 1]."""
    return Pixels(pictures, channels)[...]


def to_pixels(images: np.ndarray, depth: str = "8") -> np.ndarray:
    """(B, C, H, W), about [-1, 1] -> (B, H, W, C) in a depth of `DEPTHS`.

    "8" and "16": uint8 and uint16, clipped, then rounded. "float": float32, (x + 1) / 2, which is not clipped.
    """
    dtype, images = DEPTHS[depth], images.astype(np.float32)
    if dtype == FLOAT:
        return (images * np.float32(0.5) + np.float32(0.5)).transpose(0, 2, 3, 1)
    half = np.float32(WHITE[dtype] / 2)
    return np.rint(np.clip(images, -1.0, 1.0) * half + half).astype(dtype).transpose(0, 2, 3, 1)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two pictures, dB: 10 log₁₀(white² / mean squared difference)."""
    error = SquaredError()
    error.add(a, b)
    return error.psnr()


class SquaredError:
    """The squared difference of two pictures, of which equal parts are added one after the other.

    Counted in integers if all parts are uint8; else both are floats in which 1 is white.
    """

    def __init__(self) -> None:
        self.sum, self.count, self.white = 0.0, 0, 1

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Adds two parts of one shape."""
        depth = EIGHT if a.dtype == b.dtype == EIGHT else FLOAT
        wide, self.white = (np.int64, 255) if depth == EIGHT else (np.float64, 1)
        for one, other in zip(a, b, strict=True):
            self.sum += np.sum((scaled(one, depth).astype(wide) - scaled(other, depth)) ** 2).item()
        self.count += a.size

    def psnr(self) -> float:
        """The ratio, dB; infinite if there is no difference."""
        return float(10.0 * np.log10(float(self.white) ** 2 * self.count / self.sum)) if self.sum else float("inf")
