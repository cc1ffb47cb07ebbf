"""Pillow's pictures -> pixels as a viewer shows them: rotated as their EXIF demands, in sRGB, in their depth."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vaespec.errors import InputError, VaespecError
from vaespec.pictures.deep import Opened, deep
from vaespec.pictures.profiles import Conversion, conversion
from vaespec.pictures.rotation import SIDEWAYS, before_rotation, orientation, quiet
from vaespec.pictures.tiff import FloatTiff
from vaespec.pictures.values import EIGHT, SIXTEEN, scaled, with_channels

if TYPE_CHECKING:
    from PIL.Image import Image

STRIP = 1 << 16  # pixels that are converted at one time

# Bytes per pixel that Pillow's decoders hold besides the picture: these need the whole of it at once. Measured.
WHOLE = {"WEBP": 12, "AVIF": 6}
JPEG2000_CHANNEL, PROGRESSIVE_JPEG = 5, 3

STRETCHED = {"L;2": 85, "L;4": 17}  # greys of 2 and 4 bits in a file -> 8 bits in memory


class PictureWarning(UserWarning):
    """Says what was not kept of a picture that is read all the same."""


def _warn(message: str) -> None:
    warnings.warn(message, PictureWarning, stacklevel=3)


def as_rgb(picture: Image | FloatTiff) -> np.ndarray:
    """The picture as `as_pixels` reads it with three channels, in 8 bits: (H, W, 3) uint8."""
    return scaled(as_pixels(picture), EIGHT)


def as_pixels(picture: Image | FloatTiff, channels: int = 3, tell: Callable[[str], None] = _warn) -> np.ndarray:
    """The picture as a viewer shows it: rotated as its EXIF says, its colours converted to sRGB.

    Returns (H, W, channels): uint8, uint16, or float32 in which 1 is white, as deep as the file. 3: RGB, laid on white
    if transparent. 1: grey, of that RGB (Pillow's mode L). 4: RGBA, with alpha as it is, opaque if there is none.
    Damaged EXIF counts as none. `tell` gets a sentence about a colour profile that cannot be used, or only in 8 bits,
    as those of tables. Raises InputError if the white is not known, and Pillow's errors if damaged: `reading`.
    """
    with quiet():
        found, (to_srgb, why) = deep(picture), conversion(picture)
        if found is None:
            opened, dtype = _opened(picture, to_srgb), EIGHT
        else:
            opened, dtype = found.open(_rows(picture), picture.info.get("transparency")), found.dtype
            if to_srgb is not None:
                opened = replace(opened, strips=((top, to_srgb(strip)) for top, strip in opened.strips))
        kept = dtype if to_srgb is None else to_srgb.dtype(dtype)
        pixels = _turned(opened, channels, kept)
    if why:
        tell(f"the picture's colour profile {why}: its colours are taken as sRGB.")
    if kept != dtype:
        kind = "16 bits" if dtype == SIXTEEN else "floats"
        tell(f"the picture's {kind} became 8 bits as its colours became sRGB: to keep them, convert it to sRGB first.")
    return pixels


def _rows(picture: Image | FloatTiff) -> int:
    """Rows that are converted at one time."""
    return max(1, STRIP // picture.size[0])


def _turned(opened: Opened, channels: int, dtype: np.dtype) -> np.ndarray:
    """Reads the pixels (H, W, channels), rotated."""
    width, height = opened.size
    pixels = np.empty((*((width, height) if opened.orientation in SIDEWAYS else (height, width)), channels), dtype)
    rows = before_rotation(pixels, opened.orientation)
    for top, samples in opened.strips:
        rows[top : top + len(samples)] = with_channels(samples, channels)
    return pixels


def _opened(picture: Any, to_srgb: Conversion | None) -> Opened:
    """Reads the picture into Pillow's pixels of 8 bits."""
    transparent = _transparent_value(picture)  # before the pixels are read, as Pillow then forgets their depth
    picture.load()
    upright = orientation(picture)  # after: Pillow turns a TIFF itself, and then says that it is upright
    if picture.mode in ("F", "I"):
        raise InputError(
            f"a picture in Pillow's mode {picture.mode!r} has no known white: give 8 or 16 bits per channel, "
            "or an array in [-1, 1]."
        )
    return Opened(picture.size, upright, _strips(picture, transparent, to_srgb))


def _strips(picture: Image, transparent: Any, to_srgb: Conversion | None) -> Iterator[tuple[int, np.ndarray]]:
    (width, height), rows = picture.size, _rows(picture)
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(height, top + rows)))
        if to_srgb is None:
            yield top, _samples(strip, transparent)
        elif strip.mode == to_srgb.mode == "CMYK":
            yield top, np.asarray(to_srgb.rgb(strip))
        else:
            yield top, to_srgb(_samples(strip, transparent))


