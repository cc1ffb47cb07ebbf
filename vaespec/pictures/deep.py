"""Pixels of more than 8 bits: PNG and TIFF of 16 bits, TIFF of floats. Pillow keeps them only if they are grey."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vaespec.errors import InputError
from vaespec.pictures import tiff
from vaespec.pictures.rotation import orientation
from vaespec.pictures.values import FLOAT, SIXTEEN, opaque

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow's name for the pixels of a PNG -> the names by which it gives their upper and their lower bytes. Those of grey
# and alpha it gives as they are, four bytes, as if they were RGBA.
BYTES = {"RGB;16B": ("RGB;16B", "RGB;16L"), "RGBA;16B": ("RGBA;16B", "RGBA;16L"), "LA;16B": ("RGBA",)}
FAR = 16  # times white: beyond, floats are more likely counted to 255 or 65535 than a very bright light

Strips = Iterator[tuple[int, np.ndarray]]  # the first row, and samples (rows, W, 1 to 4): grey, RGB, alpha last


@dataclass(frozen=True)
class Opened:
    """The size (width, height) and the rotation of pixels that can be read, and the pixels before that rotation."""

    size: tuple[int, int]
    orientation: int
    strips: Strips


class Deep(Protocol):
    """Pixels of more than 8 bits in a picture whose header was read."""

    @property
    def dtype(self) -> np.dtype:
        """uint16, or float32 in which 1 is white."""

    @property
    def memory(self) -> int:
        """Bytes to hold while they are read, besides the result."""

    def open(self, rows: int, transparent: Any) -> Opened:
        """Starts to read: strips of `rows`, or as the file has them. `transparent` is a value or colour, or None."""


def deep(picture: Any) -> Deep | None:
    """The picture's deep pixels, if it has any, and if they were not read before and reduced to 8 bits."""
    tiles = getattr(picture, "tile", None)  # what is still in the file, and Pillow's name for its form
    if tiles and picture.format == "TIFF" and (layout := tiff.layout(picture.tag_v2)):
        return _Tiff(picture.fp, layout)
    if tiles and picture.format == "PNG" and str(tiles[0][3]) in BYTES and picture.tell() == 0:
        return _Png(picture, BYTES[str(tiles[0][3])])
    if picture.mode == "F" and picture.format == "TIFF":
        return _Grey(picture, FLOAT)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM"):  # scaled to 16 bits
        return _Grey(picture, SIXTEEN)
    return None


@dataclass(frozen=True)
class _Tiff:
    file: Any
    layout: tiff.Layout

    @property
    def dtype(self) -> np.dtype:
        return self.layout.kept

    @property
    def memory(self) -> int:
        return self.layout.memory

    def open(self, rows: int, transparent: Any) -> Opened:
        strips = tiff.strips(self.layout, self.file)
        return Opened(self.layout.size, self.layout.orientation, _checked(strips))


@dataclass(frozen=True)
class _Png:
    """Read once for the upper and once for the lower bytes, since Pillow has no pixels of three times 16 bits."""

    picture: Any
    names: tuple[str, ...]

    dtype = SIXTEEN

    @property
    def memory(self) -> int:
        width, height = self.picture.size
        return 4 * width * height * len(self.names)

    def open(self, rows: int, transparent: Any) -> Opened:
        parts = [self._read(name) for name in self.names]
        return Opened(parts[0].size, orientation(parts[0]), self._strips(parts, rows, transparent))

    def _read(self, name: str) -> Image:
        from PIL.PngImagePlugin import PngImageFile

        place = self.picture.fp.tell()
        self.picture.fp.seek(0)
        again = PngImageFile(self.picture.fp)
        again.tile = [tile._replace(args=name) for tile in again.tile]
        again.load()
        self.picture.fp.seek(place)
        return again

    def _strips(self, parts: list[Image], rows: int, transparent: Any) -> Strips:
        for top, *strips in _crops(parts, rows):
            if len(strips) == 1:
                yield top, strips[0].view(">u2").astype(SIXTEEN)
            else:
                yield top, _with_key(strips[0].astype(SIXTEEN) << 8 | strips[1], transparent)


@dataclass(frozen=True)
class _Grey:
    """As Pillow has them in memory."""

    picture: Image
    dtype: np.dtype

    @property
    def memory(self) -> int:
        width, height = self.picture.size
        return (2 if self.picture.mode.startswith("I;16") else 4) * width * height

    def open(self, rows: int, transparent: Any) -> Opened:
        self.picture.load()
        return Opened(self.picture.size, orientation(self.picture), _checked(self._strips(rows, transparent)))

    def _strips(self, rows: int, transparent: Any) -> Strips:
        for top, strip in _crops([self.picture], rows):
            yield top, _with_key(strip.astype(self.dtype)[..., None], transparent)


def _crops(pictures: list[Image], rows: int) -> Iterator[tuple[Any, ...]]:
    width, height = pictures[0].size
    for top in range(0, height, rows):
        box = (0, top, width, min(height, top + rows))
        yield top, *(np.asarray(picture.crop(box)) for picture in pictures)


def _with_key(samples: np.ndarray, transparent: Any) -> np.ndarray:
    """Grey or RGB with an alpha channel in which one value or colour is transparent."""
    if transparent is None or samples.dtype == FLOAT or samples.shape[2] % 2 == 0:
        return samples
    alpha = opaque(samples)
    alpha[(samples == np.array(transparent)).all(axis=2)] = 0
    return np.concatenate((samples, alpha), axis=2)


def _checked(strips: Strips) -> Strips:
    """The strips. Raises InputError for floats that are not finite, or far from the range in which 1 is white."""
    for top, samples in strips:
        if samples.dtype == FLOAT and not (largest := float(np.max(np.abs(samples), initial=0))) <= FAR:
            if not np.isfinite(largest):
                raise InputError("the picture has NaN or infinite numbers among its floats: give finite numbers.")
            raise InputError(
                f"the picture has floats up to {largest:.6g}, but 1 is white: scale them to 0..1, e.g. divide by 255."
            )
        yield top, samples
