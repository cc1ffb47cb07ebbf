"""The rotation that a picture's EXIF demands."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

    from vaespec.pictures.tiff import FloatTiff

ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap height and width


def header_size(picture: Image | FloatTiff) -> tuple[int, int]:
    """(height, width) as the header says, before any pixel is read: right for a plan, but the pixels may differ."""
    width, height = picture.size
    turned = picture.format != "TIFF" and orientation(picture) in SIDEWAYS  # Pillow has swapped a TIFF's size already
    return (width, height) if turned else (height, width)


def orientation(picture: Any) -> int:
    """The EXIF orientation, 1 to 8: 1, upright, if there is none, or none that can be read."""
    try:
        with quiet():
            value: Any = picture.getexif().get(ORIENTATION)
            return int(value) if value in range(2, 9) else 1
    except Exception:  # a viewer shows the picture all the same
        return 1


def before_rotation(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of (H, W, C) in which the rows and columns are those of the picture before it was rotated."""
    return {
        1: lambda: pixels,
        2: lambda: pixels[:, ::-1],
        3: lambda: pixels[::-1, ::-1],
        4: lambda: pixels[::-1],
        5: lambda: pixels.swapaxes(0, 1),
        6: lambda: np.rot90(pixels),
        7: lambda: pixels[::-1, ::-1].swapaxes(0, 1),
        8: lambda: np.rot90(pixels, -1),
    }[orientation]()


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Pillow's warnings of sizes and of odd metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