def _samples(strip: Image, transparent: Any) -> np.ndarray:
    """A part of a picture -> (H, W, C) uint8: grey, RGB or RGBA."""
    if not strip.has_transparency_data:
        return np.asarray(strip)[..., None] if strip.mode == "L" else np.asarray(strip.convert("RGB"))
    if transparent is not None:
        strip.info["transparency"] = transparent
    if strip.mode == "La":
        strip = strip.convert("LA")
    return np.asarray(strip if strip.mode == "LA" else strip.convert("RGBA"))


def reading_bytes(picture: Any, file_size: int, channels: int = 3) -> int:
    """Bytes that `as_pixels` holds at one time, if the header is true.

    `picture` has just been opened, from a file of `file_size` bytes.
    """
    pixels, found = math.prod(picture.size), deep(picture)
    compressed = picture.format == "TIFF" and picture.info.get("compression") != "raw"  # then the file is read whole
    if found is not None:
        return found.memory + max(pixels * channels * found.dtype.itemsize, file_size * compressed)
    stored = 1 if picture.mode in ("1", "L", "P") else 4
    decoder = WHOLE.get(picture.format or "", 0)
    if picture.format == "JPEG2000":
        decoder = JPEG2000_CHANNEL * len(picture.getbands())
    elif "progressive" in picture.info:
        decoder = PROGRESSIVE_JPEG
    elif picture.format == "TIFF" and orientation(picture) != 1:
        decoder = stored  # Pillow turns the whole
    # What the decoder holds is free when the bytes of each pixel's channels are written.
    return pixels * stored + max(pixels * decoder, file_size * compressed, pixels * channels)


def value_bytes(picture: Image | FloatTiff) -> int:
    """Bytes of each value that `as_pixels` returns, if the header is true."""
    found = deep(picture)
    return 1 if found is None else found.dtype.itemsize


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Raises whatever Pillow's readers raise, which for damaged data is almost anything, as InputError."""
    from PIL import Image

    try:
        with quiet():
            yield
    except VaespecError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large ({error}): give a smaller picture.") from None
    except MemoryError:
        raise InputError(f"{name} takes more memory than there is: give a smaller picture.") from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror is not None:
            raise InputError(f"{name} cannot be read ({error.strerror}): check the file and its disk.") from None
        raise InputError(f"{name} is a damaged picture ({error}): copy or download it again.") from None


def _transparent_value(picture: Image) -> Any:
    """The picture's one transparent value or colour, in the units of its pixels in memory.

    A PNG gives it in the units of the file, as Pillow does; Pillow's pixels of 2 and 4 bits are stretched to 8, and of
    three channels of 16 bits only the upper bytes are left.
    """
    value, tiles = picture.info.get("transparency"), getattr(picture, "tile", None)
    stored = str(tiles[0][3]) if tiles else ""  # Pillow's name for the form of the pixels in the file
    if isinstance(value, int) and stored in STRETCHED:
        return value * STRETCHED[stored]
    if isinstance(value, tuple) and stored == "RGB;16B":
        return tuple(channel >> 8 for channel in value)
    return value
